"""D2 Pruning: per class on features, on a graph of ImageNet's size, over sizes up to ten million samples.

One JSON line each.

    python benchmarks/d2.py [--what per_class imagenet curve] [--sizes 10000 100000 1000000 10000000]

The graphs are built beforehand, with samples in random order, and are no part of the time: for ``imagenet``
the exact neighbours of points in four dimensions, for ``curve`` those of points on a line, which are quick to
make at any size. The floors are measured in the same run: for ``per_class`` the matrix products of its kNN
graphs, for the others one pass over the edges (gather, multiply, add up). Each size of the curve runs in a
process of its own. ``peak_mib`` is what was allocated beyond the inputs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import _common
import numpy as np
import torch

from winnow.tasks.embed.graph import Graph
from winnow.tasks.select.d2 import d2
from winnow.tasks.select.signals import Selection, Signals

PUBLISHED = {
    "per_class": 13.4,
    "imagenet": 96.0,
}  # CPU seconds of d2pruning@bf1ea46; the second extrapolated from its time a pick


def run(signals: Signals, fraction: float, **params) -> Selection:
    return d2(signals, int(fraction * signals.n), generator=np.random.default_rng(0), **params)


def peak_mib(call: Callable[[], object]) -> float:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(peak / 2**20, 1)


def image_features(n: int, dim: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Like a ResNet's pooled features: not negative, classes apart, few directions that matter."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, n)
    inner = generator.normal(size=(n, 24)) + 2 * generator.normal(size=(classes, 24))[labels]
    mixed = inner @ generator.normal(size=(24, dim)) / 5 + 0.3 * generator.normal(size=(n, dim))
    return np.maximum(mixed, 0).astype(np.float32), labels


def products(features: np.ndarray, labels: np.ndarray) -> None:
    """The products that exact kNN graphs need: each class with itself, half of them by symmetry."""
    for label in np.unique(labels):
        points = torch.from_numpy(features[labels == label])
        out = torch.empty(1024 * 1024)
        for start in range(0, len(points), 1024):
            rows = points[start : start + 1024]
            for other in range(start, len(points), 1024):
                columns = points[other : other + 1024]
                torch.mm(rows, columns.T, out=out[: len(rows) * len(columns)].view(len(rows), len(columns)))


def per_class() -> dict:
    n, dim, classes = 50_000, 512, 10
    features, labels = image_features(n, dim, classes)
    signals = Signals(
        n=n, labels=labels, features=features, scores={"forgetting": np.random.default_rng(1).poisson(1.0, n)}
    )
    runs = {
        "d2": lambda: run(signals, 0.1, graph_mode="per_class"),
        "floor": lambda: products(features, labels),
    }
    seconds = _common.compare(runs, 3)
    return {
        "what": "features, one graph a class, keep 10 %",
        "n": n,
        "dim": dim,
        "classes": classes,
        "seconds": round(seconds["d2"][0], 3),
        "cpu_seconds": round(seconds["d2"][1], 3),
        "sgemm_cpu_seconds": round(seconds["floor"][1], 3),
        "over_floor": round(seconds["d2"][1] / seconds["floor"][1], 2),
        "published_cpu_seconds": PUBLISHED["per_class"],
        "published_over_ours": round(PUBLISHED["per_class"] / seconds["d2"][1], 1),
    }


def points_in_4d(n: int, k: int) -> Graph:
    from scipy.spatial import cKDTree

    points = np.random.default_rng(0).normal(size=(n, 4)) * [1.0, 0.7, 0.5, 0.5]
    distances, ids = cKDTree(points).query(points, k + 1)
    return Graph(ids[:, 1:].astype(np.int32), -distances[:, 1:].astype(np.float32))


def points_on_a_line(n: int, k: int) -> Graph:
    generator = np.random.default_rng(0)
    at = np.sort(generator.random(n)).astype(np.float64)
    stored = generator.permutation(n).astype(np.int32)  # where the i-th along the line is stored
    steps = np.array([step for step in range(-k, k + 1) if step])
    neighbours, similarity = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    for start in range(0, n, 1 << 18):
        here = np.arange(start, min(start + (1 << 18), n))
        there = here[:, None] + steps
        inside = (there >= 0) & (there < n)
        distances = np.where(inside, np.abs(at[there % n] - at[here, None]), np.inf)
        nearest = np.argsort(distances, axis=1)[:, :k]
        neighbours[stored[here]] = stored[np.take_along_axis(there % n, nearest, axis=1)]
        similarity[stored[here]] = -np.take_along_axis(distances, nearest, axis=1)
    return Graph(neighbours, similarity)


def given_graph(graph: Graph, repeats: int) -> dict:
    n, k = graph.neighbours.shape
    generator = np.random.default_rng(1)
    signals = Signals(n=n, graph=graph, scores={"forgetting": generator.poisson(1.0, n)})
    values = generator.random(n)

    def select() -> Selection:
        return run(signals, 0.3, graph_mode="directed", similarity="euclidean")

    runs = {"d2": select, "floor": lambda: (values[graph.neighbours] * graph.similarity).sum(1)}
    seconds = _common.compare(runs, repeats)
    return {
        "n": n,
        "k": k,
        "kept": 0.3,
        "seconds": round(seconds["d2"][0], 3),
        "cpu_seconds": round(seconds["d2"][1], 3),
        "edge_pass_cpu_seconds": round(seconds["floor"][1], 4),
        "over_floor": round(seconds["d2"][1] / seconds["floor"][1], 1),
        "peak_mib": peak_mib(select),
        "inputs_mib": round((graph.neighbours.nbytes + graph.similarity.nbytes + 8 * n) / 2**20, 1),
    }


def imagenet() -> dict:
    found = given_graph(points_in_4d(1_281_167, 5), 3)
    faster = round(PUBLISHED["imagenet"] / found["cpu_seconds"], 1)
    return {
        "what": "given graph, directed",
        **found,
        "published_cpu_seconds": PUBLISHED["imagenet"],
        "published_over_ours": faster,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--what",
        nargs="+",
        choices=("per_class", "imagenet", "curve"),
        default=["per_class", "imagenet", "curve"],
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)  # one point of the curve, in this process
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.size:
        print(json.dumps(given_graph(points_on_a_line(asked.size, 5), 3 if asked.size < 5_000_000 else 1)))
        return
    for what in asked.what:
        if what == "curve":
            points = []
            for size in asked.sizes:
                command = [sys.executable, __file__, "--size", str(size)]
                points.append(
                    json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                )
            _common.record("d2", {"what": "curve: given graph, directed", "points": points})
        else:
            _common.record("d2", {"per_class": per_class, "imagenet": imagenet}[what]())


if __name__ == "__main__":
    main()
