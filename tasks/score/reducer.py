"""A score of training dynamics as a fold over epochs, whether visits are streamed, stored or merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Reducer", "Visit"]

State = Mapping[str, torch.Tensor]


class Visit:
    """What an epoch showed of all samples.

    Attributes:
        epoch: from 0.
        count: visits of each sample so far, this one included; float64 (n,).
        margin, loss, …: the problem's columns, float64 (n,).
    """

    def __init__(self, epoch: int, count: torch.Tensor, columns: Mapping[str, torch.Tensor]) -> None:
        self.epoch, self.count = epoch, count
        self._columns = columns

    def __getattr__(self, name: str) -> torch.Tensor:
        try:
            return self._columns[name]
        except KeyError:
            have = ", ".join(self._columns)
            raise AttributeError(f"a visit has no column {name!r}; it has {have}") from None


@dataclass(frozen=True)
class Reducer:
    """A score that each epoch adds to. Samples that an epoch does not visit keep their state.

    Args:
        state: names of the numbers that are kept of each sample, 0 at the start.
        update: state and visit to the new state; float64 (n,) each.
        result: state to the score; ``state["visits"]`` and ``state["epochs"]`` count its visits and all
            epochs. Reducers with the same ``update`` share their state.

    Called with stored log-probabilities (E, N, C) and labels (N,) it gives the score, float32 (N,).

    >>> total = Reducer(("loss",), lambda s, v: {"loss": s["loss"] + v.loss}, lambda s: s["loss"])
    >>> total(np.log([[[0.5, 0.5]]] * 3), [0]).round(4)
    array([2.0794], dtype=float32)
    """

    state: tuple[str, ...]
    update: Callable[[State, Visit], dict[str, torch.Tensor]]
    result: Callable[[State], torch.Tensor]

    def __call__(self, log_probs: Any, labels: Any) -> NDArray[np.float32]:
        from winnow.tasks.score.dynamics import replayed

        return replayed(log_probs, labels, {"score": self}, normalised=True)["score"]
