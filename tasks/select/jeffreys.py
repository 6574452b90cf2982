"""Jeffreys' divergence between a network's predictions, the distance of contextual diversity and CAL."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TINY", "jeffreys"]

TINY = float(np.finfo(np.float32).tiny)  # a probability of 0 counts as the smallest that float32 has


def jeffreys(p: NDArray[Any], q: NDArray[Any]) -> NDArray[np.float64]:
    """J(p, q) = ½ KL(p‖q) + ½ KL(q‖p) = ½ Σ_c (p_c − q_c)(log p_c − log q_c), row by row.

    No term is negative, so none cancels.

    Args:
        p: (m, C) probabilities.
        q: (m, C).

    Returns:
        float64 (m,).

    >>> jeffreys(np.array([[0.5, 0.5]]), np.array([[0.5, 0.5]])).tolist()
    [0.0]
    """
    p, q = np.maximum(p.astype(np.float64), TINY), np.maximum(q.astype(np.float64), TINY)
    return 0.5 * np.einsum("nc,nc->n", p - q, np.log(p) - np.log(q))
