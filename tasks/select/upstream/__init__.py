"""Replays of the published code, a module a method; ``upstream=True`` runs them, nothing else does."""
