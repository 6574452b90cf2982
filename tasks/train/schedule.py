"""Learning rates as functions of progress: they end where they should, however many rows an epoch hides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.train.recipe import Recipe
from winnow.tasks.train.upstream.schedule import late_cosine

__all__ = ["learning_rates"]

Floats = NDArray[np.floating]


def learning_rates(recipe: Recipe, at: Floats, total: int, per_epoch: int) -> Floats:
    """The recipe's learning rate at given points of a training run.

    Progress is counted in steps of whole epochs: an epoch that trains on fewer rows takes fewer steps, which
    lie farther apart. In :class:`~winnow.tasks.train.recipe.Recipe`'s formulas t is ``at`` and T is
    ``total``.

    Args:
        recipe: scheduler and its parameters.
        at: float64 (m,), in [0, total).
        total: steps of the whole training.
        per_epoch: steps of an epoch that trains on all rows.

    Returns:
        float64 (m,).

    >>> learning_rates(Recipe(iterations=4, min_lr=0.02), np.arange(4.0), 4, 1).round(3).tolist()
    [0.1, 0.088, 0.06, 0.032]
    >>> recipe = Recipe(epochs=5, warmup=1, scheduler="step", step_size=2, gamma=0.5)
    >>> learning_rates(recipe, np.arange(5.0), 5, 1).round(4).tolist()
    [0.05, 0.1, 0.05, 0.05, 0.025]
    """
    rates: Floats
    unit = 1 if recipe.epochs is None else per_epoch
    warm = recipe.warmup * unit
    if recipe.scheduler == "onecycle":
        return _onecycle(recipe.lr, at, total)
    if recipe.scheduler == "deepcore":
        return late_cosine(recipe, at, total, per_epoch)
    if recipe.scheduler == "cosine":
        length = recipe.iterations or total  # with whole epochs, the last runs past the end of the cosine
        angle = np.pi * np.maximum(at - warm, 0) / (length - warm)
        rates = recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + np.cos(angle)) / 2
    elif recipe.scheduler == "multistep":
        passed = np.searchsorted(np.array(recipe.milestones) * unit, at, side="right")
        rates = recipe.lr * recipe.gamma**passed
    elif recipe.scheduler == "step":
        assert recipe.step_size is not None
        rates = recipe.lr * recipe.gamma ** (at // (recipe.step_size * unit))
    else:
        rates = np.full(len(at), recipe.lr)
    return rates * np.minimum((at + 1) / (warm + 1), 1) if warm else rates


def _onecycle(lr: float, at: Floats, total: int) -> Floats:
    up = max(0.3 * total - 1, 1e-9)
    down = max(total - 1 - up, 1e-9)
    rise, fall = np.clip(at / up, 0, 1), np.clip((at - up) / down, 0, 1)
    first, last = lr / 25, lr / 250_000
    climbing = lr + (first - lr) * (1 + np.cos(np.pi * rise)) / 2
    falling = last + (lr - last) * (1 + np.cos(np.pi * fall)) / 2
    return np.where(at <= up, climbing, falling)
