"""A training recipe: plain values that say how a network is trained, whatever the data."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from tasks.errors import BadInput

__all__ = ["Recipe"]

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Recipe(BaseModel):
    """How a network is trained; the defaults are the CIFAR protocol of CCS, D2 and ELFS, whose length the caller adds.

    Their coresets train for 40,000 iterations whatever the coreset's size (``iterations=40_000``), their dynamics are recorded over
    200 epochs of the full set (``epochs=200``).

    Attributes:
        network: a registered network's name.
        pretrained: start from pretrained weights.
        iterations: optimiser steps in all; training stops at exactly this number. Either this or ``epochs``.
        epochs: passes over the data. Either this or ``iterations``.
        batch_size: samples a step.
        lr: peak learning rate of SGD.
        momentum, nesterov, weight_decay: of SGD; weight decay is added to the gradient of every parameter.
        scheduler: learning rate at step t of T. ``cosine``: min_lr + (lr − min_lr)(1 + cos(πt/T))/2. ``multistep``: times ``gamma`` at
            each milestone. ``onecycle``: cosine from lr/25 up to lr over the first 30 %, then down to lr/250,000. ``constant``: lr.
        min_lr: where the cosine ends.
        milestones: of ``multistep``, in the unit that the length is given in (iterations or epochs).
        gamma: factor of ``multistep``.
        label_smoothing: share of the target spread evenly over the classes.
        augment: ``crop_flip``: random crop after reflect padding, then a horizontal flip with probability 1/2; ``crop``: without the flip
            (digits); ``imagenet``: random resized crop (area 8 to 100 %, aspect 3/4 to 4/3) and flip; ``none``.
        pad: pixels of padding of the random crop; ``scaled``: an eighth of the side (4 at 32 pixels, 1 at 8).
        size: side in pixels of what the network sees; None keeps the images' own (224 where they differ).
        drop_last: leave out an epoch's last, smaller batch.
        amp: ``auto`` is bfloat16 on GPUs that have it and float32 elsewhere; ``bf16`` and ``off`` force one.
        upstream: as the published drivers, which only run whole epochs: ``iterations`` is rounded up to whole epochs, during the last
            of which the cosine has passed its end.

    >>> recipe = Recipe(iterations=40_000)
    >>> recipe.steps_per_epoch(15_000), recipe.total_steps(15_000)
    (59, 40000)
    >>> Recipe(iterations=40_000, upstream=True).total_steps(15_000)
    40002

    References:
        Zheng et al., Coverage-centric Coreset Selection, ICLR 2023, appendix; Coverage-centric-coreset-selection train.py;
        elfs train.py, train_imagenet.py
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str = "resnet18"
    pretrained: bool = False
    iterations: PositiveInt | None = None
    epochs: PositiveInt | None = None
    batch_size: PositiveInt = 256
    lr: Rate = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    scheduler: Literal["cosine", "multistep", "onecycle", "constant"] = "cosine"
    min_lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    milestones: tuple[PositiveInt, ...] = ()
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: Literal["none", "crop", "crop_flip", "imagenet"] = "crop_flip"
    pad: Annotated[int, Field(ge=0)] | Literal["scaled"] = 4
    size: PositiveInt | None = None
    drop_last: bool = False
    amp: Literal["auto", "bf16", "off"] = "auto"
    upstream: bool = False

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("give exactly one of iterations and epochs")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum > 0")
        if self.scheduler == "cosine" and self.min_lr > self.lr:
            raise ValueError(f"min_lr = {self.min_lr} is above lr = {self.lr}")
        if (self.scheduler == "multistep") != bool(self.milestones):
            raise ValueError("milestones and scheduler='multistep' need each other")
        if any(later <= earlier for earlier, later in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(f"milestones {self.milestones} do not rise")
        return self

    def padding(self, size: int) -> int:
        """Pixels of padding for images of ``size`` pixels.

        >>> Recipe(epochs=1, pad="scaled").padding(8)
        1
        """
        if self.augment not in ("crop", "crop_flip"):
            return 0
        return size // 8 if self.pad == "scaled" else self.pad

    def steps_per_epoch(self, n: int) -> int:
        """Batches of an epoch of ``n`` samples."""
        steps = n // self.batch_size if self.drop_last else math.ceil(n / self.batch_size)
        if steps < 1:
            raise BadInput(f"{n} samples give no batch of {self.batch_size}.", remedy="lower batch_size or set drop_last=False")
        return steps

    def total_steps(self, n: int) -> int:
        """Optimiser steps of the whole training on ``n`` samples."""
        steps = self.steps_per_epoch(n)
        if self.iterations is None:
            assert self.epochs is not None
            return self.epochs * steps
        return math.ceil(self.iterations / steps) * steps if self.upstream else self.iterations

    def learning_rates(self, n: int) -> np.ndarray:
        """Learning rate of every step, float64 (total_steps,).

        >>> Recipe(iterations=4, min_lr=0.02).learning_rates(256).round(3).tolist()
        [0.1, 0.088, 0.06, 0.032]
        """
        total = self.total_steps(n)
        step = np.arange(total, dtype=np.float64)
        length = total if self.iterations is None else self.iterations
        if self.scheduler == "constant":
            return np.full(total, self.lr)
        if self.scheduler == "cosine":
            return self.min_lr + (self.lr - self.min_lr) * (1 + np.cos(np.pi * step / length)) / 2
        if self.scheduler == "multistep":
            unit = 1 if self.epochs is None else self.steps_per_epoch(n)
            passed = np.searchsorted(np.array(self.milestones) * unit, step, side="right")
            return self.lr * self.gamma**passed
        up = max(0.3 * total - 1, 1e-9)
        down = max(total - 1 - up, 1e-9)
        rise, fall = np.clip(step / up, 0, 1), np.clip((step - up) / down, 0, 1)
        first, last = self.lr / 25, self.lr / 250_000
        climbing = self.lr + (first - self.lr) * (1 + np.cos(np.pi * rise)) / 2
        falling = last + (self.lr - last) * (1 + np.cos(np.pi * fall)) / 2
        return np.where(step <= up, climbing, falling)
