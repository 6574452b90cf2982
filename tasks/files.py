"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic", "install", "temporary_file"]


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """A temporary file beside ``target`` that replaces it if the block succeeds.

    Readers see the old file or the whole new one, even after a crash: the content is on the disk before the
    name is. A killed process leaves a ``.tmp-*`` file behind and nothing else. Errors pass through.

    Args:
        target: the file; missing folders above it are created.

    Yields:
        path of the temporary file, which exists and is empty.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with atomic(Path(folder) / "new" / "numbers.txt") as temporary:
    ...         _ = temporary.write_text("1 2 3")
    ...     [file.name for file in Path(folder, "new").iterdir()]
    ['numbers.txt']
    """
    temporary = temporary_file(target.parent)
    try:
        yield temporary
        install(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_file(folder: Path) -> Path:
    """An empty ``.tmp-*`` file, with the permissions of an ordinary new file; missing folders are created."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f".tmp-{uuid.uuid4().hex}"
    file.touch(exist_ok=False)
    return file


def install(temporary: Path, target: Path) -> None:
    """Give a temporary file on the same file system its name, once its content is on the disk.

    A folder of that name, which only damage can have created, is moved aside as ``.tmp-*``.
    """
    _sync(temporary)
    target.parent.mkdir(parents=True, exist_ok=True)
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
