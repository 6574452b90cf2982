"""Classification, whatever the inputs: cross-entropy, accuracy, and what training dynamics are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from winnow.tasks.errors import BadInput

if TYPE_CHECKING:
    from winnow.tasks.train.recipe import Recipe

__all__ = ["COLUMNS", "Classification", "checked_targets", "measure"]

COLUMNS = ("margin", "loss", "correct", "el2n", "entropy")


def measure(log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What a visit to a sample shows.

    With p = exp(log_probs) and y the label:

        margin = p_y − max_{j≠y} p_j        loss = −log p_y        correct = [argmax_j p_j = y]
        el2n = ‖p − onehot(y)‖₂             entropy = −Σ_j p_j log p_j

    Args:
        log_probs: float32 (…, C).
        labels: int64 (…).

    Returns:
        COLUMNS, float32 (…, 5).

    >>> values = measure(torch.tensor([0.8, 0.2]).log(), torch.tensor(0))
    >>> {name: f"{value:.2f}" for name, value in zip(COLUMNS, values)}
    {'margin': '0.60', 'loss': '0.22', 'correct': '1.00', 'el2n': '0.28', 'entropy': '0.50'}
    """
    at = labels.unsqueeze(-1)
    probs = log_probs.exp()
    label_log, label_prob = log_probs.gather(-1, at).squeeze(-1), probs.gather(-1, at).squeeze(-1)
    others = probs.scatter(-1, at, -1.0).amax(-1)
    correct = log_probs.argmax(-1) == labels
    error = torch.linalg.vector_norm(probs.scatter(-1, at, (label_prob - 1).unsqueeze(-1)), dim=-1)
    entropy = -(probs * log_probs.clamp(min=-1e4)).sum(-1)
    return torch.stack([label_prob - others, -label_log, correct.float(), error, entropy], dim=-1)


class Classification:
    """The half of a :class:`~winnow.tasks.train.problems.Problem` that all classifications share."""

    columns: tuple[str, ...] = COLUMNS

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, recipe: Recipe) -> torch.Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=recipe.label_smoothing, reduction="none")

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.argmax(1) == targets

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return measure(F.log_softmax(outputs, dim=1), targets)


def checked_targets(targets: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """The targets as int64.

    Raises:
        BadInput: no targets, or one that is not a class.
    """
    values = np.asarray(targets)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise BadInput(f"targets are {values.dtype} {values.shape}, not whole numbers (n,).")
    if len(values) == 0:
        raise BadInput("targets are empty.")
    wrong = np.flatnonzero((values < 0) | (values >= classes))
    if len(wrong):
        raise BadInput(f"targets[{wrong[0]}] = {values[wrong[0]]} is not one of {classes} classes.")
    return values.astype(np.int64)
