"""Rows a block at a time, which bounds temporary memory."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["blocks"]


def blocks(n: int, size: int) -> Iterator[slice]:
    """The slices of at most ``size`` that make up n rows.

    >>> list(blocks(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
