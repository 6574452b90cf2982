"""Replays of published embedding code, faults included, for comparison with its results."""
