"""GradMatch as published: DeepCore@74ec709 deepcore/methods/gradmatch.py."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from winnow.tasks.select.last_layer import correlation, mean_gradient, relevant
from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.upstream.batches import of_batches

__all__ = ["gradmatch"]


def gradmatch(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    lam: float = 1.0,
    validation: Signals | None = None,
    batch: int = 256,
) -> Selection:
    """GradMatch with λ = 1 on gradients divided by the size of their batch; fewer samples than asked for.

    Weights may have any sign while samples enter; at the end they are solved for once more, non-negative, and
    samples of weight 0 are dropped.

    Args:
        lam: taken and ignored, as published: λ is 1.
        validation: match the mean gradient of these samples instead.
        batch: size of the batches by which gradients are divided.
    """
    gradients = of_batches(signals, batch)
    target = mean_gradient(of_batches(relevant(signals, validation), batch))
    picks: list[int] = []
    left_over = target
    gram, against = np.empty((budget, budget)), np.empty(budget)
    for m in range(budget):
        products = correlation(gradients, left_over)
        products[picks] = -np.inf
        picks.append(int(np.argmax(products)))
        b, u = gradients.b[picks].astype(np.float64), gradients.u[picks].astype(np.float64)
        gram[m, : m + 1] = gram[: m + 1, m] = (b @ b[m]) * (u @ u[m])
        against[m] = b[m] @ target @ u[m]
        system = gram[: m + 1, : m + 1] + np.eye(m + 1)
        weights = np.linalg.solve(system, against[: m + 1]) if m else against[:1] / gram[0, 0]
        left_over = target - (weights[:, None] * b).T @ u
    weights = nnls(system, against)[0] if budget > 1 else np.ones(1)
    kept = np.flatnonzero(weights)
    return Selection.of(np.array(picks)[kept], weights=weights[kept])
