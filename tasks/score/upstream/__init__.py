"""Replays of the published code, one module per score; ``upstream=True`` runs them, nothing else does."""
