"""Tasks of the data stage: samples, labels once they are paid for, and what the user brings."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.tasks.artifacts import Artifact, write
from winnow.tasks.cache import uncached_task
from winnow.tasks.errors import BadInput
from winnow.tasks.progress import progress

if TYPE_CHECKING:
    import numpy as np

    from winnow.tasks.data.split import Split

__all__ = [
    "annotate",
    "bring_embeddings",
    "bring_pseudo_labels",
    "labels_of",
    "load",
    "open_split",
    "rows_of",
]

# What these tasks write is named after its content, so later steps stay cached while that is unchanged.


@uncached_task(name="load", run_name="load-{dataset}-{split}")
def load(
    dataset: str, split: str = "train", labels: bool = False, options: dict[str, Any] | None = None
) -> Artifact:
    """The samples of one split, with a checksum of each image; with labels only if asked for."""
    with progress(f"load {dataset}/{split}") as tell:
        loaded = _split(dataset, split, json.dumps(options or {}, sort_keys=True))
        checksums = loaded.images.checksums(progress=tell)
    columns: dict[str, Any] = {"id": loaded.ids, "checksum": _binary(checksums)}
    if loaded.sources is not None:
        columns["source"] = list(loaded.sources)
    if labels:
        columns["label"] = loaded.labels().astype("int32")
    return write(
        "samples",
        columns,
        # training on the same images normalised differently gives another result
        facts={
            "classes": len(loaded.classes),
            "labelled": loaded.truth is not None,
            "shape": loaded.images.shape,
            "mean": loaded.mean,
            "std": loaded.std,
        },
        notes={"dataset": dataset, "split": split, "options": options or {}},
    )


def _binary(rows: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(rows.tobytes())]
    )


@lru_cache(maxsize=4)
def _split(dataset: str, split: str, options: str) -> Split:
    from winnow.tasks.data.load import load_split

    return load_split(dataset, split, **json.loads(options))


def open_split(samples: Artifact) -> Split:
    """The images (and, for annotation and reporting only, the truth) behind a samples artifact."""
    where = samples.notes
    loaded = _split(where["dataset"], where["split"], json.dumps(where["options"], sort_keys=True))
    if len(loaded) != samples.rows:
        raise BadInput(
            f"{where['dataset']}/{where['split']} has {len(loaded):,} images now, {samples.rows:,} when this "
            "run began.",
            remedy="leave the dataset alone while a run reads it, then run the same command again",
        )
    return loaded


def rows_of(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Position of each wanted id.

    Raises:
        BadInput: an id that is not there.
    """
    import numpy as np

    order = np.argsort(ids, kind="stable")
    position = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    rows = order[position]
    wrong = np.flatnonzero(ids[rows] != wanted)
    if len(wrong):
        raise BadInput(f"id {wanted[wrong[0]]} (row {wrong[0]}) is not among the {len(ids):,} samples.")
    return rows


@uncached_task(name="annotate", run_name="annotate-{purpose}")
def annotate(samples: Artifact, coreset: Artifact, purpose: str = "coreset") -> Artifact:
    """The coreset with its true labels: the step at which labels are paid for."""
    split = open_split(samples)
    ids = coreset.numpy("id")
    labels = split.labels()[rows_of(split.ids, ids)]
    return with_labels(coreset, labels, samples.facts["classes"])


def labels_of(labels: Artifact, ids: np.ndarray) -> np.ndarray:
    """The label of each id, from pseudo-labels or from samples that were loaded with labels; int64."""
    values = labels.numpy("cluster" if labels.kind == "pseudo_labels" else "label")
    return values.astype("int64")[rows_of(labels.numpy("id"), ids)]


def with_labels(coreset: Artifact, labels: np.ndarray, classes: int) -> Artifact:
    """The same coreset with a label for each row; ``classes`` is the number of classes."""
    columns = {name: coreset.numpy(name) for name in ("id", "rank", "weight")}
    return write(
        "coreset", {**columns, "label": labels.astype("int32")}, facts={**coreset.facts, "classes": classes}
    )


