"""Measurements of the package itself; a package so that no other "benchmarks" hides it."""
