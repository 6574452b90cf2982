"""Which row of a user's file belongs to which sample, and which samples a list names."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.data.annotations import SUFFIXES, annotated, resolved
from winnow.tasks.data.arrays import IDS, open_arrays, plain, vector
from winnow.tasks.errors import BadInput

__all__ = ["in_order_of", "labels_in", "listed"]


def in_order_of(
    path: str,
    found: Any | None,
    rows: int,
    ids: np.ndarray,
    names: Sequence[str] | None,
    *,
    exactly: bool = True,
) -> NDArray[np.int64] | None:
    """Which row of a file belongs to each sample.

    Args:
        path: of the file, for messages.
        found: ids of its rows as the file has them; None: they are in the samples' order.
        rows: how many it has.
        ids: of the samples, int64, str or bytes.
        names: of the samples (paths), which string ids are compared with where the samples' ids are numbers.
        exactly: refuse rows of other samples.

    Returns:
        int64 (N,), or None where the order is the same.

    Raises:
        BadInput: too few or too many rows; ids that are missing, unknown, repeated or of another type.
    """
    if found is None:
        if rows != len(ids):
            raise BadInput(
                f"{path}: {rows:,} rows for {len(ids):,} samples.",
                remedy="give one row a sample, in the samples' order, or a column id",
            )
        return None
    given = plain(path, "id", found)
    if given.dtype.kind == "O":
        given = given.astype(str)
    wanted = np.asarray(ids)
    if given.dtype.kind == "U" and wanted.dtype.kind in "iu" and names is not None:
        wanted = np.asarray(names, dtype=str)
    if (given.dtype.kind in "US") != (wanted.dtype.kind in "USO"):
        kinds = ["numbers" if a.dtype.kind in "iuf" else "strings" for a in (given, wanted)]
        raise BadInput(
            f"{path}: ids are {kinds[0]} here and {kinds[1]} in the dataset.",
            remedy=f"write them as {kinds[1]}; the first is {wanted[0]!s} in the dataset",
        )
    order = np.argsort(given, kind="stable")
    ordered = given[order]
    repeated = np.flatnonzero(ordered[1:] == ordered[:-1])
    at = np.searchsorted(ordered, wanted).clip(max=max(len(given) - 1, 0))
    absent = np.flatnonzero(ordered[at] != wanted) if len(given) else np.arange(len(wanted))
    unknown = np.flatnonzero(~np.isin(given, wanted)) if exactly else absent[:0]
    faults = []
    if len(repeated):
        first = ordered[repeated[0]]
        where = np.flatnonzero(given == first)
        faults.append(f"id {first} appears {len(where)} times (rows {where[0]} and {where[1]})")
    if len(unknown):
        faults.append(f"id {given[unknown[0]]} (row {unknown[0]}) is not in the dataset{_more(unknown)}")
    if len(absent):
        faults.append(f"id {wanted[absent[0]]} of the dataset is missing{_more(absent)}")
    if faults:
        raise BadInput(f"{path}: {'; '.join(faults)}.", remedy="give each sample exactly one row")
    return order[at]


def labels_in(path: str, names: Sequence[str] | None) -> tuple[np.ndarray, Any | None]:
    """Labels in a table, in an array, or in an annotation tool's export, and the ids or paths of their rows.

    Args:
        path: the file; ``path#name`` picks a column.
        names: of the samples (paths), which exports may call by other folders.
    """
    if names is not None and (os.path.splitext(path)[1].lower() in SUFFIXES or _is_labels(path)):
        given, labels = annotated(path)
        return np.array(labels), np.array(resolved(path, given, names))
    return vector(path, ("label", "labels", "class", "class_name", "target", "category"))


def _is_labels(path: str) -> bool:
    """Whether it is a folder of YOLO's label files."""
    folder = Path(path).expanduser()
    return folder.is_dir() and next(folder.rglob("*.txt"), None) is not None


def listed(path: str, ids: np.ndarray, names: Sequence[str] | None) -> NDArray[np.int64]:
    """The rows of the samples that a list names, in its order: one path or id a line, or a column of them.

    Args:
        path: ``.txt``, ``.jsonl``, or any file of arrays with a column of ids or paths (or nothing else).
        ids: of all samples.
        names: their paths, if they have any.

    Raises:
        BadInput: one that is not among the samples, or appears twice; names it.
    """
    file, _, wanted = path.partition("#")
    suffix = os.path.splitext(file)[1].lower()
    if names is not None and (suffix in SUFFIXES or _is_labels(file)):
        given: Any = resolved(file, annotated(file)[0], names)
    elif suffix in (".txt", ".jsonl"):
        source = Path(file).expanduser()
        if not source.is_file():
            raise BadInput(f"{file}: no such file.", remedy="give a list of paths or ids")
        lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
        given = [_name_in(line, file) for line in lines] if suffix == ".jsonl" else lines
    else:
        arrays = open_arrays(file)
        column = arrays.read(wanted) if wanted else arrays.ids()
        if column is None:
            column = arrays.read(str(arrays.choose(wanted, IDS)))
        given = plain(file, "id", column)
    entries = np.asarray(given)
    if not len(entries):
        raise BadInput(f"{file} lists nothing.")
    if entries.dtype.kind == "f":
        raise BadInput(f"{file}: ids are fractions.", remedy="write whole numbers or paths")
    words = entries.astype(str)
    rows = {str(name): row for row, name in enumerate(ids.tolist())}
    if names is not None:
        rows |= {name: row for row, name in enumerate(names)}
    unknown = [row for row, word in enumerate(words.tolist()) if word not in rows]
    if unknown:
        example = names[0] if names is not None else ids[0]
        raise BadInput(
            f"{file}: {words[unknown[0]]} (row {unknown[0]}) is not among the {len(ids):,} samples"
            f"{_more(np.array(unknown))}.",
            remedy=f"write them as the pool has them; its first is {example}",
        )
    found = np.array([rows[word] for word in words.tolist()], np.int64)
    order = np.argsort(found, kind="stable")
    same = np.flatnonzero(found[order[1:]] == found[order[:-1]])
    if len(same):
        first, second = sorted(order[same[0] : same[0] + 2].tolist())
        raise BadInput(f"{file}: {words[first]} is listed twice, in rows {first} and {second}.")
    return found


def _name_in(line: str, file: str) -> str:
    """The path or id in one line of JSON."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadInput(f"{file}: {error}: {line[:60]}") from error
    name = next((row[key] for key in IDS if key in row), None) if isinstance(row, dict) else row
    if name is None:
        raise BadInput(f"{file}: there is no {', '.join(IDS[:5])} in {line[:60]}")
    return str(name)


def _more(rows: np.ndarray) -> str:
    return f" ({len(rows) - 1:,} more)" if len(rows) > 1 else ""
