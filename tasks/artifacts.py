"""Artifacts: handles of stored tables, made of Parquet parts; what tasks pass on instead of arrays."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from winnow.tasks.columns import check_schema, matrix_of, to_arrow, to_numpy
from winnow.tasks.errors import ArtifactCorrupt, BadInput
from winnow.tasks.store import Damaged, store

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Artifact", "ArtifactWriter", "Column", "Part", "find", "joined", "write"]

FORMAT = 2  # of manifests; 1 had one file per artifact and no manifest
ROW_GROUP_BYTES = 1 << 26
PART_BYTES = 1 << 29

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

# -- handles -------------------------------------------------------------------------------------------------


class Part(BaseModel):
    """One Parquet file of an artifact, named after the sha256 of its content."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    digest: Digest
    rows: Annotated[int, Field(ge=0)]
    nbytes: Annotated[int, Field(ge=0)]

    @property
    def name(self) -> str:
        return f"objects/{self.digest[:2]}/{self.digest}.parquet"


class Manifest(BaseModel):
    """What an artifact is: its digest is that of these lines."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int
    kind: str
    facts: dict[str, Any]
    parts: list[Part]

    def content(self) -> bytes:
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()


class Handle(BaseModel):
    """A handle's fields, validated: anybody may have written a file in a shared store."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: str
    digest: Digest
    rows: Annotated[int, Field(ge=0)]
    nbytes: Annotated[int, Field(ge=0)]
    facts: dict[str, Any] = {}
    notes: dict[str, Any] = {}


