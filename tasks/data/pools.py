"""One's own images as a dataset, however they lie: a folder, a list, shards, a table of encoded images."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from winnow.tasks.data.arrays import SUFFIXES, open_arrays
from winnow.tasks.data.encoded import NoImages, TableImages, UrlImages, parquet_schema
from winnow.tasks.data.folders import files_under, finish
from winnow.tasks.data.images import FileImages, readable_suffixes
from winnow.tasks.data.index import blake2b
from winnow.tasks.data.load import candidates, check_split, natural_key, numbered
from winnow.tasks.data.split import Split
from winnow.tasks.errors import BadInput, MissingData, did_you_mean

__all__ = ["LISTS", "ids_of", "pool"]

LISTS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
PATHS = ("path", "file", "filename", "file_name", "filepath", "image_path", "url", "image", "img")
LABELS = ("label", "class", "class_name", "target", "category")
SPLITS = ("split", "subset", "set")
OTHERS = ("group", "weight")
_TEST = ("test", "val", "valid", "validation", "holdout")


def ids_of(sources: Sequence[str], where: str = "the pool") -> np.ndarray:
    """An id for each path or key, which stays when others come or go: 63 bits of its blake2b; int64 (N,).

    Raises:
        BadInput: a path that is listed twice.

    >>> int(ids_of(["a.png"])[0]) == int(ids_of(["b.png", "a.png"])[1])
    True
    """
    digests = b"".join(blake2b(source, size=8) for source in sources)
    ids = (np.frombuffer(digests, "<u8") >> 1).astype(np.int64)
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    if len(same):
        first, second = sorted(order[same[0] : same[0] + 2].tolist())
        raise BadInput(
            f"{where}: {sources[first]} is listed twice, in rows {first} and {second} ({len(same):,} such "
            "samples).",
            remedy="list each sample once",
        )
    return ids


@dataclass(frozen=True)
class Listing:
    """What a list says of its samples, row by row.

    Attributes:
        sources: path, URL or key of each.
        columns: label, split, group, weight, as far as the list has them; strings, weights float64.
    """

    sources: list[str]
    columns: dict[str, np.ndarray] = field(default_factory=dict)


def pool(
    split: str = "train",
    *,
    variant: str,
    root: Path | None = None,
    download: bool = True,
    class_folders: bool = False,
    image_column: str | None = None,
    test_fraction: float | None = None,
    size: int | None = None,
    channels: int = 3,
    skip_corrupt: bool = False,
    cache: Path | None = None,
) -> Split:
    """One's own samples, labelled or not: ``pool:<folder, list, shards or table>``.

    A **folder** of images, flat or nested, with names of any kind; a **list** of paths or URLs (``.txt``, one
    a line; ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet`` with a column ``path`` and, if there are any,
    ``label``, ``split``, ``group``, ``weight``); webdataset **shards**; **Parquet with an image column**, as
    Hugging Face ``datasets`` writes it; or a file of **arrays**, whose rows are the samples and which has no
    images. An id is made of the path or key, so it stays when others come or go.

    Args:
        split: ``train``, which is everything but ``test``; or ``test``.
        variant: path, pattern or URL; a relative path is looked for in the working directory and then under
            ``root``. Paths in a list are relative to the list.
        root: default the data root.
        download: whether what is not local may be read; ``WINNOW_OFFLINE=1`` forbids it.
        class_folders: the first folder of an image's path is its class.
        image_column: of a Parquet table with several.
        test_fraction: the share of samples that ``test`` takes, by a hash of the path; default those that the
            list's column ``split`` names so.
        size: short side in pixels; images are then cropped to a square.
        channels: 3 (grey is repeated) or 1 (grey; needs ``size`` or images of one size).
        skip_corrupt: leave out images that cannot be decoded.
        cache: folder of the indices.

    Returns:
        the split, with ``sources``.

    Raises:
        MissingData: no such file or folder.
        BadInput: no images, a list without paths, a sample that is listed twice.
    """
    name = f"pool:{variant}"
    check_split(name, split, ("train", "test"))
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise BadInput(f"test_fraction = {test_fraction}: must be between 0 and 1.")
    options: dict[str, Any] = {"size": size, "channels": channels, "cache": cache}
    where = _found(variant, root)
    images: Any
    if where is None or _is_shards(where):
        from winnow.tasks.data.shards import open_shards

        images, labels = open_shards(variant, root, download, None, options)
        listing = Listing(list(images.sources), {} if labels is None else {"label": np.array(labels)})
    elif where.is_dir() and not _only(where, ".parquet"):
        paths = sorted(files_under(where, readable_suffixes()), key=natural_key)
        if not paths:
            raise BadInput(
                f"{name}: there are no images in {where}.",
                remedy=f"file names must end in one of {' '.join(sorted(readable_suffixes()))}",
            )
        images, listing = FileImages(where, paths, **options), Listing(paths)
        if class_folders:
            listing.columns["label"] = np.array([_class_folder(name, path) for path in paths])
    else:
        images, listing = _open_file(name, where, image_column, download, options)
    ids = ids_of(listing.sources, name)
    test = _test_rows(name, listing, ids, test_fraction)
    rows = np.flatnonzero(test if split == "test" else ~test)
    if not len(rows):
        raise BadInput(
            f"{name} has no split {split!r}: all {len(ids):,} samples are of the other.",
            remedy="pass test_fraction=0.1, or write both train and test into the list's column split",
        )
    words = listing.columns.get("label")
    classes, numbers = ((), None) if words is None else numbered(words)
    truth = None if numbers is None else numbers[rows]
    chosen = images if len(rows) == len(ids) else images.take(rows)
    if isinstance(images, NoImages):
        grey = ((0.5,), (0.5,))
        loaded = Split(
            name, split, np.arange(len(rows)), chosen, classes, *grey, truth=truth, sources=chosen.sources
        )
    else:
        train = images.take(np.flatnonzero(~test)) if split == "test" else chosen
        loaded = finish(name, split, train, chosen, classes, truth, skip_corrupt)
    kept = rows[loaded.ids]
    columns = {key: listing.columns[key][kept] for key in OTHERS if key in listing.columns}
    return replace(loaded, ids=ids[kept], columns=columns)


def _test_rows(name: str, listing: Listing, ids: np.ndarray, fraction: float | None) -> np.ndarray:
    if fraction is not None:
        return ids < fraction * 2.0**63
    if "split" not in listing.columns:
        return np.zeros(len(ids), bool)
    return np.isin(np.char.lower(listing.columns["split"].astype(str)), _TEST)


def _class_folder(name: str, path: str) -> str:
    folder, slash, _ = path.partition("/")
    if not slash:
        raise BadInput(f"{name}: {path} lies in no class folder.", remedy="leave class_folders out")
    return folder


def _found(variant: str, root: Path | None) -> Path | None:
    """The file or folder that a name stands for; None for URLs and patterns of shards."""
    if "://" in variant or any(sign in variant for sign in "*?{"):
        return None
    places = candidates(variant, root)[::-1]
    for path in places:
        if path.exists():
            return path
    raise MissingData(
        f"there is no {' or '.join(map(str, places))}.",
        remedy=f"give a folder of images, a list ({', '.join(LISTS)}), .tar shards, or arrays",
    )


def _is_shards(path: Path) -> bool:
    return _only(path, ".tar") if path.is_dir() else path.suffix == ".tar"


def _only(folder: Path, suffix: str) -> bool:
    """Whether a folder holds such files and no others, but for hidden ones and marks such as _SUCCESS."""
    names = [name for name in os.listdir(folder) if not name.startswith((".", "_"))]
    return bool(names) and all(name.endswith(suffix) for name in names)


# -- lists and tables ----------------------------------------------------------------------------------------


def _open_file(
    name: str, path: Path, image_column: str | None, download: bool, options: dict[str, Any]
) -> tuple[Any, Listing]:
    suffix = ".parquet" if path.is_dir() else path.suffix.lower()
    if suffix not in {*LISTS, *SUFFIXES}:
        raise BadInput(
            f"{name}: {suffix or 'no'} suffix; lists are {', '.join(LISTS)}; arrays {', '.join(SUFFIXES)}."
        )
    if suffix == ".parquet":
        schema = parquet_schema(path)
        column = _image_column(name, schema, image_column)
        if column is not None:
            columns = _columns_of(_table(path, schema.names, column), path)
            encoded = TableImages(path, column, **options)
            return encoded, Listing(list(encoded.sources), columns)
    if suffix not in LISTS or (suffix in (".csv", ".tsv", ".parquet") and not _has(path, PATHS)):
        return _arrays(path)
    table = _table(path, None, None)
    source = next(found for found in PATHS if found in table)
    paths = [str(value) for value in table[source]]
    if not paths:
        raise BadInput(f"{name} lists nothing.")
    columns = _columns_of(table, path)
    for row, value in enumerate(paths):
        if not value or value == "None":
            raise BadInput(f"{name}: row {row} has no {source}.")
    if any("://" in value for value in paths):
        return UrlImages(paths, path.parent, download=download, **options), Listing(paths, columns)
    images = FileImages(path.parent, paths, **options)
    missing = [row for row, value in enumerate(paths) if not os.path.exists(path.parent / value)]
    if missing:
        raise BadInput(
            f"{name}: row {missing[0]} names {paths[missing[0]]}, which is not there "
            f"({len(missing):,} such rows).",
            remedy=f"paths are relative to {path.parent}",
        )
    return images, Listing(paths, columns)


def _has(path: Path, names: Sequence[str]) -> bool:
    return bool(set(names) & set(open_arrays(str(path)).names))


def _image_column(name: str, schema: pa.Schema, wanted: str | None) -> str | None:
    """The column of encoded images, if the table has one."""
    found = [column.name for column in schema if _holds_images(column.type)]
    if wanted is not None:
        if wanted not in found:
            raise BadInput(
                f"{name} has no image column {wanted!r}.{did_you_mean(wanted, schema.names)} Image columns: "
                f"{', '.join(found) or 'none'}."
            )
        return wanted
    if len(found) > 1:
        raise BadInput(
            f"{name} has several image columns: {', '.join(found)}.", remedy=f"pass image_column={found[0]}"
        )
    return found[0] if found else None


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(inner.name == "bytes" and _is_bytes(inner.type) for inner in kind)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _table(path: Path, names: Sequence[str] | None, without: str | None) -> dict[str, list[Any]]:
    """A list's columns, as Python values."""
    if path.suffix == ".txt":
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        return {"path": [line for line in lines if line]}
    if path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise BadInput(f"{path}, line {number}: {error}.") from error
                if not isinstance(row, dict):
                    raise BadInput(f"{path}, line {number} is not an object: {line[:60]}")
                rows.append(row)
        keys = dict.fromkeys(key for row in rows for key in row)
        table = {key: [row.get(key) for row in rows] for key in keys}
    else:
        source = open_arrays(str(path))
        wanted = {*PATHS, *LABELS, *SPLITS, *OTHERS}
        table = {
            column: _listed(source.read(column))
            for column in source.names
            if column in wanted and column != without
        }
    if without is None and not set(PATHS) & set(table):
        raise BadInput(
            f"{path} has no column of paths.", remedy=f"name one of its columns {', '.join(PATHS[:5])} or url"
        )
    return table


