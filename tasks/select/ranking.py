"""Rows by key: the one way in which selectors sort and take the best, ties broken by the seeded generator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["order"]


def order(values: NDArray[Any], ties: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Rows by ascending value, ties by the ``ties``, random numbers.

    As ``np.lexsort((ties, values))``, several times as fast where few values are tied: NumPy sorts one array
    by vector instructions.

    >>> order(np.array([2, 1, 1]), np.array([0.0, 0.9, 0.1])).tolist()
    [2, 1, 0]
    """
    rows = np.argsort(values)
    ordered = values[rows]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
        run = (~same[tied - 1]).cumsum()  # of equal values; the first one's number does not matter
        rows[tied] = rows[tied][np.lexsort((ties[rows[tied]], run))]
    return rows
