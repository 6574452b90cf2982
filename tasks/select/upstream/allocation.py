"""Water-filling as published, for the replays of CCS and D2."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.tasks.select import allocation

__all__ = ["water_fill"]


def water_fill(populations: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """The shares of ``allocation.water_fill``, with torch's order of strata of equal population.

    torch's sort is unstable; the order decides which of them gets an odd sample.

    >>> water_fill(np.array([1, 10, 4]), 9).tolist()
    [1, 4, 4]
    """
    smallest_first = torch.argsort(torch.from_numpy(populations)).numpy()
    shares = np.empty_like(populations)
    shares[smallest_first] = allocation.water_fill(populations[smallest_first], budget)
    return shares