def _listed(column: Any) -> list[Any]:
    return column.to_pylist() if isinstance(column, pa.ChunkedArray | pa.Array) else list(column)


def _columns_of(table: dict[str, list[Any]], path: Path) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for name, spellings in (("label", LABELS), ("split", SPLITS), ("group", ("group",))):
        found = next((spelling for spelling in spellings if spelling in table), None)
        if found is None:
            continue
        values = table[found]
        empty = [row for row, value in enumerate(values) if value is None or value == ""]
        if len(empty) == len(values):
            continue
        if empty and name == "label":
            raise BadInput(
                f"{path}: row {empty[0]} has no {found}, others have ({len(empty):,} such rows).",
                remedy="label all rows or none; labels of some go to already= or labels=",
            )
        columns[name] = np.array(["" if value is None else str(value) for value in values])
    if "weight" in table:
        try:
            weights = np.array(table["weight"], np.float64)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{path}: column weight: {error}.") from error
        wrong = np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))
        if len(wrong):
            raise BadInput(f"{path}: row {wrong[0]} has weight {weights[wrong[0]]}, which is not positive.")
        columns["weight"] = weights
    return columns


def _arrays(path: Path) -> tuple[NoImages, Listing]:
    """A pool of which only arrays are known: its samples are their rows."""
    source = open_arrays(str(path))
    ids = source.ids()
    if ids is not None:
        sources = [str(value) for value in _listed(ids)]
    else:
        first = source.read(source.names[0] if source.names else "")
        sources = [str(row) for row in range(len(first))]
    if not sources:
        raise BadInput(f"{path} has no rows.")
    return NoImages(path, sources), Listing(sources)
