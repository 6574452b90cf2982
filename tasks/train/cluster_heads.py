"""Self-distilled cluster heads (TEMI): pseudo-labels from frozen embeddings and their kNN graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from winnow.tasks import hardware
from winnow.tasks.embed.graph import Graph
from winnow.tasks.errors import BadInput, WinnowError
from winnow.tasks.train.checkpoint import Pace
from winnow.tasks.train.heads import (
    ClusterHeads,
    HeadsConfig,
    checked_features,
    class_prior,
    input_statistics,
    normalised,
    predict,
    temi_loss,
)
from winnow.tasks.train.heads_step import HeadsTrainer, cosine_schedule, teacher_temperatures
from winnow.tasks.train.metrics import clustering_metrics

__all__ = [
    "Choice",
    "ClusterHeads",
    "ClusterResult",
    "HeadsConfig",
    "class_prior",
    "clustering_metrics",
    "cosine_schedule",
    "predict",
    "teacher_temperatures",
    "temi_loss",
    "train_cluster_heads",
]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ClusterResult:
    """Pseudo-labels and where they come from.

    Attributes:
        labels: (N,) int32, cluster of each sample.
        confidence: (N,) float32, the teacher's probability of that cluster.
        head: the head that gave them.
        epoch: the epoch (from 0) after which it gave them.
        losses: (epochs, H) float32, mean training loss of each head.
        teacher_losses: (epochs, H) float32, the same loss of the teacher on itself; the lowest chose head and
            epoch.
        used: clusters with at least one sample.
        oracle: whether test labels chose the epoch; if so, nothing here is label-free.
        state: the chosen head, for ``predict``.
    """

    labels: np.ndarray
    confidence: np.ndarray
    head: int
    epoch: int
    losses: np.ndarray
    teacher_losses: np.ndarray
    used: int
    oracle: bool
    state: dict[str, Any]


class Choice(Protocol):
    """Which head and epoch give the labels.

    Attributes:
        sees_labels: whether labels decide.
    """

    sees_labels: bool

    def __call__(
        self, epoch: int, losses: Tensor, teacher_losses: Tensor, state_of: Callable[[int], Mapping[str, Any]]
    ) -> tuple[int, float] | None:
        """A head and how good it is (higher is better); None if the epoch does not compete.

        Args:
            epoch: the one that has ended.
            losses, teacher_losses: (H,), mean loss of each head in it.
            state_of: a head's state, for :func:`predict`.
        """


class ByTeacherLoss:
    """The head whose teacher has the lowest loss, among the epochs at the final temperature."""

    sees_labels = False

    def __init__(self, config: HeadsConfig) -> None:
        self._temperatures = teacher_temperatures(config)

    def __call__(
        self, epoch: int, losses: Tensor, teacher_losses: Tensor, state_of: Callable[[int], Mapping[str, Any]]
    ) -> tuple[int, float] | None:
        if self._temperatures[epoch] != self._temperatures[-1]:
            return None
        head = int(teacher_losses.argmin())
        return head, -float(teacher_losses[head])


def train_cluster_heads(
    features: np.ndarray,
    graph: Graph,
    config: HeadsConfig | None = None,
    *,
    classes: int,
    seed: int | torch.Generator = 0,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    scratch: Any = None,
    progress: Progress | None = None,
    choice: Choice | None = None,
) -> ClusterResult:
    """Train cluster heads on pairs of neighbours and label every sample by the best head's teacher.

    An epoch goes once over the samples in random order, each paired with one of its ``config.neighbours``
    nearest neighbours, drawn anew; an incomplete batch is left out. A step updates the class prior, takes one
    AdamW step on ``temi_loss`` averaged over the heads (decay on all weights and gains, not on biases) and
    moves the teacher: t ← m·t + (1 − m)·s.

    No label is used. Head and epoch are those of the lowest teacher loss: ``temi_loss`` with the teacher's
    logits in the student's place, averaged over the steps of the epoch. All heads compete, and all epochs
    whose teacher temperature is the final one (losses at other temperatures are not comparable); ties go to
    the earlier epoch and the lower head. The labels are the teacher's at that epoch's end.

    Args:
        features: (N, D) float32 or float16 embeddings.
        graph: their kNN graph with at least ``config.neighbours`` neighbours.
        config: hyper-parameters. A ``batch_size`` above N counts as N (also in the learning rate), so that an
            epoch has at least one step.
        classes: K, clusters per head.
        seed: for initial weights, order and pairs; or a generator to draw it from.
        device: where to train; None takes the first GPU, else the CPU.
        dtype: of the matrix products; None takes bfloat16 on GPUs that have it, else float32. Losses and
            updates are always float32.
        scratch: where to keep checkpoints; called again with the same scratch, training continues to the same
            result.
        progress: called with (epochs done, epochs, note).
        choice: which head and epoch give the labels; default the lowest teacher loss.

    Returns:
        ClusterResult.

    Raises:
        BadInput: shapes that do not match, fewer neighbours than asked for, NaN or infinite rows, or K < 2.
        WinnowError: a loss is not finite; names head and epoch.

    >>> from winnow.tasks.embed.knn import knn
    >>> rng = np.random.default_rng(0)
    >>> points = np.concatenate([rng.normal(centre, 0.1, (40, 2)) for centre in ((1, 0), (0, 1))]).astype("f")
    >>> shape = {"heads": 2, "hidden": 16, "bottleneck": 8, "neighbours": 5}
    >>> config = HeadsConfig(**shape, epochs=20, batch_size=20, lr=0.1, momentum=0.9, momentum_end=0.9)
    >>> found = train_cluster_heads(points, knn(points, 5), config, classes=2, device=torch.device("cpu"))
    >>> len(set(found.labels[:40])), len(set(found.labels[40:])), found.used
    (1, 1, 2)

    References:
        Adaloglou et al., "Exploring the limits of deep image clustering using pretrained models", BMVC 2023;
        HHU-MMBS/TEMI-official-BMVC2023 train_main.py. Zheng et al., "ELFS", ICLR 2025; eltsai/elfs
        eval_cluster.py.

    Differences from upstream:
        The published head is the one with the lowest training loss. Among healthy heads both rules agree
        closely, but a head whose student runs ahead of its teacher into clusters of small prior can reach any
        loss with a single cluster (log of (p^s p^t)^β / π grows as π falls); the teacher's loss on itself
        does not reward that. The published evaluation keeps the checkpoint with the best accuracy on the
        labelled test set, among every 20th epoch and never the last: label-free only in name.
        :class:`~winnow.tasks.train.upstream.heads.ByTestLabels` replays that, and the result says so. The
        published training needs at least 30 epochs, at least two heads, and no more warm-up than epochs.
        Weights start from a plain normal distribution: the published truncation is at 100 standard
        deviations.
    """
    config = config or HeadsConfig()
    features = checked_features("features", features)
    n = len(features)
    neighbours = np.asarray(graph.neighbours)
    if len(neighbours) != n:
        raise BadInput(f"graph has {len(neighbours)} rows, features have {n}.")
    if neighbours.shape[1] < config.neighbours:
        raise BadInput(
            f"graph has {neighbours.shape[1]} neighbours a sample, config.neighbours is {config.neighbours}.",
            remedy=f"knn(features, {config.neighbours}), or HeadsConfig(neighbours={neighbours.shape[1]})",
        )
    neighbours = neighbours[:, : config.neighbours]
    if neighbours.min() < 0 or neighbours.max() >= n:
        row = int(((neighbours < 0) | (neighbours >= n)).any(axis=1).argmax())
        raise BadInput(f"graph row {row} names a sample outside 0..{n - 1}.")
    if classes < 2:
        raise BadInput(f"classes={classes}: clustering needs at least 2.")
    device = hardware.device() if device is None else device
    if dtype is None:
        dtype = hardware.compute_dtype(device)
        # float16 would need loss scaling: a head's gradients are divided by the number of heads
        dtype = torch.float32 if dtype == torch.float16 else dtype
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (1,), generator=seed))
    choice = choice or ByTeacherLoss(config)

    run = _Run(features, neighbours, config, classes, seed, device, dtype)
    run.resume(scratch)
    pace = Pace()
    for epoch in range(run.epoch, config.epochs):
        losses = run.train_epoch(epoch)
        if not torch.isfinite(losses).all():
            raise WinnowError(
                f"The loss of head {int((~torch.isfinite(losses)).int().argmax())} is not finite in epoch "
                f"{epoch}.",
                remedy=f"lower lr (now {config.lr}), or normalise the embeddings (normalise='zscore')",
            )
        run.keep_best(epoch, choice)
        if scratch is not None and pace.due and epoch + 1 < config.epochs:
            with pace.saving():
                run.save(scratch)
        if progress:
            progress(epoch + 1, config.epochs, f"loss {losses.min():.4f}")
    labels, confidence = predict(run.best["state"], features, device=device)
    losses, teacher_losses = run.losses.numpy()
    return ClusterResult(
        labels,
        confidence,
        run.best["head"],
        run.best["epoch"],
        losses,
        teacher_losses,
        len(np.unique(labels)),
        choice.sees_labels,
        run.best["state"],
    )


class _Run:
    """A training run between two epochs: all that a checkpoint holds."""

    def __init__(
        self,
        features: np.ndarray,
        neighbours: np.ndarray,
        config: HeadsConfig,
        classes: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        n, dim = features.shape
        self.config = config
        self.batch = min(config.batch_size, n)
        self.steps = n // self.batch
        self.temperatures = teacher_temperatures(config)
        self.identity = f"{config.model_dump_json()} {n} {dim} {classes} {seed} {dtype} {device.type}"
        self.input = input_statistics(features, config.normalise)
        half = features.dtype == np.float16 and config.normalise == "none"
        self.data = torch.empty((n, dim), dtype=torch.float16 if half else torch.float32, device=device)
        for start in range(0, n, 8192):
            rows = torch.tensor(features[start : start + 8192], device=device)
            self.data[start : start + 8192] = normalised(rows, self.input)
        self.neighbours = torch.tensor(neighbours, dtype=torch.int32, device=device)
        self.generator = hardware.torch_generator(seed, "pairs")  # on the CPU: the same pairs on every device
        student = ClusterHeads(
            config.heads,
            dim,
            classes,
            hidden=config.hidden,
            bottleneck=config.bottleneck,
            layers=config.layers,
            generator=hardware.torch_generator(seed, "weights"),
        )
        self.trainer = HeadsTrainer(student, config, self.batch, self.steps, device, dtype)
        self.losses = torch.zeros(2, config.epochs, config.heads)  # student's, teacher's
        self.epoch = 0
        self.best: dict[str, Any] = {"merit": -math.inf, "head": 0, "epoch": 0, "state": {}}

    def train_epoch(self, epoch: int) -> Tensor:
        """Each head's mean loss, (H,)."""
        config, where, n = self.config, self.data.device, len(self.data)
        order = torch.randperm(n, generator=self.generator)
        drawn = torch.randint(config.neighbours, (n,), generator=self.generator)
        order, drawn = (indices.to(where, non_blocking=True) for indices in (order, drawn))
        partner = self.neighbours[order, drawn].long()
        self.trainer.losses.zero_()
        for step in range(self.steps):
            batch = slice(step * self.batch, (step + 1) * self.batch)
            x = self.data[torch.cat([order[batch], partner[batch]])].float()
            if config.noise:
                x += config.noise * torch.randn(x.shape, generator=self.generator).to(where)
            self.trainer.step(x, epoch * self.steps + step, frozen=epoch < config.frozen_epochs)
        self.losses[:, epoch] = (self.trainer.losses / self.steps).cpu()
        self.epoch = epoch + 1
        return self.losses[0, epoch]

    def keep_best(self, epoch: int, choice: Choice) -> None:
        losses, teacher_losses = self.losses[:, epoch]
        chosen = choice(epoch, losses, teacher_losses, lambda head: self._head(epoch, head))
        if chosen is not None and chosen[1] > self.best["merit"]:
            head, merit = chosen
            self.best = {"merit": merit, "head": head, "epoch": epoch, "state": self._head(epoch, head)}

    def _head(self, epoch: int, head: int) -> dict[str, Any]:
        weights = {name: p[head : head + 1].to("cpu", copy=True) for name, p in self.trainer.teacher.items()}
        return {"weights": weights, "input": self.input, "temperature": float(self.temperatures[epoch])}

    def save(self, scratch: Any) -> None:
        scratch.save(
            "cluster_heads",
            {
                "identity": self.identity,
                "epoch": self.epoch,
                "losses": self.losses,
                "best": self.best,
                "generator": self.generator.get_state(),
                **self.trainer.state(),
            },
        )

    def resume(self, scratch: Any) -> None:
        state = None if scratch is None else scratch.load("cluster_heads")
        if state is None or state["identity"] != self.identity:
            return
        self.epoch, self.best = state["epoch"], state["best"]
        self.losses.copy_(state["losses"])
        self.generator.set_state(state["generator"])
        self.trainer.restore(state)
