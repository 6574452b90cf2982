"""Arrays as people's tools write them: one column or matrix out of a file, and the id of each row.

NumPy's, Arrow's, PyTorch's and safetensors' files, and CSV. Rows keep the file's order;
:mod:`winnow.tasks.data.rows` finds the order of the samples.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from winnow.tasks.columns import to_numpy
from winnow.tasks.errors import BadInput, did_you_mean

__all__ = ["IDS", "SUFFIXES", "ArrayFile", "finite", "matrix", "open_arrays", "plain", "vector"]

IDS = ("id", "ids", "uid", "key", "path", "file", "filename", "file_name", "image")
BLOCK = 1 << 22  # numbers that are converted and checked at a time


@dataclass(frozen=True)
class ArrayFile:
    """A file of named arrays, read one by one.

    Attributes:
        path: as the user gave it.
        names: of its arrays; empty if it holds a single one without a name.
        read: name -> array, as the file has it.
    """

    path: str
    names: tuple[str, ...]
    read: Callable[[str], Any]

    def choose(self, wanted: str, expected: Sequence[str]) -> str | list[str]:
        """The name of the array that is meant, or the names of one column per dimension.

        Args:
            wanted: a name; names separated by commas; a pattern such as ``f*``; or empty.
            expected: names to look for if nothing is wanted, in this order.

        Raises:
            BadInput: it is not there, or it is not clear which; lists the names and says how to choose.
        """
        others = [name for name in self.names if name not in IDS]
        if wanted in self.names:
            return wanted
        if wanted:
            parts = [part.strip() for part in wanted.split(",")]
            chosen = [name for part in parts for name in others if fnmatch.fnmatchcase(name, part)]
            lost = [part for part in parts if not fnmatch.filter(others, part)]
            if lost or (len(chosen) < 2 and "*" not in wanted):
                raise BadInput(
                    f"{self.path}: there is no {lost[0]!r}.{did_you_mean(lost[0], others)} "
                    f"It has {_listed(self.names)}."
                )
            return chosen
        if not self.names:
            return ""
        named = [name for name in expected if name in self.names]
        if named or len(others) == 1:
            return (named or others)[0]
        stem = os.path.commonprefix(others)  # noqa: RUF071 - of names, not of paths
        example = f"{stem}*" if stem else (others or self.names)[0]
        raise BadInput(
            f"{self.path}: which of its arrays? It has {_listed(self.names)}; expected one of "
            f"{', '.join(expected)}.",
            remedy=f"name it, or the columns of all dimensions: {self.path}#{example}",
        )

    def ids(self) -> Any | None:
        """The ids of its rows as the file has them, or None."""
        name = next((name for name in IDS if name in self.names), None)
        return None if name is None else self.read(name)


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


# -- files ---------------------------------------------------------------------------------------------------


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Whatever a library raises on a damaged file, as one message."""
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # readers of damaged files raise nearly every built-in exception
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"{path} cannot be read: {text}", remedy="write it again, or check that the copy is complete"
        ) from error


def _npy(file: Any, path: str) -> ArrayFile:
    array = np.load(file, allow_pickle=False, mmap_mode="r" if isinstance(file, Path) else None)
    if not isinstance(array, np.ndarray):
        raise BadInput(f"{path} is an npz archive by another name.", remedy="name it .npz")
    return ArrayFile(path, (), lambda name: array)


def _npz(file: Any, path: str) -> ArrayFile:
    archive = np.load(file, allow_pickle=False)
    return ArrayFile(path, tuple(archive.files), archive.__getitem__)


def _parquet(file: Any, path: str) -> ArrayFile:
    import pyarrow.parquet as pq

    schema = pq.read_schema(file) if not (isinstance(file, Path) and file.is_dir()) else None
    names = schema.names if schema is not None else pq.ParquetDataset(file).schema.names

    def read(name: str) -> Any:
        if not isinstance(file, Path):
            file.seek(0)
        return pq.read_table(file, columns=[name]).column(name)

    return ArrayFile(path, tuple(names), read)


def _feather(file: Any, path: str) -> ArrayFile:
    from pyarrow import feather

    table = feather.read_table(file, memory_map=isinstance(file, Path))
    return ArrayFile(path, tuple(table.column_names), table.column)


