"""Findings in words: plots, the HTML page, model cards, the Hub."""
