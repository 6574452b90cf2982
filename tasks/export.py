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
from winnow.tasks.columns import matrix_of, to_numpy
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
                    names = artifact.arrow_schema().names
                    arrays: dict[str, Any] = {name: artifact.numpy(name) for name in names}
                    np.savez_compressed(file, **arrays)


def _to_parquet(artifact: Artifact, file: Path, provenance: Sequence[Mapping[str, Any]]) -> None:
    notes = {
        b"winnow.artifact": json.dumps(artifact.to_dict()).encode(),
        b"winnow.provenance": json.dumps(list(provenance)).encode(),
    }
    schema = pa.schema([_exported(field) for field in artifact.arrow_schema()], notes)
    with pq.ParquetWriter(str(file), schema, compression="zstd") as writer:
        for batch in artifact.batches():
            columns = map(_as_lists, batch.columns, batch.schema)
            writer.write_batch(pa.record_batch(list(columns), schema=schema))


def _exported(field: pa.Field) -> pa.Field:
    """The field of a column as :func:`_as_lists` gives it."""
    if matrix_of(field) is None:
        return field
    return pa.field(field.name, _as_lists(pa.array([], field.type), field).type)


def _to_csv(artifact: Artifact, file: Path) -> None:
    table = artifact.table()
    columns = {}
    for field in table.schema:
        column = _as_lists(table.column(field.name).combine_chunks(), field)
        nested = pa.types.is_nested(column.type)
        columns[field.name] = pa.array([json.dumps(v) for v in column.to_pylist()]) if nested else column
    pyarrow.csv.write_csv(pa.table(columns), str(file))


def _as_lists(column: pa.Array, field: pa.Field) -> pa.Array:
    if matrix_of(field) is None:
        return column
    values = to_numpy(column, field)
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    rows = pa.FixedSizeListArray.from_arrays(values.reshape(-1), values.shape[1])
    return rows.cast(pa.list_(rows.type.value_type))