def _csv(file: Any, path: str) -> ArrayFile:
    from pyarrow import csv

    separator = "\t" if path.endswith(".tsv") else ","
    table = csv.read_csv(file, parse_options=csv.ParseOptions(delimiter=separator))
    if all(_is_number(name) for name in table.column_names):  # no header: one matrix
        if not isinstance(file, Path):
            file.seek(0)
        without = csv.ReadOptions(autogenerate_column_names=True)
        table = csv.read_csv(file, read_options=without, parse_options=csv.ParseOptions(delimiter=separator))
        columns = np.stack([column.to_numpy() for column in table.columns], axis=1)
        return ArrayFile(path, (), lambda name: columns)
    return ArrayFile(path, tuple(table.column_names), table.column)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _safetensors(file: Any, path: str) -> ArrayFile:
    import safetensors.torch

    if isinstance(file, Path):
        from safetensors import safe_open

        tensors = safe_open(file, framework="pt")
        return ArrayFile(path, tuple(tensors.keys()), lambda name: _of_torch(tensors.get_tensor(name)))
    loaded = safetensors.torch.load(file.read())
    return ArrayFile(path, tuple(loaded), lambda name: _of_torch(loaded[name]))


def _pt(file: Any, path: str) -> ArrayFile:
    import torch

    content = torch.load(file, map_location="cpu", weights_only=True, mmap=isinstance(file, Path) or None)
    if isinstance(content, torch.Tensor):
        return ArrayFile(path, (), lambda name: _of_torch(content))
    if isinstance(content, Mapping) and all(isinstance(key, str) for key in content):
        return ArrayFile(path, tuple(content), lambda name: _of_torch(content[name]))
    raise BadInput(
        f"{path} holds a {type(content).__name__}, neither a tensor nor a dict of tensors.",
        remedy="torch.save({'id': ids, 'features': features}, file)",
    )


def _of_torch(value: Any) -> np.ndarray:
    import torch

    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.detach()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


READERS: dict[str, Callable[[Any, str], ArrayFile]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".parquet": _parquet,
    ".feather": _feather,
    ".arrow": _feather,
    ".safetensors": _safetensors,
    ".pt": _pt,
    ".csv": _csv,
    ".tsv": _csv,
}
SUFFIXES = tuple(READERS)


def open_arrays(path: str) -> ArrayFile:
    """Open a file of arrays, or a folder of Parquet parts: a path, or a URL that fsspec knows.

    Raises:
        BadInput: no such file, an unknown suffix, or a damaged file.
    """
    suffix = ".parquet" if os.path.isdir(path) else os.path.splitext(path)[1].lower()
    if suffix not in READERS:
        raise BadInput(
            f"{path}: {suffix or 'no'} suffix; {', '.join(SUFFIXES)} are understood.",
            remedy="np.save, or write Parquet",
        )
    if "://" in path:
        import io

        import fsspec

        with _told(path), fsspec.open(path, "rb") as stream:
            source: Any = io.BytesIO(stream.read())
    else:
        source = Path(path).expanduser()
        if not source.exists():
            raise BadInput(
                f"{path}: no such file.",
                remedy=f"give the path of a file with arrays ({', '.join(SUFFIXES)})",
            )
        if source.is_file() and not source.stat().st_size:
            raise BadInput(f"{path} is empty.", remedy="write it again")
    with _told(path):
        return READERS[suffix](source, path)


# -- columns -------------------------------------------------------------------------------------------------


def matrix(path: str, expected: Sequence[str]) -> tuple[np.ndarray, Any | None]:
    """A matrix of real numbers from a file, and the ids of its rows.

    ``path#name`` picks one of several arrays, ``path#f*`` or ``path#x,y`` one column per dimension.

    Args:
        path: of the file.
        expected: names of arrays to look for.

    Returns:
        float16 (N, D) where that is exact, else float32, in the file's order; ids as the file has them, or
        None.

    Raises:
        BadInput: naming file, row and column.
    """
    file, _, wanted = path.partition("#")
    source = open_arrays(file)
    chosen = source.choose(wanted, expected)
    with _told(path):
        if isinstance(chosen, list):
            columns = [_numbers(file, name, source.read(name)) for name in chosen]
            _one_number_each(file, chosen, columns)
            values = np.stack(columns, axis=1)
        else:
            values = _numbers(file, chosen, source.read(chosen))
    if values.ndim != 2 or values.shape[1] == 0:
        raise BadInput(
            f"{path}: expected a matrix (N, D) of numbers, found {values.dtype} of shape {values.shape}.",
            remedy="give one row of numbers a sample",
        )
    return finite(path, values), source.ids()


