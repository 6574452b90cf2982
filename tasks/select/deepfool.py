"""DeepFool active learning's criterion: the samples closest to the decision boundary."""

from __future__ import annotations

import numpy as np

from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.top import top

__all__ = ["deepfool"]


def deepfool(
    signals: Signals, budget: int, *, generator: np.random.Generator, hardest: bool = True
) -> Selection:
    """Keep the samples closest to the decision boundary.

    :func:`top` with score ``"deepfool"`` of ``winnow.tasks.score``, the squared length of the perturbation
    that changes the prediction; low is hard.

    Args:
        signals: score ``deepfool``.
        budget: k, samples to keep.
        generator: breaks ties.
        hardest: False keeps the easiest.

    Returns:
        Selection from the most extreme sample on; gains are the scores.

    References:
        Ducoffe and Precioso, Adversarial Active Learning for Deep Networks: a Margin Based Approach, 2018.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/deepfool.py.

    >>> s = Signals(n=3, scores={"deepfool": np.array([3.0, 1.0, 2.0])})
    >>> deepfool(s, 2, generator=np.random.default_rng(0)).indices.tolist()
    [1, 2]
    """
    return top(signals, budget, generator=generator, score="deepfool", hardest=hardest)
