"""Probabilities of a network, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.signals import Signals

__all__ = ["checked_probabilities"]

ROWS = 8192  # samples at a time
OFF_BY = 1e-3  # how far a row's sum may be from 1: float16 rounds by half of it


def checked_probabilities(signals: Signals) -> NDArray[np.floating[Any]]:
    """The probabilities of the signals.

    Raises:
        BadInput: a negative one, or a row that does not sum to one; names the row.

    >>> checked_probabilities(Signals(n=2, probabilities=np.array([[0.5, 0.5], [0.5, 0.6]])))
    Traceback (most recent call last):
    winnow.BadInput: probabilities: row 1 sums to 1.1.
      next: give softmax outputs, not logits
    """
    probabilities = signals.probabilities
    for block in blocks(signals.n, ROWS):
        rows = probabilities[block]
        lowest, total = rows.min(axis=1, initial=0.0), rows.sum(axis=1, dtype=np.float64)
        off = np.abs(total - 1) > OFF_BY
        for wrong, what, values in ((lowest < 0, "holds", lowest), (off, "sums to", total)):
            if wrong.any():
                row = int(wrong.argmax())
                raise BadInput(
                    f"probabilities: row {block.start + row} {what} {values[row]:g}.",
                    remedy="give softmax outputs, not logits",
                )
    return probabilities