def vector(path: str, expected: Sequence[str]) -> tuple[np.ndarray, Any | None]:
    """A column from a file as it is (numbers or strings), and the ids of its rows; see :func:`matrix`."""
    file, _, wanted = path.partition("#")
    source = open_arrays(file)
    chosen = source.choose(wanted, expected)
    if isinstance(chosen, list):
        raise BadInput(f"{path}: {len(chosen)} columns, expected one.")
    with _told(path):
        values = plain(file, chosen, source.read(chosen))
    if values.ndim != 1:
        raise BadInput(f"{path}: expected one value a row, found {values.dtype} of shape {values.shape}.")
    return values, source.ids()


def _one_number_each(file: str, names: Sequence[str], columns: Sequence[np.ndarray]) -> None:
    for name, column in zip(names, columns, strict=True):
        if column.ndim != 1:
            raise BadInput(f"{file}: column {name!r} has shape {column.shape}, not one number a row.")


def _numbers(file: str, name: str, values: Any) -> np.ndarray:
    array = plain(file, name, values)
    if array.dtype.kind not in "fiub":
        where = f"{file}: {name!r}" if name else file
        raise BadInput(f"{where} is {array.dtype}, not real numbers.", remedy="convert it to float32")
    return array


def plain(file: str, name: str, values: Any) -> np.ndarray:
    """A column as an array; lists of one length become a matrix."""
    if isinstance(values, pa.ChunkedArray | pa.Array):
        chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
        return _of_arrow(file, name, chunks, values.type)
    array = np.asarray(values)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _of_arrow(file: str, name: str, chunks: Sequence[pa.Array], kind: pa.DataType) -> np.ndarray:
    if isinstance(kind, pa.BaseExtensionType):  # tensors of datasets and of Arrow itself
        return _of_arrow(file, name, [chunk.storage for chunk in chunks], kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _of_arrow(file, name, [chunk.dictionary_decode() for chunk in chunks], kind.value_type)
    where, row = f"{file}: column {name!r}", 0
    for chunk in chunks:
        if chunk.null_count:
            first = int(np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))[0])
            more = sum(c.null_count for c in chunks)
            raise BadInput(
                f"{where}, row {row + first} is null ({more:,} such rows).", remedy="drop or fill them"
            )
        row += len(chunk)
    fixed = pa.types.is_fixed_size_list(kind)
    if not (fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        if pa.types.is_nested(kind):
            raise BadInput(f"{where} is {kind}, not numbers or lists of numbers.")
        return to_numpy(pa.chunked_array(chunks, kind))
    rows, row = [], 0
    width = kind.list_size if fixed else None
    for chunk in chunks:
        if not len(chunk):
            continue
        if not fixed:
            lengths = chunk.value_lengths().to_numpy(zero_copy_only=False)
            if width is None:
                width = int(np.bincount(lengths).argmax())  # the length of most
            wrong = np.flatnonzero(lengths != width)
            if len(wrong):
                raise BadInput(
                    f"{where}, row {row + wrong[0]} has {lengths[wrong[0]]} numbers, others {width} "
                    f"({len(wrong):,} such rows).",
                    remedy="drop or recompute these rows",
                )
        flat = chunk.flatten()
        if flat.null_count:
            at = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0])
            raise BadInput(f"{where}, row {row + at // max(width or 1, 1)} holds a null.")
        rows.append(_of_arrow(file, name, [flat], flat.type).reshape(len(chunk), -1))
        row += len(chunk)
    return np.concatenate(rows) if rows else np.empty((0, width or 0))


def finite(path: str, values: np.ndarray) -> np.ndarray:
    """A matrix as float16 where that is exact (of float16 and 8-bit integers), else as float32.

    Raises:
        BadInput: NaN, infinity, or a number too large for float32; names the row.
    """
    small = values.dtype == np.float16 or values.dtype.itemsize == 1
    out = np.empty(values.shape, np.float16 if small else np.float32)
    step = max(1, BLOCK // max(values.shape[1], 1))
    for start in range(0, len(values), step):
        block = out[start : start + step]
        with np.errstate(over="ignore"):  # what becomes infinite is named below
            block[...] = values[start : start + step]
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            row = start + int(bad[0])
            column = int(np.flatnonzero(~np.isfinite(block[bad[0]]))[0])
            raise BadInput(
                f"{path}: row {row}, column {column} is {values[row, column]}, which is not a finite "
                f"float32 number.",
                remedy="drop or recompute such rows",
            )
    return out