class Artifact:
    """Handle of one stored table: what tasks pass to each other, never arrays.

    Args:
        kind: which columns it has (``columns.KINDS``).
        digest: sha256 of its manifest, which names its parts and holds its facts: the artifact's whole
            identity.
        rows: number of rows.
        nbytes: size of its parts.
        facts: what tasks read besides its columns (classes, k, method, …); part of the identity.
        notes: for people, and where the images of samples are; never read by what decides a result.

    Raises:
        ValueError: fields that are not a valid handle's.
    """

    # Not a pydantic model: Prefect looks for the origin of a task's inputs inside models, too, and there
    # takes equal strings for the same object.
    __slots__ = ("__weakref__", "digest", "facts", "kind", "nbytes", "notes", "rows")

    def __init__(
        self,
        kind: str,
        digest: str,
        rows: int,
        nbytes: int,
        facts: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        handle = Handle(
            kind=kind,
            digest=digest,
            rows=rows,
            nbytes=nbytes,
            facts=dict(facts or {}),
            notes=dict(notes or {}),
        )
        for name, value in handle:
            object.__setattr__(self, name, value)

    kind: str
    digest: str
    rows: int
    nbytes: int
    facts: dict[str, Any]
    notes: dict[str, Any]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a handle does not change: {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (Artifact, (self.kind, self.digest, self.rows, self.nbytes, self.facts, self.notes))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Artifact) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Artifact({self})"

    def to_dict(self) -> dict[str, Any]:
        """Its fields: ``Artifact(**artifact.to_dict())`` equals it."""
        return {name: getattr(self, name) for name in Handle.model_fields}

    def __str__(self) -> str:
        return f"{self.kind} {self.digest[:12]} ({self.rows:,} rows)"

    @classmethod
    def load(cls, digest: str, notes: Mapping[str, Any] | None = None) -> Artifact:
        """The handle of what is stored under a digest.

        Raises:
            ArtifactCorrupt: its manifest is missing, cut off or altered.
        """
        shell = cls(kind="artifact", digest=digest, rows=0, nbytes=0, notes=dict(notes or {}))
        return _handle(digest, shell.manifest(), shell.notes)

    @property
    def name(self) -> str:
        """The manifest's name in the store."""
        return f"objects/{self.digest[:2]}/{self.digest}.json"

    def manifest(self) -> Manifest:
        """Raises: ArtifactCorrupt: it is missing, cut off or altered."""
        try:
            path = store().fetched(self.name, self.digest)
            return _manifest(str(path), path.stat().st_mtime_ns)
        except Damaged as error:
            raise self._corrupt(str(error), self.name) from error
        except ValidationError as error:
            raise self._corrupt("it is no manifest of this version", self.name) from error

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(self.manifest().parts)

    def paths(self) -> list[Path]:
        """The parts' files on this host, their digests checked once per state of a file.

        Raises:
            ArtifactCorrupt: one is missing, cut off or altered.
        """
        return [self._file(part) for part in self.parts]

    def check(self) -> None:
        """Raises: ArtifactCorrupt: the manifest or a part is missing, cut off or altered."""
        manifest = self.manifest()
        if _handle(self.digest, manifest, self.notes).to_dict() != self.to_dict():
            raise self._corrupt("it is not what its handle says", self.name)
        self.paths()

    def _file(self, part: Part) -> Path:
        try:
            return store().fetched(part.name, part.digest, part.nbytes)
        except Damaged as error:
            raise self._corrupt(str(error), part.name) from error

    def _corrupt(self, why: str, name: str) -> ArtifactCorrupt:
        return ArtifactCorrupt(
            f"Artifact {self.kind} {self.digest[:12]} cannot be used: {why} ({store().address(name)}).",
            kept="every other artifact",
            remedy="run the same command again: only this artifact is recomputed (`winnow cache verify` "
            "checks all)",
        )

    def arrow_schema(self) -> pa.Schema:
        return pq.read_schema(self._file(self.parts[0]))

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The content, memory-mapped."""
        tables = [pq.read_table(path, columns=columns, memory_map=True) for path in self.paths()]
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables)

    def batches(self, columns: Sequence[str] | None = None, rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """The content piece by piece, so that memory stays bounded."""
        for part in self.parts:
            with pq.ParquetFile(self._file(part), memory_map=True) as file:
                yield from file.iter_batches(batch_size=rows, columns=columns)

    def numpy(self, column: str) -> NDArray[Any]:
        """One column as an array: (rows,), or (rows, width) for a matrix."""
        table = self.table([column])
        return to_numpy(table.column(column), table.schema.field(column))

    def column(self, name: str) -> Column:
        return Column(self, name)


class Column:
    """A column of an artifact, read on demand: functions of arrays accept it as one.

    Attributes:
        shape: (rows,), or (rows, width) for a matrix.
    """

    def __init__(self, artifact: Artifact, name: str) -> None:
        self._artifact, self._name = artifact, name
        matrix = matrix_of(artifact.arrow_schema().field(name))
        self.shape = (artifact.rows,) if matrix is None else (artifact.rows, matrix[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self._artifact.numpy(self._name), dtype)

    def blocks(self, rows: int = 65_536) -> Iterator[NDArray[Any]]:
        """The values piece by piece, so that memory stays bounded."""
        for batch in self._artifact.batches([self._name], rows):
            yield to_numpy(batch.column(0), batch.schema.field(0))


@functools.lru_cache(maxsize=4096)
def _manifest(path: str, mtime_ns: int) -> Manifest:
    return Manifest.model_validate_json(Path(path).read_bytes())


def _handle(digest: str, manifest: Manifest, notes: Mapping[str, Any]) -> Artifact:
    return Artifact(
        kind=manifest.kind,
        digest=digest,
        rows=sum(part.rows for part in manifest.parts),
        nbytes=sum(part.nbytes for part in manifest.parts),
        facts=manifest.facts,
        notes=dict(notes),
    )


def _committed(kind: str, parts: list[Part], facts: Mapping[str, Any], notes: Mapping[str, Any]) -> Artifact:
    """Write the manifest: only now does the artifact exist."""
    manifest = Manifest(format=FORMAT, kind=kind, facts=json.loads(json.dumps(dict(facts))), parts=parts)
    content = manifest.content()
    artifact = _handle(hashlib.sha256(content).hexdigest(), manifest, json.loads(json.dumps(dict(notes))))
    store().write(artifact.name, content)
    return artifact


class ArtifactWriter:
    """Writes an artifact batch by batch, for content that exceeds memory; ``finish`` gives the handle.

    A new part begins once one has ``PART_BYTES``. As a context manager, it removes what it wrote if the block
    fails.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: list[Part] = []
        self._file: Path | None = None  # of the part that is being written
        self._parquet: Any = None
        self._schema: Any = None
        self._rows = 0

    def __enter__(self) -> ArtifactWriter:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._file is not None:
            self._parquet.close()
            self._file.unlink(missing_ok=True)

    def write(
        self, columns: Mapping[str, Any], *, notes: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        """Add rows.

        Args:
            columns: name to array (n,) or (n, D), all of one length.
            notes: column name to notes kept in the file, for example ``{"aum": {"higher_is": "easier"}}``.
        """
        arrays = {name: to_arrow(name, values, (notes or {}).get(name)) for name, values in columns.items()}
        lengths = {name: len(column) for name, (_, column) in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise BadInput(f"{self.kind}: columns of different length: {lengths}")
        table = pa.table(
            [column for _, column in arrays.values()], pa.schema([field for field, _ in arrays.values()])
        )
        row = max(1, table.nbytes // max(1, table.num_rows))
        start, most = 0, max(1, PART_BYTES // row)
        while start < table.num_rows or (self._file is None and not self._parts):
            if self._file is None:
                self._open(table.schema)
            some = table.slice(start, most - self._rows)
            with store()._explained():
                self._parquet.write_table(
                    some.cast(self._schema), row_group_size=max(1, ROW_GROUP_BYTES // row)
                )
            start, self._rows = start + some.num_rows, self._rows + some.num_rows
            if self._rows >= most:
                self._close()

    def _open(self, schema: pa.Schema) -> None:
        check_schema(self.kind, schema)
        self._schema, self._rows = schema, 0
        self._file = store().temporary()
        # floating-point vectors do not compress
        dense = {f.name for f in schema if (matrix := matrix_of(f)) is not None and matrix[0].kind == "f"}
        self._parquet = pq.ParquetWriter(
            str(self._file),
            schema,
            compression={name: "none" if name in dense else "zstd" for name in schema.names},
            use_dictionary=[name for name in schema.names if name not in dense],
            data_page_size=1 << 23,
        )

    def _close(self) -> None:
        assert self._file is not None
        with store()._explained():
            self._parquet.close()
            with open(self._file, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        part = Part(digest=digest, rows=self._rows, nbytes=self._file.stat().st_size)
        store().adopt(self._file, part.name)
        self._parts.append(part)
        self._file = None

    def finish(
        self, facts: Mapping[str, Any] | None = None, notes: Mapping[str, Any] | None = None
    ) -> Artifact:
        """The artifact, with its facts and notes."""
        if self._file is not None:
            self._close()
        return _committed(self.kind, self._parts, facts or {}, notes or {})


def write(
    kind: str,
    columns: Mapping[str, Any],
    *,
    facts: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    column_notes: Mapping[str, Mapping[str, str]] | None = None,
) -> Artifact:
    """Store one table and return its handle.

    Args:
        kind: one of ``columns.KINDS``.
        columns: name to array (N,) or (N, D), all of one length.
        facts: what tasks read besides its columns; part of its identity.
        notes: for people; not part of its identity.
        column_notes: column name to notes kept in the file, for example ``{"aum": {"higher_is": "easier"}}``.

    Raises:
        BadInput: wrong columns or types, or columns of different length.
        StoreUnusable: the disk is full or read-only, or the store cannot be reached.
    """
    with ArtifactWriter(kind) as writer:
        writer.write(columns, notes=column_notes)
        return writer.finish(facts, notes)


def joined(artifacts: Sequence[Artifact], *, notes: Mapping[str, Any] | None = None) -> Artifact:
    """One artifact of the parts of several, in their order; nothing is copied.

    Raises:
        BadInput: they differ in kind or facts.
    """
    first = artifacts[0]
    for other in artifacts:
        if (other.kind, other.facts) != (first.kind, first.facts):
            raise BadInput(f"{first} and {other} cannot be joined: they differ in kind or facts.")
    parts = [part for artifact in artifacts for part in artifact.parts]
    return _committed(first.kind, parts, first.facts, notes or {})


def find(prefix: str) -> list[str]:
    """Digests of artifacts in the store that begin with ``prefix``.

    Raises:
        BadInput: the prefix is shorter than 4 characters or not hexadecimal.
    """
    if len(prefix) < 4 or any(c not in "0123456789abcdef" for c in prefix):
        raise BadInput(
            f"{prefix!r} is not the beginning of a digest.",
            remedy="give at least 4 of its hexadecimal digits; `winnow cache ls` lists them",
        )
    names = (Path(name) for name in store().names(f"objects/{prefix[:2]}"))
    return [name.stem for name in names if name.suffix == ".json" and name.stem.startswith(prefix)]
