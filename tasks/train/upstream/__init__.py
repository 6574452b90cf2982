"""Replays of the published training code where it differs from what its paper says."""
