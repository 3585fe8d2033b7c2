"""Real secrets in a corpus: detectors, scan, and how memorized each one is."""
