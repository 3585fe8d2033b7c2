"""Getting secrets and texts back out of a model."""
