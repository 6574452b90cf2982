"""Facility location and CRAIG: per class, on the kNN graph, at ImageNet's size, beside other libraries.

One JSON line each.

    python benchmarks/submodular.py [--what per_class craig global imagenet apricot submodlib] [--peer-python
    PATH]

Graphs are built beforehand and are no part of the time; ``per_class`` and ``craig`` build their kernels. The
floor is the products that the kernels need, half of them since they are symmetric. A peer runs in the
interpreter ``--peer-python``, an environment of its own, and is skipped where that does not have it; its time
includes the kernel, as ours does, and the objective of both is computed in the same way. One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import _common
import numpy as np
import torch
from d2 import image_features, peak_mib, points_in_4d, products
from threadpoolctl import threadpool_limits

from winnow.tasks.embed.knn import knn
from winnow.tasks.registry import selectors
from winnow.tasks.score.gradients import residuals_of, softmax
from winnow.tasks.select.signals import Selection, Signals

PEERS = {
    "apricot": """
from apricot import FacilityLocationSelection
def select(kernel, k):
    return FacilityLocationSelection(k, metric="precomputed",
    optimizer="lazy").fit(kernel.astype(np.float64)).ranking
""",
    "submodlib": """
from submodlib import FacilityLocationFunction
def select(kernel, k):
    function = FacilityLocationFunction(n=len(kernel), mode="dense", sijs=kernel, separate_rep=False)
    quiet = dict(stopIfZeroGain=False, stopIfNegativeGain=False, verbose=False, show_progress=False)
    return np.array([row for row, _ in function.maximize(budget=k, optimizer="LazyGreedy", **quiet)])
""",
}
PEER = """
import json, sys, time
import numpy as np
{select}
def run(features, k):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return select(0.5 + 0.5 * (unit @ unit.T), k)
features, k = np.load(sys.argv[1]), int(sys.argv[2])
run(features[:300], 10)  # compiles
wall, cpu = time.perf_counter(), time.process_time()
picks = run(features, k)
print(json.dumps({{"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "picks":
picks.tolist()}}))
"""


def select(name: str, signals: Signals, fraction: float, **params) -> Selection:
    return selectors.get(name)(signals, fraction, generator=np.random.default_rng(0), **params)


def images(n: int = 50_000, dim: int = 512, classes: int = 10) -> Signals:
    """Features as a ResNet has them, and the residuals of a linear head that is right for most."""
    features, labels = image_features(n, dim, classes)
    means = np.stack([features[labels == label].mean(0) for label in range(classes)])
    logits = features @ (means - means.mean(0)).T
    return Signals(
        n=n,
        labels=labels,
        features=features,
        residuals=residuals_of(softmax(5 * logits / logits.std()), labels),
    )


def balanced(name: str, repeats: int) -> dict:
    signals = images()

    def run() -> Selection:
        return select(name, signals, 0.1, balanced=True)

    seconds = _common.compare(
        {"ours": run, "products": lambda: products(signals.features, signals.labels)}, repeats
    )
    return {
        "what": f"{name}, balanced",
        "n": signals.n,
        "dim": 512,
        "classes": 10,
        "kept": 0.1,
        "seconds": round(seconds["ours"][0], 2),
        "cpu_seconds": round(seconds["ours"][1], 2),
        "products_cpu_seconds": round(seconds["products"][1], 2),
        "peak_mib": peak_mib(run),
    }


def on_graph(what: str, signals: Signals, repeats: int) -> dict:
    def run() -> Selection:
        return select("facility_location", signals, 0.1, neighbours=10)

    wall, cpu = _common.compare({"ours": run}, repeats)["ours"]
    return {
        "what": f"facility_location, {what}",
        "n": signals.n,
        "neighbours": 10,
        "kept": 0.1,
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_mib": peak_mib(run)
        if signals.n < 100_000
        else None,  # tracing a million heap entries takes minutes
        "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def whole() -> dict:
    features, _ = image_features(50_000, 512, 10)
    return on_graph(
        "on the kNN graph", Signals(n=len(features), features=features, graph=knn(features, 10)), 3
    )


def imagenet() -> dict:
    graph = points_in_4d(1_281_167, 10)
    distance = -graph.similarity
    # close points have a cosine near 1, at a scale where the tenth neighbour matters
    cosine = np.cos(np.minimum(distance / np.median(distance), np.pi)).astype(np.float32)
    given = type(graph)(graph.neighbours, cosine)
    return on_graph(
        "given graph",
        Signals(n=len(distance), features=np.zeros((len(distance), 1), np.float32), graph=given),
        1,
    )


def objective(features: np.ndarray, picks: np.ndarray) -> float:
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return float(
        sum(
            (0.5 + 0.5 * unit[start : start + 4096] @ unit[picks].T).max(1).sum()
            for start in range(0, len(unit), 4096)
        )
    )


def peer(name: str, python: str, repeats: int) -> dict:
    n, dim, k = 20_000, 128, 2_000
    what = f"facility_location beside {name}"
    if subprocess.run([python, "-c", f"import {name}"], capture_output=True, check=False).returncode:
        return {"what": what, "skipped": f"{name} is not installed in --peer-python"}
    generator = np.random.default_rng(0)
    features = (
        generator.normal(size=(50, dim))[generator.integers(0, 50, n)] + generator.normal(size=(n, dim))
    ).astype(np.float32)
    signals = Signals(n=n, features=features)
    chosen: dict[str, np.ndarray] = {}
    seconds: dict[str, list[tuple[float, float]]] = {}

    def ours(label: str, **params) -> None:
        took = _common.timed(
            lambda: chosen.update({label: select("facility_location", signals, 0.1, **params).indices})
        )
        seconds.setdefault(label, []).append(took)

    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "features.npy", features)
        command = [python, "-c", PEER.format(select=PEERS[name]), str(Path(folder) / "features.npy"), str(k)]
        one_thread = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
        )
        for _ in range(repeats):  # in turns
            ours("ours")
            ours("sparse", neighbours=100)
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=one_thread)
            theirs = json.loads(done.stdout.splitlines()[-1])
            chosen[name] = np.array(theirs["picks"])
            seconds.setdefault(name, []).append((theirs["wall"], theirs["cpu"]))
    cpu = {label: _common.median([each for _, each in took]) for label, took in seconds.items()}
    found = {"what": what, "n": n, "dim": dim, "k": k, "repeats": repeats}
    for label in seconds:
        found[f"{label}_seconds"] = round(_common.median([wall for wall, _ in seconds[label]]), 2)
        found |= {
            f"{label}_cpu_seconds": round(cpu[label], 2),
            f"{label}_objective": round(objective(features, chosen[label]), 4),
        }
    return {
        **found,
        "over_ours": round(cpu[name] / cpu["ours"], 1),
        "over_ours_sparse": round(cpu[name] / cpu["sparse"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("per_class", "craig", "global", "imagenet", *PEERS)
    parser.add_argument("--what", nargs="+", choices=names, default=names)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    runs = {
        "per_class": lambda: balanced("facility_location", asked.repeats),
        "craig": lambda: balanced("craig", asked.repeats),
        "global": whole,
        "imagenet": imagenet,
        **{name: lambda name=name: peer(name, asked.peer_python, asked.repeats) for name in PEERS},
    }
    for what in asked.what:
        with threadpool_limits(1):
            found = runs[what]()
        if "skipped" in found:
            print(json.dumps({"benchmark": "submodular", **found}))
        else:
            _common.record("submodular", found)


if __name__ == "__main__":
    main()
