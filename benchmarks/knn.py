"""The kNN graph as a share of the matrix product's peak, measured in the same run.

    python benchmarks/knn.py [--n 50000] [--dim 384] [--k 50] [--threads 2] [--device cpu]

``share_of_peak`` is (time of the whole N×N product at the sgemm peak) / (time of knn). The graph needs only
half of that product, since the similarity is symmetric, so the share may exceed 1; ``share_of_own_work``
counts the half that is really multiplied.
"""

from __future__ import annotations

import argparse

import _common
import numpy as np
import torch

from winnow.tasks.embed.knn import knn


def peak(features: torch.Tensor, device: str) -> dict[str, float]:
    """GFLOP/s of float32 products, the best of several tile sizes, by wall and by CPU time."""
    best = {"wall": 0.0, "cpu": 0.0}
    sizes = (8192,) if device.startswith("cuda") else (512, 1024, 2048)
    for size in sizes:
        left, right = features[:size], features[-size:]
        out = torch.empty(len(left), len(right), device=device)
        repeats = max(3, int(2e10 / (2 * size * size * features.shape[1])))

        def run(left=left, right=right, out=out, repeats=repeats) -> None:
            for _ in range(repeats):
                torch.mm(left, right.T, out=out)

        run()
        for _ in range(3):
            wall, cpu = _common.timed(run, device)
            flops = 2 * len(left) * len(right) * features.shape[1] * repeats
            best = {"wall": max(best["wall"], flops / wall / 1e9), "cpu": max(best["cpu"], flops / cpu / 1e9)}
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)

    features = np.random.default_rng(0).normal(size=(asked.n, asked.dim)).astype(np.float32)
    there = torch.from_numpy(features).to(asked.device)
    peaks, walls, cpus = [], [], []
    for _ in range(asked.repeats):
        peaks.append(peak(there, asked.device))
        wall, cpu = _common.timed(
            lambda: knn(features, asked.k, device=torch.device(asked.device)), asked.device
        )
        walls.append(wall)
        cpus.append(cpu)
    top = {clock: max(p[clock] for p in peaks) for clock in ("wall", "cpu")}
    product = 2 * asked.n**2 * asked.dim / 1e9
    wall, cpu = _common.median(walls), _common.median(cpus)
    _common.record(
        "knn",
        {
            "n": asked.n,
            "dim": asked.dim,
            "k": asked.k,
            "seconds": round(wall, 3),
            "cpu_seconds": round(cpu, 3),
            "peak_gflops": round(top["wall"], 1),
            "peak_gflops_per_cpu_second": round(top["cpu"], 1),
            "full_product_seconds": round(product / top["wall"], 3),
            "share_of_peak": round(product / top["wall"] / wall, 3),
            "share_of_own_work": round(product / top["wall"] / wall / 2, 3),
            "share_of_peak_by_cpu_time": round(product / top["cpu"] / cpu, 3),
        },
        asked.device,
    )


if __name__ == "__main__":
    main()
