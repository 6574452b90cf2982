"""Facts about files, remembered by path, size and time of change, so that an unchanged file is read once."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from winnow.tasks.files import atomic
from winnow.tasks.hardware import data_root, spare_threads, thread_pool

if TYPE_CHECKING:
    from winnow.tasks.progress import Callback

__all__ = ["StatIndex", "blake2b", "file_md5", "index_folder", "remembered", "stat_key", "threaded"]

log = logging.getLogger("winnow.tasks.data")

CHUNK = 4096  # items between two progress calls
SAVE_EVERY = 60.0  # seconds of work that a killed run may lose
# ns: a file changed twice within one clock tick keeps its timestamp, so young files are not remembered
SETTLED = 2_000_000_000

Item = TypeVar("Item")
Result = TypeVar("Result")


def index_folder(cache: Path | None = None) -> Path:
    """Folder of the indices: ``cache``, else ``.winnow-index`` under the data root."""
    return data_root() / ".winnow-index" if cache is None else Path(cache)


def blake2b(content: bytes | str, *, size: int = 16, key: bytes = b"") -> bytes:
    """The blake2b digest of bytes, or of a text such as a path, whose odd bytes are kept."""
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(content, digest_size=size, key=key).digest()


def stat_key(path: str, size: int, mtime_ns: int) -> bytes:
    """16 bytes that change when a file is moved, resized or written to.

    >>> stat_key("a.png", 10, 1) == stat_key("a.png", 10, 2)
    False
    """
    return blake2b(f"{path}\0{size}\0{mtime_ns}")


def threaded(function: Callable[[Item], Result], items: Iterable[Item], *, fewest: int = 16) -> list[Result]:
    """``[function(item) for item in items]`` on all spare cores; order kept.

    It is a plain loop in a thread or process that is already one of many (see
    :func:`winnow.tasks.hardware.spare_threads`).

    >>> threaded(abs, range(-3, 0))
    [3, 2, 1]
    """
    items = list(items)
    threads = min(spare_threads(), len(items))
    if threads < 2 or len(items) < fewest:
        return [function(item) for item in items]
    # handing over single items would cost more than a stat or a hash
    block = max(1, min(256, len(items) // (4 * threads)))

    def run(start: int) -> list[Result]:
        return [function(item) for item in items[start : start + block]]

    with thread_pool(threads) as pool:
        return [result for results in pool.map(run, range(0, len(items), block)) for result in results]


def save_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Write arrays to an npz; a failure is only logged, and costs the next run some time."""
    try:
        with atomic(file) as temporary, open(temporary, "wb") as out:
            np.savez(out, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the keywords for allow_pickle
    except OSError as error:
        log.warning(
            "%s cannot be written (%s): what it would remember is computed again next time", file, error
        )


def load_arrays(file: Path, *names: str) -> list[np.ndarray] | None:
    """The named arrays of an npz, or None where it is absent or damaged; pickled objects are not loaded."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            return [stored[name] for name in names]
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged archives raise nearly every built-in exception
        log.warning("%s is damaged (%s) and is made anew", file, error)
        return None


class StatIndex:
    """A table from stat keys to values of ``width`` bytes, in one npz file.

    Args:
        file: where it is kept; a missing or damaged file is an empty table.
        width: bytes of a value.

    >>> import tempfile
    >>> keys, values = np.zeros((1, 16), np.uint8), np.full((1, 4), 7, np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     StatIndex(Path(folder) / "sums.npz", 4).put(keys, values)
    ...     StatIndex(Path(folder) / "sums.npz", 4).get(keys)
    (array([[7, 7, 7, 7]], dtype=uint8), array([ True]))
    """

    def __init__(self, file: Path, width: int) -> None:
        self.file, self.width = file, width

    def _load(self) -> tuple[np.ndarray, np.ndarray]:
        stored = load_arrays(self.file, "keys", "values")
        if stored is not None:
            keys, values = stored
            if (
                keys.shape == (len(values), 16)
                and values.shape == (len(keys), self.width)
                and keys.dtype == values.dtype == np.uint8
            ):
                return keys, values
            log.warning("%s is not an index of %d-byte values and is made anew", self.file, self.width)
        return np.empty((0, 16), np.uint8), np.empty((0, self.width), np.uint8)

    def get(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values uint8 (N, width), and which of them are in the table, bool (N,)."""
        values = np.zeros((len(keys), self.width), np.uint8)
        stored_keys, stored_values = self._load()
        if not len(stored_keys) or not len(keys):
            return values, np.zeros(len(keys), bool)
        table, wanted = _words(stored_keys), _words(keys)
        rows = np.searchsorted(table, wanted).clip(max=len(table) - 1)
        present = table[rows] == wanted
        values[present] = stored_values[rows[present]]
        return values, present

    def put(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Store values; other processes' entries are kept, and a key's newest value wins."""
        if not len(keys):
            return
        stored_keys, stored_values = self._load()
        keys, values = np.concatenate([keys, stored_keys]), np.concatenate([values, stored_values])
        _, first = np.unique(_words(keys), return_index=True)
        save_arrays(self.file, keys=keys[first], values=values[first])


def _words(keys: np.ndarray) -> np.ndarray:
    # Fixed-width byte strings compare like their bytes: NumPy pads with NULs, and all of them are 16 long.
    return np.ascontiguousarray(keys).view("S16").ravel()


def remembered(
    index: StatIndex,
    keys: np.ndarray,
    settled: np.ndarray,
    compute: Callable[[np.ndarray], np.ndarray],
    *,
    progress: Callback | None = None,
    note: str = "",
) -> np.ndarray:
    """Values of all keys: from the index where it has them, else computed, and saved as the work goes on.

    Args:
        index: the table.
        keys: uint8 (N, 16).
        settled: bool (N,), which values may be remembered.
        compute: rows int64 (n,) -> values uint8 (n, width).
        progress: called with (done, total, note).
        note: what is being computed, for ``progress``.

    Returns:
        uint8 (N, width).
    """
    values, present = index.get(keys)
    missing = np.flatnonzero(~present)
    done = saved = 0
    saved_at = time.monotonic()

    def save() -> None:
        rows = missing[saved:done]
        rows = rows[settled[rows]]
        index.put(keys[rows], values[rows])

    try:
        for start in range(0, len(missing), CHUNK):
            rows = missing[start : start + CHUNK]
            values[rows] = compute(rows)
            done = start + len(rows)
            if progress is not None:
                progress(len(keys) - len(missing) + done, len(keys), note)
            if time.monotonic() - saved_at > SAVE_EVERY:
                save()
                saved, saved_at = done, time.monotonic()
    finally:  # an unreadable file or an interrupt loses one chunk, not an hour
        save()
    return values


def stat_keys(paths: Iterable[tuple[str, Path | str]]) -> tuple[np.ndarray, np.ndarray]:
    """Stat keys uint8 (N, 16) of (name, file) pairs, and which files are old enough to be remembered.

    A missing file gets its own key; whoever reads it reports it.
    """
    young = time.time_ns() - SETTLED

    def key_of(pair: tuple[str, Path | str]) -> tuple[bytes, bool]:
        try:
            stat = os.stat(pair[1])
        except OSError:
            return stat_key(pair[0], -1, -1), False
        return stat_key(pair[0], stat.st_size, stat.st_mtime_ns), stat.st_mtime_ns < young

    pairs = threaded(key_of, paths, fewest=1024)
    keys = np.frombuffer(b"".join(key for key, _ in pairs), np.uint8).reshape(-1, 16)
    return keys, np.array([settled for _, settled in pairs], bool)


def file_md5(file: Path) -> str:
    """md5 of a file in hex; an unchanged file is read once."""
    keys, settled = stat_keys([(str(file.absolute()), file)])

    def compute(rows: np.ndarray) -> np.ndarray:
        with open(file, "rb") as stream:
            digest: Any = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
        return np.frombuffer(digest.digest(), np.uint8).reshape(1, 16)

    index = StatIndex(index_folder() / "md5.npz", 16)
    return remembered(index, keys, settled, compute)[0].tobytes().hex()
