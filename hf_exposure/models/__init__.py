"""The only code that runs a model: next-token log-probabilities, caches, processes, loading."""
