"""Tasks of the data stage: samples, labels once they are paid for, and what the user brings."""

from __future__ import annotations

import json
import os
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
    "aligned",
    "annotate",
    "bring_already",
    "bring_embeddings",
    "bring_pseudo_labels",
    "bring_scores",
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
        loaded = _split(dataset, split, options or {}, anew=True)
        checksums = loaded.images.checksums(progress=tell)
    columns: dict[str, Any] = {"id": loaded.ids, "checksum": _binary(checksums)}
    if loaded.sources is not None:
        columns["source"] = list(loaded.sources)
    columns |= loaded.columns
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


def _split(dataset: str, split: str, options: dict[str, Any], *, anew: bool = False) -> Split:
    """One split, loaded once per process; ``anew`` looks whether the user's own files are still the same."""
    labels = str(options.get("labels") or "").partition("#")[0]
    changed = os.stat(labels).st_mtime_ns if os.path.isfile(labels) else 0
    key = (dataset, split, json.dumps(options, sort_keys=True), changed)
    if key not in _loaded or (anew and ":" in dataset):
        from winnow.tasks.data.load import load_split

        _loaded.pop(key, None)
        _loaded[key] = load_split(dataset, split, **options)
        for oldest in list(_loaded)[:-4]:
            _loaded.pop(oldest, None)
    return _loaded[key]


_loaded: dict[tuple[Any, ...], Split] = {}


def open_split(samples: Artifact) -> Split:
    """The images (and, for annotation and reporting only, the truth) behind a samples artifact."""
    where = samples.notes
    loaded = _split(where["dataset"], where["split"], where["options"])
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
    """The user's embeddings: one row per sample, in order or by id; see :mod:`winnow.tasks.data.arrays`."""
    from winnow.tasks.data.arrays import matrix

    vectors, ids = matrix(path, ("vector", "embedding", "embeddings", "features", "x"))
    columns = {"id": samples.numpy("id"), "vector": aligned(path, samples, vectors, ids)}
    return write("embeddings", columns, notes={"embedder": Path(path).name})


@uncached_task(name="bring-pseudo-labels", run_name="bring-pseudo-labels")
def bring_pseudo_labels(samples: Artifact, path: str) -> Artifact:
    """The user's pseudo-labels: one cluster per sample, in order or by id."""
    import numpy as np

    from winnow.tasks.data.arrays import vector

    values, ids = vector(path, ("cluster", "pseudo_labels", "labels", "label", "cluster_ids"))
    clusters = aligned(path, samples, values, ids)
    if clusters.dtype.kind not in "iu":
        raise BadInput(f"{path}: pseudo-labels must be whole numbers (N,), found {clusters.dtype}.")
    if clusters.min() < 0:
        raise BadInput(
            f"{path}: row {int(np.argmin(clusters))} has cluster {clusters.min()}; clusters count from 0."
        )
    n = samples.rows
    columns = {
        "id": samples.numpy("id"),
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


@uncached_task(name="bring-scores", run_name="bring-scores")
def bring_scores(samples: Artifact, path: str) -> Artifact:
    """The user's scores: one column each, one row per sample, in order or by id; ``path#a,b`` picks some."""
    import numpy as np

    from winnow.tasks.data.arrays import IDS, finite, open_arrays, vector

    file, _, wanted = path.partition("#")
    source = open_arrays(file)
    chosen = source.choose(wanted, ()) if wanted else [name for name in source.names if name not in IDS]
    columns: dict[str, Any] = {"id": samples.numpy("id")}
    for name in [chosen] if isinstance(chosen, str) else chosen or [""]:
        values, ids = vector(f"{file}#{name}" if name else file, ("score",))
        if values.dtype.kind not in "fiub":
            continue
        column = aligned(file, samples, values, ids)[:, None]
        columns[name or "score"] = finite(file, column)[:, 0].astype(np.float32)
    if len(columns) == 1:
        raise BadInput(f"{path} has no column of numbers.", remedy="write one column per score")
    return write("scores", columns, notes={"source": Path(file).name})


@uncached_task(name="bring-already", run_name="bring-already")
def bring_already(samples: Artifact, path: str) -> Artifact:
    """What is labelled already: a list of paths or ids, in the order in which they were picked."""
    import numpy as np
    import pyarrow as pa

    from winnow.tasks.data.rows import listed

    ids = samples.numpy("id")
    rows = listed(path, ids, _sources(samples))
    n = len(rows)
    columns = {
        "id": ids[rows],
        "rank": np.arange(n, dtype=np.int32),
        "weight": np.ones(n, np.float32),
        "label": pa.nulls(n, pa.int32()),
    }
    return write("coreset", columns, facts={"method": "already", "of": samples.rows})


def _sources(samples: Artifact) -> list[str] | None:
    return list(samples.numpy("source")) if "source" in samples.arrow_schema().names else None


def aligned(path: str, samples: Artifact, values: np.ndarray, ids: Any | None) -> np.ndarray:
    """The rows of a file in the order of the samples."""
    from winnow.tasks.data.rows import in_order_of

    order = in_order_of(path, ids, len(values), samples.numpy("id"), _sources(samples))
    return values if order is None else values[order]
