"""Cluster heads and their loss (TEMI): H small networks on frozen embeddings, evaluated together."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from winnow.tasks import hardware
from winnow.tasks.errors import BadInput
from winnow.tasks.train.recipe import HeadsConfig, Loss

__all__ = [
    "ClusterHeads",
    "HeadsConfig",
    "agreement",
    "checked_features",
    "class_prior",
    "directions_of",
    "head_losses",
    "input_statistics",
    "log_softmax",
    "logits_of",
    "normalised",
    "predict",
    "temi_loss",
]

_SMALLEST_PRIOR = 1e-12  # of a cluster that nothing is assigned to any more
_ROWS = 8192  # of the features, processed at once


class ClusterHeads(torch.nn.Module):
    """H independent cluster heads on the same embeddings, evaluated together.

    One head: Linear(D, hidden) → GELU → Linear(hidden, bottleneck) → unit length → z_k = g_k ⟨v_k/‖v_k‖, ·⟩;
    with ``layers=1``, one Linear(D, bottleneck); with more than 2, further hidden layers. Weights start
    normal with standard deviation 0.02, biases 0, v uniform within 1/√bottleneck, g = 1.

    Args:
        heads: H.
        dim: D, dimensions of the embeddings.
        classes: K, clusters per head.
        hidden, bottleneck, layers: shape of a head.
        generator: source of the initial weights; None seeds one with 0.

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
        v = torch.empty(heads, classes, bottleneck).uniform_(-bound, bound, generator=generator)
        self.v = torch.nn.Parameter(v)
        self.g = torch.nn.Parameter(torch.ones(heads, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (H, n, K) of embeddings (n, D)."""
        weights = dict(self.named_parameters())
        return logits_of(weights, directions_of(weights, x))


def directions_of(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
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


def logits_of(weights: Mapping[str, Tensor], directions: Tensor) -> Tensor:
    """(H, n, K)."""
    # g scales the logits, not the weights: the same product, and K·n instead of K·bottleneck multiplications
    # when K is small
    cosines = torch.bmm(directions, F.normalize(weights["v"], dim=-1).transpose(1, 2)).float()
    return cosines * weights["g"].transpose(1, 2)


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
        (H, K) float32, the prior for this batch's loss.

    >>> class_prior(torch.full((1, 2), 0.5), torch.tensor([[[9.0, 0.0], [9.0, 0.0]]]))
    tensor([[0.5500, 0.4500]])
    """
    return prior.lerp(log_softmax(teacher_logits, temperature).exp().mean(1), 1.0 - momentum)


def log_softmax(logits: Tensor, temperature: float | Tensor) -> Tensor:
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
    """Loss of each head on a batch of pairs: weighted pointwise mutual information of sample and neighbour.

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
        BadInput: shapes that do not match, or an odd number of rows.

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
    log_teacher = log_softmax(teacher_logits, teacher_temperature).detach()
    weight = agreement(log_teacher).mean(0)
    return head_losses(
        log_softmax(student_logits, student_temperature), log_teacher, prior, weight, beta, loss, positive_pmi
    )


def agreement(log_teacher: Tensor) -> Tensor:
    """(H, B): how likely the teacher puts both views into the same cluster."""
    first, second = log_teacher.chunk(2, dim=1)
    return (first + second).exp().sum(-1)


def head_losses(
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
        pmi = pmi * agreement(log_teacher).repeat(1, 2)
    losses = -pmi.mean(1)
    if loss == "wmi_reg":
        losses = losses + 0.5 * (log_student.exp() * log_student).sum(-1).mean(1)
    return losses


def checked_features(name: str, features: np.ndarray) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind != "f":
        raise BadInput(
            f"{name} must be floating-point (samples, dimensions), got {features.dtype} of shape "
            f"{features.shape}."
        )
    for start in range(0, len(features), _ROWS):
        bad = ~np.isfinite(features[start : start + _ROWS]).all(axis=1)
        if bad.any():
            raise BadInput(
                f"{name} row {start + int(bad.argmax())} holds NaN or infinity.",
                remedy="drop or mend that row",
            )
    return features if features.dtype in (np.float16, np.float32) else features.astype(np.float32)


def input_statistics(features: np.ndarray, normalise: str) -> dict[str, Any]:
    if normalise != "zscore":
        return {"normalise": normalise}
    mean = features.mean(axis=0, dtype=np.float64)
    spread = sum(
        ((part - mean) ** 2).sum(axis=0) for part in np.array_split(features, -(-len(features) // _ROWS))
    )
    std = np.sqrt(spread / max(len(features) - 1, 1))
    std[std == 0.0] = 1.0  # a constant dimension is only centred
    return {
        "normalise": normalise,
        "mean": torch.from_numpy(mean).float(),
        "std": torch.from_numpy(std).float(),
    }


def normalised(rows: Tensor, statistics: Mapping[str, Any]) -> Tensor:
    if statistics["normalise"] == "l2":
        return F.normalize(rows.float(), dim=1)
    if statistics["normalise"] == "zscore":
        return (rows.float() - statistics["mean"].to(rows.device)) / statistics["std"].to(rows.device)
    return rows


@torch.no_grad()
def predict(
    state: Mapping[str, Any], features: np.ndarray, *, device: torch.device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters that a trained head gives other embeddings.

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
    features = checked_features("features", features)
    weights = {name: p.to(device) for name, p in state["weights"].items()}
    if features.shape[1] != weights["w1"].shape[2]:
        raise BadInput(
            f"features have {features.shape[1]} dimensions, the head was trained on {weights['w1'].shape[2]}."
        )
    labels, confidence = np.empty(len(features), np.int32), np.empty(len(features), np.float32)
    for start in range(0, len(features), _ROWS):
        part = slice(start, start + _ROWS)
        rows = normalised(torch.tensor(features[part], device=device), state["input"]).float()
        logits = logits_of(weights, directions_of(weights, rows))[0]
        values, indices = log_softmax(logits, state["temperature"]).exp().max(dim=1)
        labels[part], confidence[part] = indices.cpu().numpy(), values.cpu().numpy()
    return labels, confidence
