"""Secrets and their formats, canary sets and manifests, and their insertion into a corpus."""
