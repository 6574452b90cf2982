"""The published choice of TEMI's and ELFS's epoch: by test labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from winnow.tasks.errors import BadInput
from winnow.tasks.train.heads import checked_features, predict
from winnow.tasks.train.metrics import clustering_metrics

__all__ = ["ByTestLabels"]

SAVED_EVERY = 20  # epochs between the checkpoints that the published code chooses from


class ByTestLabels:
    """The head of lowest training loss, of the epoch whose clusters agree best with test labels.

    Among every 20th epoch and never the last: label-free only in name, and only for replaying published
    results.

    Args:
        features: (M, D) float, test embeddings.
        labels: (M,) int, test labels.
        device: where clusters are computed.

    Raises:
        BadInput: lengths that do not match, NaN or infinite rows.

    References:
        HHU-MMBS/TEMI-official-BMVC2023 eval_cluster.py; eltsai/elfs eval_cluster.py
    """

    sees_labels = True

    def __init__(
        self, features: NDArray[np.floating], labels: NDArray[np.integer], device: torch.device | None = None
    ) -> None:
        self._features = checked_features("test features", features)
        if len(features) != len(labels):
            raise BadInput(f"{len(features)} test features and {len(labels)} test labels.")
        self._labels, self._device = labels, device

    def __call__(
        self, epoch: int, losses: Tensor, teacher_losses: Tensor, state_of: Callable[[int], Mapping[str, Any]]
    ) -> tuple[int, float] | None:
        if epoch % SAVED_EVERY:
            return None
        head = int(losses.argmin())
        clusters, _ = predict(state_of(head), self._features, device=self._device)
        return head, clustering_metrics(clusters, self._labels)["accuracy"]
