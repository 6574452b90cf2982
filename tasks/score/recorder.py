"""Records what training shows about each sample: an epoch's columns, folded into scores when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput, WinnowError
from winnow.tasks.hardware import by_device
from winnow.tasks.score.reducer import Folds, Reducer

__all__ = ["EpochRows", "Recorder"]

# outputs held back, so that small batches are measured together
HELD_VALUES = {"cpu": 1 << 15, "cuda": 1 << 22}


@dataclass(frozen=True)
class EpochRows:
    """What an epoch showed about each visited sample, ordered by id: the dynamics artifact's rows.

    Attributes:
        epoch: from 0.
        ids: int64 (m,).
        columns: name to float32 (m,).
    """

    epoch: int
    ids: NDArray[np.int64]
    columns: dict[str, NDArray[np.float32]]


class Recorder:
    """Columns of every visit, and their scores: O(n) state on the device, one synchronisation per epoch.

    It is a callable as the training loop's ``observe`` expects. A batch costs one copy of its outputs; every
    few batches these are measured together; when the epoch ends, its columns are checked and folded.

    Args:
        n: samples; ids run from 0 to n − 1.
        columns: names of what is measured at a visit.
        measure: maps outputs (b, …) and targets (b, …) to float32 (b, len(columns)).
        reducers: scores by name.
        device: where the batches are.
        keep_rows: keep each finished epoch's columns for :meth:`epoch_rows`.
        spill: a scratch (``save(name, state)``, ``load(name)``) that keeps them on disk, one state per epoch,
            instead of in memory.

    Raises:
        BadInput: on a batch: an epoch already closed. By the epoch's end: ids out of range, values that are
            not finite, a sample visited twice.

    >>> total = Reducer(("loss",), lambda s, v: {"loss": s["loss"] + v.loss}, lambda s: s["loss"])
    >>> squared = lambda outputs, targets: (outputs - targets).square()
    >>> recorder = Recorder(2, ("loss",), squared, {"total": total})
    >>> recorder(torch.tensor([1, 0]), torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0], [1.0]]), 0)
    >>> recorder.scores()["total"].tolist()
    [0.0, 4.0]
    """

    def __init__(
        self,
        n: int,
        columns: tuple[str, ...],
        measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        reducers: Mapping[str, Reducer],
        device: torch.device | str = "cpu",
        *,
        keep_rows: bool = False,
        spill: Any = None,
    ) -> None:
        self.n, self.columns, self.device = n, columns, torch.device(device)
        self.keep_rows, self._spill = keep_rows, spill
        self._measure = measure
        self._folds = Folds(n, reducers, self.device)
        self._epoch: int | None = None
        self._last = -1
        # row n catches writes for ids out of range, which are refused at the next check
        self._values = torch.zeros(n + 1, len(columns), device=self.device)
        self._visits = torch.zeros(n + 1, dtype=torch.int64, device=self.device)
        self._range = self._no_range()
        self._held: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._held_values = 0
        self._rows: list[EpochRows | int] = []  # in memory, or the epoch's number where the rows are spilled

    def _no_range(self) -> torch.Tensor:
        """Least and (negated) greatest id of the epoch so far."""
        return torch.zeros(2, dtype=torch.int64, device=self.device)

    @property
    def seen(self) -> dict[str, torch.Tensor]:
        """What each sample's last visit showed, float32 (n,) by column; 0 before the first."""
        self._measure_held()
        return dict(zip(self.columns, self._values[: self.n].T, strict=True))

    # -- batches ---------------------------------------------------------------------------------------------

    def __call__(
        self, ids: torch.Tensor, outputs: torch.Tensor, targets: torch.Tensor, epoch: int, /
    ) -> None:
        """Take a batch.

        Args:
            ids: int (b,).
            outputs: float (b, …), any float dtype; copied, since a captured graph reuses its buffer.
            targets: (b, …).
            epoch: from 0, never decreasing.
        """
        if epoch != self._epoch:
            self._begin(epoch)
        self._held.append((ids, outputs.detach().to(self.device, torch.float32, copy=True), targets))
        self._held_values += outputs.numel()
        if self._held_values >= by_device(HELD_VALUES, self.device):
            self._measure_held()

    def _measure_held(self) -> None:
        """Measure the batches held back, into the open epoch's columns."""
        if not self._held:
            return
        ids, outputs, targets = (
            torch.cat([part.to(self.device) for part in group]) for group in zip(*self._held, strict=True)
        )
        self._held, self._held_values = [], 0
        ids = ids.long()
        low, high = ids.aminmax()
        self._range = torch.minimum(self._range, torch.stack([low, -high]))
        if self.device.type == "cpu":
            self._check_range()
        else:  # checking now would stall the device: write where it is harmless, refuse at the epoch's end
            ids = ids.where((ids >= 0) & (ids < self.n), self.n)
        self._values.index_copy_(0, ids, self._measure(outputs, targets))
        self._visits.scatter_add_(0, ids, torch.ones_like(ids))

    def _check_range(self) -> None:
        low, high = self._range.tolist()
        for value in (low, -high):
            if not 0 <= value < self.n:
                self._range = self._no_range()
                raise BadInput(f"epoch {self._epoch}: id {value} is outside 0 to {self.n - 1}.")

    def _begin(self, epoch: int) -> None:
        self.end_epoch()
        if epoch <= self._last:
            raise BadInput(
                f"epoch {epoch} comes after epoch {self._last}, which is closed.",
                remedy="number epochs from 0 upwards",
            )
        self._epoch = epoch

    # -- epochs ----------------------------------------------------------------------------------------------

    def absorb(self, other: Recorder) -> None:
        """Take over what another recorder has seen of the same open epoch: a shard's or a rank's batches."""
        for recorder in (self, other):
            recorder._measure_held()
        if self._epoch != other._epoch:
            raise BadInput(f"epoch {other._epoch} cannot be absorbed into epoch {self._epoch}.")
        visited = (other._visits > 0).unsqueeze(1).to(self.device)
        self._values = other._values.to(self.device).where(visited, self._values)
        self._visits += other._visits.to(self.device)
        self._range = torch.minimum(self._range, other._range.to(self.device))

    def _checked_epoch(self) -> torch.Tensor:
        """The open epoch's ``seen`` mask, once its content has been checked."""
        self._measure_held()
        self._check_range()
        visits, values = self._visits[: self.n], self._values[: self.n]
        bad = torch.stack([visits > 1, ~values.isfinite().all(1)])
        if bad.any():
            kind, row = bad.nonzero()[0].tolist()
            what = f"was visited {int(visits[row])} times" if kind == 0 else "has NaN or infinite outputs"
            raise BadInput(f"epoch {self._epoch}: sample {row} {what}.")
        return visits > 0

    def end_epoch(self) -> None:
        """Check and close the open epoch; the first batch of the next one does so too."""
        if self._epoch is None:
            return
        seen = self._checked_epoch()
        self._folds.fold(self._epoch, dict(zip(self.columns, self._values[: self.n].T, strict=True)), seen)
        if self.keep_rows:
            self._keep(self._epoch, seen)
        self._last, self._epoch = self._epoch, None
        self._visits.zero_()

    def _keep(self, epoch: int, seen: torch.Tensor) -> None:
        ids = seen.nonzero().squeeze(1)
        values = self._values[ids].T.contiguous().cpu()
        if self._spill is not None:
            self._spill.save(_spilled(epoch), {"ids": ids.cpu(), "values": values})
            self._rows.append(epoch)
        else:
            self._rows.append(self._epoch_rows(epoch, ids.cpu(), values))

    def _epoch_rows(self, epoch: int, ids: torch.Tensor, values: torch.Tensor) -> EpochRows:
        return EpochRows(epoch, ids.numpy(), dict(zip(self.columns, values.numpy(), strict=True)))

    def epoch_rows(self) -> Iterator[EpochRows]:
        """Yield, once only, the columns of finished epochs, one epoch in memory at a time.

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
                rows = self._epoch_rows(rows, state["ids"], state["values"])
            yield rows

    def scores(self) -> dict[str, NDArray[np.float32]]:
        """All scores, float32 (n,) each; ends the open epoch.

        Raises:
            BadInput: a sample was never seen.
        """
        self.end_epoch()
        return self._folds.scores()

    # -- checkpoints -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The whole state as tensors and plain values, even mid-epoch."""
        self._measure_held()
        rows = [
            r
            if isinstance(r, int)
            else [r.epoch, torch.from_numpy(r.ids), *map(torch.from_numpy, r.columns.values())]
            for r in self._rows
        ]
        return {
            "n": self.n,
            "scores": list(self._folds.reducers),
            "epoch": self._epoch,
            "last": self._last,
            "epochs": self._folds.epochs,
            "folds": [tensor.cpu().clone() for tensor in self._folds.tensors()],
            "values": self._values.cpu().clone(),
            "visits": self._visits.cpu().clone(),
            "range": self._range.cpu().clone(),
            "rows": rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            BadInput: a different number of samples, or different scores.
        """
        if (state["n"], state["scores"]) != (self.n, list(self._folds.reducers)):
            raise BadInput(f"a state of {state['n']} samples and other scores than these of {self.n}.")
        self._held, self._held_values = [], 0
        self._epoch, self._last = state["epoch"], state["last"]
        self._folds.epochs = state["epochs"]
        self._folds.restore(state["folds"])
        self._values.copy_(state["values"])
        self._visits.copy_(state["visits"])
        self._range.copy_(state["range"])
        self._rows = [
            r if isinstance(r, int) else self._epoch_rows(r[0], r[1], torch.stack(r[2:]))
            for r in state["rows"]
        ]


def _spilled(epoch: int) -> str:
    return f"dynamics-{epoch:05d}"
