"""Models that are served: the same questions, asked over HTTP."""
