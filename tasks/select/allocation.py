"""Shares of a budget: what a cut leaves room for, and water-filling over strata or classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput

__all__ = ["beyond", "check_fits", "water_fill"]


def check_fits(n: int, budget: int, mis_ratio: float) -> int:
    """Number of hardest samples to drop; an error when the cut and the budget do not fit into n samples.

    Raises:
        BadInput: ``mis_ratio`` outside [0, 1), or too few samples left.

    >>> check_fits(200, 60, 0.2)
    40
    >>> check_fits(200, 140, 0.4)
    Traceback (most recent call last):
    winnow.BadInput: mis_ratio = 0.4 drops 80 of 200 samples; 140 of the remaining 120 cannot be kept.
      next: lower mis_ratio to at most 0.3, or keep fewer samples
    """
    if not 0 <= mis_ratio < 1:
        raise BadInput(
            f"mis_ratio = {mis_ratio:g} is outside [0, 1).",
            remedy="it is the share of hardest samples that is dropped first",
        )
    dropped = int(mis_ratio * n)
    if dropped + budget > n:
        raise BadInput(
            f"mis_ratio = {mis_ratio:g} drops {dropped} of {n} samples; {budget} of the remaining "
            f"{n - dropped} cannot be kept.",
            remedy=f"lower mis_ratio to at most {1 - budget / n:g}, or keep fewer samples",
        )
    return dropped


def water_fill(populations: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Share a budget evenly over strata: what a small one cannot use goes to the larger ones.

    Args:
        populations: int64 (strata,); of equal ones the first is served first.
        budget: to share.

    Returns:
        int64 (strata,) samples to take from each stratum; sums to min(budget, population).

    References:
        Zheng et al., Coverage-centric Coreset Selection for High Pruning Rates, ICLR 2023, algorithm 1.

    >>> water_fill(np.array([1, 10, 4]), 9).tolist()
    [1, 4, 4]
    """
    shares = np.zeros_like(populations)
    left = budget
    for done, stratum in enumerate(np.argsort(populations, kind="stable")):
        shares[stratum] = min(populations[stratum], left // (len(populations) - done))
        left -= shares[stratum]
    return shares


def beyond(shares: NDArray[np.int64], have: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """What each share of all lacks, given what it has: ``budget`` together.

    Where some have more than their share already, the others give way, the largest first.

    >>> beyond(np.array([3, 3, 4]), np.array([5, 1, 1]), 3).tolist()
    [0, 1, 2]
    """
    missing = np.maximum(shares - have, 0)
    while missing.sum() > budget:
        missing[missing.argmax()] -= 1
    return missing
