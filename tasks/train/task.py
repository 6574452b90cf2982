"""Tasks of the training stage: cluster heads and their baseline, hold-outs, training on a coreset."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from winnow.tasks.artifacts import Artifact, write
from winnow.tasks.cache import cached_task, context
from winnow.tasks.data.task import labels_of, open_split, rows_of, with_labels
from winnow.tasks.errors import BadInput
from winnow.tasks.progress import progress
from winnow.tasks.registry import networks
from winnow.tasks.train.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from winnow.tasks.data.split import Split
    from winnow.tasks.train.loop import Trained
    from winnow.tasks.train.problems.images import ImageProblem

__all__ = [
    "cluster",
    "cluster_kmeans",
    "hold_out",
    "label",
    "read_network",
    "train_on",
    "trained_by",
    "write_network",
]

log = logging.getLogger("winnow.tasks.train")

# the modules that decide the result of a training run, besides the network's
TRAINING = ("winnow.tasks.train.loop",)


def trained_by(recipe: Recipe) -> Any:
    """A recipe as it enters a key: with its network's version and, for a plugin's, its code."""
    return {"recipe": recipe, "network": networks.get(recipe.network).identity}


@cached_task(
    version="1",
    name="cluster",
    run_name="cluster-{classes}",
    ignore=("device",),
    modules=("winnow.tasks.train.cluster_heads",),
)
def cluster(
    embeddings: Artifact,
    graph: Artifact,
    classes: int,
    heads: dict[str, Any],
    *,
    seed: int = 0,
    device: str = "auto",
    test: Artifact | None = None,
    test_embeddings: Artifact | None = None,
) -> dict[str, Artifact]:
    """Pseudo-labels by TEMI cluster heads, and every head's loss per epoch.

    Head and epoch are chosen by the teacher's loss. With ``test`` and ``test_embeddings`` the epoch is chosen
    by test labels, as the published code does; for comparison only.
    """
    import numpy as np

    from winnow.tasks.embed.knn import Graph
    from winnow.tasks.hardware import describe, leased_device
    from winnow.tasks.train.cluster_heads import HeadsConfig, train_cluster_heads
    from winnow.tasks.train.upstream.heads import ByTestLabels

    config = HeadsConfig(**{**heads, "neighbours": graph.facts["k"]})
    vectors = embeddings.numpy("vector")
    with leased_device(device) as where, progress("cluster heads") as tell:
        choice = None
        if test is not None and test_embeddings is not None:
            choice = ByTestLabels(test_embeddings.numpy("vector"), test.numpy("label"), where)
        machine = describe(where)
        context().notes |= {"device": machine, "seed": seed}
        log.info("cluster heads: %d heads, %d clusters on %s, seed %d", config.heads, classes, machine, seed)
        clusters = train_cluster_heads(
            vectors,
            Graph(graph.numpy("neighbours"), graph.numpy("similarity")),
            config,
            classes=classes,
            seed=seed,
            device=where,
            scratch=context().scratch,
            progress=tell,
            choice=choice,
        )
    facts = {"classes": classes, "head": clusters.head, "epoch": clusters.epoch, "oracle": clusters.oracle}
    pseudo_labels = _pseudo_labels(embeddings, clusters.labels, clusters.confidence, clusters.head, facts)
    epochs, count = clusters.losses.shape
    losses = write(
        "table",
        {
            "epoch": np.repeat(np.arange(epochs, dtype=np.int32), count),
            "head": np.tile(np.arange(count, dtype=np.int32), epochs),
            "loss": clusters.losses.reshape(-1),
        },
        facts={"heads": count, "epochs": epochs, "head": clusters.head},
    )
    return {"pseudo_labels": pseudo_labels, "losses": losses}


@cached_task(
    version="3",
    name="kmeans",
    run_name="kmeans-{classes}",
    ignore=("device",),
    modules=("winnow.tasks.train.kmeans",),
)
def cluster_kmeans(embeddings: Artifact, classes: int, *, seed: int = 0, device: str = "auto") -> Artifact:
    """Pseudo-labels by k-means on the same embedding: the baseline that cluster heads must beat."""
    import numpy as np

    from winnow.tasks.hardware import describe, leased_device
    from winnow.tasks.train.kmeans import kmeans_labels

    with leased_device(device) as where, progress("k-means"):
        context().notes |= {"device": describe(where), "seed": seed}
        labels = kmeans_labels(embeddings.numpy("vector"), classes, seed=seed, device=where)
    return _pseudo_labels(embeddings, labels, np.ones(len(labels), np.float32), -1, {"classes": classes})


def _pseudo_labels(
    embeddings: Artifact,
    clusters: NDArray[np.int32],
    confidence: NDArray[np.float32],
    head: int,
    facts: dict[str, Any],
) -> Artifact:
    """A cluster for each sample; ``head`` is -1 where none gave it."""
    import numpy as np

    columns = {
        "id": embeddings.numpy("id"),
        "cluster": clusters,
        "confidence": confidence,
        "head": np.full(len(clusters), head, np.int32),
    }
    return write("pseudo_labels", columns, facts={"used": len(np.unique(clusters)), **facts})


@cached_task(version="1", name="hold-out", run_name="hold-out")
def hold_out(samples: Artifact, labels: Artifact, *, share: float, seed: int = 0) -> dict[str, Artifact]:
    """A random share of the samples, with labels, to judge settings by (``held``), and the ``rest``."""
    import numpy as np

    from winnow.tasks.hardware import seed_sequence

    ids = samples.numpy("id")
    order = np.random.default_rng(seed_sequence(seed, "holdout")).permutation(len(ids))
    count = max(1, int(share * len(ids)))
    parts = {}
    for name, rows in (("held", order[:count]), ("rest", order[count:])):
        k = len(rows)
        chosen = ids[np.sort(rows)]
        columns = {
            "id": chosen,
            "rank": np.arange(k, dtype=np.int32),
            "weight": np.ones(k, np.float32),
            "label": labels_of(labels, chosen).astype(np.int32),
        }
        parts[name] = write(
            "coreset", columns, facts={"method": f"hold-out {name}", "classes": labels.facts["classes"]}
        )
    return parts


@cached_task(version="1", name="label", run_name="label")
def label(coreset: Artifact, labels: Artifact) -> Artifact:
    """The coreset with the (pseudo-)labels used for selection: for trials that may see no others."""
    return with_labels(coreset, labels_of(labels, coreset.numpy("id")), labels.facts["classes"])


@cached_task(
    version="2",
    name="train",
    run_name="train-{coreset.facts[method]}-{coreset.facts[fraction]}-s{seed}",
    ignore=("device",),
    seen_as={"recipe": trained_by},
    modules=TRAINING,
)
def train_on(
    train: Artifact, coreset: Artifact, evaluation: Artifact, recipe: Recipe, seed: int, device: str = "auto"
) -> Artifact:
    """Train a network on an annotated coreset; test accuracy at intervals, last and best.

    Args:
        train: the samples that the coreset was selected from.
        coreset: with labels.
        evaluation: a test set (samples with labels), or a labelled coreset of ``train`` to evaluate on.
        recipe: how to train.
        seed: for initial weights, order and augmentation.
        device: where to train.

    Returns:
        metrics, with ``last_accuracy`` and ``best_accuracy`` (fractions) among its facts.
    """
    from winnow.tasks.hardware import describe, leased_device
    from winnow.tasks.train.loop import train as run_training
    from winnow.tasks.train.plan import Everything
    from winnow.tasks.train.problems.images import ImageProblem

    split = open_split(train)
    weights, classes = coreset.numpy("weight"), coreset.facts["classes"]
    problem = _problem(split, coreset, classes)
    if evaluation.kind == "coreset":
        test = _problem(split, evaluation, classes)
    else:
        other, truth = open_split(evaluation), evaluation.numpy("label")
        test = ImageProblem(other.images, truth, classes=classes, mean=split.mean, std=split.std)
    with leased_device(device) as where, progress(f"train {recipe.network}, {problem.n:,} samples") as tell:
        context().notes |= {"device": describe(where), "seed": seed, "samples": problem.n}
        log.info(
            "train %s on %s samples, %s, seed %d", recipe.network, f"{problem.n:,}", describe(where), seed
        )
        trained = run_training(
            problem,
            recipe,
            seed=seed,
            device=where,
            policy=Everything(problem.n, weights),
            test=test,
            scratch=context().scratch,
            progress=tell,
        )
    return write(
        "metrics",
        history_columns(trained.history),
        facts={
            "last_accuracy": trained.last_accuracy,
            "best_accuracy": trained.best_accuracy,
            "samples": problem.n,
        },
    )


def write_network(trained: Trained) -> Artifact:
    """A trained network's tensors; what it was built for is in the artifact's facts."""
    rows = [(name, tensor.detach().cpu().contiguous()) for name, tensor in trained.network.items()]
    columns = {
        "name": [name for name, _ in rows],
        "dtype": [str(tensor.dtype).removeprefix("torch.") for _, tensor in rows],
        "shape": pa.array([list(tensor.shape) for _, tensor in rows], pa.list_(pa.int64())),
        "data": pa.array([tensor.numpy().tobytes() for _, tensor in rows], pa.binary()),
    }
    return write("network", columns, facts={"network": trained.recipe.network, "shape": trained.shape})


def read_network(artifact: Artifact, device: Any) -> nn.Module:
    """The network behind ``write_network``'s artifact, in eval mode."""
    import numpy as np
    import torch

    from winnow.tasks.train.networks.build import build

    module = build(artifact.facts["network"], seed=0, **artifact.facts["shape"])
    state = {}
    for row in artifact.table().to_pylist():
        values = np.frombuffer(row["data"], row["dtype"]).reshape(row["shape"])
        state[row["name"]] = torch.from_numpy(values.copy())
    module.load_state_dict(state)
    return module.to(device).eval()


def history_columns(history: list[dict[str, Any]]) -> dict[str, Any]:
    """A training's history as columns, without wall-clock times: equal trainings have equal digests."""
    import numpy as np

    types = {
        "epoch": np.int32,
        "step": np.int64,
        "loss": np.float32,
        "accuracy": np.float32,
        "lr": np.float32,
        "samples_seen": np.int64,
    }
    columns: dict[str, Any] = {
        name: np.array([row[name] for row in history], kind) for name, kind in types.items()
    }
    return {**columns, "split": [row["split"] for row in history]}


def _problem(split: Split, coreset: Artifact, classes: int) -> ImageProblem:
    """A labelled part of a split, to train or evaluate on."""
    from winnow.tasks.train.problems.images import ImageProblem

    labels = coreset.table(["label"]).column("label")
    if labels.null_count:
        raise BadInput(
            f"{labels.null_count:,} of {coreset.rows:,} samples of the coreset have no label.",
            remedy="annotate it first",
        )
    rows = rows_of(split.ids, coreset.numpy("id"))
    return ImageProblem(
        split.images, labels.to_numpy(), classes=classes, mean=split.mean, std=split.std, rows=rows
    )
