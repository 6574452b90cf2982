"""The two baselines: everything, and a random subset."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["definition", "full", "random"]


def definition(signals: Signals, budget: int, *, generator: np.random.Generator) -> NDArray[np.int64]:
    """A random subset, the rows of lowest random numbers: the reference that tests hold ``random`` to."""
    return np.argsort(generator.random(signals.n))[:budget]


def full(signals: Signals, budget: int, *, generator: np.random.Generator) -> Selection:
    """Keep every sample: the ceiling that coresets are compared with.

    Raises:
        BadInput: the budget is not all samples.

    >>> full(Signals(n=3), 3, generator=np.random.default_rng(0)).indices.tolist()
    [0, 1, 2]
    """
    if budget != signals.n:
        raise BadInput(
            f"full keeps all {signals.n} samples, not {budget}.",
            remedy="use fraction 1.0, or the selector random",
        )
    return Selection.of(np.arange(signals.n))


def random(signals: Signals, budget: int, *, generator: np.random.Generator) -> Selection:
    """Keep a uniform random subset without replacement: the baseline that every method must beat.

    A smaller subset with the same seed is a prefix of a larger one.

    Args:
        signals: n (and ids, to which the draw is tied).
        budget: k, samples to keep.
        generator: of the draw.

    Returns:
        Selection in random order.

    >>> random(Signals(n=100), 3, generator=np.random.default_rng(0)).indices.tolist()
    [11, 92, 3]
    """
    keys = generator.random(signals.n)
    return Selection.of(order(keys, keys)[:budget])
