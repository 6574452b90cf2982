"""DeepCore's learning rate: a cosine that is an epoch late."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.train.recipe import Recipe

__all__ = ["late_cosine"]


def late_cosine(recipe: Recipe, at: NDArray[np.floating], total: int, per_epoch: int) -> NDArray[np.floating]:
    """A cosine with its driver's fault: the scheduler is created as if an epoch had yet to pass.

    With l the steps of an epoch, min_lr + (lr − min_lr)(1 + cos(π(t − l)/T))/(1 + cos(πl/T)): it starts at
    lr, rises a little, and does not quite reach its end.

    References:
        PatrickZH/DeepCore@74ec709 main.py (last_epoch = (start_epoch − 1) · len(loader))
    """
    scale = 1 + np.cos(np.pi * per_epoch / total)
    return (
        recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + np.cos(np.pi * (at - per_epoch) / total)) / scale
    )
