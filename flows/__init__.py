"""Winnow's flows: each links cached tasks and reads like the method section of its paper."""
