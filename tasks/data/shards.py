"""webdataset shards, read by row: an index of (shard, offset, length) stands in for unpacking."""

from __future__ import annotations

import json
import logging
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import fsspec
import numpy as np
from webdataset.shardlists import expand_urls

from winnow.tasks.data.fetch import offline
from winnow.tasks.data.folders import finish
from winnow.tasks.data.images import Encoded, readable_suffixes
from winnow.tasks.data.index import (
    SETTLED,
    blake2b,
    index_folder,
    load_arrays,
    save_arrays,
    stat_key,
    threaded,
)
from winnow.tasks.data.load import candidates, check_split, natural_key
from winnow.tasks.data.split import Split
from winnow.tasks.errors import BadInput, MissingData

__all__ = ["ShardImages", "open_shards", "webdataset"]

log = logging.getLogger("winnow.tasks.data")


@dataclass(frozen=True)
class Shard:
    """A tar file: its path, and a key that changes when the file does."""

    path: str  # on its file system
    key: bytes
    settled: bool


class ShardImages(Encoded):
    """Images inside tar files, on any fsspec file system.

    Args:
        files: the file system.
        shards: the tar files.
        shard: int (N,), which of them holds each image.
        extents: int64 (N, 2), offset and length of its bytes.
        keys: webdataset key of each image.
        shape, size, channels, cache: as in :class:`winnow.tasks.data.images.Encoded`.
    """

    def __init__(
        self,
        files: Any,
        shards: Sequence[Shard],
        shard: np.ndarray,
        extents: np.ndarray,
        keys: Sequence[str],
        **options: Any,
    ) -> None:
        super().__init__(keys, **options)
        self.files, self.shards, self.shard, self.extents = files, shards, shard, extents

    @property
    def place(self) -> str:
        return "\n".join(shard.path for shard in self.shards)

    def name_of(self, row: int) -> str:
        return f"{self.sources[row]} in {self.shards[self.shard[row]].path}"

    def take(self, rows: np.ndarray) -> Self:
        taken = super().take(rows)
        taken.shard, taken.extents = self.shard[rows], self.extents[rows]
        return taken

    def content(self, row: int) -> bytes:
        offset, length = map(int, self.extents[row])
        return self.files.cat_file(self.shards[self.shard[row]].path, start=offset, end=offset + length)

    def identify(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sums = [blake2b(self.shards[self.shard[row]].key + self.extents[row].tobytes()) for row in rows]
        settled = np.array([shard.settled for shard in self.shards], bool)
        return np.frombuffer(b"".join(sums), np.uint8).reshape(-1, 16), settled[self.shard[rows]]


def webdataset(
    split: str = "train",
    *,
    variant: str,
    root: Path | None = None,
    download: bool = True,
    test_shards: str | None = None,
    label: str | None = None,
    size: int | None = None,
    channels: int = 3,
    skip_corrupt: bool = False,
    cache: Path | None = None,
) -> Split:
    """Any webdataset shards: ``webdataset:<pattern, folder or URL>``.

    Shards are uncompressed tars; members that share a key (the path up to the first dot of the file name) are
    one sample: an image, and a label in ``cls`` (a number or a class name), ``txt`` or a field of ``json``.
    The tars are not unpacked; each is scanned once, and its index kept.

    Args:
        split: ``train``, or ``test`` where ``test_shards`` is given.
        variant: ``/path/{000..010}.tar``, ``/path/*.tar``, a folder, or the same on any fsspec file system
            (``s3://…``). Relative ones are looked for under ``root`` and then in the working directory.
        root: default the data root.
        download: whether shards that are not local may be read; ``WINNOW_OFFLINE=1`` forbids it.
        test_shards: the shards of ``test``, written like ``variant``.
        label: ``cls``, ``txt`` or ``json.<field>``; default ``cls`` where there is one, else unlabelled.
        size: short side in pixels; images are then cropped to a square.
        channels: 3 (grey is repeated) or 1 (grey; needs ``size`` or images of one size).
        skip_corrupt: leave out images that cannot be decoded.
        cache: folder of the indices.

    Returns:
        the split; rows in the order of the shards and of their members; ``sources`` are the keys; mean and
        std are those of at most 2,048 training images.

    Raises:
        MissingData: a shard is not there.
        BadInput: truncated or compressed tars, samples without the label asked for, no images.

    References:
        A. Aizman, G. Maltby, T. Breuel, High performance I/O for large scale deep learning, 2019; webdataset,
        src/webdataset/tariterators.py.
    """
    name = f"webdataset:{variant}"
    check_split(name, split, ("train", "test"))
    if split == "test" and test_shards is None:
        raise BadInput(
            f"{name} has no split 'test'.", remedy="pass test_shards=<pattern> for the shards to test on"
        )
    if label not in (None, "cls", "txt") and not (label.startswith("json.") and len(label) > len("json.")):
        raise BadInput(f"label = {label!r}: must be cls, txt or json.<field>.")
    options = {"size": size, "channels": channels, "cache": cache}
    train, words = open_shards(variant, root, download, label, options)
    classes = _classes(name, words)
    images = train
    if split == "test" and test_shards is not None:
        images, words = open_shards(test_shards, root, download, label, options)
    truth = None if words is None else _numbers(f"{name}/{split}", words, classes, images)
    return finish(name, split, train, images, classes, truth, skip_corrupt)


def open_shards(
    pattern: str, root: Path | None, download: bool, label: str | None, options: dict[str, Any]
) -> tuple[ShardImages, list[str] | None]:
    """The images of some shards, and their labels as words, None where there are none."""
    files, paths = find_shards(pattern, root, download)
    said = time.monotonic()
    indexed: list[tuple[Shard, Table]] = []
    for start in range(0, len(paths), 64):
        some = paths[start : start + 64]
        indexed += threaded(lambda path: _table(files, path, label, options["cache"]), some, fewest=2)
        if time.monotonic() - said > 10:
            said = time.monotonic()
            log.info("%s: %d of %d shards indexed", pattern, len(indexed), len(paths))
    shards, tables = zip(*indexed, strict=True)
    keys = [key for table in tables for key in table.keys]
    if not keys:
        raise BadInput(
            f"there are no images in {pattern}.",
            remedy=f"image members end in one of {' '.join(sorted(readable_suffixes()))}",
        )
    labels = [word for table in tables for word in table.labels]
    within = np.repeat(np.arange(len(tables), dtype=np.int32), [len(table.keys) for table in tables])
    extents = np.concatenate([table.extents for table in tables])
    images = ShardImages(files, shards, within, extents, keys, **options)
    words = [word for word in labels if word is not None]
    if label is None and not words:
        return images, None
    if len(words) < len(labels):
        name = images.name_of(labels.index(None))
        raise BadInput(f"sample {name} has no label in {label or 'cls'}, others have.")
    return images, words


def find_shards(pattern: str, root: Path | None, download: bool) -> tuple[Any, list[str]]:
    """The file system and the tars that a pattern, a folder or a URL stands for, in natural order.

    Raises:
        MissingData: one is not there, or is remote and nothing may be fetched.
    """
    if "://" in pattern:
        reason = offline(download)
        if reason and not pattern.startswith(("file://", "memory://")):
            raise MissingData(
                f"{pattern} is not local, and nothing may be fetched: {reason}.",
                remedy="copy the shards here and name that folder",
            )
        log.info("reading shards from %s", pattern)
        patterns = [pattern]
    else:
        patterns = [str(path) for path in candidates(pattern, root)]
    missing: list[str] = []
    for candidate in patterns:
        try:
            urls = expand_urls(candidate)
        except (ValueError, AssertionError) as error:
            raise BadInput(
                f"{candidate} is not a pattern of shards: {error}.", remedy="ranges are written {000..010}"
            ) from error
        files = fsspec.core.url_to_fs(urls[0])[0]
        tars: list[str] = []
        absent: list[str] = []
        for path in (fsspec.core.url_to_fs(url)[1] for url in urls):
            if any(sign in path for sign in "*?["):
                matches = [str(match) for match in files.glob(path)]
            elif files.isdir(path):
                matches = [str(match) for match in files.glob(f"{path.rstrip('/')}/*.tar")]
            else:
                matches = [path] if files.exists(path) else []
            tars += sorted(matches, key=natural_key)
            if not matches:
                absent.append(path)
        if tars and not absent:
            return files, tars
        missing += absent
        if tars:
            break  # some shards of a range are missing: say so rather than look elsewhere
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    raise MissingData(
        f"{pattern}: no shards at {shown}.",
        remedy="give the absolute path of the tars, or fetch those that are missing",
    )


@dataclass(frozen=True)
class Table:
    """The images of one shard."""

    keys: list[str]
    extents: np.ndarray  # int64 (n, 2): offset, length
    labels: list[str | None]


def _table(files: Any, path: str, label: str | None, cache: Path | None) -> tuple[Shard, Table]:
    info = files.info(path)
    size = int(info["size"] or 0)
    stamps = ("mtime", "LastModified", "etag", "ETag", "created")  # as file systems call it
    changed = next(filter(None, map(info.get, stamps)), "")
    young = isinstance(changed, float | int) and changed > time.time() - SETTLED / 1e9
    key = blake2b(f"{files.protocol} {path}\0{size}\0{changed}")
    shard = Shard(path, key, bool(changed) and not young)
    stored = index_folder(cache) / "shards" / f"{stat_key(key.hex() + str(label), size, 0).hex()}.npz"
    arrays = load_arrays(stored, "text", "extents") if shard.settled else None
    if arrays is not None and (table := _restored(*arrays)) is not None:
        return shard, table
    table = scan(files, path, size, label)
    if shard.settled:
        text = json.dumps({"keys": table.keys, "labels": table.labels}).encode()
        save_arrays(stored, text=np.frombuffer(text, np.uint8), extents=table.extents)
    return shard, table


def _restored(text: np.ndarray, extents: np.ndarray) -> Table | None:
    """The saved table, or None if the content is not one."""
    try:
        content = json.loads(text.tobytes())
        keys, labels = content["keys"], content["labels"]
        strings = all(isinstance(key, str) for key in keys)
        strings &= all(word is None or isinstance(word, str) for word in labels)
        fits = len(keys) == len(labels) and extents.shape == (len(keys), 2) and extents.dtype == np.int64
    except (ValueError, TypeError, KeyError):
        return None
    return Table(keys, extents, labels) if strings and fits and (extents >= 0).all() else None


def scan(files: Any, path: str, size: int, label: str | None) -> Table:
    """Read a tar's headers, and the members that hold labels.

    Raises:
        BadInput: truncated, compressed or not a tar.
    """
    suffixes = readable_suffixes()
    label_ending, _, field = (label or "cls").partition(".")
    keys: list[str] = []
    extents: list[tuple[int, int]] = []
    labels: list[str | None] = []
    others = 0
    try:
        with files.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for key, members in groupby(_members(tar, size), lambda named: named[0]):
                image: tuple[int, int] | None = None
                word: str | None = None
                for _, ending, member in members:
                    if f".{ending.rpartition('.')[2]}" in suffixes and image is None:
                        image = (member.offset_data, member.size)
                    elif ending == label_ending:
                        content = tar.extractfile(member)
                        word = _word(content.read() if content else b"", field, f"{member.name} in {path}")
                if image is None:
                    others += 1
                    continue
                keys.append(key)
                extents.append(image)
                labels.append(word)
    except (tarfile.TarError, EOFError) as error:
        raise BadInput(
            f"shard {path} ({size:,} bytes) cannot be indexed: {error}. It is cut off, compressed or no tar.",
            remedy="fetch it again; compressed tars must be decompressed, since rows are read at random",
        ) from error
    if others:
        log.warning("%s: %d samples without an image are left out", path, others)
    return Table(keys, np.array(extents, np.int64).reshape(-1, 2), labels)


def _members(tar: tarfile.TarFile, size: int) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, ending and header of the files in a tar of ``size`` bytes (0: not known)."""
    for member in tar:
        folder, _, file = member.name.rpartition("/")
        if not member.isfile() or (file.startswith("__") and file.endswith("__")):
            continue
        end = member.offset_data + member.size
        if size and end > size:
            raise tarfile.ReadError(f"member {member.name} ends at byte {end:,} of {size:,}")
        stem, _, ending = file.partition(".")
        yield f"{folder}/{stem}" if folder else stem, ending.lower(), member


def _word(content: bytes, field: str, where: str) -> str | None:
    """The label in a member: all of it, or one field of its JSON."""
    try:
        text = content.decode().strip()
        if not field:
            return text
        value = json.loads(text).get(field)
    except (ValueError, AttributeError) as error:
        raise BadInput(f"label {where} cannot be read: {error}.") from error
    return None if value is None else str(value)


def _classes(name: str, words: list[str] | None) -> tuple[str, ...]:
    if words is None:
        return ()
    names = set(words)
    if all(word.isdecimal() for word in names):
        return tuple(map(str, range(max(map(int, names)) + 1)))
    if "" in names:
        raise BadInput(f"{name}: some labels are empty.")
    return tuple(sorted(names, key=natural_key))


def _numbers(where: str, words: list[str], classes: tuple[str, ...], images: ShardImages) -> np.ndarray:
    """The class number of each word."""
    numbers = {word: number for number, word in enumerate(classes)}
    truth = np.empty(len(words), np.int64)
    for row, word in enumerate(words):
        number = numbers.get(str(int(word)) if word.isdecimal() else word)
        if number is None:
            raise BadInput(
                f"{where}: sample {images.name_of(row)} has label {word!r}, which no training sample has."
            )
        truth[row] = number
    return truth
