"""One step of the cluster heads' training: student, teacher, prior and optimiser, and what moves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from winnow.tasks import hardware
from winnow.tasks.train.heads import (
    ClusterHeads,
    HeadsConfig,
    agreement,
    directions_of,
    head_losses,
    log_softmax,
    logits_of,
)
from winnow.tasks.train.step import Captured

__all__ = ["HeadsTrainer", "cosine_schedule", "teacher_temperatures"]

# most logits of a network held at once; more are processed in groups of heads
LOGITS = {"cpu": 1 << 25, "cuda": 1 << 27}
LAST_LAYER = ("v", "g")


def cosine_schedule(start: float, end: float, epochs: int, steps: int, warmup_epochs: int = 0) -> np.ndarray:
    """One value per step: linear from 0 to ``start`` over the warm-up, then half a cosine to ``end``.

    A warm-up longer than the training is shortened to it.

    Args:
        start, end: value after the warm-up and towards the end.
        epochs, steps: epochs, and steps per epoch.
        warmup_epochs: epochs of warm-up.

    Returns:
        (epochs · steps,) float64.

    >>> cosine_schedule(1.0, 0.0, 2, 3, 1).round(2).tolist()
    [0.0, 0.5, 1.0, 1.0, 0.75, 0.25]
    """
    warm = min(warmup_epochs, epochs) * steps
    rest = epochs * steps - warm
    phase = np.pi * np.arange(rest) / max(rest, 1)
    return np.concatenate([np.linspace(0.0, start, warm), end + 0.5 * (start - end) * (1.0 + np.cos(phase))])


def teacher_temperatures(config: HeadsConfig) -> np.ndarray:
    """(epochs,) float64: the teacher's temperature in each epoch, linear over its warm-up, then constant."""
    warm = np.linspace(
        config.teacher_temperature_start, config.teacher_temperature, config.teacher_temperature_epochs
    )
    return np.concatenate([warm, np.full(config.epochs, config.teacher_temperature)])[: config.epochs]