@uncached_task(name="bring-embeddings", run_name="bring-embeddings")
def bring_embeddings(samples: Artifact, path: str) -> Artifact:
    """The user's embeddings (Parquet, npy or npz): one row per sample, in order or with ``id``."""
    import numpy as np

    ids = samples.numpy("id")
    vectors = _table(path, ids, ("vector", "embeddings", "features", "x"))
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise BadInput(
            f"{path}: embeddings must be a floating-point matrix (N, D), found {vectors.dtype} "
            f"{vectors.shape}."
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise BadInput(
            f"{path}: row {bad[0]} has NaN or infinite values ({len(bad):,} such rows).",
            remedy="drop or recompute these rows",
        )
    stored = vectors if vectors.dtype == np.float16 else vectors.astype(np.float32)
    return write("embeddings", {"id": ids, "vector": stored}, notes={"embedder": Path(path).name})


@uncached_task(name="bring-pseudo-labels", run_name="bring-pseudo-labels")
def bring_pseudo_labels(samples: Artifact, path: str) -> Artifact:
    """The user's pseudo-labels (Parquet, npy or npz): one cluster per sample, in order or with ``id``."""
    import numpy as np

    ids = samples.numpy("id")
    clusters = _table(path, ids, ("cluster", "pseudo_labels", "labels", "cluster_ids"))
    if clusters.ndim != 1 or clusters.dtype.kind not in "iu":
        raise BadInput(
            f"{path}: pseudo-labels must be whole numbers (N,), found {clusters.dtype} {clusters.shape}."
        )
    if clusters.min() < 0:
        raise BadInput(
            f"{path}: row {int(np.argmin(clusters))} has cluster {clusters.min()}; clusters count from 0."
        )
    n = len(ids)
    columns = {
        "id": ids,
        "cluster": clusters.astype(np.int32),
        "confidence": np.ones(n, np.float32),
        "head": np.full(n, -1, np.int32),
    }
    return write(
        "pseudo_labels",
        columns,
        facts={"classes": int(clusters.max()) + 1},
        notes={"source": Path(path).name},
    )


def _table(path: str, ids: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """One array from a file, in the order of ``ids``; ``path#name`` picks one of several."""
    import numpy as np
    import pyarrow.parquet as pq

    from winnow.tasks.columns import to_numpy

    file, _, wanted = path.partition("#")
    if not Path(file).expanduser().exists():
        raise BadInput(f"{file}: no such file.", remedy="give the path of a .parquet, .npy or .npz file")
    source = Path(file).expanduser()
    if source.suffix not in (".npy", ".npz", ".parquet"):
        raise BadInput(f"{file}: {source.suffix or 'no'} suffix; .parquet, .npy and .npz are understood.")
    arrays: dict[str, np.ndarray]
    try:
        if source.suffix == ".npy":
            arrays = {names[0]: np.load(source, allow_pickle=False)}
        elif source.suffix == ".npz":
            with np.load(source, allow_pickle=False) as archive:
                arrays = dict(archive)
        else:
            table = pq.read_table(source)
            arrays = {name: to_numpy(table.column(name)) for name in table.column_names}
    except (ValueError, OSError) as error:
        raise BadInput(f"{file} cannot be read: {error}") from error
    candidates = [wanted] if wanted else [name for name in names if name in arrays]
    if not candidates and len(arrays) == 1:
        candidates = list(arrays)
    if not candidates or candidates[0] not in arrays:
        raise BadInput(
            f"{file}: which of its arrays? It has {', '.join(arrays) or 'none'}; expected one of "
            f"{', '.join(names)}.",
            remedy=f"name it: {file}#{next((name for name in arrays if name != 'id'), names[0])}",
        )
    values = arrays[candidates[0]]
    if "id" in arrays:
        return values[rows_of(arrays["id"], ids)]
    if len(values) != len(ids):
        raise BadInput(
            f"{file}: {len(values):,} rows for {len(ids):,} samples.",
            remedy="give one row a sample, in the dataset's order, or add ids",
        )
    return values
