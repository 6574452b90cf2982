"""Scores that training dynamics define: streamed with O(N) state while a network trains, or from stored logs.

Per visit of sample i with label y in epoch t, with p = softmax(logits):

    margin = p_y − max_{j≠y} p_j        loss = −log p_y        correct = [argmax_j p_j = y]
    el2n = ‖p − onehot(y)‖₂             entropy = −Σ_j p_j log p_j

and every score is a sum, mean, spread or count of these over epochs. ``HIGHER_IS`` says which end of each
score is the hard one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from winnow.tasks.errors import BadInput, WinnowError

__all__ = [
    "COLUMNS",
    "HIGHER_IS",
    "DynamicsAccumulator",
    "EpochRows",
    "aum",
    "confidence",
    "correctness",
    "el2n",
    "entropy",
    "final_confidence",
    "final_entropy",
    "final_loss",
    "final_scores",
    "forgetting",
    "forgetting_toneva",
    "last_correctness",
    "loss",
    "max_logit",
    "scores_from_epoch_rows",
    "scores_from_log_probs",
    "scores_from_logits",
    "variability",
]

HIGHER_IS = {
    "aum": "easier",
    "confidence": "easier",
    "correctness": "easier",
    "el2n": "harder",
    "entropy": "harder",
    "forgetting": "harder",
    "forgetting_toneva": "harder",
    "last_correctness": "easier",
    "loss": "harder",
    "variability": "harder",
}
COLUMNS = ("margin", "loss", "correct", "el2n", "entropy")

HELD_VALUES = {
    "cpu": 1 << 15,
    "cuda": 1 << 22,
}  # logits held back, so that small batches are measured together

Array = np.ndarray | torch.Tensor


def _measure(log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """COLUMNS of each row, float32 (..., 5), from float32 log-probabilities (..., C) and int64 labels (...)."""
    at = labels.unsqueeze(-1)
    probs = log_probs.exp()
    own_log, own = log_probs.gather(-1, at).squeeze(-1), probs.gather(-1, at).squeeze(-1)
    others = probs.scatter(-1, at, -1.0).amax(-1)
    correct = log_probs.argmax(-1) == labels
    error = torch.linalg.vector_norm(probs.scatter(-1, at, (own - 1).unsqueeze(-1)), dim=-1)
    return torch.stack(
        [own - others, -own_log, correct.float(), error, -(probs * log_probs.clamp(min=-1e4)).sum(-1)], dim=-1
    )


# -- the definitions -----------------------------------------------------------------------------------------


def _column(name: str, log_probs: Array, labels: Array) -> np.ndarray:
    """One column for all epochs, float64 (E, N), an epoch at a time."""
    outputs, targets = _checked(log_probs, labels, "log_probs")
    return np.stack(
        [_measure(epoch.float(), targets)[:, COLUMNS.index(name)].double().numpy() for epoch in outputs]
    )


def _checked(outputs: Array, labels: Array, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    found = torch.as_tensor(outputs)
    targets = torch.as_tensor(labels).long()
    if (
        found.ndim != 3
        or found.shape[0] < 1
        or found.shape[1] < 1
        or found.shape[2] < 2
        or not found.is_floating_point()
    ):
        raise BadInput(
            f"{name} is {found.dtype} {tuple(found.shape)}, not a float array of (epochs, samples, 2 or more "
            "classes)."
        )
    if targets.shape != found.shape[1:2]:
        raise BadInput(f"labels have shape {tuple(targets.shape)}, {name} has {found.shape[1]} samples.")
    wrong = ((targets < 0) | (targets >= found.shape[2])).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise BadInput(f"labels[{row}] = {int(targets[row])} is not one of {found.shape[2]} classes.")
    unusable = (found.isnan() | (found == torch.inf)).any(-1)
    if unusable.any():
        epoch, row = unusable.nonzero()[0].tolist()
        raise BadInput(f"{name}[{epoch}, {row}] holds NaN or infinity.")
    return found, targets


def aum(log_probs: Array, labels: Array) -> np.ndarray:
    """Area under the margin: by how much the label's probability led the best other one, summed over epochs.

    AUM_i = Σ_t ( p_t(y_i) − max_{j≠y_i} p_t(j) ), in [−E, E]; high is easy, negative is likely mislabelled.

    Args:
        log_probs: float (E, N, C), log-probabilities of each epoch.
        labels: int (N,).

    Returns:
        float32 (N,).

    Raises:
        BadInput: wrong shapes, NaN, or a label outside the classes.

    >>> aum(np.log([[[0.7, 0.2, 0.1]], [[0.3, 0.6, 0.1]]]), [0]).round(4)
    array([0.2], dtype=float32)

    References:
        Pleiss et al., Identifying Mislabeled Data using the Area Under the Margin Ranking, NeurIPS 2020, eq.
        1-2; Coverage-centric-coreset-selection generate_importance_score.py (accumulated_margin)

    Differences from upstream:
        none in value. As in CCS, D2 and ELFS the margins are of probabilities and summed; Pleiss et al.
        average logits.
    """
    return _column("margin", log_probs, labels).sum(0).astype(np.float32)


def correctness(log_probs: Array, labels: Array) -> np.ndarray:
    """Correctness: in how many epochs the sample was predicted correctly.

    Args, returns and errors as in :func:`aum`; ties of probability go to the lowest class.

    >>> correctness(np.log([[[0.7, 0.3]], [[0.4, 0.6]]]), [0]).tolist()
    [1.0]

    References:
        Swayamdipta et al., Dataset Cartography, EMNLP 2020; Coverage-centric-coreset-selection
        generate_importance_score.py
    """
    return _column("correct", log_probs, labels).sum(0).astype(np.float32)


def last_correctness(log_probs: Array, labels: Array) -> np.ndarray:
    """Whether the sample was predicted correctly in the last epoch, 0 or 1.

    Args, returns and errors as in :func:`aum`.

    >>> last_correctness(np.log([[[0.7, 0.3]], [[0.4, 0.6]]]), [0]).tolist()
    [0.0]

    References:
        Coverage-centric-coreset-selection generate_importance_score.py (last_correctness)
    """
    return _column("correct", log_probs, labels)[-1].astype(np.float32)


def forgetting(log_probs: Array, labels: Array) -> np.ndarray:
    """Forgetting events: how often a correctly predicted sample was predicted wrongly at the next visit.

    Σ_{t≥1} [c_{t−1} = 1 and c_t = 0]; a sample that was never predicted correctly has 0, as in CCS, D2 and
    ELFS.

    Args, returns and errors as in :func:`aum`.

    >>> forgetting(np.log([[[0.7, 0.3]], [[0.4, 0.6]], [[0.8, 0.2]], [[0.1, 0.9]]]), [0]).tolist()
    [2.0]

    References:
        Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning, ICLR
        2019, section 3; Coverage-centric-coreset-selection generate_importance_score.py (forgetting)

    Differences from upstream:
        none; :func:`forgetting_toneva` counts never-learned samples as the hardest.
    """
    right = _column("correct", log_probs, labels)
    return ((right[:-1] == 1) & (right[1:] == 0)).sum(0).astype(np.float32)


def forgetting_toneva(log_probs: Array, labels: Array) -> np.ndarray:
    """Forgetting events, where samples that were never learned count as forgotten in every epoch.

    As :func:`forgetting`, with E (the number of epochs) for samples that no epoch predicted correctly.

    Args, returns and errors as in :func:`aum`.

    >>> forgetting_toneva(np.log([[[0.3, 0.7], [0.9, 0.1]]] * 4), [0, 0]).tolist()
    [4.0, 0.0]

    References:
        Toneva et al., ICLR 2019, section 3; example_forgetting order_examples_by_forgetting.py
    """
    right = _column("correct", log_probs, labels)
    counts = ((right[:-1] == 1) & (right[1:] == 0)).sum(0)
    return np.where(right.any(0), counts, len(right)).astype(np.float32)


def el2n(log_probs: Array, labels: Array, *, epochs: int = 10) -> np.ndarray:
    """EL2N: length of the error vector, summed over the first epochs.

    EL2N_i = Σ_{t<10} ‖p_t(i) − onehot(y_i)‖₂

    Args:
        log_probs: float (E, N, C), log-probabilities of each epoch.
        labels: int (N,).
        epochs: how many epochs from the first on.

    Returns:
        float32 (N,).

    Raises:
        BadInput: as in :func:`aum`.

    >>> el2n(np.log([[[0.5, 0.5]]]), [0]).round(4)
    array([0.7071], dtype=float32)

    References:
        Paul et al., Deep Learning on a Data Diet, NeurIPS 2021, definition 2.2;
        Coverage-centric-coreset-selection generate_importance_score.py (EL2N)

    Differences from upstream:
        none against CCS, D2 and ELFS, which sum over 10 epochs of one run; Paul et al. average one epoch of
        10 runs.
    """
    return _column("el2n", log_probs, labels)[:epochs].sum(0).astype(np.float32)


def confidence(log_probs: Array, labels: Array) -> np.ndarray:
    """Confidence: the label's mean probability over epochs.

    μ_i = (1/E) Σ_t p_t(y_i)

    Args, returns and errors as in :func:`aum`.

    >>> confidence(np.log([[[0.7, 0.3]], [[0.5, 0.5]]]), [0]).round(4)
    array([0.6], dtype=float32)

    References:
        Swayamdipta et al., Dataset Cartography, EMNLP 2020, eq. 1
    """
    return np.exp(-_column("loss", log_probs, labels)).mean(0).astype(np.float32)


def variability(log_probs: Array, labels: Array) -> np.ndarray:
    """Variability: spread of the label's probability over epochs (population standard deviation).

    σ_i = sqrt( (1/E) Σ_t (p_t(y_i) − μ_i)² ); high is ambiguous.

    Args, returns and errors as in :func:`aum`.

    >>> variability(np.log([[[0.7, 0.3]], [[0.5, 0.5]]]), [0]).round(4)
    array([0.1], dtype=float32)

    References:
        Swayamdipta et al., Dataset Cartography, EMNLP 2020, eq. 2
    """
    return np.exp(-_column("loss", log_probs, labels)).std(0).astype(np.float32)


def entropy(log_probs: Array, labels: Array) -> np.ndarray:
    """Mean predictive entropy over epochs, in nats.

    (1/E) Σ_t −Σ_j p_t(j) log p_t(j)

    Args, returns and errors as in :func:`aum`.

    >>> entropy(np.log([[[0.5, 0.5]]]), [0]).round(4)
    array([0.6931], dtype=float32)

    References:
        Coleman et al., Selection via Proxy, ICLR 2020, section 3.1

    Differences from upstream:
        CCS and D2 take the entropy of one pass after training: :func:`final_entropy`.
    """
    return _column("entropy", log_probs, labels).mean(0).astype(np.float32)


def loss(log_probs: Array, labels: Array) -> np.ndarray:
    """Mean cross-entropy over epochs.

    (1/E) Σ_t −log p_t(y_i)

    Args, returns and errors as in :func:`aum`.

    >>> loss(np.log([[[0.5, 0.5]]]), [0]).round(4)
    array([0.6931], dtype=float32)

    References:
        Jiang et al., Accelerating Deep Learning by Focusing on the Biggest Losers, 2019

    Differences from upstream:
        CCS and D2 take the loss of one pass after training: :func:`final_loss`.
    """
    return _column("loss", log_probs, labels).mean(0).astype(np.float32)


# -- streaming -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpochRows:
    """What one epoch showed of each visited sample, in the order of the ids: the rows of the dynamics artifact.

    Attributes:
        epoch: from 0.
        ids, labels: int64 (m,).
        margin, loss, el2n, entropy: float32 (m,).
        correct: bool (m,).
    """

    epoch: int
    ids: np.ndarray
    labels: np.ndarray
    margin: np.ndarray
    loss: np.ndarray
    correct: np.ndarray
    el2n: np.ndarray
    entropy: np.ndarray


def _spilled(epoch: int) -> str:
    return f"dynamics-{epoch:05d}"


def _packed(rows: EpochRows) -> dict[str, Any]:
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in vars(rows).items()
    }


def _unpacked(state: dict[str, Any]) -> EpochRows:
    arrays: dict[str, Any] = {
        name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in state.items()
    }
    return EpochRows(**arrays)


_SUMS = (
    "aum",
    "el2n",
    "entropy",
    "loss",
    "correctness",
    "forgetting",
    "confidence",
    "spread",
    "visits",
    "was_correct",
)


class _Running:
    """O(N) sums over epochs; ``spread`` is Welford's sum of squared deviations of the label's probability."""

    def __init__(self, n: int, el2n_epochs: int, device: torch.device) -> None:
        self.el2n_epochs = el2n_epochs
        self.epochs = 0
        self.sums = torch.zeros(len(_SUMS), n, dtype=torch.float64, device=device)

    def fold(self, epoch: int, columns: torch.Tensor, seen: torch.Tensor) -> None:
        """Add one epoch: COLUMNS as float (5, n), rows that are not ``seen`` count for nothing."""
        margin, loss_, correct, error, entropy_ = columns.double().where(seen, 0.0)
        one = seen.double()
        s = dict(zip(_SUMS, self.sums, strict=True))
        s["aum"] += margin
        s["entropy"] += entropy_
        s["loss"] += loss_
        s["correctness"] += correct
        if epoch < self.el2n_epochs:
            s["el2n"] += error
        s["forgetting"] += s["was_correct"] * (1 - correct) * one
        s["was_correct"].copy_(torch.where(seen, correct, s["was_correct"]))
        s["visits"] += one
        probability = torch.exp(-loss_)
        deviation = (probability - s["confidence"]) * one
        s["confidence"] += deviation / s["visits"].clamp(min=1)
        s["spread"] += deviation * (probability - s["confidence"])
        self.epochs += 1

    def scores(self) -> dict[str, np.ndarray]:
        s = dict(zip(_SUMS, self.sums.cpu().numpy(), strict=True))
        unseen = np.flatnonzero(s["visits"] == 0)
        if len(unseen):
            raise BadInput(
                f"sample {unseen[0]} was never seen ({len(unseen)} of {len(s['visits'])}).",
                remedy="record a whole epoch at least",
            )
        out = {
            "aum": s["aum"],
            "forgetting": s["forgetting"],
            "forgetting_toneva": np.where(s["correctness"] > 0, s["forgetting"], self.epochs),
            "correctness": s["correctness"],
            "last_correctness": s["was_correct"],
            "el2n": s["el2n"],
            "confidence": s["confidence"],
            "variability": np.sqrt(s["spread"].clip(0) / s["visits"]),
            "entropy": s["entropy"] / s["visits"],
            "loss": s["loss"] / s["visits"],
        }
        return {name: values.astype(np.float32) for name, values in out.items()}


class DynamicsAccumulator:
    """Every dynamics score from batches as they come, with O(N) state on the device and one synchronisation an epoch.

    A batch costs one copy of its logits; every few batches these are measured together and five numbers a
    sample are written; when the epoch ends, its columns are checked and folded into float64 sums. Calling the
    accumulator is what the training loop's ``observe`` expects.

    Args:
        n: samples; ids run from 0 to n − 1.
        classes: C.
        device: where the batches are.
        el2n_epochs: EL2N sums over so many epochs.
        keep_rows: keep each finished epoch's columns for :meth:`epoch_rows`.
        spill: a scratch (``save(name, state)``, ``load(name)``) that keeps them on disk, one state an epoch,
            instead of in memory.

    Raises:
        BadInput: from a batch: shapes that do not fit, an epoch that comes back. At the epoch's end at the
            latest: ids or labels out of range, NaN or infinite logits, a sample visited twice.

    >>> dynamics = DynamicsAccumulator(2, classes=2)
    >>> for epoch, logits in enumerate([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 1.0]]]):
    ...     dynamics(torch.tensor([0, 1]), torch.tensor(logits), torch.tensor([0, 1]), epoch)
    >>> scores = dynamics.scores()
    >>> scores["forgetting"], scores["aum"].round(3)
    (array([1., 0.], dtype=float32), array([0.   , 0.924], dtype=float32))

    References:
        Coverage-centric-coreset-selection generate_importance_score.py, core/training/TrainingLogger.py;
        Welford, 1962

    Differences from upstream:
        upstream logs every output as float16 (154 GB for ImageNet) and reduces the log afterwards; here
        nothing is logged, probabilities are float32 and sums float64. Names: ``accumulated_margin`` is
        ``aum``; ``entropy``, ``loss`` and ``confidence`` are means over epochs, upstream's are of one pass
        after training (:func:`final_scores`). Never-learned samples: ``forgetting`` is upstream's count,
        ``forgetting_toneva`` the original's.
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
    ) -> None:
        if n < 1 or classes < 2:
            raise BadInput(f"n = {n}, classes = {classes}: dynamics need a sample and two classes.")
        self.n, self.classes, self.device = n, classes, torch.device(device)
        self.keep_rows, self._spill = keep_rows, spill
        self._running = _Running(n, el2n_epochs, self.device)
        self._epoch: int | None = None
        self._last = -1
        # row n takes what an id out of range would write elsewhere; it is refused at the next check
        self._columns = torch.zeros(n + 1, len(COLUMNS), device=self.device)
        self._labels = torch.zeros(n + 1, dtype=torch.int64, device=self.device)
        self._visits = torch.zeros(n + 1, dtype=torch.int64, device=self.device)
        self._range = self._no_range()
        self._held: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._held_values = 0
        self._normalised = False
        self._rows: list[EpochRows | int] = []  # in memory, or the epoch's number where the rows are spilled

    def _no_range(self) -> torch.Tensor:
        """Least and greatest id and label of the epoch so far."""
        return torch.tensor([0, 0, 0, 0], dtype=torch.int64, device=self.device)

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, epoch: int) -> None:
        """Take a batch's logits.

        Args:
            ids: int (b,).
            logits: float (b, C), any float dtype.
            labels: int (b,).
            epoch: from 0, never falling.
        """
        self._take(ids, logits, labels, epoch, normalised=False)

    def add_log_probs(
        self, ids: torch.Tensor, log_probs: torch.Tensor, labels: torch.Tensor, epoch: int
    ) -> None:
        """Take a batch's log-probabilities (b, C) as they are; other arguments as in calling the accumulator."""
        self._take(ids, log_probs, labels, epoch, normalised=True)

    def _take(
        self, ids: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor, epoch: int, *, normalised: bool
    ) -> None:
        self._check_shapes(ids, outputs, labels)
        if epoch != self._epoch:
            self._begin(epoch)
        if normalised != self._normalised:
            self._measure_held()
            self._normalised = normalised
        # a copy: the caller may reuse its buffer, as a captured CUDA graph does
        self._held.append((ids, outputs.detach().to(self.device, torch.float32, copy=True), labels))
        self._held_values += outputs.numel()
        if self._held_values >= HELD_VALUES[self.device.type]:
            self._measure_held()

    def _measure_held(self) -> None:
        """Measure the batches that were held back, into the open epoch's columns."""
        if not self._held_values:
            return
        parts = zip(*self._held, strict=True)
        ids, outputs, labels = (torch.cat([part.to(self.device) for part in group]) for group in parts)
        ids, labels = ids.long(), labels.long()
        self._held, self._held_values = [], 0
        (low, high), (least, greatest) = ids.aminmax(), labels.aminmax()
        self._range = torch.minimum(self._range, torch.stack([low, -high, least, -greatest]))
        if self.device.type == "cpu":
            self._check_range()
        # asking now would make the device wait: write where it is harmless and refuse at the epoch's end
        else:
            ids = ids.where((ids >= 0) & (ids < self.n), self.n)
            labels = labels.clamp(0, self.classes - 1)
        log_probs = outputs if self._normalised else F.log_softmax(outputs, dim=1)
        self._columns.index_copy_(0, ids, _measure(log_probs, labels))
        self._labels.index_copy_(0, ids, labels)
        self._visits.scatter_add_(0, ids, torch.ones_like(ids))

    def _check_shapes(self, ids: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        b = len(ids)
        if outputs.shape != (b, self.classes) or labels.shape != (b,) or ids.ndim != 1:
            raise BadInput(
                f"ids {tuple(ids.shape)}, logits {tuple(outputs.shape)} and labels {tuple(labels.shape)} do "
                "not fit: "
                f"(b,), (b, {self.classes}) and (b,) are needed."
            )

    def _check_range(self) -> None:
        low, high, least, greatest = self._range.tolist()
        for name, value, limit in (
            ("id", low, self.n),
            ("id", -high, self.n),
            ("label", least, self.classes),
            ("label", -greatest, self.classes),
        ):
            if not 0 <= value < limit:
                self._range = self._no_range()
                raise BadInput(f"epoch {self._epoch}: {name} {value} is outside 0 to {limit - 1}.")

    def _begin(self, epoch: int) -> None:
        self.end_epoch()
        if epoch <= self._last:
            raise BadInput(
                f"epoch {epoch} comes after epoch {self._last}, which is closed.",
                remedy="number epochs from 0 upwards",
            )
        self._epoch = epoch

    def _checked_epoch(self) -> torch.Tensor:
        """The open epoch's ``seen`` mask, once its content has been found good."""
        self._measure_held()
        self._check_range()
        visits, columns = self._visits[: self.n], self._columns[: self.n]
        bad = torch.stack([visits > 1, ~columns.isfinite().all(1)])
        if bad.any():
            kind, row = bad.nonzero()[0].tolist()
            what = f"was visited {int(visits[row])} times" if kind == 0 else "has NaN or infinite logits"
            raise BadInput(f"epoch {self._epoch}: sample {row} {what}.")
        return visits > 0

    def end_epoch(self) -> None:
        """Check and close the open epoch; the first batch of the next one does it too."""
        if self._epoch is None:
            return
        seen = self._checked_epoch()
        self._running.fold(self._epoch, self._columns[: self.n].T, seen)
        if self.keep_rows:
            rows = self._take_rows(seen)
            if self._spill is not None:
                self._spill.save(_spilled(rows.epoch), _packed(rows))
            self._rows.append(rows if self._spill is None else rows.epoch)
        self._last, self._epoch = self._epoch, None
        self._columns.zero_()
        self._visits.zero_()

    def _take_rows(self, seen: torch.Tensor) -> EpochRows:
        assert self._epoch is not None
        ids = seen.nonzero().squeeze(1)
        margin, loss_, correct, error, entropy_ = self._columns[ids].T.contiguous().cpu().numpy()
        labels = self._labels[ids].cpu().numpy()
        return EpochRows(self._epoch, ids.cpu().numpy(), labels, margin, loss_, correct > 0, error, entropy_)

    def epoch_rows(self) -> Iterator[EpochRows]:
        """Hand out, once, the columns of the epochs that have ended (``keep_rows=True``), one epoch in memory at a time.

        Raises:
            WinnowError: a spilled epoch is missing or damaged.
        """
        while self._rows:
            rows = self._rows.pop(0)
            if isinstance(rows, int):
                state = self._spill.load(_spilled(rows))
                if state is None:
                    raise WinnowError(
                        f"the recorded dynamics of epoch {rows} are missing or damaged.",
                        remedy="delete the task's scratch folder and run again: the proxy is trained anew",
                    )
                rows = _unpacked(state)
            yield rows

    def scores(self) -> dict[str, np.ndarray]:
        """All scores, float32 (n,) each; ends the open epoch.

        Raises:
            BadInput: a sample was never seen.
        """
        self.end_epoch()
        return self._running.scores()

    def state_dict(self) -> dict[str, Any]:
        """The whole state as tensors and plain values, also amid an epoch."""
        self._measure_held()
        return {
            "n": self.n,
            "classes": self.classes,
            "epoch": self._epoch,
            "last": self._last,
            "epochs": self._running.epochs,
            "sums": self._running.sums.cpu().clone(),
            "columns": self._columns.cpu().clone(),
            "labels": self._labels.cpu().clone(),
            "visits": self._visits.cpu().clone(),
            "range": self._range.cpu().clone(),
            "rows": [rows if isinstance(rows, int) else _packed(rows) for rows in self._rows],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        if (state["n"], state["classes"]) != (self.n, self.classes):
            raise BadInput(
                f"a state of {state['n']} samples and {state['classes']} classes, not {self.n} and "
                f"{self.classes}."
            )
        self._held, self._held_values = [], 0
        self._epoch, self._last, self._running.epochs = state["epoch"], state["last"], state["epochs"]
        self._running.sums.copy_(state["sums"])
        self._columns.copy_(state["columns"])
        self._labels.copy_(state["labels"])
        self._visits.copy_(state["visits"])
        self._range.copy_(state["range"])
        self._rows = [rows if isinstance(rows, int) else _unpacked(rows) for rows in state["rows"]]


def scores_from_epoch_rows(
    epochs: Iterable[EpochRows], n: int, *, el2n_epochs: int = 10
) -> dict[str, np.ndarray]:
    """All dynamics scores from stored epochs, read one at a time.

    Args:
        epochs: in rising order, as :meth:`DynamicsAccumulator.epoch_rows` gave them.
        n: samples.
        el2n_epochs: EL2N sums over so many epochs.

    Returns:
        float32 (n,) each, equal to the accumulator's bit for bit.

    Raises:
        BadInput: epochs out of order, ids out of range or twice, a sample that was never seen.

    >>> dynamics = DynamicsAccumulator(1, classes=2, keep_rows=True)
    >>> dynamics(torch.tensor([0]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]), 0)
    >>> dynamics.end_epoch()
    >>> scores_from_epoch_rows(dynamics.epoch_rows(), 1)["correctness"].tolist()
    [1.0]
    """
    running = _Running(n, el2n_epochs, torch.device("cpu"))
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
        columns = np.zeros((len(COLUMNS), n), np.float32)
        columns[:, ids] = [getattr(rows, name) for name in COLUMNS]
        seen = np.zeros(n, bool)
        seen[ids] = True
        running.fold(rows.epoch, torch.from_numpy(columns), torch.from_numpy(seen))
        last = rows.epoch
    return running.scores()


def scores_from_log_probs(log_probs: Array, labels: Array, *, el2n_epochs: int = 10) -> dict[str, np.ndarray]:
    """All dynamics scores from stored log-probabilities, an epoch at a time.

    Args:
        log_probs: float (E, N, C); taken as they are, without normalising float16 logs again.
        labels: int (N,).
        el2n_epochs: EL2N sums over so many epochs.

    Returns:
        ``aum, forgetting, forgetting_toneva, correctness, last_correctness, el2n, confidence, variability,
        entropy, loss``, float32 (N,) each.

    Raises:
        BadInput: wrong shapes, NaN, or a label outside the classes.

    >>> scores_from_log_probs(np.log([[[0.7, 0.3]], [[0.4, 0.6]]]), [0])["forgetting"].tolist()
    [1.0]

    References:
        Coverage-centric-coreset-selection generate_importance_score.py
    """
    outputs, targets = _checked(log_probs, labels, "log_probs")
    return _replay(outputs, targets, el2n_epochs, already_log_probs=True)


def scores_from_logits(logits: Array, labels: Array, *, el2n_epochs: int = 10) -> dict[str, np.ndarray]:
    """All dynamics scores from stored logits (ELFS's logs); otherwise as :func:`scores_from_log_probs`.

    >>> scores_from_logits(np.array([[[1.0, 0.0]]]), [0])["aum"].round(4)
    array([0.4621], dtype=float32)

    References:
        elfs generate_importance_score.py
    """
    outputs, targets = _checked(logits, labels, "logits")
    return _replay(outputs, targets, el2n_epochs, already_log_probs=False)


def _replay(
    outputs: torch.Tensor, labels: torch.Tensor, el2n_epochs: int, *, already_log_probs: bool
) -> dict[str, np.ndarray]:
    accumulator = DynamicsAccumulator(
        outputs.shape[1], outputs.shape[2], outputs.device, el2n_epochs=el2n_epochs
    )
    ids = torch.arange(outputs.shape[1], device=outputs.device)
    take = accumulator.add_log_probs if already_log_probs else accumulator
    for epoch, rows in enumerate(outputs):
        take(ids, rows, labels.to(outputs.device), epoch)
    return accumulator.scores()


# -- after training ------------------------------------------------------------------------------------------


def final_scores(logits: Array, labels: Array) -> dict[str, np.ndarray]:
    """Entropy, loss and confidence of one pass with the trained network.

    Args:
        logits: float (N, C), from eval mode, without augmentation.
        labels: int (N,).

    Returns:
        ``entropy, loss, confidence``, float32 (N,) each.

    Raises:
        BadInput: wrong shapes, NaN, or a label outside the classes.

    >>> {name: f"{values[0]:.4f}" for name, values in final_scores(np.array([[0.0, 0.0]]), [1]).items()}
    {'entropy': '0.6931', 'loss': '0.6931', 'confidence': '0.5000'}

    References:
        d2pruning generate_importance_score.py (post_training_metrics)

    Differences from upstream:
        upstream feeds images that are not normalised to a network trained on normalised ones; pass such
        logits to replay that. Its entropy adds 1e-10 inside the logarithm.
    """
    outputs, targets = _checked(torch.as_tensor(logits).unsqueeze(0), labels, "logits")
    columns = _measure(F.log_softmax(outputs[0].float(), dim=1), targets.to(outputs.device)).cpu().numpy()
    loss_ = columns[:, COLUMNS.index("loss")]
    return {
        "entropy": columns[:, COLUMNS.index("entropy")].copy(),
        "loss": loss_.copy(),
        "confidence": np.exp(-loss_),
    }


def final_entropy(logits: Array, labels: Array) -> np.ndarray:
    """Predictive entropy after training, in nats: CCS's and D2's ``entropy``.

    Args, errors and differences as in :func:`final_scores`; returns float32 (N,).

    >>> final_entropy(np.array([[0.0, 0.0]]), [1]).round(4)
    array([0.6931], dtype=float32)

    References:
        Coverage-centric-coreset-selection generate_importance_score.py (post_training_metrics)
    """
    return final_scores(logits, labels)["entropy"]


def final_loss(logits: Array, labels: Array) -> np.ndarray:
    """Cross-entropy after training: CCS's and D2's ``loss``.

    Args, errors and differences as in :func:`final_scores`; returns float32 (N,).

    >>> final_loss(np.array([[0.0, 0.0]]), [1]).round(4)
    array([0.6931], dtype=float32)

    References:
        Coverage-centric-coreset-selection generate_importance_score.py (post_training_metrics)
    """
    return final_scores(logits, labels)["loss"]


def final_confidence(logits: Array, labels: Array) -> np.ndarray:
    """The label's probability after training: D2's ``confidence``.

    Args, errors and differences as in :func:`final_scores`; returns float32 (N,).

    >>> final_confidence(np.array([[0.0, 0.0]]), [1]).tolist()
    [0.5]

    References:
        d2pruning generate_importance_score.py (post_training_metrics)
    """
    return final_scores(logits, labels)["confidence"]


def max_logit(logits: Array, labels: Array | None = None) -> np.ndarray:
    """The largest logit after training: what DeepCore's least confidence goes by, in place of the largest probability.

    Args:
        logits: float (N, C), from eval mode, without augmentation.
        labels: not read.

    Returns:
        float32 (N,).

    >>> max_logit(np.array([[0.5, 2.0]])).tolist()
    [2.0]

    References:
        PatrickZH/DeepCore@74ec709 deepcore/methods/uncertainty.py (LeastConfidence)
    """
    return torch.as_tensor(logits).float().amax(1).cpu().numpy()
