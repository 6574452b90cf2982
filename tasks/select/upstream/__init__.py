"""Replays of the published code, one module per method; ``upstream=True`` runs them, nothing else does."""
