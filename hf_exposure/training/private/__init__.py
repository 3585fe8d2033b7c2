"""Training with DP-SGD."""
