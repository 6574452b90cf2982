"""A problem in one file: regression, with a squared error instead of classes, and with its own score.

The training loop takes it as it takes image classification: recipes, schedules, plans, checkpoints and
recorders are the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from winnow.tasks.train.problems import Batch
from winnow.tasks.train.recipe import Recipe


@dataclass
class Rows:
    """A dataset on the device, read in any order."""

    inputs: torch.Tensor
    targets: torch.Tensor
    sites: int = 1

    def __post_init__(self) -> None:
        self.n, self.values = len(self.inputs), self.inputs[0].numel()

    def training(self, rows: torch.Tensor, epoch: int, batch_size: int) -> Iterator[Batch]:
        for part in rows.to(self.inputs.device).split(batch_size):
            yield Batch(part, self.inputs[part], self.targets[part])

    def plain(self, batch_size: int) -> Iterator[Batch]:
        yield from self.training(torch.arange(self.n), 0, batch_size)

    def close(self) -> None:
        pass


class LeastSquares:
    """Square inputs (n, 1, side, side) and what to predict for each, (n,).

    >>> from winnow.tasks.score.recorder import Recorder
    >>> from winnow.tasks.score.reducer import Reducer
    >>> from winnow.tasks.train.loop import train
    >>> generator = np.random.default_rng(0)
    >>> inputs = generator.normal(size=(200, 1, 4, 4))
    >>> problem = LeastSquares(inputs, inputs.mean(axis=(1, 2, 3)))
    >>> error = Reducer(("sum",), lambda s, v: {"sum": s["sum"] + v.error}, lambda s: s["sum"] / s["visits"])
    >>> recorder = Recorder(problem.n, problem.columns, problem.measure, {"error": error})
    >>> recipe = Recipe(network="mlp", epochs=20, batch_size=50, lr=0.05)
    >>> trained = train(problem, recipe, seed=0, observe=recorder, test=problem)
    >>> losses = [row["loss"] for row in trained.history if row["split"] == "train"]
    >>> losses[-1] < losses[0] / 10, recorder.scores()["error"].shape
    (True, (200,))
    """

    columns = ("error",)

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, *, tolerance: float = 0.1) -> None:
        self.inputs = torch.as_tensor(inputs, dtype=torch.float32)
        self.targets = torch.as_tensor(targets, dtype=torch.float32)
        self.n, self.tolerance = len(self.inputs), tolerance

    def shape(self, recipe: Recipe) -> dict[str, Any]:
        return {"classes": 1, "channels": 1, "size": self.inputs.shape[-1]}

    def open(self, recipe: Recipe, device: torch.device, *, seed: int, training: bool) -> Rows:
        return Rows(self.inputs.to(device), self.targets.to(device))

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, recipe: Recipe) -> torch.Tensor:
        return (outputs[:, 0] - targets).square()

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs[:, 0] - targets).abs() < self.tolerance

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets[:, None]).abs()

    def identity(self) -> str:
        return f"{self.n} rows, {zlib.crc32(self.targets.numpy().tobytes()):08x}"
