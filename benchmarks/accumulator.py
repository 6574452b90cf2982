"""Dynamics scores streamed with O(N) state against stored logs reduced afterwards: time and peak memory.

``python benchmarks/accumulator.py [--samples 50000] [--classes 10 100] [--epochs 20 200]`` prints and records
one JSON line. ``--imagenet`` adds the shape of ImageNet, streamed only: stored, 60 epochs are 154 GB. Each
cell runs in a process of its own. The stored way is a good version of what the published code does: every
batch's log-softmax as float16 in memory, reduced an epoch at a time with vectorised NumPy. Forward passes are
not part of either.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import _common
import numpy as np
import torch

from winnow.tasks.score.dynamics import DynamicsAccumulator

BATCH = 256


def batches(n: int, classes: int, epochs: int):
    """Batches (epoch, ids, logits, labels); an epoch's logits are the last one's, shifted by a row."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n + epochs, classes, generator=generator)
    labels = torch.randint(0, classes, (n,), generator=generator)
    for epoch in range(epochs):
        shifted = logits[epoch : epoch + n]
        for ids in torch.randperm(n, generator=generator).split(BATCH):
            yield epoch, ids, shifted[ids], labels[ids]


def streamed(n: int, classes: int, epochs: int) -> tuple[np.ndarray, float]:
    accumulator = DynamicsAccumulator(n, classes)
    spent = 0.0
    for epoch, ids, logits, labels in batches(n, classes, epochs):
        start = time.process_time()
        accumulator(ids, logits, labels, epoch)
        spent += time.process_time() - start
    start = time.process_time()
    scores = accumulator.scores()
    return scores["aum"] + scores["el2n"] + scores["forgetting"], spent + time.process_time() - start


def stored(n: int, classes: int, epochs: int) -> tuple[np.ndarray, float]:
    log: list[tuple[int, np.ndarray, np.ndarray]] = []
    targets = np.zeros(n, np.int64)
    spent = 0.0
    for epoch, ids, logits, labels in batches(n, classes, epochs):
        start = time.process_time()
        log.append((epoch, ids.numpy(), torch.log_softmax(logits, 1).half().numpy()))
        targets[ids] = labels.numpy()
        spent += time.process_time() - start
    start = time.process_time()
    aum, el2n = np.zeros((2, n), np.float32)
    forgetting, before = np.zeros(n, np.int32), np.zeros(n, bool)
    rows = np.arange(n)
    steps = len(log) // epochs
    for epoch in range(epochs):
        probs = np.empty((n, classes), np.float32)
        for _, ids, values in log[epoch * steps : (epoch + 1) * steps]:
            probs[ids] = values
        np.exp(probs, out=probs)
        now = probs.argmax(1) == targets
        of_label = probs[rows, targets].copy()
        probs[rows, targets] = of_label - 1
        if epoch < 10:
            el2n += np.linalg.norm(probs, axis=1)
        probs[rows, targets] = 0
        aum += of_label - probs.max(1)
        forgetting += before & ~now
        before = now
    return aum + el2n + forgetting, spent + time.process_time() - start


def imagenet(epochs: int = 1, n: int = 1_281_167, classes: int = 1000, batch: int = 1024) -> dict[str, float]:
    """Time and peak memory of streaming ImageNet's dynamics, with logits from a small pool."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    pool = 2 * torch.randn(8 * batch, classes, generator=generator)
    labels = torch.randint(0, classes, (n,), generator=generator)
    order = torch.randperm(n, generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    accumulator = DynamicsAccumulator(n, classes)
    for epoch in range(epochs):
        for step, ids in enumerate(order.split(batch)):
            first = step % 8 * batch
            accumulator(ids, pool[first : first + len(ids)], labels[ids], epoch)
    accumulator.scores()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "samples": n,
        "classes": classes,
        "epochs": epochs,
        "batch": batch,
        "cpu_seconds": round(time.process_time() - start, 1),
        "peak_mib": round(peak, 1),
        "bytes_a_sample": round(peak * 2**20 / n, 1),
        "one_batch_mib": round(pool.nbytes / 8 / 2**20, 1),
    }


def cell(way: str, n: int, classes: int, epochs: int) -> dict[str, float]:
    torch.set_num_threads(1)
    run = {"streamed": streamed, "stored": stored}[way]
    run(BATCH, classes, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sums, seconds = run(n, classes, epochs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "cpu_seconds": round(seconds, 3),
        "peak_mib": round((peak - before) / 1024, 1),
        "check": float(np.mean(sums, dtype=np.float64)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--epochs", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--imagenet", action="store_true")
    parser.add_argument("--cell", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.imagenet:
        _common.record("accumulator_imagenet", imagenet())
        return
    if arguments.cell:
        way, *sizes = arguments.cell
        print(json.dumps(cell(way, *map(int, sizes))))
        return
    cells = []
    for classes in arguments.classes:
        for epochs in arguments.epochs:
            sizes = {"samples": arguments.samples, "classes": classes, "epochs": epochs}
            ways = {}
            for way in ("streamed", "stored"):
                command = [sys.executable, __file__, "--cell", way, *map(str, sizes.values())]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                ways[way] = json.loads(done.stdout)
            checks = [measured.pop("check") for measured in ways.values()]
            assert abs(checks[0] - checks[1]) < 1e-2, f"the two ways disagree: {checks}"
            ratio = {
                "time": round(ways["stored"]["cpu_seconds"] / ways["streamed"]["cpu_seconds"], 2),
                "memory": round(ways["stored"]["peak_mib"] / ways["streamed"]["peak_mib"], 2),
            }
            cells.append({**sizes, **ways, "stored_over_streamed": ratio})
            print(json.dumps(cells[-1]), file=sys.stderr)
    _common.record("accumulator", {"batch": BATCH, "cells": cells})


if __name__ == "__main__":
    main()
