"""Geometric selectors of DeepCore's kind at 50,000 samples, 512 dimensions, 10 % kept; one JSON line each.

    python benchmarks/deepcore_geometry.py [--what k_center herding cal …] [--data image normal]

``image`` are features like a ResNet's pooled ones (not negative, few directions that matter), ``normal`` are
independent normal numbers, the hardest case. The floor is measured in the same run: the matrix product of all
samples with all picks in blocks of 128, or the products of each class with itself for ``cal``.
``published_cpu_seconds`` are DeepCore's (PatrickZH/DeepCore@74ec709) on one core of the same kind of machine;
those of the global k-center and herding are extrapolated from its first 200 picks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import _common
import faiss
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from winnow.tasks.registry import selectors
from winnow.tasks.score.gradients import softmax
from winnow.tasks.select.signals import Signals

N, DIM, CLASSES, KEPT = 50_000, 512, 10, 5_000
PUBLISHED = {
    "k_center": 500.0,
    "herding": 500.0,
    "k_center balanced": 8.8,
    "herding balanced": 7.6,
    "cal balanced": 8.8,
}
PUBLISHED |= {"contextual_diversity balanced": 1.5}


def image_features(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    inner = generator.normal(size=(N, 24)) + 2 * generator.normal(size=(CLASSES, 24))[labels]
    return np.maximum(
        inner @ generator.normal(size=(24, DIM)) / 5 + 0.3 * generator.normal(size=(N, DIM)), 0
    ).astype(np.float32)


def problem(data: str) -> Signals:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, N)
    features = (
        image_features(labels, generator)
        if data == "image"
        else generator.normal(size=(N, DIM)).astype(np.float32)
    )
    logits = 2 * generator.normal(size=(N, CLASSES)) + 2 * np.eye(CLASSES)[labels]
    return Signals(n=N, labels=labels, features=features, probabilities=softmax(logits))


def with_picks(signals: Signals) -> None:
    assert signals.features is not None
    for start in range(0, KEPT, 128):
        picks = signals.features[start : start + 128].T
        for rows in range(0, N, 4096):
            signals.features[rows : rows + 4096] @ picks


def within_classes(signals: Signals) -> None:
    assert signals.features is not None
    for label in range(CLASSES):
        points = signals.features[signals.labels == label]
        for start in range(0, len(points), 1024):
            points[start : start + 1024] @ points[start:].T


FLOORS: dict[str, Callable[[Signals], None]] = {
    "k_center": with_picks,
    "herding": with_picks,
    "cal balanced": within_classes,
}


def measure(what: str, data: str, signals: Signals) -> dict:
    name, _, balanced = what.partition(" ")
    selector = selectors.get(name)
    selector.function  # noqa: B018  # imported before the clock starts
    runs: dict[str, Callable[[], object]] = {
        "select": lambda: selector(signals, KEPT, balanced=bool(balanced))
    }
    if what in FLOORS:
        runs["floor"] = lambda: FLOORS[what](signals)
    seconds = _common.compare(runs, 1)
    found = {"what": what, "data": data, "n": N, "dim": DIM, "kept": KEPT}
    found |= {"seconds": round(seconds["select"][0], 2), "cpu_seconds": round(seconds["select"][1], 2)}
    if what in FLOORS:
        found |= {"floor_cpu_seconds": round(seconds["floor"][1], 2)}
    if what in PUBLISHED:
        ratio = round(PUBLISHED[what] / seconds["select"][1], 1)
        found |= {"published_cpu_seconds": PUBLISHED[what], "published_over_ours": ratio}
    return found


def main() -> None:
    everything = [
        "k_center",
        "herding",
        "k_center balanced",
        "herding balanced",
        "contextual_diversity",
        "contextual_diversity balanced",
    ]
    everything += ["uncertainty", "cal", "cal balanced", "semdedup"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", nargs="+", choices=[*everything, "zcore"], default=everything)
    parser.add_argument("--data", nargs="+", choices=("image", "normal"), default=["image", "normal"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    for data in asked.data:
        signals = problem(data)
        for what in asked.what:
            with threadpool_limits(1):  # NumPy's products, too
                found = measure(what, data, signals)
            _common.record("deepcore_geometry", found)


if __name__ == "__main__":
    main()
