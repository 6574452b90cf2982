"""Training dynamics of a classifier: every score of them, from logits as they come or as stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from winnow.tasks.errors import BadInput
from winnow.tasks.registry import scores as registered_scores
from winnow.tasks.score.el2n import el2n_of
from winnow.tasks.score.recorder import EpochRows, Recorder
from winnow.tasks.score.reducer import Array, Folds, Reducer, Scores, stored_scores
from winnow.tasks.train.problems.classification import COLUMNS, measure

__all__ = [
    "DynamicsAccumulator",
    "reducers",
    "scores_from_epoch_rows",
    "scores_from_log_probs",
    "scores_from_logits",
]


def reducers(*, el2n_epochs: int = 10) -> dict[str, Reducer]:
    """Every registered score of training dynamics, by name."""
    every: dict[str, Any] = {
        entry.name: entry.function for entry in registered_scores if "dynamics" in entry.needs
    }
    return every if el2n_epochs == 10 else {**every, "el2n": el2n_of(el2n_epochs)}


class DynamicsAccumulator(Recorder):
    """Every dynamics score from batches as they come: O(N) device state, one synchronisation per epoch.

    Args:
        n: samples; ids run from 0 to n − 1.
        classes: C.
        device: where the batches are.
        el2n_epochs: how many epochs EL2N sums over.
        keep_rows: keep each finished epoch's columns for :meth:`epoch_rows`.
        spill: a scratch (``save(name, state)``, ``load(name)``) that keeps them on disk, one state per epoch,
            instead of in memory.
        scores: reducers by name; default every registered score of dynamics.

    Raises:
        BadInput: on a batch: shapes that do not fit, an epoch already closed. By the epoch's end: ids or
            labels out of range, NaN or infinite logits, a sample visited twice.

    >>> dynamics = DynamicsAccumulator(2, classes=2)
    >>> for epoch, logits in enumerate([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 1.0]]]):
    ...     dynamics(torch.tensor([0, 1]), torch.tensor(logits), torch.tensor([0, 1]), epoch)
    >>> scores = dynamics.scores()
    >>> scores["forgetting"], scores["aum"].round(3)
    (array([1., 0.], dtype=float32), array([0.   , 0.924], dtype=float32))

    References:
        Coverage-centric-coreset-selection generate_importance_score.py, core/training/TrainingLogger.py

    Differences from upstream:
        Upstream logs every output as float16 (154 GB for ImageNet) and reduces the log afterwards; here
        nothing is logged, probabilities are float32 and sums float64. Names: ``accumulated_margin`` is
        ``aum``; ``entropy``, ``loss`` and ``confidence`` are means over epochs, upstream's are of one pass
        after training (:func:`~winnow.tasks.score.final.final_scores`). Never-learned samples: ``forgetting``
        is upstream's count, ``forgetting_toneva`` the original's.
    """

    def __init__(
        self,
        n: int,
        classes: int,
        device: torch.device | str = "cpu",
        *,
        el2n_epochs: int = 10,
        keep_rows: bool = False,
        spill: Any = None,
        scores: Mapping[str, Reducer] | None = None,
    ) -> None:
        if n < 1 or classes < 2:
            raise BadInput(f"n = {n}, classes = {classes}: dynamics need a sample and two classes.")
        self.classes = classes
        self._normalised = False
        chosen = reducers(el2n_epochs=el2n_epochs) if scores is None else scores
        super().__init__(n, COLUMNS, self._columns_of, chosen, device, keep_rows=keep_rows, spill=spill)

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, epoch: int, /) -> None:
        """Take a batch's logits.

        Args:
            ids: int (b,).
            logits: float (b, C), any float dtype.
            labels: int (b,).
            epoch: from 0, never decreasing.
        """
        self._take(ids, logits, labels, epoch, normalised=False)

    def add_log_probs(
        self, ids: torch.Tensor, log_probs: torch.Tensor, labels: torch.Tensor, epoch: int
    ) -> None:
        """Take a batch's log-probabilities (b, C) as they are; other arguments as in a call."""
        self._take(ids, log_probs, labels, epoch, normalised=True)

    def _take(
        self, ids: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor, epoch: int, *, normalised: bool
    ) -> None:
        b = len(ids)
        if outputs.shape != (b, self.classes) or labels.shape != (b,) or ids.ndim != 1:
            raise BadInput(
                f"ids {tuple(ids.shape)}, logits {tuple(outputs.shape)} and labels {tuple(labels.shape)} do "
                f"not fit: (b,), (b, {self.classes}) and (b,) are needed."
            )
        if normalised != self._normalised:
            self._measure_held()
            self._normalised = normalised
        super().__call__(ids, outputs, labels, epoch)

    def _columns_of(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        labels = labels.long()
        wrong = (labels < 0) | (labels >= self.classes)
        log_probs = outputs if self._normalised else F.log_softmax(outputs, dim=1)
        if self.device.type == "cpu":
            if wrong.any():
                label = int(labels[wrong][0])
                raise BadInput(f"epoch {self._epoch}: label {label} is outside 0 to {self.classes - 1}.")
            return measure(log_probs, labels)
        # NaN for an invalid label: refused at the epoch's end, without making the device wait
        columns = measure(log_probs, labels.clamp(0, self.classes - 1))
        return columns.masked_fill(wrong.unsqueeze(1), torch.nan)


def scores_from_epoch_rows(epochs: Iterable[EpochRows], n: int, *, el2n_epochs: int = 10) -> Scores:
    """All dynamics scores from stored epochs, read one at a time.

    Args:
        epochs: in rising order, as :meth:`DynamicsAccumulator.epoch_rows` gives them.
        n: samples.
        el2n_epochs: how many epochs EL2N sums over.

    Returns:
        float32 (n,) each, equal to the accumulator's bit for bit.

    Raises:
        BadInput: epochs out of order, ids out of range or repeated, a sample that was never seen.

    >>> dynamics = DynamicsAccumulator(1, classes=2, keep_rows=True)
    >>> dynamics(torch.tensor([0]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]), 0)
    >>> dynamics.end_epoch()
    >>> scores_from_epoch_rows(dynamics.epoch_rows(), 1)["correctness"].tolist()
    [1.0]
    """
    folds = Folds(n, reducers(el2n_epochs=el2n_epochs), torch.device("cpu"))
    last = -1
    for rows in epochs:
        if rows.epoch <= last:
            raise BadInput(f"epoch {rows.epoch} comes after epoch {last}.")
        ids = np.asarray(rows.ids)
        if len(ids) and (ids.min() < 0 or ids.max() >= n):
            raise BadInput(
                f"epoch {rows.epoch}: id {ids[(ids < 0) | (ids >= n)][0]} is outside 0 to {n - 1}."
            )
        if len(np.unique(ids)) != len(ids):
            raise BadInput(f"epoch {rows.epoch}: an id occurs twice.")
        where = torch.from_numpy(ids)
        columns = {
            name: torch.zeros(n).index_copy(0, where, torch.as_tensor(values, dtype=torch.float32))
            for name, values in rows.columns.items()
        }
        folds.fold(rows.epoch, columns, torch.zeros(n, dtype=torch.bool).index_fill(0, where, True))
        last = rows.epoch
    return folds.scores()


def scores_from_log_probs(log_probs: Array, labels: Array, *, el2n_epochs: int = 10) -> Scores:
    """All dynamics scores from stored log-probabilities, an epoch at a time.

    Args:
        log_probs: float (E, N, C); taken as they are, without normalising float16 logs again.
        labels: int (N,).
        el2n_epochs: how many epochs EL2N sums over.

    Returns:
        ``aum, forgetting, forgetting_toneva, correctness, last_correctness, el2n, confidence, variability,
        entropy, loss``, and those of plugins, float32 (N,) each.

    Raises:
        BadInput: wrong shapes, NaN, or a label outside the classes.

    >>> scores_from_log_probs(np.log([[[0.7, 0.3]], [[0.4, 0.6]]]), [0])["forgetting"].tolist()
    [1.0]

    References:
        Coverage-centric-coreset-selection generate_importance_score.py
    """
    return stored_scores(log_probs, labels, reducers(el2n_epochs=el2n_epochs), normalised=True)


def scores_from_logits(logits: Array, labels: Array, *, el2n_epochs: int = 10) -> Scores:
    """All dynamics scores from stored logits (ELFS's logs); otherwise as :func:`scores_from_log_probs`.

    >>> scores_from_logits(np.array([[[1.0, 0.0]]]), [0])["aum"].round(4)
    array([0.4621], dtype=float32)

    References:
        elfs generate_importance_score.py
    """
    return stored_scores(logits, labels, reducers(el2n_epochs=el2n_epochs), normalised=False)
