"""What a network learns: inputs, targets, loss, and what each visit measures. One file per problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from winnow.tasks.train.recipe import Recipe

__all__ = ["Batch", "Loader", "Problem"]


@dataclass(frozen=True)
class Batch:
    """Some rows of a set, on the device.

    Attributes:
        rows: int64 (b,), rows of the set.
        inputs: what the network takes, (b, …).
        targets: what the loss takes, (b, …).
    """

    rows: torch.Tensor
    inputs: torch.Tensor
    targets: torch.Tensor


class Loader(Protocol):
    """A set open for reading.

    Attributes:
        n: rows.
        sites: positions of one input at which every weight is applied (pixels, tokens); tells how large a
            step is.
        values: numbers in one input.
    """

    n: int
    sites: int
    values: int

    def training(self, rows: torch.Tensor, epoch: int, batch_size: int) -> Iterator[Batch]:
        """Batches of these rows (int64, on the CPU) in their order, augmented for that epoch."""

    def plain(self, batch_size: int) -> Iterator[Batch]:
        """All rows in order, not augmented."""

    def close(self) -> None:
        """End worker processes."""


class Problem(Protocol):
    """What differs between images, text and segmentation; all else is the loop's.

    Attributes:
        n: rows of the set.
        columns: names of what a visit of a row measures.
    """

    n: int
    columns: tuple[str, ...]

    def shape(self, recipe: Recipe) -> dict[str, Any]:
        """What the recipe's network is built for: keyword arguments of a registered network."""

    def open(self, recipe: Recipe, device: torch.device, *, seed: int, training: bool) -> Loader:
        """The set on that device, prepared for training or for evaluation by the recipe."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, recipe: Recipe) -> torch.Tensor:
        """The loss of each row, float32 (b,)."""

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """What accuracy counts, (b,): 1 or True where a row is right."""

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """``columns`` of each row, float32 (b, len(columns))."""

    def identity(self) -> str:
        """Tells this set from others, for checkpoints."""
