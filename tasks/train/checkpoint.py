"""How far a training run has come, apart from its tensors, and the checkpoints of both."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from winnow.tasks.errors import WinnowError
from winnow.tasks.train.step import Step

__all__ = ["Pace", "Run", "Scratch"]

CHECKPOINT_SECONDS = 2.0  # between checkpoints, at least, …
CHECKPOINT_SHARE = 0.02  # … and of the time that may go into writing them
FORMAT = 2  # of what a checkpoint holds; one of another format counts as none


class Scratch(Protocol):
    """Where checkpoints go: see :class:`winnow.tasks.store.Scratch`."""

    def save(self, name: str, state: dict[str, Any]) -> None: ...

    def load(self, name: str) -> dict[str, Any] | None: ...


class Pace:
    """When the next checkpoint is due: the longer the last one took to write, the later."""

    def __init__(self) -> None:
        self._saved, self._cost = time.perf_counter(), 0.0

    @property
    def due(self) -> bool:
        pause = max(CHECKPOINT_SECONDS, self._cost / CHECKPOINT_SHARE)
        return time.perf_counter() - self._saved >= pause

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Times the writing of a checkpoint."""
        start = time.perf_counter()
        yield
        self._saved = time.perf_counter()
        self._cost = self._saved - start


class Run:
    """Counts, clocks and history of one training run.

    Attributes:
        epoch, batch: the current epoch, and its batches done so far.
        step, samples: optimiser steps done, and rows they were made on.
        position: progress at the start of the epoch, in steps of whole epochs.
        history: rows of ``epoch, step, split, loss, accuracy, lr, seconds, samples_seen``.
    """

    def __init__(self, identity: str, scratch: Scratch | None) -> None:
        self._identity, self._scratch = identity, scratch
        self.epoch = self.batch = self.step = self.samples = self.position = 0
        self.history: list[dict[str, Any]] = []
        self._batches: list[tuple[torch.Tensor, torch.Tensor, int]] = []  # losses, correct ones, sizes
        self._checked = 0  # batches of the epoch whose losses are known to be finite
        self._seconds = 0.0  # of earlier processes
        self._began = time.perf_counter()
        self._pace = Pace()

    @property
    def seconds(self) -> float:
        """Since the start, over all processes of a resumed training."""
        return self._seconds + time.perf_counter() - self._began

    def add(self, loss: torch.Tensor, correct: torch.Tensor, size: int) -> None:
        """Count a step."""
        self._batches.append((loss, correct, size))
        self.batch += 1
        self.step += 1

    def check(self, lr: float) -> None:
        """Check the losses since the last check.

        Raises:
            WinnowError: one is NaN or infinite; names epoch and step.
        """
        if self._checked == len(self._batches):
            return
        some = torch.stack([loss for loss, _, _ in self._batches[self._checked :]]).cpu()
        if not bool(some.isfinite().all()):
            bad = int((~some.isfinite()).nonzero()[0])
            step = self.step - len(some) + bad
            raise WinnowError(
                f"the training diverged: loss {some[bad].item()} at epoch {self.epoch}, step {step}, "
                f"learning rate {lr:g}.",
                kept="" if self._scratch is None else "the last checkpoint; it leads to the same end",
                remedy="lower the recipe's lr",
            )
        self._checked = len(self._batches)

    def record(self, split: str, loss: float, accuracy: float, lr: float) -> None:
        self.history.append(
            {
                "epoch": self.epoch,
                "step": self.step,
                "split": split,
                "loss": loss,
                "accuracy": accuracy,
                "lr": lr,
                "seconds": self.seconds,
                "samples_seen": self.samples,
            }
        )

    def close_epoch(self, lr: float) -> tuple[float, float]:
        """Mean loss and accuracy of the epoch's batches, recorded; one synchronisation."""
        losses, corrects, sizes = self._stacked()
        seen = int(sizes.sum())
        loss, accuracy = float((losses.double().cpu() * sizes).sum()) / seen, int(corrects.sum()) / seen
        self.samples += seen
        self.record("train", loss, accuracy, lr)
        return loss, accuracy

    def _stacked(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        losses, corrects, sizes = zip(*self._batches, strict=True)
        return torch.stack(losses), torch.stack(corrects), torch.tensor(sizes)

    def next_epoch(self, steps: int) -> None:
        """Go on to the next epoch; the one that ends counts for ``steps`` steps."""
        self.epoch, self.batch, self.position = self.epoch + 1, 0, self.position + steps
        self._batches, self._checked = [], 0

    # -- checkpoints -----------------------------------------------------------------------------------------

    def save_when_due(self, network: nn.Module, step: Step, observe: Any) -> None:
        """Write a checkpoint, unless the last one is too recent for what it cost."""
        if self._scratch is None or not self._pace.due:
            return
        with self._pace.saving():
            state = {
                "identity": self._identity,
                "counts": [self.epoch, self.batch, self.step, self.samples, self.position],
                "seconds": self.seconds,
                "history": self.history,
                "format": FORMAT,
                "epoch": [values.cpu() for values in self._stacked()] if self._batches else None,
                "network": {name: value.detach().cpu() for name, value in network.state_dict().items()},
                "optimizer": [value.cpu() for value in step.optimizer.state],
                "observer": None if observe is None else observe.state_dict(),
            }
            self._scratch.save("train", state)

    def resume(self, network: nn.Module, step: Step, observe: Any) -> None:
        """Continue from the scratch's checkpoint, if it is of this same run."""
        state: Mapping[str, Any] | None = None if self._scratch is None else self._scratch.load("train")
        if state is None or (state["identity"], state.get("format")) != (self._identity, FORMAT):
            return
        network.load_state_dict(state["network"])
        for buffer, value in zip(step.optimizer.state, state["optimizer"], strict=True):
            buffer.copy_(value)
        if observe is not None:
            observe.load_state_dict(state["observer"])
        self.epoch, self.batch, self.step, self.samples, self.position = state["counts"]
        self._seconds, self.history = state["seconds"], state["history"]
        if state["epoch"] is not None:
            device = next(network.parameters()).device
            losses, corrects, sizes = state["epoch"]
            self._batches = list(zip(losses.to(device), corrects.to(device), sizes.tolist(), strict=True))
            self._checked = len(self._batches)
