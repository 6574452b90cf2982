"""Recipes: plain values that say how a network or the cluster heads are trained, whatever the data."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from winnow.tasks.errors import BadInput

__all__ = ["HeadsConfig", "Loss", "Recipe"]

TEST_STEPS = 800  # between tests: Coverage-centric-coreset-selection train.py
Loss = Literal["temi", "pmi", "wmi", "wmi_reg", "scan"]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Recipe(BaseModel):
    """How a network is trained; the defaults are the CIFAR protocol of CCS, D2 and ELFS without its length.

    Their coresets train for 40,000 iterations whatever the coreset's size (``iterations=40_000``); their
    dynamics are recorded over 200 epochs of the full set (``epochs=200``).

    >>> recipe = Recipe(iterations=40_000)
    >>> recipe.steps_per_epoch(15_000), recipe.total_steps(15_000)
    (59, 40000)
    >>> Recipe(iterations=40_000, whole_epochs=True).total_steps(15_000)
    40002

    References:
        Zheng et al., Coverage-centric Coreset Selection, ICLR 2023, appendix;
        Coverage-centric-coreset-selection train.py; elfs train.py, train_imagenet.py; DeepCore main.py
        (``adam``, ``step``)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    network: str = "resnet18"
    """A registered network."""
    pretrained: bool = False
    """Start from pretrained weights."""
    iterations: PositiveInt | None = None
    """Optimiser steps in all: training stops at exactly this number. Either this or epochs."""
    epochs: PositiveInt | None = None
    """Passes over the data. Either this or iterations."""
    batch_size: PositiveInt = 256
    """Samples a step."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """sgd; adam with torch's betas (0.9, 0.999) and epsilon 1e-8; adamw, the same with decoupled weight
    decay."""
    lr: Rate = 0.1
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD; the others have none."""
    nesterov: bool = True
    """Of SGD."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    """Of every parameter: added to its gradient; adamw takes lr · weight_decay off the parameter itself."""
    scheduler: Literal["cosine", "multistep", "step", "onecycle", "constant", "deepcore"] = "cosine"
    """Learning rate at step t of T. cosine: min_lr + (lr − min_lr)(1 + cos(πt/T))/2. multistep: times gamma
    at each milestone. step: times gamma every step_size. onecycle: cosine from lr/25 up to lr over the
    first 30 %, then down to lr/250,000. constant: lr. deepcore: DeepCore's cosine, which is an epoch
    late."""
    min_lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    """Where the cosine ends."""
    warmup: NonNegativeInt = 0
    """Iterations or epochs (the unit that the length is given in) in which the rate rises linearly from
    lr/(warmup + 1). The cosine spans what is left; milestones and steps count from the start of the
    training."""
    milestones: tuple[PositiveInt, ...] = ()
    """Of multistep, in the unit that the length is given in."""
    step_size: PositiveInt | None = None
    """Of step, in the same unit."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of multistep and step."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over the classes."""
    augment: Literal["none", "crop", "crop_flip", "imagenet"] = "crop_flip"
    """crop_flip: random crop after reflect padding, then a horizontal flip with probability 1/2. crop:
    without the flip (digits). imagenet: random resized crop (area 8 to 100 %, aspect 3/4 to 4/3) and flip.
    none."""
    pad: Annotated[int, Field(ge=0)] | Literal["scaled"] = 4
    """Pixels of padding of the random crop; scaled: an eighth of the side (4 at 32 pixels, 1 at 8)."""
    size: PositiveInt | None = None
    """Side in pixels of what the network sees; None keeps the images' own (224 where they differ)."""
    drop_last: bool = False
    """Leave out an epoch's last, smaller batch."""
    test_interval: PositiveInt | None = None
    """From one test to the next, in the unit that the length is given in, rounded down to whole epochs, one
    at least; None: 800 steps. There is always a test after the last step."""
    amp: Literal["auto", "bf16", "off"] = "auto"
    """auto is bfloat16 on GPUs that have it and float32 elsewhere; bf16 and off force one."""
    whole_epochs: bool = False
    """iterations is rounded up to whole epochs, during the last of which the cosine has passed its end:
    what the published drivers do."""

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("give exactly one of iterations and epochs")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum > 0")
        if self.scheduler in ("cosine", "deepcore") and self.min_lr > self.lr:
            raise ValueError(f"min_lr = {self.min_lr} is above lr = {self.lr}")
        if self.scheduler == "deepcore" and (self.warmup or (self.epochs or 0) < 2):
            raise ValueError("scheduler='deepcore' needs epochs of 2 or more, and no warmup")
        if (self.scheduler == "multistep") != bool(self.milestones):
            raise ValueError("milestones and scheduler='multistep' need each other")
        if (self.scheduler == "step") != (self.step_size is not None):
            raise ValueError("step_size and scheduler='step' need each other")
        if self.warmup and self.scheduler == "onecycle":
            raise ValueError("scheduler='onecycle' warms up by itself: leave warmup at 0")
        if self.warmup >= (self.iterations or self.epochs or 0):
            raise ValueError(f"warmup = {self.warmup} leaves nothing of the training")
        if any(later <= earlier for earlier, later in pairwise(self.milestones)):
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
        """Batches per epoch of ``n`` samples."""
        steps = n // self.batch_size if self.drop_last else math.ceil(n / self.batch_size)
        if steps < 1:
            raise BadInput(
                f"{n} samples give no batch of {self.batch_size}.",
                remedy="lower batch_size or set drop_last=False",
            )
        return steps

    def total_steps(self, n: int) -> int:
        """Optimiser steps of the whole training on ``n`` samples."""
        steps = self.steps_per_epoch(n)
        if self.iterations is None:
            assert self.epochs is not None
            return self.epochs * steps
        return math.ceil(self.iterations / steps) * steps if self.whole_epochs else self.iterations

    def epochs_per_test(self, n: int) -> int:
        """Epochs of ``n`` samples between tests.

        >>> [Recipe(epochs=9, test_interval=epochs).epochs_per_test(25_600) for epochs in (None, 2)]
        [8, 2]
        >>> Recipe(iterations=900, test_interval=50).epochs_per_test(25_600)
        1
        """
        if self.test_interval is not None and self.iterations is None:
            return self.test_interval
        return max(1, (self.test_interval or TEST_STEPS) // self.steps_per_epoch(n))


class HeadsConfig(BaseModel):
    """How the cluster heads are trained; the defaults are the published recipe for CIFAR-10.

    Learning rates are given per 256 samples of a batch: the rate of a step is lr · batch / 256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    heads: Annotated[int, Field(ge=1)] = 50
    """Independent heads; the one whose teacher has the lowest loss gives the labels."""
    epochs: Annotated[int, Field(ge=1)] = 200
    """Passes over the samples."""
    batch_size: Annotated[int, Field(ge=1)] = 1024
    """Pairs in a step; a smaller dataset is one batch."""
    neighbours: Annotated[int, Field(ge=1)] = 50
    """Nearest neighbours among which a sample's partner is drawn."""
    beta: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Exponent of TEMI's loss; below 1 it keeps all clusters in use."""
    loss: Loss = "temi"
    """temi, as published, or one of its rivals."""
    positive_pmi: bool = False
    """Clamp the pointwise mutual information at zero."""
    lr: Annotated[float, Field(gt=0)] = 0.0001
    """Learning rate per 256 pairs of a batch, after the warm-up."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0001
    """Where its cosine ends."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 20
    """Epochs in which the rate rises linearly."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0001
    """At the start."""
    weight_decay_end: Annotated[float, Field(ge=0)] = 0.0001
    """At the end."""
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.996
    """Of the teacher, at the start."""
    momentum_end: Annotated[float, Field(ge=0, le=1)] = 0.996
    """Of the teacher, at the end."""
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of the student's softmax."""
    teacher_temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of the teacher's softmax."""
    teacher_temperature_start: Annotated[float, Field(gt=0)] = 0.1
    """Of the teacher's softmax, at the start."""
    teacher_temperature_epochs: Annotated[int, Field(ge=0)] = 30
    """Epochs in which it goes from the one to the other."""
    prior_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of the running estimate of the clusters' shares."""
    frozen_epochs: Annotated[int, Field(ge=0)] = 1
    """Epochs at the start in which the last layer rests."""
    layers: Annotated[int, Field(ge=1)] = 2
    """Linear layers before the last one."""
    hidden: Annotated[int, Field(ge=1)] = 512
    """Units of the hidden layers."""
    bottleneck: Annotated[int, Field(ge=1)] = 256
    """Units before the last layer."""
    normalise: Literal["none", "l2", "zscore"] = "none"
    """Of the embeddings; zscore takes the training mean and deviation."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of Gaussian noise on the embeddings of a step."""
