"""Tasks of the embedding stage: embed part by part, normalise, kNN graph."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

from winnow.tasks.artifacts import Artifact, joined, write
from winnow.tasks.cache import cached_task, context
from winnow.tasks.data.task import open_split
from winnow.tasks.engine import map_parts
from winnow.tasks.errors import BadInput, MissingData
from winnow.tasks.progress import progress
from winnow.tasks.registry import embedders

__all__ = ["checkpoint_digest", "embed", "knn", "normalise"]

log = logging.getLogger("winnow.tasks.embed")

PART = 8192  # rows: the most that a killed run loses


def checkpoint_digest(embedder: str) -> str | None:
    """sha256 of the checkpoint file that an embedder's name points to, None if it points to none.

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


def identity(embedder: str) -> str:
    """An embedder as it enters a key: by version, without its checkpoint's path; the key has the content."""
    from winnow.tasks.embed.weights import local_checkpoint

    if local_checkpoint(embedder) is None:
        return embedders.get(embedder).identity
    family, _, rest = embedder.partition(":")
    name = f"{family}:{rest.rpartition('@')[0]}" if family == "network" else family
    return f"{name}/{embedders.get(embedder).version}"


@cached_task(
    version="3",
    name="embed",
    run_name="embed-{embedder}",
    ignore=("device", "engine"),
    seen_as={"embedder": identity},
    modules=("winnow.tasks.embed.encoder",),
)
def embed(
    samples: Artifact,
    embedder: str,
    *,
    options: dict[str, Any] | None = None,
    checkpoint: str | None = None,
    learn_from: Artifact | None = None,
    seed: int = 0,
    device: str = "auto",
    engine: str = "here",
) -> Artifact:
    """One vector per sample.

    Args:
        samples: whose images are embedded.
        embedder: registered name.
        options: of the embedder.
        checkpoint: digest of the user's checkpoint file that the name points to (``checkpoint_digest``): its
            content is also an input.
        learn_from: samples that a learnt embedder (``patches``) learns from; default ``samples``.
        seed: for learnt embedders.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``.
        engine: what computes the parts; see :func:`~winnow.tasks.engine.map_parts`.
    """
    from winnow.tasks.hardware import compute_dtype, describe
    from winnow.tasks.hardware import device as device_of

    where = device_of(device)
    context().notes |= {"device": describe(where), "dtype": str(compute_dtype(where)), "seed": seed}
    log.info("embed %s: %s on %s, %s", samples, embedder, describe(where), compute_dtype(where))
    work = _EmbedRows(samples, embedder, options or {}, checkpoint, learn_from or samples, seed, device)
    with progress(f"embed {embedder.rpartition('/')[2]}") as tell:
        return joined(
            map_parts(work, work.parts(), engine=engine, progress=tell), notes={"embedder": embedder}
        )


@dataclass(frozen=True)
class _Rows:
    """Consecutive samples, and a digest of their ids and images."""

    start: int
    stop: int
    digest: str


@dataclass(frozen=True)
class _EmbedRows:
    """Embeds some rows of the samples; the encoder is made once for all of a process's parts."""

    samples: Artifact
    embedder: str
    options: dict[str, Any]
    checkpoint: str | None
    learn_from: Artifact
    seed: int
    device: str

    task: ClassVar[str] = "embed-part"
    version: ClassVar[str] = "1"

    def parts(self) -> list[_Rows]:
        columns = self.samples.table(["id", "checksum"])
        parts = []
        for start in range(0, columns.num_rows, PART):
            rows = columns.slice(start, PART).to_pydict()
            content = json.dumps([rows["id"], [checksum.hex() for checksum in rows["checksum"]]])
            stop = min(start + PART, columns.num_rows)
            parts.append(_Rows(start, stop, hashlib.sha256(content.encode()).hexdigest()))
        return parts

    def inputs(self, part: _Rows) -> dict[str, Any]:
        learns = embedders.get(self.embedder).learns
        return {
            "embedder": identity(self.embedder),
            "options": self.options,
            "checkpoint": self.checkpoint,
            "learn_from": self.learn_from if learns else None,
            "seed": self.seed,
            "rows": part.digest,
        }

    def __call__(self, part: _Rows) -> Artifact:
        import numpy as np

        from winnow.tasks.embed.encoder import embed as encode
        from winnow.tasks.hardware import leased_device

        split = open_split(self.samples)
        with leased_device(self.device) as where:
            vectors = encode(self._encoder(str(where)), split.images, np.arange(part.start, part.stop))
        large = np.flatnonzero((np.abs(vectors) > np.finfo(np.float16).max).any(axis=1))
        if len(large):
            raise BadInput(
                f"row {part.start + large[0]}: the embedding exceeds float16's range.",
                remedy="scale the embedder's output, or bring embeddings of your own in float32",
            )
        ids = split.ids[part.start : part.stop]
        return write(
            "embeddings", {"id": ids, "vector": vectors.astype(np.float16)}, facts={"dim": vectors.shape[1]}
        )

    def _encoder(self, where: str) -> Any:
        with _encoders:
            key = (self.embedder, json.dumps(self.options, sort_keys=True), self.checkpoint, self.seed, where)
            return _make_encoder(*key, json.dumps(self.learn_from.to_dict()))


_encoders = threading.Lock()


@functools.lru_cache(maxsize=8)  # one per device
def _make_encoder(
    embedder: str, options: str, checkpoint: str | None, seed: int, where: str, learn_from: str
) -> Any:
    import torch

    from winnow.tasks.hardware import compute_dtype, torch_generator

    images = open_split(Artifact(**json.loads(learn_from))).images
    device = torch.device(where)
    return embedders.get(embedder)(
        images,
        device=device,
        dtype=compute_dtype(device),
        generator=torch_generator(seed, "embed"),
        **json.loads(options),
    )


@cached_task(
    version="2", name="normalise", run_name="normalise-{how}", modules=("winnow.tasks.embed.encoder",)
)
def normalise(embeddings: Artifact, how: str, reference: Artifact | None = None) -> Artifact:
    """Embeddings scaled to unit length (``l2``) or to zero mean and unit variance by dimension (``zscore``).

    The means and variances are those of ``reference``, by default of the embeddings themselves.
    """
    from winnow.tasks.embed.encoder import normalise as normalised

    vectors = normalised(
        embeddings.numpy("vector"), how, reference=None if reference is None else reference.numpy("vector")
    )
    columns = {"id": embeddings.numpy("id"), "vector": vectors.astype("float32")}
    return write("embeddings", columns, facts=embeddings.facts, notes={**embeddings.notes, "normalise": how})


@cached_task(
    version="2",
    name="knn",
    run_name="knn-{k}",
    ignore=("device",),
    modules=("winnow.tasks.embed.knn", "winnow.tasks.embed.upstream.knn"),
)
def knn(embeddings: Artifact, k: int, *, upstream: bool = False, device: str = "auto") -> Artifact:
    """The exact k nearest neighbours of every sample by cosine, itself excluded."""
    from winnow.tasks.embed.knn import knn as exact
    from winnow.tasks.embed.upstream.knn import knn as published
    from winnow.tasks.hardware import describe, leased_device

    neighbours = published if upstream else exact
    with leased_device(device) as where, progress("kNN graph") as tell:
        context().notes |= {"device": describe(where)}
        graph = neighbours(embeddings.numpy("vector"), k, device=where, progress=tell)
    columns = {"id": embeddings.numpy("id"), "neighbours": graph.neighbours, "similarity": graph.similarity}
    return write("graph", columns, facts={"k": k})
