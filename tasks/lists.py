"""What was chosen, as files for people and their tools: lists, links, tasks of annotation tools."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from winnow.tasks.errors import BadInput, did_you_mean
from winnow.tasks.files import atomic

__all__ = ["FORMATS", "LINKS", "check_output", "format_of", "link_all", "write_list"]

Row = Mapping[str, Any]


# -- lists ---------------------------------------------------------------------------------------------------


def _separated(rows: Sequence[Row], separator: str) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _csv(rows: Sequence[Row], folder: str) -> bytes:
    return _separated(rows, ",").encode()


def _tsv(rows: Sequence[Row], folder: str) -> bytes:
    return _separated(rows, "\t").encode()


def _jsonl(rows: Sequence[Row], folder: str) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _parquet(rows: Sequence[Row], folder: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), out, compression="zstd")
    return out.getvalue()


def _names(rows: Sequence[Row]) -> list[str]:
    return [str(row.get("path", row.get("id"))) for row in rows]


def _txt(rows: Sequence[Row], folder: str) -> bytes:
    return "".join(f"{name}\n" for name in _names(rows)).encode()


def _located(rows: Sequence[Row], folder: str) -> list[str]:
    """Absolute paths, or URLs as they are."""
    return [name if "://" in name else os.path.join(folder, name) for name in _names(rows)]


def _yolo(rows: Sequence[Row], folder: str) -> bytes:
    """Ultralytics' ``train.txt``: one absolute path a line."""
    return "".join(f"{name}\n" for name in _located(rows, folder)).encode()


def _label_studio(rows: Sequence[Row], folder: str) -> bytes:
    """Label Studio's import: a list of tasks with ``data``; other columns become fields shown beside it."""
    tasks = [
        {
            "data": {
                "image": name if "://" in name else f"/data/local-files/?d={name.lstrip('/')}",
                **_beside(row),
            }
        }
        for name, row in zip(_located(rows, folder), rows, strict=True)
    ]
    return json.dumps(tasks, ensure_ascii=False, indent=1).encode()


def _beside(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None and name != "image"}


def _cvat(rows: Sequence[Row], folder: str) -> bytes:
    """CVAT for images 1.1: ``annotations.xml`` that lists the images, without annotations yet."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    for number, row in enumerate(rows):
        name = _names([row])[0]
        size = {key: str(row[key]) for key in ("width", "height") if row.get(key)}
        ElementTree.SubElement(root, "image", {"id": str(number), "name": name, **size})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _coco(rows: Sequence[Row], folder: str) -> bytes:
    """COCO's image list; no annotations yet."""
    images = []
    for number, (name, row) in enumerate(zip(_names(rows), rows, strict=True), 1):
        size = {key: row[key] for key in ("width", "height") if row.get(key)}
        images.append({"id": number, "file_name": name, **size})
    content = {"images": images, "annotations": [], "categories": []}
    return json.dumps(content, ensure_ascii=False, indent=1).encode()


FORMATS: dict[str, tuple[str, Callable[[Sequence[Row], str], bytes]]] = {
    "csv": (".csv", _csv),
    "tsv": (".tsv", _tsv),
    "jsonl": (".jsonl", _jsonl),
    "parquet": (".parquet", _parquet),
    "txt": (".txt", _txt),
    "label-studio": (".json", _label_studio),
    "cvat": (".xml", _cvat),
    "coco": (".json", _coco),
    "yolo": (".txt", _yolo),
    "fiftyone": (".txt", _txt),
}


def format_of(destination: Path, kind: str | None = None) -> str:
    """The format of a file by its name, or the one asked for.

    Raises:
        BadInput: unknown, or one that the suffix does not fit.

    >>> format_of(Path("keep.csv")), format_of(Path("train.txt"), "yolo")
    ('csv', 'yolo')
    """
    if kind is None:
        by_suffix = {suffix: name for name, (suffix, _) in reversed(FORMATS.items())}
        del by_suffix[".json"], by_suffix[".xml"]  # which could be of several tools
        if destination.suffix not in by_suffix:
            raise BadInput(
                f"{destination}: {destination.suffix or 'no'} suffix; {', '.join(by_suffix)} can be written.",
                remedy=f"or name a format: {', '.join(FORMATS)}",
            )
        return by_suffix[destination.suffix]
    if kind not in FORMATS:
        raise BadInput(
            f"{kind!r} is not a format.{did_you_mean(kind, FORMATS)} Formats: {', '.join(FORMATS)}."
        )
    if destination.suffix != FORMATS[kind][0]:
        raise BadInput(f"{destination}: {kind} is written to a {FORMATS[kind][0]} file.")
    return kind


