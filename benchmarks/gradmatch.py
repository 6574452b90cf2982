"""GradMatch and GLISTER on 50,000 samples of 512 dimensions in 10 classes, 10 % of each class kept.

    python benchmarks/gradmatch.py [--what gradmatch glister] [--kept 0.1]

One JSON line each. The residuals are those of a linear head that gets most samples right. The floor is one
pass of each pick over its class: the product of all inputs with a gradient of C·(D + 1) numbers, which both
methods need to find the next pick, and nothing else. ``left_over`` is the distance of the weighted sum from
the gradient of all, as a share of its length; for ``random`` each sample weighs the same, and it is the best
of five draws.
"""

from __future__ import annotations

import argparse

import _common
import numpy as np
import torch
from d2 import image_features
from threadpoolctl import threadpool_limits

from winnow.tasks.registry import selectors
from winnow.tasks.score.gradients import residuals_of, softmax
from winnow.tasks.select.signals import Selection, Signals

N, DIM, CLASSES = 50_000, 512, 10
PUBLISHED = {
    "gradmatch": 630.0,
    "glister": 1.5,
}  # CPU seconds of DeepCore@74ec709; the second takes no gradient step


def problem() -> Signals:
    features, labels = image_features(N, DIM, CLASSES)
    centred = (features - features.mean(0)).astype(np.float64)
    head = np.linalg.solve(
        centred.T @ centred + 100 * np.eye(DIM), centred.T @ (np.eye(CLASSES)[labels] - 1 / CLASSES)
    )
    logits = (8 * centred @ head + np.random.default_rng(3).normal(size=(N, CLASSES))).astype(np.float32)
    probabilities = softmax(logits)
    residuals = residuals_of(probabilities, labels)
    return Signals(n=N, labels=labels, features=features, probabilities=probabilities, residuals=residuals)


def gradient(signals: Signals, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sum of the last layer's gradients, float64 (C, D + 1)."""
    assert signals.residuals is not None
    assert signals.features is not None
    b = signals.residuals[rows].astype(np.float64) * weights[:, None]
    return np.c_[b.T @ signals.features[rows], b.sum(0)]


def left_over(signals: Signals, rows: np.ndarray, weights: np.ndarray) -> float:
    everything = gradient(signals, np.arange(N), np.ones(N))
    return float(np.linalg.norm(gradient(signals, rows, weights) - everything) / np.linalg.norm(everything))


def floor(signals: Signals, picks: int) -> None:
    assert signals.features is not None
    for label in range(CLASSES):
        h = torch.from_numpy(signals.features[signals.labels == label])
        directions = torch.ones(CLASSES, DIM)
        for _ in range(picks // CLASSES):
            torch.nn.functional.linear(h, directions)


def measured(name: str, kept: float) -> dict:
    signals = problem()
    found: list[Selection] = []
    k = int(kept * N)

    def select() -> None:
        found.append(selectors.get(name)(signals, kept, balanced=True, generator=np.random.default_rng(0)))

    seconds = _common.compare({name: select, "floor": lambda: floor(signals, k)}, 1)
    rows = found[0].indices
    result = {
        "what": f"{name}, 10 classes, balanced",
        "n": N,
        "dim": DIM,
        "classes": CLASSES,
        "kept": kept,
        "seconds": round(seconds[name][0], 2),
        "cpu_seconds": round(seconds[name][1], 2),
        "floor_cpu_seconds": round(seconds["floor"][1], 2),
        "over_floor": round(seconds[name][1] / seconds["floor"][1], 2),
    }
    if name == "gradmatch":
        draws = [np.random.default_rng(seed).permutation(N)[:k] for seed in range(5)]
        result["left_over"] = round(left_over(signals, rows, found[0].weights.astype(np.float64)), 4)
        result["left_over_random"] = round(
            min(left_over(signals, draw, np.full(k, N / k)) for draw in draws), 4
        )
        result["fitted"] = int((found[0].gains > 0).sum())  # type: ignore[operator]
    if kept == 0.1:
        result["published_cpu_seconds"] = PUBLISHED[name]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--what", nargs="+", choices=("gradmatch", "glister"), default=["gradmatch", "glister"]
    )
    parser.add_argument("--kept", type=float, default=0.1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for what in asked.what:
        with threadpool_limits(1):  # NumPy's products, too
            found = measured(what, asked.kept)
        _common.record("gradmatch", found)


if __name__ == "__main__":
    main()
