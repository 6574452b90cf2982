"""GLISTER as published: DeepCore@74ec709 deepcore/methods/glister.py."""

from __future__ import annotations

import numpy as np

from winnow.tasks.select.last_layer import correlation, mean_gradient, relevant
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.upstream.batches import of_batches

__all__ = ["glister"]


def glister(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    validation: Signals | None = None,
    batch: int = 256,
) -> Selection:
    """GLISTER without steps, on gradients divided by the size of their batch: the k largest ⟨g_i, ∇L_V(θ)⟩.

    Args:
        validation: samples whose loss is to fall.
        batch: size of the batches by which gradients are divided.
    """
    slope = mean_gradient(of_batches(relevant(signals, validation), batch))
    products = correlation(of_batches(signals, batch), slope)
    rows = order(-products, np.arange(signals.n, dtype=np.float64))[:budget]
    return Selection.of(rows, gains=products[rows])
