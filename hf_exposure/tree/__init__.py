"""The tree of token prefixes of a secret space, and the one walk through it."""
