"""The same measurements on an old checkout and on this one, in turns: what a change costs or brings.

    python benchmarks/house.py --old ../before [--what ls cached train heads import d2 …] [--repeats 5]

``--old`` is a checkout whose packages ``tasks`` and ``flows`` lie at its root. Each run is a process that
sees one checkout, with a home and a store for it alone. The two take turns, so that a busy machine disturbs
both alike, and the first round is not counted. ``ls``, ``cached`` and ``import`` are times of whole
processes; of the others, calls after the first are timed, without imports. ``same`` says whether both sides
returned the same bytes. Ratios are new over old: below 1 the present code is faster.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _common

SELECTORS = ("d2", "ccs", "craig", "k_center", "herding")
CLOCK = """
import json, time, zlib
result = run()  # loads what is loaded on first use
wall, cpu, calls = time.perf_counter(), time.process_time(), 0
while not calls or time.perf_counter() - wall < 0.3:
    run()
    calls += 1
taken = {"wall": (time.perf_counter() - wall) / calls, "cpu": (time.process_time() - cpu) / calls}
print(json.dumps(taken | {"crc": zlib.crc32(result.tobytes())}))
"""


@dataclass(frozen=True)
class Measurement:
    """Code for each checkout: timed as a whole process, or only the ``run`` that it defines."""

    old: str
    new: str
    process: bool = False


def command(package: str, *arguments: str) -> str:
    return f"import sys; sys.argv[1:] = {arguments}; from {package}flows.cli import main; main()"


def elfs_digits(*parameters: str) -> list[str]:
    shared = ("fractions=[0.1,0.3]", "seeds=[0,1,2]", "mis_ratio=0.2")
    return ["run", "elfs/digits", "--plain", *_common.options(*shared, *parameters)]


TRAIN_OLD = """
from tasks.data.load import load_split
from tasks.train.loop import train
from tasks.train.recipe import Recipe
data = load_split("digits", "train")
recipe = Recipe(network="convnet", iterations=300, batch_size=64, augment="none")
def run():
    trained = train(data.images, data.truth, classes=10, mean=data.mean, std=data.std, recipe=recipe, seed=0)
    return list(trained.network.values())[-1].numpy()
"""
TRAIN_NEW = """
from winnow.tasks.data.load import load_split
from winnow.tasks.train.loop import train
from winnow.tasks.train.problems.images import ImageProblem
from winnow.tasks.train.recipe import Recipe
data = load_split("digits", "train")
problem = ImageProblem(data.images, data.truth, classes=10, mean=data.mean, std=data.std)
recipe = Recipe(network="convnet", iterations=300, batch_size=64, augment="none")
def run():
    trained = train(problem, recipe, seed=0)
    return list(trained.network.values())[-1].numpy()
"""
HEADS = """
import numpy as np
from sklearn.datasets import load_digits
from {package}tasks.embed.knn import knn
from {package}tasks.train.cluster_heads import HeadsConfig, train_cluster_heads
features = load_digits().data.astype(np.float32) / 16
graph = knn(features, 15)
config = HeadsConfig(heads=16, epochs=20, batch_size=256, neighbours=15, hidden=128, bottleneck=64, lr=3e-3)
def run():
    return train_cluster_heads(features, graph, config, classes=10, seed=0).labels
"""
SELECT = """
import numpy as np
from {package}tasks.registry import selectors
from {package}tasks.select.signals import Signals
generator = np.random.default_rng(0)
n, classes = 50_000, 10
signals = Signals(
    n=n,
    labels=generator.integers(0, classes, n),
    features=generator.normal(size=(n, 64)).astype(np.float32),
    residuals=generator.normal(size=(n, classes)).astype(np.float32),
    scores={{"aum": generator.normal(size=n), "forgetting": generator.poisson(1.0, n)}},
)
def run():
    generator = np.random.default_rng(0)
    return selectors.get("{name}")(signals, 0.02, generator=generator, balanced={balanced}).indices
"""
IMPORT_OLD = """
from tasks.embed.knn import knn
from tasks.registry import datasets, embedders, networks, scores, selectors
from tasks.score.dynamics import DynamicsAccumulator, scores_from_log_probs
from tasks.select.signals import Selection, Signals
"""


def both(code: str, **names: Any) -> Measurement:
    """The same code for both checkouts, with the names of their packages."""
    return Measurement(code.format(package="", **names), code.format(package="winnow.", **names))


MEASUREMENTS = {
    "ls": Measurement(command("", "ls"), command("winnow.", "ls"), process=True),
    "cached": Measurement(
        command("", *elfs_digits("heads=2", "head_epochs=10", "iterations=50")),
        command("winnow.", *elfs_digits("heads.heads=2", "heads.epochs=10", "training.iterations=50")),
        process=True,
    ),
    "train": Measurement(TRAIN_OLD, TRAIN_NEW),
    "heads": both(HEADS),
    "import": Measurement(IMPORT_OLD, "from winnow import *", process=True),
    # per class, as its kernel is quadratic
    **{name: both(SELECT, name=name, balanced=name == "craig") for name in SELECTORS},
}


def measured(code: str, process: bool, environment: dict[str, str]) -> dict[str, float]:
    """Wall and CPU seconds of code in a process of its own; ``crc`` of what its ``run`` returned."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code if process else code + CLOCK],
        env=environment,
        cwd=environment["HOME"],  # Python looks for packages in the current folder first
        capture_output=True,
        text=True,
        check=False,
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{code}\n{done.stderr}")
    if not process:
        return json.loads(done.stdout.splitlines()[-1])
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def summary(old: list[dict[str, float]], new: list[dict[str, float]]) -> dict[str, Any]:
    wall, cpu = (
        [_common.median([taken[clock] for taken in side]) for side in (old, new)] for clock in ("wall", "cpu")
    )
    result: dict[str, Any] = {
        "old_seconds": round(wall[0], 3),
        "new_seconds": round(wall[1], 3),
        "old_cpu_seconds": round(cpu[0], 3),
        "new_cpu_seconds": round(cpu[1], 3),
        "ratio": round(wall[1] / wall[0], 3),
        "cpu_ratio": round(cpu[1] / cpu[0], 3),
    }
    if "crc" in old[0]:
        result["same"] = len({taken["crc"] for taken in old + new}) == 1
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", type=Path, help="checkout to compare with")
    parser.add_argument("--what", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    if asked.old is None:
        parser.exit(0, "house: skipped, there is no --old to compare with\n")
    results = {}
    with _common.fresh_home(asked.old) as before, _common.fresh_home() as present:
        for what in asked.what:
            measurement = MEASUREMENTS[what]
            sides = [(measurement.old, before), (measurement.new, present)]
            taken: list[list[dict[str, float]]] = [[], []]
            for turn in range(asked.repeats + 1):
                for side in (0, 1) if turn % 2 else (1, 0):
                    code, environment = sides[side]
                    taken[side].append(measured(code, measurement.process, environment))
            results[what] = summary(*(runs[1:] for runs in taken))
            print(json.dumps({what: results[what]}), file=sys.stderr)
    setting = {"old_commit": _common.commit_of(asked.old), "repeats": asked.repeats}
    _common.record("house", {**setting, "ratios": {k: v["ratio"] for k, v in results.items()}, **results})


if __name__ == "__main__":
    main()
