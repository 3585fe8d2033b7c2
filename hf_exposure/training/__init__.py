"""Measuring while the Trainer trains."""
