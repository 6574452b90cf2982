"""The artifact store: content-addressed Parquet, written atomically, checked when read. The only file that touches storage.

Layout of a store (``$WINNOW_STORE``, any fsspec address; default ``.winnow/`` beside the checkout)::

    objects/<aa>/<sha256>.parquet   immutable content, named after its own digest
    records/<task>-<key>            which artifact a task made of which inputs (Prefect's result record, JSON)
    provenance/<task>-<key>.json    how: inputs, parameters, versions, device, duration
    partial/<task>-<key>/           scratch of a task under way: epoch checkpoints, finished shards (always on
    local disk) reports/                        what flows show at the end
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from winnow.tasks.errors import ArtifactCorrupt, BadInput, StoreUnusable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KINDS", "Artifact", "ArtifactWriter", "Scratch", "Store", "find", "store", "store_uri", "write"]


# -- what each kind of artifact holds ------------------------------------------------------------------------

_FLOAT = (pa.float16(), pa.float32())
_ID = (pa.int64(), pa.string())

# column -> allowed Arrow types; a tuple inside a list is the element type of fixed-size lists; "?" marks an
# optional column
KINDS: dict[str, dict[str, Any]] = {
    "samples": {"id": _ID, "label?": (pa.int32(),), "source?": (pa.string(),), "checksum": (pa.binary(16),)},
    "embeddings": {"id": _ID, "vector": [_FLOAT]},
    "graph": {"id": _ID, "neighbours": [(pa.int32(), pa.int64())], "similarity": [(pa.float32(),)]},
    "pseudo_labels": {
        "id": _ID,
        "cluster": (pa.int32(),),
        "confidence": (pa.float32(),),
        "head": (pa.int32(),),
    },
    "dynamics": {
        "epoch": (pa.int16(),),
        "id": _ID,
        "label": (pa.int32(),),
        "margin": (pa.float32(),),
        "loss": (pa.float32(),),
        "correct": (pa.bool_(),),
        "el2n": (pa.float32(),),
        "entropy": (pa.float32(),),
    },
    "scores": {"id": _ID},
    "logits": {"id": _ID, "logits": [(pa.float32(),)]},
    "coreset": {"id": _ID, "rank": (pa.int32(),), "weight": (pa.float32(),), "label": (pa.int32(),)},
    "metrics": {
        "epoch": (pa.int32(),),
        "step": (pa.int64(),),
        "split": (pa.string(),),
        "loss": (pa.float32(),),
        "accuracy": (pa.float32(),),
        "lr": (pa.float32(),),
        "samples_seen": (pa.int64(),),
    },
    "network": {
        "name": (pa.string(),),
        "dtype": (pa.string(),),
        "shape": (pa.list_(pa.int64()),),
        "data": (pa.binary(),),
    },
    "table": {},
    "report": {"name": (pa.string(),), "content": (pa.binary(),)},
}
SCHEMA_VERSION = 1


def _check_schema(kind: str, schema: pa.Schema) -> None:
    if kind not in KINDS:
        raise BadInput(f"{kind!r} is not a kind of artifact. Kinds: {', '.join(sorted(KINDS))}")
    for column, allowed in KINDS[kind].items():
        name, optional = column.removesuffix("?"), column.endswith("?")
        index = schema.get_field_index(name)
        if index < 0:
            if optional:
                continue
            raise BadInput(f"{kind}: column {name!r} is missing; found {', '.join(schema.names) or 'none'}.")
        found = schema.field(index).type
        if isinstance(allowed, list):
            if not pa.types.is_fixed_size_list(found) or found.value_type not in allowed[0]:
                raise BadInput(
                    f"{kind}: column {name!r} is {found}, not a fixed-size list of "
                    f"{' or '.join(map(str, allowed[0]))}."
                )
        elif found not in allowed:
            raise BadInput(f"{kind}: column {name!r} is {found}, not {' or '.join(map(str, allowed))}.")
    if kind == "scores" and len(schema.names) < 2:
        raise BadInput("scores: there is no score column beside 'id'.")


# -- the store -----------------------------------------------------------------------------------------------


def store_uri() -> str:
    """``$WINNOW_STORE``, else ``.winnow`` beside the checkout's pyproject.toml, else in the current folder.

    A worker runs flows in a folder of its own, so the current folder is only the last resort.
    """
    if configured := os.environ.get("WINNOW_STORE"):
        return configured
    checkout = Path(__file__).resolve().parents[1]
    return str((checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / ".winnow")


@lru_cache(maxsize=8)
def _open_store(uri: str) -> Store:
    return Store(uri)


def store() -> Store:
    """The configured store."""
    return _open_store(store_uri())


class Store:
    """Named byte files under one fsspec address, replaced whole or not at all."""

    def __init__(self, uri: str) -> None:
        try:
            self.fs, root = fsspec.core.url_to_fs(os.path.expanduser(uri))
        except (ImportError, ValueError) as error:
            raise StoreUnusable(
                f"WINNOW_STORE={uri}: {error}",
                remedy="install the fsspec package of that protocol, or use a folder",
            ) from error
        self.uri = uri
        self.local = isinstance(self.fs, fsspec.implementations.local.LocalFileSystem)
        self.root = os.path.abspath(root) if self.local else root.rstrip("/")

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @property
    def local_root(self) -> Path:
        """Where this host keeps locks, scratch and copies: the store itself when it is a folder."""
        if self.local:
            return Path(self.root)
        name = hashlib.sha256(self.uri.encode()).hexdigest()[:16]
        return Path(os.environ.get("WINNOW_CACHE") or Path.home() / ".cache" / "winnow") / "stores" / name

    def scratch(self, key: str) -> Scratch:
        return Scratch(self.local_root / "partial" / key)

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a small file, atomically and durably."""
        if not self.local:
            with _explained(self.uri):
                self.fs.pipe_file(self.path(name), content)
            return
        with _atomic(Path(self.path(name)), self.uri) as temporary:
            temporary.write_bytes(content)

    def adopt(self, temporary: Path, name: str) -> None:
        """Move a finished local file into the store under its name, atomically."""
        with _explained(self.uri):
            if self.local:
                target = Path(self.path(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                _readable(temporary)
                os.replace(temporary, target)
                _sync_folder(target.parent)
            else:
                self.fs.put_file(str(temporary), self.path(name))

    def read(self, name: str) -> bytes:
        return self.fs.cat_file(self.path(name))

    def size(self, name: str) -> int | None:
        """Bytes of a file, None when it does not exist."""
        try:
            return int(self.fs.info(self.path(name))["size"])
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Files under a folder, at any depth, relative to the store's root, sorted."""
        try:
            found = self.fs.find(self.path(folder))
        except FileNotFoundError:
            return []
        root = self.root.rstrip("/") + "/"
        names = (str(PurePosixPath(path)).removeprefix(root) for path in found)
        return sorted(name for name in names if not PurePosixPath(name).name.startswith(".tmp-"))

    def modified(self, name: str) -> float:
        """Seconds since the epoch."""
        return self.fs.modified(self.path(name)).timestamp()

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def temporary(self) -> Path:
        """An empty local file to fill and then ``adopt``; on the store's own disk when it is a folder."""
        folder = self.local_root / "objects"
        with _explained(self.uri):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=folder, prefix=".tmp-")
        os.close(descriptor)
        return Path(name)


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Disk trouble in words."""
    try:
        yield
    except OSError as error:
        reason = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "no permission",
            errno.EROFS: "read-only",
        }
        if error.errno not in reason:
            raise
        raise StoreUnusable(
            f"Cannot write to the store {uri}: {reason[error.errno]}.",
            kept="every finished artifact and the last checkpoint of the running task",
            remedy="free some room (`winnow cache gc`) or set WINNOW_STORE elsewhere, then run the same "
            "command again",
        ) from error


_UMASK = os.umask(0)
os.umask(_UMASK)


def _readable(file: Path) -> None:
    """Temporary files are made for their owner alone; a store may be shared."""
    os.chmod(file, 0o666 & ~_UMASK)


@contextlib.contextmanager
def _atomic(target: Path, uri: str) -> Iterator[Path]:
    """A temporary file beside ``target`` that replaces it if the block succeeds; a reader sees the old file or the whole new one."""
    with _explained(uri):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".tmp-")
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            _sync_file(temporary)
            _readable(temporary)
            os.replace(temporary, target)
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- artifacts -----------------------------------------------------------------------------------------------


class Artifact(BaseModel):
    """Handle of one stored table: what tasks pass to each other, never arrays.

    Attributes:
        kind: which columns it has (``KINDS``).
        uri: file, relative to the store.
        digest: sha256 of the file, hexadecimal; the whole identity of the artifact.
        rows: number of rows.
        nbytes: size of the file.
        schema_version: of the columns.
        meta: small facts that help to use it (dataset, classes, …); not part of the identity.
    """

    model_config = ConfigDict(frozen=True)
    kind: str
    uri: str
    digest: str
    rows: int
    nbytes: int
    schema_version: int = SCHEMA_VERSION
    meta: dict[str, Any] = {}

    def __str__(self) -> str:
        return f"{self.kind} {self.digest[:12]} ({self.rows:,} rows)"

    def path(self) -> Path:
        """The file on this host, its digest checked once per state of the file.

        Raises:
            ArtifactCorrupt: it is missing, truncated or altered.
        """
        place = store()
        if place.local:
            file = Path(place.path(self.uri))
        else:
            file = place.local_root / self.uri
            if not file.exists() or file.stat().st_size != self.nbytes:
                try:
                    with _atomic(file, place.uri) as temporary:
                        place.fs.get_file(place.path(self.uri), str(temporary))
                except FileNotFoundError as error:
                    raise self._corrupt("it is missing") from error
        try:
            state = file.stat()
        except FileNotFoundError as error:
            raise self._corrupt("it is missing") from error
        if state.st_size != self.nbytes:
            raise self._corrupt(f"it has {state.st_size:,} bytes instead of {self.nbytes:,}")
        if _digest_of(str(file), state.st_mtime_ns, state.st_ino) != self.digest:
            if not place.local:
                file.unlink(missing_ok=True)
            raise self._corrupt("its content has changed")
        return file

    def _corrupt(self, why: str) -> ArtifactCorrupt:
        return ArtifactCorrupt(
            f"Artifact {self.kind} {self.digest[:12]} cannot be used: {why} ({store().path(self.uri)}).",
            kept="every other artifact",
            remedy="run the same command again: only this artifact is recomputed (`winnow cache verify` "
            "checks all of them)",
        )

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The content, memory-mapped."""
        return pq.read_table(self.path(), columns=columns, memory_map=True)

    def batches(self, columns: Sequence[str] | None = None, rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """The content piece by piece, so that memory stays bounded."""
        with pq.ParquetFile(self.path(), memory_map=True) as file:
            yield from file.iter_batches(batch_size=rows, columns=columns)

    def arrow_schema(self) -> pa.Schema:
        return pq.read_schema(self.path())

    def numpy(self, column: str) -> NDArray[Any]:
        """One column as an array: (rows,), or (rows, length) for fixed-size lists."""
        return to_numpy(self.table([column]).column(column))


@lru_cache(maxsize=4096)
def _digest_of(path: str, mtime_ns: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    """An Arrow column as an array; fixed-size lists become two-dimensional.

    >>> to_numpy(pa.chunked_array([pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 4]), 2)])).tolist()
    [[1, 2], [3, 4]]
    """
    if pa.types.is_fixed_size_list(column.type):
        parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        values = np.concatenate(parts) if len(parts) != 1 else parts[0]
        return values.reshape(-1, column.type.list_size)
    if pa.types.is_fixed_size_binary(column.type):
        return np.frombuffer(b"".join(column.to_pylist()), dtype=f"S{column.type.byte_width}")
    return column.to_numpy()


def to_arrow(values: NDArray[Any] | Sequence[Any] | pa.Array) -> pa.Array:
    """An array as an Arrow column; a two-dimensional one becomes fixed-size lists."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    array = np.asarray(values)
    if array.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(array).reshape(-1)), array.shape[1]
        )
    if array.dtype.kind in "UO":
        return pa.array(list(values), type=pa.string())
    return pa.array(array)


class ArtifactWriter:
    """Writes one artifact batch by batch, for content that does not fit in memory; ``finish`` gives the handle.

    As a context manager it removes what it wrote when the block fails.
    """

    def __init__(self, kind: str, schema: pa.Schema, *, meta: Mapping[str, Any] | None = None) -> None:
        _check_schema(kind, schema)
        self.kind, self.meta, self.rows = kind, dict(meta or {}), 0
        self._store = store()
        self._file = self._store.temporary()
        dense = kind == "embeddings"  # floating-point vectors do not compress
        self._parquet = pq.ParquetWriter(
            str(self._file),
            schema,
            compression="none" if dense else "zstd",
            use_dictionary=not dense,
            store_schema=True,
        )

    def __enter__(self) -> ArtifactWriter:
        return self

    def __exit__(self, *failure: object) -> None:
        self._parquet.close()
        self._file.unlink(missing_ok=True)

    def write(self, columns: Mapping[str, Any] | pa.Table, *, row_group: int | None = None) -> None:
        table = (
            columns
            if isinstance(columns, pa.Table)
            else pa.table({name: to_arrow(values) for name, values in columns.items()})
        )
        with _explained(self._store.uri):
            self._parquet.write_table(table.cast(self._parquet.schema), row_group_size=row_group)
        self.rows += table.num_rows

    def finish(self) -> Artifact:
        with _explained(self._store.uri):
            self._parquet.close()
            with open(self._file, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
        nbytes = self._file.stat().st_size
        uri = f"objects/{digest[:2]}/{digest}.parquet"
        self._store.adopt(self._file, uri)
        return Artifact(kind=self.kind, uri=uri, digest=digest, rows=self.rows, nbytes=nbytes, meta=self.meta)


def write(
    kind: str,
    columns: Mapping[str, Any],
    *,
    meta: Mapping[str, Any] | None = None,
    field_metadata: Mapping[str, Mapping[str, str]] | None = None,
) -> Artifact:
    """Store one table and return its handle.

    Args:
        kind: one of ``KINDS``.
        columns: name to array (N,) or (N, D), all of one length.
        meta: small facts kept in the handle.
        field_metadata: column name to notes kept in the file, for example ``{"aum": {"higher_is":
            "easier"}}``.

    Raises:
        BadInput: wrong columns or types, or columns of different length.
        StoreUnusable: the disk is full or read-only.
    """
    arrays = {name: to_arrow(values) for name, values in columns.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise BadInput(f"{kind}: columns of different length: {lengths}")
    notes = field_metadata or {}
    schema = pa.schema(
        [
            pa.field(name, array.type, metadata=dict(notes[name]) if name in notes else None)
            for name, array in arrays.items()
        ]
    )
    with ArtifactWriter(kind, schema, meta=meta) as writer:
        writer.write(pa.table(list(arrays.values()), schema=schema))
        return writer.finish()


def export_table(artifact: Artifact, destination: Path, provenance: Sequence[Mapping[str, Any]] = ()) -> None:
    """Copy an artifact to a file of the user's: .parquet (with the provenance in its footer), .csv, .npz, or .npy for ids.

    Raises:
        BadInput: another suffix.
    """
    table = artifact.table()
    if destination.suffix not in (".parquet", ".csv", ".npz", ".npy"):
        raise BadInput(
            f"{destination}: {destination.suffix or 'no'} suffix; .parquet, .csv, .npz and .npy can be "
            "written."
        )
    with _atomic(destination.absolute(), str(destination)) as temporary:
        if destination.suffix == ".parquet":
            notes = {
                b"winnow.artifact": artifact.model_dump_json().encode(),
                b"winnow.provenance": json.dumps(list(provenance)).encode(),
            }
            pq.write_table(
                table.replace_schema_metadata({**(table.schema.metadata or {}), **notes}),
                temporary,
                compression="zstd",
            )
        elif destination.suffix == ".csv":
            flat = {
                n: table.column(n)
                if not pa.types.is_nested(table.column(n).type)
                else pa.array([json.dumps(v) for v in table.column(n).to_pylist()])
                for n in table.column_names
            }
            pa.csv.write_csv(pa.table(flat), temporary)
        elif destination.suffix == ".npz":
            arrays: dict[str, Any] = {name: to_numpy(table.column(name)) for name in table.column_names}
            with open(temporary, "wb") as file:
                np.savez_compressed(file, **arrays)
        else:
            with open(temporary, "wb") as file:
                np.save(file, artifact.numpy("id"))


def find(prefix: str) -> list[str]:
    """Digests in the store that begin with ``prefix``.

    Raises:
        BadInput: the prefix is shorter than 4 characters or no hexadecimal number.
    """
    if len(prefix) < 4 or any(c not in "0123456789abcdef" for c in prefix):
        raise BadInput(
            f"{prefix!r} is not the beginning of a digest.",
            remedy="give at least 4 of its hexadecimal digits; `winnow cache ls` lists them",
        )
    digests = (PurePosixPath(name).stem for name in store().names(f"objects/{prefix[:2]}"))
    return [digest for digest in digests if digest.startswith(prefix)]


# -- scratch -------------------------------------------------------------------------------------------------


class Scratch:
    """Named states of a task under way (epoch checkpoints, finished shards): atomic, checksummed, found again after ``kill -9``.

    A state is a dict of tensors, numbers, strings, lists, dicts and None. A damaged file reads as absent.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self._lock = threading.Lock()

    def _file(self, name: str) -> Path:
        return self.directory / f"{name}.state"

    def save(self, name: str, state: dict[str, Any]) -> None:
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        with (
            self._lock,
            _atomic(self._file(name), str(self.directory)) as temporary,
            open(temporary, "wb") as file,
        ):
            file.write(hashlib.sha256(content).digest())
            file.write(content)

    def load(self, name: str) -> dict[str, Any] | None:
        import torch

        try:
            content = self._file(name).read_bytes()
        except FileNotFoundError:
            return None
        if len(content) < 32 or hashlib.sha256(memoryview(content)[32:]).digest() != content[:32]:
            return None
        return torch.load(io.BytesIO(memoryview(content)[32:]), weights_only=True, map_location="cpu")

    def names(self) -> list[str]:
        return sorted(file.stem for file in self.directory.glob("*.state"))

    def clear(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


def read_json(name: str) -> dict[str, Any] | None:
    """A JSON file of the store, None when absent or damaged."""
    try:
        return json.loads(store().read(name))
    except (FileNotFoundError, ValueError):
        return None
