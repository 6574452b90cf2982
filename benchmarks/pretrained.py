"""What a packaged network's embeddings of CIFAR-10 know of its classes: 20-NN and a ridge probe.

    python benchmarks/pretrained.py [--network efficientnet_lite0] [--size 160] [--references 3000]
    [--tests 2000] [--unverified]

The first ``references`` training images are labelled, the first ``tests`` test images are classified. 20-NN
is a majority vote by cosine (of the smallest class where votes tie); the probe is ridge regression on unit
vectors, its strength chosen by leave-one-out on the references. ``--unverified`` reads re-made files, whose
checksums differ from the published ones; the line says which were read. The embeddings are stored as float16.
Without the package or the dataset on this machine it says so and measures nothing.
"""

from __future__ import annotations

import argparse

import _common
import numpy as np
import torch

from winnow.tasks.data.load import load_split
from winnow.tasks.embed.encoder import embed, normalise
from winnow.tasks.errors import MissingData
from winnow.tasks.hardware import compute_dtype
from winnow.tasks.registry import embedders


def nearest(
    references: np.ndarray, labels: np.ndarray, tests: np.ndarray, classes: int, k: int = 20
) -> np.ndarray:
    """The class most frequent among the k nearest references of each test vector."""
    neighbours = np.argsort(-(tests @ references.T), axis=1, kind="stable")[:, :k]
    votes = np.stack([(labels[neighbours] == c).sum(axis=1) for c in range(classes)], axis=1)
    return votes.argmax(axis=1)


def main() -> None:
    from sklearn.linear_model import RidgeClassifierCV

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--references", type=int, default=3000)
    parser.add_argument("--tests", type=int, default=2000)
    parser.add_argument("--unverified", action="store_true")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    try:
        options = {"verify": not asked.unverified, "download": False}
        splits = [load_split("cifar10", name, **options) for name in ("train", "test")]
        encoder = embedders.get(asked.network)(
            splits[0].images,
            device=device,
            dtype=compute_dtype(device),
            generator=torch.Generator().manual_seed(0),
            size=asked.size,
        )
    except MissingData as error:
        parser.exit(0, f"pretrained: skipped, {error}\n")
    vectors: list[np.ndarray] = []

    def run() -> None:
        for split, rows in zip(splits, (asked.references, asked.tests), strict=True):
            found = embed(encoder, split.images, slice(0, rows), batch_size=100)
            vectors.append(normalise(found.astype(np.float16), "l2"))

    seconds, cpu_seconds = _common.timed(run, asked.device)
    references, tests = vectors
    labels, truth = splits[0].truth[: asked.references], splits[1].truth[: asked.tests]
    probe = RidgeClassifierCV(alphas=np.logspace(-2, 2, 9)).fit(references, labels)
    accuracies = {
        "knn20_accuracy": nearest(references, labels, tests, 10) == truth,
        "ridge_accuracy": probe.predict(tests) == truth,
    }
    _common.record(
        "pretrained",
        {
            "network": asked.network,
            "dataset": "cifar10",
            "published_files": not asked.unverified,
            "size": asked.size,
            "references": asked.references,
            "tests": asked.tests,
            **{name: round(100 * float(right.mean()), 2) for name, right in accuracies.items()},
            "ridge_alpha": round(float(probe.alpha_), 3),
            "embed_seconds": round(seconds, 1),
            "embed_cpu_seconds": round(cpu_seconds, 1),
        },
        asked.device,
    )


if __name__ == "__main__":
    main()
