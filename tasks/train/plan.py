"""Which rows an epoch trains on, and with which weights: chosen by hiding policies, fixed for coresets."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.hardware import torch_generator

__all__ = ["EpochPlan", "Everything", "Policy", "shuffled"]


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch trains on; on the CPU, the same for every rank.

    Attributes:
        rows: int64 (m,), rows of the training set.
        weights: float32 (m,), positive; a step minimises Σ w_i ℓ_i / Σ w_i over its batch. None: all alike.
    """

    rows: torch.Tensor
    weights: torch.Tensor | None = None

    def at(self, positions: Any) -> EpochPlan:
        """Some of its rows, in this order."""
        return EpochPlan(self.rows[positions], None if self.weights is None else self.weights[positions])


class Policy(Protocol):
    """Plans epochs one by one."""

    def plan(self, epoch: int, seen: Mapping[str, torch.Tensor], generator: torch.Generator) -> EpochPlan:
        """The plan of an epoch, a pure function of its arguments.

        Args:
            epoch: from 0.
            seen: what the last visit of each row showed, by column (``loss``, ``correct``, …), each (n,);
                empty where nothing is recorded.
            generator: on the CPU; for this epoch alone, so that a resumed run plans like an undisturbed one.
        """

    def identity(self) -> str:
        """Tells this policy from others, for checkpoints."""


class Everything:
    """All rows in every epoch.

    Args:
        n: rows.
        weights: float (n,), positive and the same in every epoch; None weighs all equally.

    Raises:
        BadInput: weights of another length, or not positive; names the row.

    >>> Everything(3).plan(0, {}, torch.Generator()).rows.tolist()
    [0, 1, 2]
    """

    def __init__(self, n: int, weights: NDArray[np.floating] | None = None) -> None:
        if weights is None:
            self._plan = EpochPlan(torch.arange(n))
            return
        values = np.array(weights, np.float32)
        if values.shape != (n,):
            raise BadInput(f"weights have shape {values.shape}, there are {n} targets.")
        wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(wrong):
            raise BadInput(
                f"weights[{wrong[0]}] = {values[wrong[0]]} is not positive.",
                remedy="leave samples of weight 0 out of rows",
            )
        self._plan = EpochPlan(torch.arange(n), torch.from_numpy(values))

    def plan(self, epoch: int, seen: Mapping[str, torch.Tensor], generator: torch.Generator) -> EpochPlan:
        return self._plan

    def identity(self) -> str:
        weights = self._plan.weights
        return "all" if weights is None else f"all, weights {zlib.crc32(weights.numpy().tobytes()):08x}"


def shuffled(plan: EpochPlan, seed: int, epoch: int) -> EpochPlan:
    """The plan in training order, which depends on its length, the seed and the epoch alone."""
    order = torch.randperm(len(plan.rows), generator=torch_generator(seed, "order", str(epoch)))
    return plan.at(order)
