"""Locks among the threads and processes of a host, dropped by the kernel when their holder dies."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["held", "holder_of", "try_lock"]


def try_lock(file: Path) -> int | None:
    """Lock a file if nobody holds it; returns a descriptor to close, None if it is taken.

    The file names the holder, and stays behind: only the kernel's lock on it counts.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode())
    return descriptor


def holder_of(file: Path) -> str:
    """Host and process that last wrote their name into a lock's file; empty if none did."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


@contextmanager
def held(file: Path, *, poll: float = 0.05) -> Iterator[None]:
    """Hold a lock for as long as the block runs, waiting for whoever has it."""
    while (descriptor := try_lock(file)) is None:
        time.sleep(poll)
    try:
        yield
    finally:
        os.close(descriptor)
