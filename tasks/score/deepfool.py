"""DeepFool: how far a sample lies from the network's decision boundary."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from winnow.tasks.errors import BadInput
from winnow.tasks.score.eval_mode import eval_mode

__all__ = ["deepfool"]


def deepfool(
    network: nn.Module,
    images: torch.Tensor | Iterable[torch.Tensor],
    *,
    max_iterations: int = 50,
    overshoot: float = 0.02,
    classes: int | None = None,
    batch_size: int = 256,
) -> NDArray[np.float32]:
    """DeepFool: squared length of the smallest perturbation found that changes the prediction; far is easy.

    From x⁰ = x, with y the class predicted there, each step goes to the nearest boundary of the network's
    linearisation:

        w_c = ∇f_c(xᵗ) − ∇f_y(xᵗ),   l = argmin_{c≠y} |f_c(xᵗ) − f_y(xᵗ)| / ‖w_c‖
        r ← r + |f_l − f_y| w_l / ‖w_l‖²,   xᵗ⁺¹ = x + (1 + overshoot) r

    until the prediction is no longer y, or for ``max_iterations``. The score is ‖r‖². No labels are used. A
    sample is done once its own prediction has changed: the batch shrinks.

    Args:
        network: maps images to logits; evaluated in eval mode, and left as it was.
        images: float (N, …), as the network takes them, or batches of these; on the network's device.
        max_iterations: steps at most.
        overshoot: of each step, so that it ends beyond the boundary and not on it.
        classes: consider only this many of the classes, those with the highest logits at x (10 in DeepFool's
            own code); default all. Each costs one backward pass per step.
        batch_size: samples at a time where ``images`` is one tensor.

    Returns:
        float32 (N,). A sample whose gradients are all 0, so that no step changes its prediction, gets
        float32's largest number.

    Raises:
        BadInput: no images, a network with one output, NaN or infinity in its logits, or parameters out of
            range.

    >>> network = nn.Linear(1, 2)
    >>> _ = network.load_state_dict({"weight": torch.tensor([[1.0], [-1.0]]), "bias": torch.zeros(2)})
    >>> deepfool(network, torch.tensor([[3.0], [-2.0]])).tolist()
    [9.0, 4.0]

    References:
        Moosavi-Dezfooli, Fawzi and Frossard, DeepFool: a simple and accurate method to fool deep neural
        networks, CVPR 2016, algorithm 2; Ducoffe and Precioso, Adversarial Active Learning for Deep Networks:
        a Margin Based Approach, 2018.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/deepfool.py.

    Differences from upstream:
        Upstream has no overshoot (as with ``overshoot=0``): samples end on the boundary itself, where
        rounding decides, and may use up all iterations. It fails on a CPU, and leaves gradients disabled on
        the network's parameters.
    """
    if max_iterations < 1 or batch_size < 1 or not overshoot >= 0 or (classes is not None and classes < 2):
        raise BadInput(
            f"max_iterations = {max_iterations}, batch_size = {batch_size}, overshoot = {overshoot}, classes "
            f"= {classes}: at least 1, 1, 0 and 2 are needed."
        )
    batches = images.split(batch_size) if isinstance(images, torch.Tensor) else images
    scores: list[NDArray[np.float32]] = []
    with eval_mode(network):
        for batch in batches:
            if len(batch):
                start = sum(map(len, scores))
                scores.append(
                    _squared_lengths(network, batch.detach(), max_iterations, 1 + overshoot, classes, start)
                )
    if not scores:
        raise BadInput("images: there are none.")
    return np.concatenate(scores)


def _squared_lengths(
    network: nn.Module,
    images: torch.Tensor,
    max_iterations: int,
    reach: float,
    classes: int | None,
    start: int,
) -> NDArray[np.float32]:
    """‖r‖² of one batch, whose first row is row ``start`` of all."""
    total = torch.zeros_like(images)
    stuck = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    active = torch.arange(len(images), device=images.device)
    with torch.no_grad():
        ranked = network(images).sort(dim=1, descending=True, stable=True)
    if ranked.indices.shape[1] < 2:
        raise BadInput("network: it has one output; a boundary lies between two.")
    bad = (~ranked.values.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        raise BadInput(f"images: the network's logits of row {start + int(bad[0])} are not finite.")
    compared = ranked.indices[:, :classes]  # the first is the prediction
    for _ in range(max_iterations):
        step, moved = _to_nearest(network, images[active] + reach * total[active], compared[active])
        total[active] += step
        stuck[active[~moved]] = True
        active = active[moved]
        if not len(active):
            break
        with torch.no_grad():
            same = network(images[active] + reach * total[active]).argmax(1) == compared[active, 0]
        active = active[same]
        if not len(active):
            break
    squared = total.flatten(1).double().square().sum(1)
    largest = float(np.finfo(np.float32).max)
    squared = torch.where(stuck, largest, squared.clamp(max=largest))
    return squared.float().cpu().numpy()


def _to_nearest(
    network: nn.Module, images: torch.Tensor, compared: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Step to the nearest linearised boundary, shaped like the images, and whether there is one for each."""
    images = images.requires_grad_()
    with torch.enable_grad():
        logits = network(images).gather(1, compared)
        candidates = compared.shape[1]
        (gradient_y,) = torch.autograd.grad(logits[:, 0].sum(), images, retain_graph=True)
        nearest = torch.full((len(images),), torch.inf, dtype=images.dtype, device=images.device)
        towards = torch.zeros_like(images)  # of length 1
        for c in range(1, candidates):  # one class at a time: memory does not grow with their number
            more = c + 1 < candidates
            (gradient_c,) = torch.autograd.grad(logits[:, c].sum(), images, retain_graph=more)
            w = gradient_c - gradient_y
            length = w.flatten(1).norm(dim=1)
            gap = (logits[:, c] - logits[:, 0]).detach().abs()
            distance = torch.where(length > 0, gap / length, torch.inf)
            closer = distance < nearest
            nearest = torch.where(closer, distance, nearest)
            towards = torch.where(_like(closer, images), w / _like(length, images), towards)
    moved = nearest.isfinite()
    return _like(torch.where(moved, nearest, 0.0), images) * towards, moved


def _like(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Numbers (N,), shaped so that they broadcast over the images."""
    return values.reshape(-1, *[1] * (images.ndim - 1))
