"""Artifacts as files for the user: columns that every tool reads, with the provenance in the footer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from winnow.tasks.artifacts import Artifact
from winnow.tasks.columns import to_numpy
from winnow.tasks.errors import BadInput
from winnow.tasks.files import atomic

__all__ = ["SUFFIXES", "export_table"]

SUFFIXES = (".parquet", ".csv", ".npz", ".npy")


def export_table(artifact: Artifact, destination: Path, provenance: Sequence[Mapping[str, Any]] = ()) -> None:
    """Copy an artifact to a file: .parquet (with the provenance in its footer), .csv, .npz, or .npy for ids.

    Matrices become lists of float32 (integers keep their type), which every Parquet reader understands.

    Raises:
        BadInput: another suffix.
    """
    if destination.suffix not in SUFFIXES:
        raise BadInput(
            f"{destination}: {destination.suffix or 'no'} suffix; {', '.join(SUFFIXES)} can be written."
        )
    with atomic(destination.absolute()) as temporary:
        if destination.suffix == ".parquet":
            _to_parquet(artifact, temporary, provenance)
        elif destination.suffix == ".csv":
            _to_csv(artifact, temporary)
        else:
            with open(temporary, "wb") as file:
                if destination.suffix == ".npy":
                    np.save(file, artifact.numpy("id"))
                else:
                    arrays: dict[str, Any] = {
                        name: artifact.numpy(name) for name in artifact.arrow_schema().names
                    }
                    np.savez_compressed(file, **arrays)


def _to_parquet(artifact: Artifact, file: Path, provenance: Sequence[Mapping[str, Any]]) -> None:
    notes = {
        b"winnow.artifact": json.dumps(artifact.to_dict()).encode(),
        b"winnow.provenance": json.dumps(list(provenance)).encode(),
    }
    writer = None
    for batch in artifact.batches():
        columns = [
            _as_lists(column, field) for column, field in zip(batch.columns, batch.schema, strict=True)
        ]
        table = pa.table(columns, names=batch.schema.names)
        if writer is None:
            fields = [
                pa.field(field.name, column.type, metadata=None if _is_matrix(field) else field.metadata)
                for field, column in zip(batch.schema, columns, strict=True)
            ]
            writer = pq.ParquetWriter(str(file), pa.schema(fields, notes), compression="zstd")
        writer.write_table(table.cast(writer.schema))
    if writer is not None:
        writer.close()


def _to_csv(artifact: Artifact, file: Path) -> None:
    table = artifact.table()
    columns = {}
    for field in table.schema:
        column = _as_lists(table.column(field.name).combine_chunks(), field)
        nested = pa.types.is_nested(column.type)
        columns[field.name] = pa.array([json.dumps(v) for v in column.to_pylist()]) if nested else column
    pyarrow.csv.write_csv(pa.table(columns), str(file))


def _is_matrix(field: pa.Field) -> bool:
    return field.metadata is not None and b"dtype" in field.metadata


def _as_lists(column: pa.Array, field: pa.Field) -> pa.Array:
    if not _is_matrix(field):
        return column
    values = to_numpy(column, field)
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    offsets = np.arange(len(values) + 1, dtype=np.int64) * values.shape[1]
    return pa.LargeListArray.from_arrays(offsets, values.reshape(-1)).cast(
        pa.list_(pa.from_numpy_dtype(values.dtype))
    )
