"""Tasks of the embedding stage: embed shard by shard, normalise, kNN graph."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from winnow.tasks.artifacts import Artifact, ArtifactWriter, write
from winnow.tasks.cache import cached_task, context
from winnow.tasks.data.task import open_split
from winnow.tasks.errors import BadInput, MissingData
from winnow.tasks.progress import progress
from winnow.tasks.registry import embedders

__all__ = ["checkpoint_digest", "embed", "knn", "normalise"]

log = logging.getLogger("winnow.tasks.embed")

SHARD = 2048  # rows: what is lost at most when a run is killed


def checkpoint_digest(embedder: str) -> str | None:
    """sha256 of the checkpoint file that an embedder's name points to, None where it points to none.

    Raises:
        MissingData: there is no such file.
    """
    from winnow.tasks.embed.weights import local_checkpoint

    path = local_checkpoint(embedder)
    if path is None:
        return None
    if not path.is_file():
        raise MissingData(
            f"{embedder}: there is no file {path}.", remedy="give the path of a checkpoint file"
        )
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seen(embedder: str) -> str:
    """An embedder as a key sees it: without the checkpoint's path, whose content is in the key; with the code of a plugin's."""
    from winnow.tasks.embed.weights import local_checkpoint

    if local_checkpoint(embedder) is None:
        return embedders.get(embedder).identity
    family, _, rest = embedder.partition(":")
    return f"{family}:{rest.rpartition('@')[0]}" if family == "network" else family


@cached_task(
    version="2",
    name="embed",
    run_name="embed-{embedder}",
    ignore=("device", "batch_size"),
    seen_as={"embedder": _seen},
)
def embed(
    samples: Artifact,
    embedder: str,
    *,
    options: dict[str, Any] | None = None,
    checkpoint: str | None = None,
    learn_from: Artifact | None = None,
    storage: str = "float16",
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 256,
) -> Artifact:
    """One vector a sample.

    Args:
        samples: whose images are embedded.
        embedder: registered name.
        options: of the embedder.
        checkpoint: digest of the user's checkpoint file that the name points to (``checkpoint_digest``): its
            content is an input, too.
        learn_from: samples that a learnt embedder (``patches``) learns from; default the same.
        storage: ``float16`` or ``float32``.
        seed: of learnt embedders.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``.
        batch_size: images at a time; changes nothing but memory and speed.
    """
    import numpy as np
    import pyarrow as pa
    import torch

    from winnow.tasks.embed.encoder import embed as encode
    from winnow.tasks.hardware import compute_dtype, describe, leased_device, torch_generator

    split = open_split(samples)
    scratch = context().scratch
    starts = range(0, len(split), SHARD)
    with leased_device(device) as where, progress(f"embed {embedder.rpartition('/')[2]}") as tell:
        dtype = compute_dtype(where)
        context().notes |= {
            "device": describe(where),
            "dtype": str(dtype),
            "seed": seed,
            "embedder": embedder,
        }
        log.info("embed %s: %s on %s, %s", samples, embedder, describe(where), dtype)
        found = [
            i
            for i in range(len(starts))
            if (state := scratch.load(f"shard-{i:05d}")) is not None and len(state["vector"])
        ]
        encoder = None
        for done, i in enumerate(sorted(set(range(len(starts))) - set(found)), start=len(found)):
            if encoder is None:
                images = open_split(learn_from).images if learn_from is not None else split.images
                generator = torch_generator(seed, "embed")
                encoder = embedders.get(embedder)(
                    images, device=where, dtype=dtype, generator=generator, **(options or {})
                )
            rows = np.arange(starts[i], min(starts[i] + SHARD, len(split)))
            vectors = encode(encoder, split.images, rows, batch_size=batch_size)
            scratch.save(
                f"shard-{i:05d}", {"vector": torch.from_numpy(_stored(vectors, storage, int(rows[0])))}
            )
            tell(done + 1, len(starts), f"{min((done + 1) * SHARD, len(split)):,} images")
    first = scratch.load("shard-00000")
    assert first is not None
    width = first["vector"].shape[1]
    element = pa.float16() if storage == "float16" else pa.float32()
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(element, width))])
    with ArtifactWriter("embeddings", schema, meta={"embedder": embedder, "dim": width}) as writer:
        for i, start in enumerate(starts):
            state = scratch.load(f"shard-{i:05d}")
            assert state is not None
            writer.write({"id": split.ids[start : start + SHARD], "vector": state["vector"].numpy()})
        return writer.finish()


def _stored(vectors: Any, storage: str, first: int) -> Any:
    import numpy as np

    if storage not in ("float16", "float32"):
        raise BadInput(f"storage = {storage!r} is neither float16 nor float32.")
    if storage == "float16":
        large = np.flatnonzero((np.abs(vectors) > 65504).any(axis=1))
        if len(large):
            raise BadInput(
                f"row {first + large[0]}: the embedding exceeds float16's range.",
                remedy="pass storage='float32'",
            )
    return vectors.astype(storage)


@cached_task(
    version="1", name="normalise", run_name="normalise-{how}", modules=("winnow.tasks.embed.encoder",)
)
def normalise(embeddings: Artifact, how: str, reference: Artifact | None = None) -> Artifact:
    """Embeddings with unit length (``l2``) or, dimension by dimension, zero mean and unit variance (``zscore``), those of ``reference``."""
    from winnow.tasks.embed.encoder import normalise as normalised

    vectors = normalised(
        embeddings.numpy("vector"), how, reference=None if reference is None else reference.numpy("vector")
    )
    meta = {**embeddings.meta, "normalise": how}
    return write("embeddings", {"id": embeddings.numpy("id"), "vector": vectors.astype("float32")}, meta=meta)


@cached_task(
    version="1",
    name="knn",
    run_name="knn-{k}",
    ignore=("device",),
    modules=("winnow.tasks.embed.knn", "winnow.tasks.embed.upstream.knn"),
)
def knn(
    embeddings: Artifact, k: int, *, metric: str = "cosine", upstream: bool = False, device: str = "auto"
) -> Artifact:
    """The exact k nearest neighbours of every sample, itself excluded."""
    from winnow.tasks.embed.knn import knn as exact
    from winnow.tasks.embed.upstream.knn import knn as published
    from winnow.tasks.hardware import describe, leased_device

    neighbours = published if upstream else exact
    with leased_device(device) as where, progress("kNN graph") as tell:
        context().notes |= {"device": describe(where)}
        graph = neighbours(embeddings.numpy("vector"), k, metric=metric, device=where, progress=tell)
    columns = {"id": embeddings.numpy("id"), "neighbours": graph.neighbours, "similarity": graph.similarity}
    return write("graph", columns, meta={"k": k, "metric": metric})
