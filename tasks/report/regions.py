"""What a selection dropped: samples harder than all it kept, easier than all, or in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from winnow.tasks.errors import BadInput

__all__ = ["HigherIs", "cutoffs", "regions"]

HigherIs = Literal["easier", "harder"]


def regions(
    scores: ArrayLike, kept: ArrayLike, *, higher_is: HigherIs = "easier"
) -> dict[str, NDArray[np.int64]]:
    """Rows kept, and rows dropped: harder than every kept one, easier than every kept one, or in between.

    Args:
        scores: (N,) float.
        kept: (k,) int rows kept.
        higher_is: what a high score means.

    Returns:
        The (n,) int64 rows of ``"too hard"``, ``"kept"``, ``"too easy"`` and ``"between"``, ascending;
        together they are all N.

    Raises:
        BadInput: a score is NaN, a row does not exist, or nothing was kept.

    >>> {name: rows.tolist() for name, rows in regions([0.1, 0.2, 0.3, 0.4, 0.5], [1, 3]).items()}
    {'too hard': [0], 'kept': [1, 3], 'too easy': [4], 'between': [2]}
    """
    values = np.asarray(scores, dtype=np.float64)
    rows = np.asarray(kept, dtype=np.int64)
    if values.ndim != 1 or not len(values):
        raise BadInput(f"scores has shape {values.shape}, not (N,) with N > 0.")
    if np.isnan(values).any():
        raise BadInput(f"scores[{int(np.flatnonzero(np.isnan(values))[0])}] is NaN.")
    outside = rows[(rows < 0) | (rows >= len(values))]
    if len(outside):
        raise BadInput(f"kept names row {int(outside[0])} of {len(values)}.")
    if len(rows) == 0:
        raise BadInput("kept is empty: nothing was selected.")
    inside = np.zeros(len(values), bool)
    inside[rows] = True
    ease = values if higher_is == "easier" else -values
    hardest, easiest = ease[inside].min(), ease[inside].max()
    return {
        "too hard": np.flatnonzero(ease < hardest),
        "kept": np.flatnonzero(inside),
        "too easy": np.flatnonzero(ease > easiest),
        "between": np.flatnonzero(~inside & (ease >= hardest) & (ease <= easiest)),
    }


def cutoffs(
    scores: NDArray[np.float64], parts: Mapping[str, NDArray[np.int64]], higher_is: HigherIs
) -> dict[str, float]:
    """Scores of the hardest and the easiest kept sample, for each end at which samples were dropped.

    >>> scores = np.array([0.1, 0.2, 0.3, 0.4])
    >>> cutoffs(scores, regions(scores, [1, 3]), "easier")
    {'too hard': 0.2}
    """
    inside = scores[parts["kept"]]
    ends = (inside.min(), inside.max()) if higher_is == "easier" else (inside.max(), inside.min())
    named = zip(("too hard", "too easy"), ends, strict=True)
    return {name: float(end) for name, end in named if len(parts[name]) and np.isfinite(end)}
