"""A score of training dynamics as a fold over epochs, whether visits are streamed, stored or merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from winnow.tasks.errors import BadInput
from winnow.tasks.train.problems.classification import COLUMNS, measure

__all__ = ["Array", "Folds", "Reducer", "Scores", "Visit", "averaged", "checked", "stored_scores", "summed"]

Array = np.ndarray | torch.Tensor
Scores = dict[str, NDArray[np.float32]]
State = Mapping[str, torch.Tensor]


class Visit:
    """What an epoch showed about all samples.

    Attributes:
        epoch: from 0.
        count: visits to each sample so far, including this one; float64 (n,).
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
        state: names of the numbers kept per sample, 0 at the start.
        update: maps state and visit to the new state; float64 (n,) each.
        result: maps state to the score; ``state["visits"]`` and ``state["epochs"]`` count its visits and all
            epochs. Reducers with the same ``update`` share their state.

    Called with stored log-probabilities (E, N, C) and labels (N,), it gives the score, float32 (N,).

    >>> total = Reducer(("loss",), lambda s, v: {"loss": s["loss"] + v.loss}, lambda s: s["loss"])
    >>> total(np.log([[[0.5, 0.5]]] * 3), [0]).round(4)
    array([2.0794], dtype=float32)
    """

    state: tuple[str, ...]
    update: Callable[[State, Visit], dict[str, torch.Tensor]]
    result: Callable[[State], torch.Tensor]

    def __call__(self, log_probs: Any, labels: Any) -> NDArray[np.float32]:
        return stored_scores(log_probs, labels, {"score": self}, normalised=True)["score"]


def summed(column: str) -> Reducer:
    """The sum of a visit's column over epochs."""
    return Reducer(
        ("total",),
        update=lambda state, visit: {"total": state["total"] + getattr(visit, column)},
        result=lambda state: state["total"],
    )


def averaged(column: str) -> Reducer:
    """The mean of a visit's column over the epochs that visited the sample."""
    return replace(summed(column), result=lambda state: state["total"] / state["visits"])


class Folds:
    """The states of some reducers, O(n) float64, after the epochs so far."""

    def __init__(self, n: int, reducers: Mapping[str, Reducer], device: torch.device) -> None:
        self.reducers = dict(reducers)
        self.epochs = 0
        self.visits = torch.zeros(n, dtype=torch.float64, device=device)
        shared = {id(reducer.update): reducer for reducer in self.reducers.values()}
        self.states = {
            update: {name: torch.zeros_like(self.visits) for name in reducer.state}
            for update, reducer in shared.items()
        }
        self._updates = {update: reducer.update for update, reducer in shared.items()}

    def fold(self, epoch: int, columns: Mapping[str, torch.Tensor], seen: torch.Tensor) -> None:
        """Add an epoch: columns (n,); rows that are not ``seen`` keep their state."""
        self.epochs += 1
        self.visits += seen
        wide = {name: values.double() for name, values in columns.items()}
        visit = Visit(epoch, self.visits.clamp(min=1), wide)
        for update, state in self.states.items():
            for name, values in self._updates[update](state, visit).items():
                state[name] = values.where(seen, state[name])

    def scores(self) -> Scores:
        """Raises: BadInput: a sample was never seen."""
        unseen = (self.visits == 0).nonzero()
        if len(unseen):
            raise BadInput(
                f"sample {int(unseen[0])} was never seen ({len(unseen)} of {len(self.visits)}).",
                remedy="record a whole epoch at least",
            )
        common = {"visits": self.visits, "epochs": torch.full_like(self.visits, self.epochs)}
        return {
            name: reducer.result({**self.states[id(reducer.update)], **common}).float().cpu().numpy()
            for name, reducer in self.reducers.items()
        }

    def tensors(self) -> list[torch.Tensor]:
        """All states in a fixed order, for checkpoints."""
        return [self.visits, *(state[name] for state in self.states.values() for name in sorted(state))]

    def restore(self, tensors: list[torch.Tensor]) -> None:
        device = self.visits.device
        self.visits = tensors[0].to(device)
        rest = iter(tensors[1:])
        for state in self.states.values():
            for name in sorted(state):
                state[name] = next(rest).to(device)


def stored_scores(
    stored: Array, labels: Array, reducers: Mapping[str, Reducer], *, normalised: bool
) -> Scores:
    """All scores from stored logits (E, N, C), or log-probabilities (``normalised``), epoch by epoch.

    Raises:
        BadInput: wrong shapes, NaN, or a label outside the classes.
    """
    outputs, targets = checked(stored, labels, "log_probs" if normalised else "logits")
    targets = targets.to(outputs.device)
    folds = Folds(len(targets), reducers, outputs.device)
    all_seen = torch.ones_like(targets, dtype=torch.bool)
    for epoch, rows in enumerate(outputs):
        rows = rows.float()
        values = measure(rows if normalised else F.log_softmax(rows, dim=1), targets)
        folds.fold(epoch, dict(zip(COLUMNS, values.T, strict=True)), all_seen)
    return folds.scores()


def checked(outputs: Array, labels: Array, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Stored outputs (E, N, C) and labels (N,) as tensors.

    Raises:
        BadInput: wrong shapes, NaN, or a label outside the classes.
    """
    values, targets = torch.as_tensor(outputs), torch.as_tensor(labels).long()
    if values.ndim != 3 or min(values.shape[:2]) < 1 or values.shape[2] < 2 or not values.is_floating_point():
        raise BadInput(
            f"{name} is {values.dtype} {tuple(values.shape)}, not a float array of (epochs, samples, 2 or "
            "more classes)."
        )
    if targets.shape != values.shape[1:2]:
        raise BadInput(f"labels have shape {tuple(targets.shape)}, {name} has {values.shape[1]} samples.")
    wrong = ((targets < 0) | (targets >= values.shape[2])).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise BadInput(f"labels[{row}] = {int(targets[row])} is not one of {values.shape[2]} classes.")
    unusable = (values.isnan() | (values == torch.inf)).any(-1)
    if unusable.any():
        epoch, row = unusable.nonzero()[0].tolist()
        raise BadInput(f"{name}[{epoch}, {row}] holds NaN or infinity.")
    return values, targets
