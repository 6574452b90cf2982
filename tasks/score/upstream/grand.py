"""GraNd as published: DeepCore@74ec709 deepcore/methods/grand.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.score.gradients import Repeats, batch_sizes, mean_lengths

__all__ = ["grand"]


def grand(residuals: Repeats, features: Repeats, *, batch: int = 256) -> NDArray[np.float32]:
    """GraNd with each gradient divided by the size of its batch: samples of a smaller last one look harder.

    Args:
        residuals: as the score takes them.
        features: as the score takes them.
        batch: size of the batches.

    Returns:
        float32 (N,).

    Raises:
        BadInput: ``batch`` below 1.

    >>> grand(np.array([[0.6, -0.8]] * 3), np.array([[2.0, 2.0]] * 3), batch=2).tolist()
    [1.5, 1.5, 3.0]
    """
    lengths = mean_lengths(residuals, features)
    return (lengths / batch_sizes(len(lengths), batch)).astype(np.float32)
