"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

__all__ = ["atomic", "install"]


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """A temporary file beside ``target`` that replaces it if the block succeeds.

    Readers see the old file or the whole new one, even after a crash: the content is on the disk before the
    name is. A killed process leaves a ``.tmp-*`` file behind and nothing else. Errors pass through.

    Args:
        target: the file; missing folders above it are created.

    Yields:
        path of the temporary file, which exists and is empty.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic(Path(folder) / "new" / "numbers.txt") as temporary:
    ...         _ = temporary.write_text("1 2 3")
    ...     [file.name for file in Path(folder, "new").iterdir()]
    ['numbers.txt']
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".tmp-")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        install(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def install(temporary: Path, target: Path) -> None:
    """Give a temporary file on the same file system its name, with the permissions of an ordinary new file.

    A folder of that name, which only damage can have created, is moved aside as ``.tmp-*``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.chmod(0o666 & ~_umask())  # temporary files are readable by their owner alone
    try:
        os.replace(temporary, target)
    except IsADirectoryError:
        target.rename(target.with_name(f".tmp-{uuid.uuid4().hex}"))
        os.replace(temporary, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Put a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The permissions that this process withholds from new files."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
    except (OSError, StopIteration):  # not Linux
        return _umask_by_setting()


_umask_lock = threading.Lock()


@cache
def _umask_by_setting() -> int:
    """The umask, found by setting it: done once, since it affects files that other threads create."""
    with _umask_lock:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask
