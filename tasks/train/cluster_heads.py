"""Self-distilled cluster heads (TEMI): pseudo-labels from frozen embeddings and their kNN graph, all heads in one computation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from winnow.tasks import hardware
from winnow.tasks.embed.knn import Graph
from winnow.tasks.errors import BadInput, WinnowError
from winnow.tasks.train.metrics import clustering_metrics

__all__ = [
    "ClusterHeads",
    "ClusterResult",
    "HeadsConfig",
    "class_prior",
    "clustering_metrics",
    "cosine_schedule",
    "kmeans_labels",
    "predict",
    "teacher_temperatures",
    "temi_loss",
    "train_cluster_heads",
]

Loss = Literal["temi", "pmi", "wmi", "wmi_reg", "scan"]
Progress = Callable[[int, int, str], None]

_CHECKPOINT_SECONDS = 30.0  # work between two checkpoints; with many heads one is hundreds of megabytes
_LOGITS = {
    "cpu": 2**25,
    "cuda": 2**27,
}  # most logits of a network held at once; more are worked through in groups of heads
_SMALLEST_PRIOR = 1e-12  # of a cluster that nothing is assigned to any more
_SAVED_EVERY = 20  # epochs between the checkpoints that the published code chooses from


class HeadsConfig(BaseModel):
    """Hyper-parameters of the cluster heads; the defaults are the published recipe for CIFAR-10.

    Learning rates are given per 256 samples of a batch: the rate of a step is lr · batch / 256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: int = Field(
        default=50,
        ge=1,
        description="Independent heads; the one with the lowest training loss gives the labels",
    )
    epochs: int = Field(default=200, ge=1)
    batch_size: int = Field(
        default=1024, ge=1, description="Pairs in a step; a smaller data set is one batch"
    )
    neighbours: int = Field(
        default=50, ge=1, description="Nearest neighbours among which a sample's partner is drawn"
    )
    beta: float = Field(default=0.6, gt=0, le=1, description="Below 1 it keeps all clusters in use")
    loss: Loss = "temi"
    positive_pmi: bool = Field(default=False, description="Clamp the pointwise mutual information at zero")
    lr: float = Field(default=1e-4, gt=0)
    min_lr: float = Field(default=1e-4, ge=0)
    warmup_epochs: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    weight_decay_end: float = Field(default=1e-4, ge=0)
    momentum: float = Field(default=0.996, ge=0, le=1, description="Of the teacher, at the start")
    momentum_end: float = Field(default=0.996, ge=0, le=1)
    student_temperature: float = Field(default=0.1, gt=0)
    teacher_temperature: float = Field(default=0.1, gt=0)
    teacher_temperature_start: float = Field(default=0.1, gt=0)
    teacher_temperature_epochs: int = Field(default=30, ge=0)
    prior_momentum: float = Field(default=0.9, ge=0, lt=1)
    frozen_epochs: int = Field(
        default=1, ge=0, description="Epochs at the start in which the last layer rests"
    )
    layers: int = Field(default=2, ge=1)
    hidden: int = Field(default=512, ge=1)
    bottleneck: int = Field(default=256, ge=1)
    normalise: Literal["none", "l2", "zscore"] = Field(
        default="none", description="Of the embeddings; zscore takes the training mean and deviation"
    )
    noise: float = Field(
        default=0.0, ge=0, description="Standard deviation of Gaussian noise on the embeddings of a step"
    )


class ClusterHeads(torch.nn.Module):
    """H independent cluster heads on the same embeddings, evaluated together.

    One head: Linear(D, hidden) → GELU → Linear(hidden, bottleneck) → unit length → z_k = g_k ⟨v_k/‖v_k‖, ·⟩;
    with ``layers=1`` one Linear(D, bottleneck), with more than 2 further hidden layers. Weights start normal
    with deviation 0.02, biases 0, v uniform within 1/√bottleneck, g = 1.

    Args:
        heads: H.
        dim: D, dimensions of the embeddings.
        classes: K, clusters of a head.
        hidden, bottleneck, layers: shape of a head.
        generator: source of the starting weights; None seeds one with 0.

    >>> heads = ClusterHeads(4, 32, 10, hidden=16, bottleneck=8)
    >>> heads(torch.zeros(5, 32)).shape
    torch.Size([4, 5, 10])

    References:
        Adaloglou et al., BMVC 2023, section 3; HHU-MMBS/TEMI-official-BMVC2023 model_builders/multi_head.py.
        Weight normalisation: Salimans and Kingma, NeurIPS 2016.
    """

    def __init__(
        self,
        heads: int,
        dim: int,
        classes: int,
        *,
        hidden: int = 512,
        bottleneck: int = 256,
        layers: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        sizes = [dim, *[hidden] * (layers - 1), bottleneck]
        for depth, (inputs, outputs) in enumerate(pairwise(sizes), 1):
            weight = torch.empty(heads, outputs, inputs).normal_(std=0.02, generator=generator)
            self.register_parameter(f"w{depth}", torch.nn.Parameter(weight))
            self.register_parameter(f"b{depth}", torch.nn.Parameter(torch.zeros(heads, outputs)))
        bound = bottleneck**-0.5
        self.v = torch.nn.Parameter(
            torch.empty(heads, classes, bottleneck).uniform_(-bound, bound, generator=generator)
        )
        self.g = torch.nn.Parameter(torch.ones(heads, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (H, n, K) of embeddings (n, D)."""
        weights = dict(self.named_parameters())
        return _logits(weights, _directions(weights, x))


def _directions(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """(H, n, bottleneck) unit vectors."""
    heads, outputs, inputs = weights["w1"].shape
    # the first layer has the same input in every head: one matrix product for all
    z = F.linear(x, weights["w1"].reshape(heads * outputs, inputs), weights["b1"].reshape(-1))
    z = z.view(len(x), heads, outputs).transpose(0, 1)
    depth = 2
    while f"w{depth}" in weights:
        z = torch.baddbmm(weights[f"b{depth}"][:, None], F.gelu(z), weights[f"w{depth}"].transpose(1, 2))
        depth += 1
    return F.normalize(z.float(), dim=-1)


def _logits(weights: Mapping[str, Tensor], directions: Tensor) -> Tensor:
    """(H, n, K)."""
    # g scales the logits, not the weights: the same product, and K·n instead of K·bottleneck multiplications
    # when K is small
    return torch.bmm(directions, F.normalize(weights["v"], dim=-1).transpose(1, 2)).float() * weights[
        "g"
    ].transpose(1, 2)


def class_prior(
    prior: Tensor, teacher_logits: Tensor, *, temperature: float | Tensor = 0.1, momentum: float = 0.9
) -> Tensor:
    """Running share of each cluster: m·prior + (1 − m)·mean over the batch of the teacher's probabilities.

    Args:
        prior: (H, K) float32; starts at 1/K.
        teacher_logits: (H, 2B, K) float32, both views.
        temperature: of the teacher.
        momentum: m.

    Returns:
        (H, K) float32, the prior that the loss of this batch takes.

    >>> class_prior(torch.full((1, 2), 0.5), torch.tensor([[[9.0, 0.0], [9.0, 0.0]]]))
    tensor([[0.5500, 0.4500]])
    """
    return prior.lerp(_log_softmax(teacher_logits, temperature).exp().mean(1), 1.0 - momentum)


def _log_softmax(logits: Tensor, temperature: float | Tensor) -> Tensor:
    return F.log_softmax(logits.float() / temperature, dim=-1)


def temi_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    prior: Tensor,
    beta: float = 0.6,
    *,
    loss: Loss = "temi",
    positive_pmi: bool = False,
    student_temperature: float = 0.1,
    teacher_temperature: float | Tensor = 0.1,
) -> Tensor:
    """Loss of each head on a batch of pairs: weighted pointwise mutual information between a sample and its neighbour.

    l_h = ½ Σ_(a,b) mean_i w_i · (−log Σ_k (p^s_a,k · p^t_b,k)^β / π_k) over (a,b) = (0,1), (1,0), with p =
    softmax(z/T) of student s and teacher t on view 0 (the sample) and 1 (its neighbour), π the class prior,
    and w_i = mean_h Σ_k p^t_0,k · p^t_1,k, which has no gradient. Computed as −logsumexp_k(β(log p^s + log
    p^t) − log π), which stays finite for any logits.

    Args:
        student_logits: (H, 2B, K) float32; rows 0..B−1 are samples, rows B..2B−1 their neighbours.
        teacher_logits: (H, 2B, K) float32, the same rows.
        prior: (H, K) float32, already updated with this batch (``class_prior``).
        beta: exponent; below 1 it favours clusters of equal size.
        loss: "temi"; "pmi" has w = 1; "wmi" takes w from the head itself, and "wmi_reg" adds ½ mean_i Σ_k p^s
            log p^s to it; "scan" has no prior, β = 1 and w = 1, and adds 5 Σ_k p̄_k log p̄_k with p̄ the mean
            student probabilities of a view.
        positive_pmi: clamp each sample's mutual information at 0.
        student_temperature, teacher_temperature: T.

    Returns:
        (H,) float32.

    Raises:
        BadInput: shapes that do not fit together, or an odd number of rows.

    >>> student = torch.tensor([[[0.2, 0.0, -0.1], [0.0, 0.1, 0.05]], [[0.0, 0.3, 0.1], [-0.2, 0.1, 0.0]]])
    >>> teacher = torch.tensor([[[0.1, 0.0, 0.05], [0.0, 0.3, -0.1]], [[0.05, 0.2, 0.0], [0.0, 0.15, 0.1]]])
    >>> temi_loss(student, teacher, class_prior(torch.full((2, 3), 1 / 3), teacher))
    tensor([-0.1608, -0.2772])

    References:
        Adaloglou et al., BMVC 2023, equations 5 to 9; HHU-MMBS/TEMI-official-BMVC2023
        losses/multihead_losses.py, losses/mi.py. SCAN: Van Gansbeke et al., ECCV 2020.

    Differences from upstream:
        The published form exponentiates first: its gradient is not finite once a softmax underflows. Equal
        elsewhere.
    """
    heads, rows, classes = student_logits.shape
    if teacher_logits.shape != student_logits.shape or prior.shape != (heads, classes) or rows % 2:
        raise BadInput(
            f"student_logits {tuple(student_logits.shape)}, teacher_logits {tuple(teacher_logits.shape)} and "
            f"prior {tuple(prior.shape)}"
            " must be (H, 2B, K), (H, 2B, K) and (H, K)."
        )
    log_teacher = _log_softmax(teacher_logits, teacher_temperature).detach()
    weight = _agreement(log_teacher).mean(0)
    return _head_losses(
        _log_softmax(student_logits, student_temperature),
        log_teacher,
        prior,
        weight,
        beta,
        loss,
        positive_pmi,
    )


def _agreement(log_teacher: Tensor) -> Tensor:
    """(H, B): how likely the teacher puts both views into the same cluster."""
    first, second = log_teacher.chunk(2, dim=1)
    return (first + second).exp().sum(-1)


def _head_losses(
    log_student: Tensor,
    log_teacher: Tensor,
    prior: Tensor,
    weight: Tensor,
    beta: float,
    loss: Loss,
    positive_pmi: bool,
) -> Tensor:
    # row i of the swapped teacher is the other view of row i
    other = torch.cat(log_teacher.chunk(2, dim=1)[::-1], dim=1)
    if loss == "scan":
        pmi = torch.logsumexp(log_student + other, dim=-1)
        mean = torch.stack(log_student.exp().chunk(2, dim=1)).mean(2)
        return 5.0 * torch.xlogy(mean, mean).sum(-1).mean(0) - pmi.mean(1)
    log_prior = prior.clamp_min(_SMALLEST_PRIOR).log()[:, None]
    pmi = torch.logsumexp(beta * (log_student + other) - log_prior, dim=-1)
    if positive_pmi:
        pmi = pmi.clamp_min(0.0)
    if loss == "temi":
        pmi = pmi * weight.repeat(2)
    elif loss.startswith("wmi"):
        pmi = pmi * _agreement(log_teacher).repeat(1, 2)
    losses = -pmi.mean(1)
    if loss == "wmi_reg":
        losses = losses + 0.5 * (log_student.exp() * log_student).sum(-1).mean(1)
    return losses


def cosine_schedule(start: float, end: float, epochs: int, steps: int, warmup_epochs: int = 0) -> np.ndarray:
    """One value a step: linear from 0 to ``start`` over the warm-up, then half a cosine to ``end``.

    A warm-up longer than the training is shortened to it.

    Args:
        start, end: value after the warm-up and towards the end.
        epochs, steps: epochs, and steps of an epoch.
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


class _Trainer:
    """Student, teacher, prior and optimiser, and the step that moves them; nothing in a step waits for the device."""

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
        heads, classes = self.student["v"].shape[:2]
        self.prior = torch.full((heads, classes), 1.0 / classes, device=device)
        self.last = ("v", "g")
        lr = cosine_schedule(
            config.lr * batch / 256, config.min_lr * batch / 256, config.epochs, steps, config.warmup_epochs
        )
        decay = cosine_schedule(config.weight_decay, config.weight_decay_end, config.epochs, steps)
        momentum = cosine_schedule(config.momentum, config.momentum_end, config.epochs, steps)
        temperature = np.repeat(teacher_temperatures(config), steps)
        self.schedule = torch.tensor(
            np.stack([lr, 1.0 - lr * decay, 1.0 - momentum, temperature], axis=1),
            dtype=torch.float32,
            device=device,
        )
        self.dials = torch.zeros(4, device=device)
        self.adam = torch.optim.Adam(
            self.student.values(), lr=self.dials[0], fused=True, capturable=device.type == "cuda"
        )
        rows = 2 * batch * classes
        group = max(1, min(heads, _LOGITS.get(device.type, 2**25) // rows))
        self.groups = [slice(first, min(first + group, heads)) for first in range(0, heads, group)]
        self.losses = torch.zeros(
            2, heads, device=device
        )  # of the student and of the teacher, summed over the steps of an epoch
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self._eager = {True: 0, False: 0}
        self._x: Tensor | None = None

    def step(self, x: Tensor, number: int, frozen: bool) -> None:
        """One update on pairs x (2B, D), the ``number``-th of the training; the last layer rests if ``frozen``."""
        self.dials.copy_(self.schedule[number])
        if self.device.type != "cuda":
            self._update(x, frozen)
            return
        if self._x is None:
            self._x = x.clone()
        else:
            self._x.copy_(x)
        if frozen in self._graphs:
            self._graphs[frozen].replay()
            return
        # the first steps run as they are, beside the main stream, as graph capture asks for; then the
        # recorded step is replayed
        self._eager[frozen] += 1
        if self._eager[frozen] <= 3:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._update(self._x, frozen)
            torch.cuda.current_stream().wait_stream(side)
            return
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._update(self._x, frozen)
        self._graphs[frozen] = graph
        graph.replay()

    def _update(self, x: Tensor, frozen: bool) -> None:
        config = self.config
        moving = [name for name in self.student if not (frozen and name in self.last)]
        parts: list[tuple[Tensor, ...]] = []
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            log_teacher, weight = self._teach(x)
            for group in self.groups:
                leaves = {
                    name: p[group].detach().requires_grad_(name in moving) for name, p in self.student.items()
                }
                log_student = _log_softmax(
                    _logits(leaves, _directions(leaves, x)), config.student_temperature
                )
                taught = log_teacher(group)
                rest = (taught, self.prior[group], weight, config.beta, config.loss, config.positive_pmi)
                losses = _head_losses(log_student, *rest)
                parts.append(
                    torch.autograd.grad(
                        losses.sum() / self.losses.shape[1], [leaves[name] for name in moving]
                    )
                )
                self.losses[0, group] += losses.detach()
                self.losses[1, group] += _head_losses(taught, *rest)
        for parameter in self.student.values():
            parameter.grad = None  # no update where the layer rests, and no moments either
        for name, gradients in zip(moving, zip(*parts, strict=True), strict=True):
            # the fused optimiser reads memory in order, whatever the strides
            self.student[name].grad = (
                gradients[0].contiguous() if len(gradients) == 1 else torch.cat(gradients)
            )
        with torch.no_grad():
            for name in moving:
                if not name.startswith("b"):
                    self.student[name].mul_(
                        self.dials[1]
                    )  # decoupled decay, scheduled on its own; biases have none
            self.adam.step()
            for name, parameter in self.teacher.items():
                parameter.lerp_(self.student[name], self.dials[2])

    @torch.no_grad()
    def _teach(self, x: Tensor) -> tuple[Callable[[slice], Tensor], Tensor]:
        """Updates the prior; the teacher's log-probabilities of a group of heads, and the weight of each pair."""
        directions = _directions(self.teacher, x)

        def log_teacher(group: slice) -> Tensor:
            weights = {name: self.teacher[name][group] for name in self.last}
            return _log_softmax(_logits(weights, directions[group]), self.dials[3])

        weight = torch.zeros(len(x) // 2, device=x.device)
        for group in self.groups:
            found = log_teacher(group)
            self.prior[group] = self.prior[group].lerp(found.exp().mean(1), 1.0 - self.config.prior_momentum)
            weight += _agreement(found).sum(0)
        if len(self.groups) == 1:
            return lambda group: found, weight / self.losses.shape[1]
        return torch.no_grad()(log_teacher), weight / self.losses.shape[1]

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


@dataclass(frozen=True)
class ClusterResult:
    """Pseudo-labels and where they come from.

    Attributes:
        labels: (N,) int32, cluster of each sample.
        confidence: (N,) float32, the teacher's probability of that cluster.
        head: the head that gave them, and
        epoch: the epoch (from 0) after which it did.
        losses: (epochs, H) float32, mean training loss of each head.
        teacher_losses: (epochs, H) float32, the same loss of the teacher on itself; its lowest chose head and
            epoch.
        used: clusters with at least one sample.
        oracle: whether test labels chose the epoch (``upstream=True``): then nothing here is label-free.
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
    upstream: bool = False,
    oracle: tuple[np.ndarray, np.ndarray] | None = None,
) -> ClusterResult:
    """Train cluster heads on pairs of neighbours and label every sample by the best head's teacher.

    An epoch goes once over the samples in random order, each paired with one of its ``config.neighbours``
    nearest neighbours, drawn anew; what does not fill a batch is left out. A step updates the class prior,
    takes ``temi_loss`` averaged over the heads, one AdamW step (decay on all weights and gains, not on
    biases) and moves the teacher: t ← m·t + (1 − m)·s.

    No label is used. Head and epoch are those of the lowest loss of a teacher: ``temi_loss`` with the
    teacher's logits in the student's place, averaged over the steps of the epoch. All heads compete, and all
    epochs whose teacher temperature is the final one (losses at other temperatures do not compare); ties go
    to the earlier epoch and the lower head. The labels are the teacher's at that epoch's end.

    Args:
        features: (N, D) float32 or float16 embeddings.
        graph: their kNN graph with at least ``config.neighbours`` neighbours.
        config: hyper-parameters. A ``batch_size`` above N counts as N (also in the learning rate), so that an
            epoch has at least one step.
        classes: K, clusters of a head.
        seed: of starting weights, order and pairs; or a generator to draw it from.
        device: where to train; None takes the first GPU, else the CPU.
        dtype: of the matrix products; None takes bfloat16 on GPUs that have it, else float32. Losses and
            updates are float32 always.
        scratch: where to keep checkpoints; called again with the same scratch, training goes on to the same
            result.
        progress: called with (epochs done, epochs, note).
        upstream: choose the epoch as the published code does, by ``oracle``; for replaying published results.
        oracle: (test features (M, D), test labels (M,)), only with ``upstream=True``.

    Returns:
        ClusterResult.

    Raises:
        BadInput: shapes that do not fit, fewer neighbours than asked for, NaN or infinite rows, K < 2, or an
            oracle without ``upstream``.

    >>> from winnow.tasks.embed.knn import knn
    >>> points = np.concatenate([np.random.default_rng(0).normal(centre, 0.1, (40, 2)) for centre in ((1, 0), (0, 1))]).astype("f")
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
        The published head is that of the lowest training loss. Among healthy heads both rules agree closely,
        but a head whose student runs ahead of its teacher into clusters of small prior reaches any loss while
        it uses a single cluster (log of (p^s p^t)^β / π grows as π falls); the teacher's loss on itself does
        not reward that. The published evaluation keeps the checkpoint with the best accuracy on the labelled
        test set, among every 20th epoch and never the last: label-free only in name. ``upstream=True``
        replays that, and the result says so. The published training needs at least 30 epochs, at least two
        heads, and no more warm-up than epochs. Weights start from a plain normal distribution: the published
        truncation lies at 100 standard deviations.
    """
    config = config or HeadsConfig()
    features = _checked("features", features)
    n, dim = features.shape
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
    if upstream and oracle is None:
        raise BadInput(
            "upstream=True chooses the epoch by test accuracy.",
            remedy="pass oracle=(test_features, test_labels)",
        )
    if oracle is not None and not upstream:
        raise BadInput(
            "oracle holds labels, and only upstream=True looks at them.",
            remedy="drop oracle, or pass upstream=True",
        )
    if oracle is not None and (
        _checked("oracle features", oracle[0]).shape[1] != dim or len(oracle[0]) != len(oracle[1])
    ):
        raise BadInput(
            f"oracle: {np.shape(oracle[0])} features and {np.shape(oracle[1])} labels; expected (M, {dim}) "
            "and (M,)."
        )

    device = hardware.device() if device is None else device
    if dtype is None:
        dtype = hardware.compute_dtype(device)
        # float16 would need loss scaling: the gradients of a head are divided by their number
        dtype = torch.float32 if dtype == torch.float16 else dtype
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (1,), generator=seed))

    run = _Run(features, neighbours, config, classes, seed, device, dtype)
    run.resume(scratch)
    saved = time.monotonic()
    for epoch in range(run.epoch, config.epochs):
        losses, _ = run.train_epoch(epoch)
        if not torch.isfinite(losses).all():
            raise WinnowError(
                f"The loss of head {int((~torch.isfinite(losses)).int().argmax())} is not finite in epoch "
                f"{epoch}.",
                remedy=f"lower lr (now {config.lr}), or normalise the embeddings (normalise='zscore')",
            )
        run.keep_best(epoch, oracle)
        if (
            scratch is not None
            and time.monotonic() - saved >= _CHECKPOINT_SECONDS
            and epoch + 1 < config.epochs
        ):
            run.save(scratch)
            saved = time.monotonic()
        if progress:
            progress(epoch + 1, config.epochs, f"loss {losses.min():.4f}")
    best = run.best
    labels, confidence = predict(best["state"], features, device=device)
    used = len(np.unique(labels))
    losses, teacher_losses = run.losses.numpy()
    return ClusterResult(
        labels,
        confidence,
        best["head"],
        best["epoch"],
        losses,
        teacher_losses,
        used,
        oracle is not None,
        best["state"],
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
        self.input = _input_statistics(features, config.normalise)
        half = features.dtype == np.float16 and config.normalise == "none"
        self.data = torch.empty((n, dim), dtype=torch.float16 if half else torch.float32, device=device)
        for start in range(0, n, 8192):
            self.data[start : start + 8192] = _normalised(
                torch.tensor(features[start : start + 8192], device=device), self.input
            )
        self.neighbours = torch.tensor(neighbours, dtype=torch.int32, device=device)
        self.generator = hardware.torch_generator(seed, "pairs", where=device)
        student = ClusterHeads(
            config.heads,
            dim,
            classes,
            hidden=config.hidden,
            bottleneck=config.bottleneck,
            layers=config.layers,
            generator=hardware.torch_generator(seed, "weights"),
        )
        self.trainer = _Trainer(student, config, self.batch, self.steps, device, dtype)
        self.losses = torch.zeros(2, config.epochs, config.heads)  # student's, teacher's
        self.epoch = 0
        self.best: dict[str, Any] = {"merit": -math.inf, "head": 0, "epoch": 0, "state": {}}

    def train_epoch(self, epoch: int) -> Tensor:
        config, where = self.config, self.data.device
        n = len(self.data)
        order = torch.randperm(n, generator=self.generator, device=where)
        drawn = torch.randint(config.neighbours, (n,), generator=self.generator, device=where)
        partner = self.neighbours[order, drawn].long()
        self.trainer.losses.zero_()
        for step in range(self.steps):
            batch = slice(step * self.batch, (step + 1) * self.batch)
            x = self.data[torch.cat([order[batch], partner[batch]])].float()
            if config.noise:
                x += config.noise * torch.randn(x.shape, generator=self.generator, device=where)
            self.trainer.step(x, epoch * self.steps + step, frozen=epoch < config.frozen_epochs)
        losses = (self.trainer.losses / self.steps).cpu()
        self.losses[:, epoch] = losses
        self.epoch = epoch + 1
        return losses

    def keep_best(self, epoch: int, oracle: tuple[np.ndarray, np.ndarray] | None) -> None:
        losses, teacher_losses = self.losses[:, epoch]
        if oracle is None:
            head = int(teacher_losses.argmin())
            merit = -float(teacher_losses[head])
            if self.temperatures[epoch] == self.temperatures[-1] and merit > self.best["merit"]:
                self.best = {"merit": merit, "head": head, "epoch": epoch, "state": self._head(epoch, head)}
        elif epoch % _SAVED_EVERY == 0:
            head = int(losses.argmin())
            state = self._head(epoch, head)
            labels, _ = predict(state, oracle[0], device=self.data.device)
            accuracy = clustering_metrics(labels, oracle[1])["accuracy"]
            if accuracy > self.best["merit"]:
                self.best = {"merit": accuracy, "head": head, "epoch": epoch, "state": state}

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


def _checked(name: str, features: np.ndarray) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind != "f":
        raise BadInput(
            f"{name} must be floating-point (samples, dimensions), got {features.dtype} of shape "
            f"{features.shape}."
        )
    for start in range(0, len(features), 8192):
        bad = ~np.isfinite(features[start : start + 8192]).all(axis=1)
        if bad.any():
            raise BadInput(
                f"{name} row {start + int(bad.argmax())} holds NaN or infinity.",
                remedy="drop or mend that row",
            )
    return features if features.dtype in (np.float16, np.float32) else features.astype(np.float32)


def _input_statistics(features: np.ndarray, normalise: str) -> dict[str, Any]:
    if normalise != "zscore":
        return {"normalise": normalise}
    mean = features.mean(axis=0, dtype=np.float64)
    spread = sum(
        ((part - mean) ** 2).sum(axis=0) for part in np.array_split(features, -(-len(features) // 8192))
    )
    std = np.sqrt(spread / max(len(features) - 1, 1))
    std[std == 0.0] = 1.0  # a constant dimension is only centred
    return {
        "normalise": normalise,
        "mean": torch.from_numpy(mean).float(),
        "std": torch.from_numpy(std).float(),
    }


def _normalised(rows: Tensor, statistics: Mapping[str, Any]) -> Tensor:
    if statistics["normalise"] == "l2":
        return F.normalize(rows.float(), dim=1)
    if statistics["normalise"] == "zscore":
        return (rows.float() - statistics["mean"].to(rows.device)) / statistics["std"].to(rows.device)
    return rows


@torch.no_grad()
def predict(
    state: Mapping[str, Any], features: np.ndarray, *, device: torch.device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of other embeddings by a trained head.

    Args:
        state: ``ClusterResult.state``.
        features: (M, D) float32 or float16, embedded as the training features were.
        device: where to compute; None takes the first GPU, else the CPU.

    Returns:
        labels (M,) int32 and confidence (M,) float32, the teacher's probability of the label.

    Raises:
        BadInput: another number of dimensions, NaN or infinite rows.
    """
    device = hardware.device() if device is None else device
    features = _checked("features", features)
    weights = {name: p.to(device) for name, p in state["weights"].items()}
    if features.shape[1] != weights["w1"].shape[2]:
        raise BadInput(
            f"features have {features.shape[1]} dimensions, the head was trained on {weights['w1'].shape[2]}."
        )
    labels, confidence = np.empty(len(features), np.int32), np.empty(len(features), np.float32)
    for start in range(0, len(features), 8192):
        rows = _normalised(
            torch.tensor(features[start : start + 8192], device=device), state["input"]
        ).float()
        probabilities = _log_softmax(
            _logits(weights, _directions(weights, rows))[0], state["temperature"]
        ).exp()
        values, indices = probabilities.max(dim=1)
        labels[start : start + 8192] = indices.cpu().numpy()
        confidence[start : start + 8192] = values.cpu().numpy()
    return labels, confidence


def kmeans_labels(
    features: np.ndarray, classes: int, *, seed: int = 0, restarts: int | None = None
) -> np.ndarray:
    """The baseline: k-means clusters of the embeddings, best of ``restarts`` runs by inertia.

    Args:
        features: (N, D) float32 or float16.
        classes: number of clusters, at most N.
        seed: of the starting centres.
        restarts: runs; default 10, or 1 where N·classes·D is beyond 10¹⁰ (ImageNet: hours each).

    Returns:
        (N,) int32.

    Raises:
        BadInput: more clusters than samples, NaN or infinite rows.

    >>> kmeans_labels(np.array([[0.0], [0.1], [5.0], [5.1]]), 2).tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    True
    """
    features = _checked("features", features)
    if not 1 <= classes <= len(features):
        raise BadInput(f"classes={classes}, but there are {len(features)} samples.")
    if restarts is None:
        restarts = 10 if features.size * classes <= 10**10 else 1
    # several OpenMP threads add partial sums in the order in which they finish
    with threadpool_limits(limits=1, user_api="openmp"):
        return (
            KMeans(n_clusters=classes, n_init=restarts, random_state=seed)
            .fit_predict(features.astype(np.float32))
            .astype(np.int32)
        )
