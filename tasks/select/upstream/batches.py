"""Last-layer gradients as DeepCore@74ec709 has them, for the replays of GradMatch and GLISTER."""

from __future__ import annotations

from winnow.tasks.score.gradients import LastLayer, batch_sizes
from winnow.tasks.select.signals import Signals

__all__ = ["of_batches"]


def of_batches(signals: Signals, batch: int) -> LastLayer:
    """Gradients of the mean loss of the batch that a sample falls into: divided by the batch's size.

    Raises:
        BadInput: ``batch`` below 1.
    """
    return LastLayer.of(signals.residuals / batch_sizes(signals.n, batch)[:, None], signals.features)
