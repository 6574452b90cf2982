"""Replays of the published code, a module a score; ``upstream=True`` runs them, nothing else does."""
