"""Columns of artifacts: which ones each kind has, and their conversion from arrays to Arrow and back.

Narrow columns are ordinary Parquet columns. A matrix is a column of fixed-size binary values, one per row of
the matrix, with dtype and width in the field's metadata: it is read back without a copy, several times as
fast as a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from winnow.tasks.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KINDS", "check_schema", "matrix_of", "to_arrow", "to_numpy"]

_ID = (pa.int64(), pa.string(), pa.binary(16))

# column -> allowed Arrow types, or in a list the dtypes of a matrix; "?" marks an optional column
KINDS: dict[str, dict[str, Any]] = {
    "samples": {"id": _ID, "label?": (pa.int32(),), "source?": (pa.string(),), "checksum": (pa.binary(16),)},
    "embeddings": {"id": _ID, "vector": ["float16", "float32"]},
    "graph": {"id": _ID, "neighbours": ["int32", "int64"], "similarity": ["float32"]},
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
    "logits": {"id": _ID, "logits": ["float32"]},
    "coreset": {
        "id": _ID,
        "rank": (pa.int32(),),
        "weight": (pa.float32(),),
        "label": (pa.int32(),),
        "gain?": (pa.float64(),),
    },
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


def check_schema(kind: str, schema: pa.Schema) -> None:
    if kind not in KINDS:
        raise BadInput(f"{kind!r} is not a kind of artifact. Kinds: {', '.join(sorted(KINDS))}")
    for column, allowed in KINDS[kind].items():
        name, optional = column.removesuffix("?"), column.endswith("?")
        index = schema.get_field_index(name)
        if index < 0:
            if optional:
                continue
            raise BadInput(f"{kind}: column {name!r} is missing; found {', '.join(schema.names) or 'none'}.")
        field = schema.field(index)
        if isinstance(allowed, list):
            matrix = matrix_of(field)
            if matrix is None or str(matrix[0]) not in allowed:
                raise BadInput(
                    f"{kind}: column {name!r} is {field.type}, not a matrix of {' or '.join(allowed)}."
                )
        elif field.type not in allowed:
            raise BadInput(f"{kind}: column {name!r} is {field.type}, not {' or '.join(map(str, allowed))}.")
    if kind == "scores" and len(schema.names) < 2:
        raise BadInput("scores: there is no score column beside 'id'.")


def matrix_of(field: pa.Field) -> tuple[np.dtype, int] | None:
    """Dtype and width of a matrix column; None for any other."""
    metadata = field.metadata or {}
    if b"dtype" not in metadata or not pa.types.is_fixed_size_binary(field.type):
        return None
    dtype = np.dtype(metadata[b"dtype"].decode())
    return dtype, field.type.byte_width // dtype.itemsize


def to_arrow(name: str, values: Any, notes: Mapping[str, str] | None = None) -> tuple[pa.Field, pa.Array]:
    """An array as an Arrow field and column; a two-dimensional one becomes a matrix column.

    >>> field, column = to_arrow("vector", np.zeros((2, 3), np.float32))
    >>> field.type, to_numpy(column, field).shape
    (FixedSizeBinaryType(fixed_size_binary[12]), (2, 3))
    """
    metadata = dict(notes or {})
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return pa.field(name, values.type, metadata=metadata or None), values
    array = np.asarray(values)
    if not isinstance(values, np.ndarray) and array.dtype.kind == "S":  # bytes of any length
        column = pa.array(values, pa.binary())
    elif array.ndim == 2:
        array = np.ascontiguousarray(array)
        width = array.shape[1] * array.itemsize
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(array), [None, pa.py_buffer(array)]
        )
        metadata |= {"dtype": str(array.dtype), "shape": str(array.shape[1])}
    elif array.dtype.kind == "S":  # uids: bytes of one length
        column = pa.array(array.tolist(), pa.binary(array.itemsize))
    elif array.dtype.kind in "UO":
        column = pa.array(list(array), pa.string())
    else:
        column = pa.array(array)
    return pa.field(name, column.type, metadata=metadata or None), column


def to_numpy(column: pa.ChunkedArray | pa.Array, field: pa.Field | None = None) -> NDArray[Any]:
    """An Arrow column as an array: matrices and fixed-size lists become two-dimensional."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if pa.types.is_fixed_size_binary(column.type):
        matrix = None if field is None else matrix_of(field)
        dtype, width = matrix or (np.dtype(f"S{column.type.byte_width}"), 1)
        rows = [_fixed(chunk, dtype, width) for chunk in chunks]
        array = rows[0] if len(rows) == 1 else np.concatenate(rows) if rows else np.empty((0, width), dtype)
        return array if matrix is not None else array.reshape(-1)
    if pa.types.is_fixed_size_list(column.type):
        flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
        return np.concatenate(flat).reshape(-1, column.type.list_size)
    return column.to_numpy(zero_copy_only=False)


def _fixed(chunk: pa.Array, dtype: np.dtype, width: int) -> NDArray[Any]:
    values = np.frombuffer(chunk.buffers()[1], dtype)
    return values[chunk.offset * width : (chunk.offset + len(chunk)) * width].reshape(-1, width)