def check_output(destination: Path, kind: str | None = None) -> None:
    """Refuse, before anything is computed, what could not be written afterwards.

    Raises:
        BadInput: unknown format, a folder that is not there or not writable, a folder of that name.
    """
    format_of(destination, kind)
    folder = destination.absolute().parent
    if destination.is_dir():
        raise BadInput(f"{destination} is a folder.", remedy="name a file")
    if not folder.is_dir():
        raise BadInput(f"there is no folder {folder}.", remedy=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise BadInput(f"{folder} cannot be written to.", remedy="choose another folder")


def write_list(rows: Sequence[Row], destination: Path, *, kind: str | None = None, folder: str = "") -> str:
    """Write rows to a file at once; the same rows give the same bytes.

    Args:
        rows: ``path`` or ``id``, ``rank``, ``score``, ``why`` and others; at least one.
        destination: the file.
        kind: one of ``FORMATS``; default by the suffix.
        folder: that relative paths are relative to, for formats that want absolute ones.

    Returns:
        sha256 of the file.
    """
    content = FORMATS[format_of(destination, kind)][1](rows, folder)
    with atomic(destination.absolute()) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


# -- links ---------------------------------------------------------------------------------------------------

LINKS = ("symlink", "hardlink", "copy")


def link_all(names: Iterable[str], source: Path, folder: Path, how: str = "symlink") -> int:
    """Put files into a folder under their own names; those that are there already stay.

    Relative paths keep their sub-folders; of absolute ones, two that share a name get a part of their digest.

    Args:
        names: paths, relative to ``source`` or absolute.
        source: folder of the relative ones.
        folder: made if it is not there.
        how: one of ``LINKS``.

    Returns:
        How many were added.

    Raises:
        BadInput: a file is missing; another file of that name is in the way; no links are possible there.
    """
    if how not in LINKS:
        raise BadInput(f"link_as = {how!r} is none of {', '.join(LINKS)}.")
    plan = [(source / name, folder / target) for name, target in _targets(names)]
    for origin, target in plan:  # all is checked before anything is made
        if not origin.exists():
            raise BadInput(f"{origin} is not there any more.", remedy="run the selection again")
        if os.path.lexists(target) and not _same(origin, target):
            raise BadInput(
                f"{target} is there already, and is not {origin}.", remedy="link into a new, empty folder"
            )
    added = 0
    for origin, target in plan:
        if os.path.lexists(target):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if how == "symlink":
                target.symlink_to(origin.absolute())
            elif how == "hardlink":
                os.link(origin, target)
            else:
                with atomic(target.absolute()) as temporary:
                    shutil.copyfile(origin, temporary)
        except OSError as error:
            raise BadInput(
                f"{target} cannot be made: {error}.", remedy="pass --link-as copy, or another folder"
            ) from error
        added += 1
    return added


def _targets(names: Iterable[str]) -> list[tuple[str, str]]:
    taken: dict[str, str] = {}
    pairs = []
    for name in names:
        target = name
        if os.path.isabs(name) or name.startswith(".."):
            target = os.path.basename(name)
            if taken.get(target, name) != name:
                stem, suffix = os.path.splitext(target)
                target = f"{stem}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}{suffix}"
        taken[target] = name
        pairs.append((name, target))
    return pairs


def _same(origin: Path, target: Path) -> bool:
    try:
        if os.path.samefile(origin, target):
            return True
    except OSError:
        return False
    return target.is_file() and not target.is_symlink() and origin.read_bytes() == target.read_bytes()
