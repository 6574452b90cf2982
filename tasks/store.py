"""The store: named bytes at an fsspec address, replaced whole or not at all. Nothing else touches storage.

Layout (``$WINNOW_STORE``, any fsspec address; default ``.winnow/`` beside the checkout)::

    objects/<aa>/<sha256>.json      an artifact: its kind, facts and parts
    objects/<aa>/<sha256>.parquet   a part of one; both are named after their own content and never change
    records/<task>-<key>.json       which artifacts a task made from which inputs
    provenance/<task>-<key>.json    how: inputs, parameters, versions, device, duration
    made/<sha256>.json              which step made an artifact
    results/, reports/              what flows show at the end
    runs/<id>.json                  when each result was last run, and how long that took
    partial/<task>-<key>/           checkpoints of a task under way (always on local disk, as locks/ are)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import threading
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from winnow.tasks.errors import StoreUnusable
from winnow.tasks.files import atomic, install, temporary_file

__all__ = ["Damaged", "Scratch", "Store", "store", "store_uri"]


def store_uri() -> str:
    """``$WINNOW_STORE``, else ``.winnow`` beside the checkout's pyproject.toml, else in the current folder.

    A worker runs flows in its own folder, so the current folder is only the last resort.
    """
    if configured := os.environ.get("WINNOW_STORE"):
        return configured
    checkout = Path(__file__).resolve().parents[1]
    return str((checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / ".winnow")


@lru_cache(maxsize=8)
def _open_store(uri: str) -> Store:
    return Store(uri)


def store() -> Store:
    """The configured store."""
    return _open_store(store_uri())


class Damaged(Exception):
    """A stored file that is not what its name says; the message says why."""


class Store:
    """Named byte files under one fsspec address."""

    def __init__(self, uri: str) -> None:
        try:
            self.fs, root = fsspec.core.url_to_fs(os.path.expanduser(uri))
        except (ImportError, ValueError) as error:
            raise StoreUnusable(
                f"WINNOW_STORE={uri}: {error}",
                remedy="install the fsspec package of that protocol, or use a folder",
            ) from error
        self.uri = uri
        self.local = isinstance(self.fs, fsspec.implementations.local.LocalFileSystem)
        self.root = os.path.abspath(root) if self.local else root.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def address(self, name: str) -> str:
        """Where a file lies, for people and other programs: a path, or an address with its scheme."""
        return self._path(name) if self.local else self.fs.unstrip_protocol(self._path(name))

    @property
    def local_root(self) -> Path:
        """Where this host keeps locks, checkpoints and copies: the store itself when it is a folder."""
        if self.local:
            return Path(self.root)
        name = hashlib.sha256(self.uri.encode()).hexdigest()[:16]
        return Path(os.environ.get("WINNOW_CACHE") or Path.home() / ".cache" / "winnow") / "stores" / name

    def lock_file(self, key: str) -> Path:
        """The lock of a task's computation."""
        return self.local_root / "locks" / f"{key}.lock"

    def scratch(self, key: str) -> Scratch:
        return Scratch(self.local_root / "partial" / key)

    def check(self) -> None:
        """Refuse a store that cannot be written, before anything is computed for it.

        Raises:
            StoreUnusable: with a one-line reason.
        """
        name = f".tmp-{uuid.uuid4().hex}"
        self.write(name, b"")
        self.delete(name)

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a small file, atomically and durably."""
        with self._explained():
            if not self.local:
                self.fs.pipe_file(self._path(name), content)
                return
            with atomic(Path(self._path(name))) as temporary:
                temporary.write_bytes(content)

    def adopt(self, temporary: Path, name: str) -> None:
        """Move a finished local file into the store under its name, atomically."""
        with self._explained():
            if self.local:
                install(temporary, Path(self._path(name)))
            else:
                self.fs.put_file(str(temporary), self._path(name))

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: there is none.
            Damaged: what stands in its place cannot be read.
        """
        try:
            with self._explained():
                return self.fs.cat_file(self._path(name))
        except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
            raise Damaged(f"it cannot be read ({error.strerror})") from error

    def read_json(self, name: str) -> Any:
        """A JSON file's content; None where it is absent or damaged."""
        try:
            return json.loads(self.read(name))
        except (FileNotFoundError, Damaged, ValueError, RecursionError):
            return None

    def open(self, name: str) -> Any:
        with self._explained():
            return self.fs.open(self._path(name), "rb")

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is no such file."""
        try:
            with self._explained():
                info = self.fs.info(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def names(self, folder: str) -> list[str]:
        """Files under a folder, at any depth, relative to the store's root, sorted."""
        try:
            with self._explained():
                paths = self.fs.find(self._path(folder))
        except FileNotFoundError:
            return []
        root = self.root.rstrip("/") + "/"
        names = (str(PurePosixPath(path)).removeprefix(root) for path in paths)
        return sorted(name for name in names if not PurePosixPath(name).name.startswith(".tmp-"))

    def modified(self, name: str) -> float:
        """Seconds since the epoch."""
        with self._explained():
            return self.fs.modified(self._path(name)).timestamp()

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._explained():
            if self.local and Path(self._path(name)).is_dir():
                shutil.rmtree(self._path(name))
            else:
                self.fs.rm_file(self._path(name))

    def temporary(self) -> Path:
        """An empty local file to fill and then ``adopt``; on the store's own disk when it is a folder."""
        with self._explained():
            return temporary_file(self.local_root / "objects")

    def fetched(self, name: str, digest: str, nbytes: int | None = None) -> Path:
        """A file on this host with that content, checked once per state of the file.

        Raises:
            Damaged: it is missing, cut off or altered.
        """
        path = self.local_root / name
        try:
            _check(path, digest, nbytes)
        except Damaged:
            if self.local:
                raise
            try:  # no copy yet, or a bad one
                with self._explained(), atomic(path) as temporary:
                    self.fs.get_file(self._path(name), str(temporary))
            except FileNotFoundError as error:
                raise Damaged("it is missing") from error
            _check(path, digest, nbytes)
        return path

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Put trouble with the disk or the connection into words."""
        try:
            yield
        except (FileNotFoundError, StoreUnusable):
            raise
        except Exception as error:
            reason = _REASONS.get(error.errno or 0) if isinstance(error, OSError) else None
            if self.local and reason is None:
                raise
            check = "free some room (`winnow cache gc`)"
            if not self.local:
                check = "check the address, the network and the credentials,"
            raise StoreUnusable(
                f"Cannot use the store {self.uri}: {reason or _in_a_line(error)}.",
                kept="every finished artifact and the last checkpoint of the running task",
                remedy=f"{check} or set WINNOW_STORE elsewhere, then run the same command again",
            ) from error


_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission",
    errno.EROFS: "it is read-only",
    errno.EEXIST: "a file stands where it needs a folder",
    errno.ENOTDIR: "a file stands where it needs a folder",
}


def _in_a_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _check(path: Path, digest: str, nbytes: int | None) -> None:
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged("it is missing") from error
    if not stat.S_ISREG(state.st_mode):
        raise Damaged("it is not a file")
    if nbytes is not None and state.st_size != nbytes:
        raise Damaged(f"it has {state.st_size:,} bytes instead of {nbytes:,}")
    if _digest_of(str(path), state.st_mtime_ns, state.st_ino) != digest:
        raise Damaged("its content has changed")


@lru_cache(maxsize=1 << 16)
def _digest_of(path: str, mtime_ns: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- checkpoints ---------------------------------------------------------------------------------------------


class Scratch:
    """Named states of a task under way: atomic, checksummed, found again after ``kill -9``.

    A state is a dict of tensors, numbers, strings, lists, dicts and None. A damaged file reads as absent.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self._lock = threading.Lock()

    def _file(self, name: str) -> Path:
        return self.directory / f"{name}.state"

    def save(self, name: str, state: dict[str, Any]) -> None:
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        with (
            self._lock,
            store()._explained(),
            atomic(self._file(name)) as temporary,
            open(temporary, "wb") as file,
        ):
            file.write(hashlib.sha256(content).digest())
            file.write(content)

    def load(self, name: str) -> dict[str, Any] | None:
        import torch

        try:
            content = self._file(name).read_bytes()
        except OSError:
            return None
        if len(content) < 32 or hashlib.sha256(memoryview(content)[32:]).digest() != content[:32]:
            return None
        return torch.load(io.BytesIO(memoryview(content)[32:]), weights_only=True, map_location="cpu")

    def clear(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
