"""A trained network's results on a set: loss and accuracy, or logits and features."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from winnow.tasks.hardware import free_bytes
from winnow.tasks.train.problems import Loader, Problem
from winnow.tasks.train.problems.augment import View
from winnow.tasks.train.problems.images import open_images
from winnow.tasks.train.recipe import Recipe

__all__ = ["evaluate", "inference_batch", "placed", "predict"]

PROGRESS_SECONDS = 0.2
ACTIVATIONS = 256  # numbers that a network holds at once per number of its input, generously


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on the device, in the layout that is fastest for convolutions."""
    return network.to(device).to(memory_format=torch.channels_last)


def inference_batch(loader: Loader, device: torch.device) -> int:
    """Inputs to evaluate at once: as many as fit the GPU's memory or the CPU's caches."""
    if device.type == "cuda":
        return int(max(32, min(4096, free_bytes(device) // (4 * ACTIVATIONS * loader.values))))
    return max(32, min(1024, (1 << 22) // loader.values))


def evaluate(
    network: nn.Module,
    problem: Problem,
    loader: Loader,
    recipe: Recipe,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[float, float]:
    """Mean loss and accuracy in eval mode; one synchronisation."""
    network.eval()
    parts = []
    reduced = dtype != torch.float32
    with torch.inference_mode():
        for batch in loader.plain(inference_batch(loader, device)):
            with torch.autocast(device.type, dtype=dtype, enabled=reduced):
                outputs = network(batch.inputs)
            outputs = outputs.float()
            losses = problem.loss(outputs, batch.targets, recipe)
            correct = problem.correct(outputs, batch.targets)
            parts.append(torch.stack([losses.sum().double(), correct.sum().double()]))
        loss, accuracy = (torch.stack(parts).sum(0).cpu() / loader.n).tolist()
    return loss, accuracy


def predict(
    network: nn.Module,
    images: Any,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    rows: NDArray[np.integer] | None = None,
    size: int | None = None,
    margin: float = 1.0,
    batch_size: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    workers: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and penultimate features of images in eval mode, without augmentation, in float32.

    This is the pass after training that the final scores, gradient methods and feature-based selectors read.

    Args:
        network: has ``features`` and ``head``; moved to ``device`` and left in eval mode.
        images: uint8 (N, H, W, C), or an object with ``shape``, ``len`` and ``read(rows)``
            (winnow.tasks.data).
        mean, std: per channel, as in training.
        device: where to compute.
        rows: int (n,), rows of ``images``; None takes all.
        size: side of what the network sees; None keeps the images' own.
        margin: images are resized to ``size`` times this before their centre is taken (256/224 for ImageNet).
        batch_size: None chooses by the images' size and the device's memory.
        progress: called with (images done, images in all, note).
        workers: processes that read images too large for the device's memory; None chooses.

    Returns:
        logits float32 (n, C) and features float32 (n, D).

    Raises:
        BadInput: images, rows, mean and std do not match.

    >>> from winnow.tasks.train.networks.build import build
    >>> network = build("mlp", classes=3, channels=1, size=8, seed=0)
    >>> logits, features = predict(network, np.zeros((5, 8, 8, 1), np.uint8), mean=(0.5,), std=(0.5,))
    >>> logits.shape, features.shape
    ((5, 3), (5, 128))

    References:
        d2pruning generate_importance_score.py (post_training_metrics)

    Differences from upstream:
        images are normalised as in training; upstream's pass feeds them as they are (mean 0, std 1 replays
        it).
    """
    device = torch.device(device)
    n = len(images) if rows is None else len(rows)
    view = View(mean, std, size=size, margin=margin)
    loader = open_images(images, np.zeros(n, np.int64), view, device, rows=rows, workers=workers)
    network = placed(network, device).eval()
    both: list[torch.Tensor] = []  # logits and features on the host, made when their widths are known
    done, told = 0, time.perf_counter()
    try:
        with torch.inference_mode():
            for batch in loader.plain(batch_size or inference_batch(loader, device)):
                penultimate = network.features(batch.inputs)  # type: ignore[operator]
                values = (network.head(penultimate).float(), penultimate.float())  # type: ignore[operator]
                if not both:
                    both = [torch.empty(n, v.shape[1], pin_memory=device.type == "cuda") for v in values]
                stop = done + len(batch.rows)
                for host, value in zip(both, values, strict=True):
                    host[done:stop].copy_(value, non_blocking=True)
                done = stop
                if progress is not None and (time.perf_counter() - told >= PROGRESS_SECONDS or done == n):
                    progress(done, n, "predicting")
                    told = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    finally:
        loader.close()
    logits, features = (host.numpy() for host in both)
    return logits, features
