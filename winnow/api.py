"""Winnow on arrays: calls for notebooks, in front of the functions that the cached tasks run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.registry import embedders, selectors
from winnow.tasks.select.signals import Selection, Signals

if TYPE_CHECKING:
    from winnow.tasks.embed.graph import Graph
    from winnow.tasks.train.cluster_heads import ClusterResult

__all__ = ["cluster", "embed", "select"]


def select(
    signals: Signals | NDArray[Any] | str | os.PathLike[str],
    method: str,
    budget: int | float,
    *,
    already: Any = None,
    balanced: bool = False,
    seed: int = 0,
    upstream: bool = False,
    **params: Any,
) -> Selection:
    """The samples that a registered selector keeps.

    Args:
        signals: what is known of the samples; an array (N, D) stands for their features. Or a pool: the path
            of a folder, list, table or shards, as ``winnow select`` takes it (see
            :mod:`winnow.flows.select`); what the method needs is then made, and kept in the store.
        method: a selector's name (``winnow.selectors.names()``).
        budget: samples to keep (int), or their share in (0, 1] (float).
        already: rows that are there before the first pick, in the order in which they were picked: the
            coverage methods go on from them, others select among the rest. Of a pool: their paths or ids, or
            the file that lists them.
        balanced: split the budget over the classes of ``signals.labels``.
        seed: for ties and random picks.
        upstream: replay the published code.
        params: of the selector; of a pool also those of the flow ``select``: ``embedder``, ``embeddings``, …

    Returns:
        Indices of the samples kept, in pick order where the method has one, and their weights.

    Raises:
        UnknownName: no such selector.
        MissingSignal: it needs something that is not given.
        BadInput: a budget, parameter or array that cannot be worked with.

    >>> points = np.array([[0.0], [0.1], [5.0], [9.0]])
    >>> sorted(select(points, method="k_center", budget=3, seed=1).indices.tolist())
    [0, 2, 3]
    """
    if isinstance(signals, str | os.PathLike):
        how = {"balanced": balanced, "seed": seed, "upstream": upstream}
        return _from_pool(os.fspath(signals), method, budget, already, how, params)
    if not isinstance(signals, Signals):
        array = np.asarray(signals)
        signals = Signals(n=len(array), features=array)
    generator = np.random.default_rng(seed)
    return selectors.get(method)(
        signals, budget, generator=generator, balanced=balanced, upstream=upstream, already=already, **params
    )


def _from_pool(
    pool: str, method: str, budget: int | float, already: Any, how: dict[str, Any], params: dict[str, Any]
) -> Selection:
    """Run the flow ``select`` here, and say which rows of the pool it kept."""
    import tempfile

    from winnow.flows.pools import dataset_of
    from winnow.flows.select import select as flow
    from winnow.tasks.data.load import load_split
    from winnow.tasks.data.task import rows_of

    of_flow = {name: params.pop(name) for name in list(params) if name in flow.parameters.properties}
    of_flow["params"] = {**of_flow.get("params", {}), **params} or None
    with tempfile.TemporaryDirectory() as folder:
        if already is not None and not isinstance(already, str | os.PathLike):
            listed = Path(folder, "already.jsonl")
            listed.write_text("".join(f"{json.dumps(name)}\n" for name in already), encoding="utf-8")
            already = listed
        before = None if already is None else os.fspath(already)
        coreset = flow(pool=pool, method=method, budget=budget, already=before, **how, **of_flow)
    split = load_split(dataset_of(pool), "train", **(of_flow.get("dataset_options") or {}))
    gains = coreset.numpy("gain") if "gain" in coreset.arrow_schema().names else None
    rows = rows_of(split.ids, coreset.numpy("id"))
    return Selection.of(rows, weights=coreset.numpy("weight"), gains=gains)


def embed(
    images: Any, embedder: str, *, device: str = "auto", seed: int = 0, batch_size: int = 256, **options: Any
) -> NDArray[np.float32]:
    """One vector per image.

    Args:
        images: uint8 (N, H, W, C), or an object with ``shape``, ``len`` and ``read(rows)`` such as the
            ``images`` of a dataset's split.
        embedder: a registered embedder's name (``winnow.embedders.names()``).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``.
        seed: for embedders that learn from the images.
        batch_size: images at a time; affects memory and speed.
        options: of the embedder.

    Returns:
        float32 (N, D).

    Raises:
        UnknownName: no such embedder.
        MissingData: its weights are neither on disk nor downloadable; says which file to put where.
        BadInput: images of another type or shape.

    >>> embed(np.zeros((2, 4, 4, 1), np.uint8), "pixels").shape
    (2, 16)
    """
    from winnow.tasks.data.split import ArrayImages
    from winnow.tasks.embed.encoder import embed as encode
    from winnow.tasks.hardware import compute_dtype, leased_device, torch_generator

    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise BadInput(f"images are {images.dtype} {images.shape}, not uint8 (N, H, W, C).")
        images = ArrayImages(images)
    with leased_device(device) as where:
        encoder = embedders.get(embedder)(
            images,
            device=where,
            dtype=compute_dtype(where),
            generator=torch_generator(seed, "embed"),
            **options,
        )
        return encode(encoder, images, slice(None), batch_size=batch_size)


def cluster(
    features: NDArray[Any], graph: Graph, *, classes: int, seed: int = 0, device: str = "auto", **config: Any
) -> ClusterResult:
    """Pseudo-labels by self-distilled cluster heads (TEMI), trained on pairs of neighbours without labels.

    Args:
        features: float (N, D), embeddings.
        graph: their kNN graph (``winnow.knn``).
        classes: clusters per head.
        seed: of the heads and of the pairs.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``.
        config: fields of :class:`~winnow.tasks.train.heads.HeadsConfig`; default the published recipe,
            with the graph's neighbours.

    Returns:
        Labels, confidence, the head that gave them and every head's loss.

    Raises:
        BadInput: features, graph or config that do not fit each other.

    >>> from winnow import knn
    >>> centres = np.repeat(np.eye(2, dtype=np.float32), 40, axis=0)
    >>> points = centres + np.random.default_rng(0).normal(0, 0.1, (80, 2)).astype(np.float32)
    >>> short = {"heads": 2, "epochs": 20, "batch_size": 80, "lr": 0.01}
    >>> found = cluster(points, knn(points, 5), classes=2, device="cpu", **short)
    >>> found.labels.shape, found.used
    ((80,), 2)
    """
    from winnow.tasks.hardware import leased_device
    from winnow.tasks.train.cluster_heads import HeadsConfig, train_cluster_heads

    heads = HeadsConfig(**{"neighbours": graph.neighbours.shape[1], **config})
    with leased_device(device) as where:
        return train_cluster_heads(features, graph, heads, classes=classes, seed=seed, device=where)