class HeadsTrainer:
    """Student, teacher, prior and optimiser, and the step that moves them without waiting for the device."""

    def __init__(
        self,
        student: ClusterHeads,
        config: HeadsConfig,
        batch: int,
        steps: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.student = {name: p.detach().clone().to(device) for name, p in student.named_parameters()}
        self.teacher = {name: p.clone() for name, p in self.student.items()}
        self.heads, classes = self.student["v"].shape[:2]
        self.prior = torch.full((self.heads, classes), 1.0 / classes, device=device)
        self.schedule = _schedule_of(config, batch, steps).to(device)
        # lr, decay, 1 − momentum and temperature of the step under way
        self.dials = torch.zeros(4, device=device)
        self.adam = torch.optim.Adam(
            self.student.values(), lr=self.dials[0], fused=True, capturable=device.type == "cuda"
        )
        group = max(1, min(self.heads, hardware.by_device(LOGITS, device) // (2 * batch * classes)))
        self.groups = [slice(i, min(i + group, self.heads)) for i in range(0, self.heads, group)]
        # of the student and of the teacher, summed over the steps of an epoch
        self.losses = torch.zeros(2, self.heads, device=device)
        everything, body = list(self.student), [name for name in self.student if name not in LAST_LAYER]
        self._update = self._captured(everything)
        self._frozen: Captured | None = self._captured(body)

    def _captured(self, moving: list[str]) -> Captured:
        moves = [self.student[name] for name in moving]
        return Captured(partial(self._move, moving), self.device, moves=moves)

    def step(self, x: Tensor, number: int, *, frozen: bool) -> None:
        """The ``number``-th update of the run, on pairs (2B, D); the last layer stays fixed if ``frozen``."""
        self.dials.copy_(self.schedule[number])
        if frozen and self._frozen is not None:
            self._frozen(x)
        else:
            self._frozen = None  # and with it the memory of its graph
            self._update(x)

    def _move(self, moving: list[str], x: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            taught = self._taught(x)
            weight = self._move_prior(taught, len(x) // 2)
            gradients = [self._gradients(x, group, taught(group), weight, moving) for group in self.groups]
        self._adamw(moving, gradients)
        with torch.no_grad():
            for name, parameter in self.teacher.items():
                parameter.lerp_(self.student[name], self.dials[2])
        return ()

    @torch.no_grad()
    def _taught(self, x: Tensor) -> Callable[[slice], Tensor]:
        """The teacher's log-probabilities of a group of heads: kept if that is all heads, else recomputed."""
        directions = directions_of(self.teacher, x)

        @torch.no_grad()
        def log_teacher(group: slice) -> Tensor:
            weights = {name: self.teacher[name][group] for name in LAST_LAYER}
            return log_softmax(logits_of(weights, directions[group]), self.dials[3])

        if len(self.groups) > 1:
            return log_teacher
        everything = log_teacher(self.groups[0])
        return lambda group: everything

    @torch.no_grad()
    def _move_prior(self, taught: Callable[[slice], Tensor], pairs: int) -> Tensor:
        """Update the prior; returns each pair's weight, (B,): how far all teachers agree on it."""
        weight = torch.zeros(pairs, device=self.device)
        for group in self.groups:
            log_teacher = taught(group)
            shares = log_teacher.exp().mean(1)
            self.prior[group] = self.prior[group].lerp(shares, 1.0 - self.config.prior_momentum)
            weight += agreement(log_teacher).sum(0)
        return weight / self.heads

    def _gradients(
        self, x: Tensor, group: slice, log_teacher: Tensor, weight: Tensor, moving: list[str]
    ) -> tuple[Tensor, ...]:
        """Gradients of some heads' mean loss; the losses are added to those of the epoch."""
        config = self.config
        leaves = {name: p[group].detach().requires_grad_(name in moving) for name, p in self.student.items()}
        log_student = log_softmax(logits_of(leaves, directions_of(leaves, x)), config.student_temperature)
        rest = (log_teacher, self.prior[group], weight, config.beta, config.loss, config.positive_pmi)
        losses = head_losses(log_student, *rest)
        self.losses[0, group] += losses.detach()
        self.losses[1, group] += head_losses(log_teacher, *rest)
        return torch.autograd.grad(losses.sum() / self.heads, [leaves[name] for name in moving])

    def _adamw(self, moving: list[str], gradients: list[tuple[Tensor, ...]]) -> None:
        """One step, with decay on its own schedule; fixed layers have no gradient, hence no moments."""
        for parameter in self.student.values():
            parameter.grad = None
        for name, parts in zip(moving, zip(*gradients, strict=True), strict=True):
            # the fused optimiser reads memory in order, whatever the strides
            self.student[name].grad = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
        with torch.no_grad():
            for name in moving:
                if not name.startswith("b"):  # biases do not decay
                    self.student[name].mul_(self.dials[1])
            self.adam.step()

    def state(self) -> dict[str, Any]:
        return {
            "student": self.student,
            "teacher": self.teacher,
            "prior": self.prior,
            "adam": self.adam.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        for kept, saved in ((self.student, state["student"]), (self.teacher, state["teacher"])):
            for name, parameter in kept.items():
                parameter.copy_(saved[name])
        self.prior.copy_(state["prior"])
        self.adam.load_state_dict(state["adam"])
        for group in self.adam.param_groups:
            group["lr"] = self.dials[0]  # loading put a copy in its place


def _schedule_of(config: HeadsConfig, batch: int, steps: int) -> Tensor:
    """Learning rate, decay factor, 1 − the teacher's momentum and its temperature, one row per step."""
    lr = cosine_schedule(
        config.lr * batch / 256, config.min_lr * batch / 256, config.epochs, steps, config.warmup_epochs
    )
    decay = cosine_schedule(config.weight_decay, config.weight_decay_end, config.epochs, steps)
    momentum = cosine_schedule(config.momentum, config.momentum_end, config.epochs, steps)
    temperature = np.repeat(teacher_temperatures(config), steps)
    return torch.tensor(
        np.stack([lr, 1.0 - lr * decay, 1.0 - momentum, temperature], axis=1), dtype=torch.float32
    )
