"""Progress of long work wherever somebody may look: in the terminal, the log, and Prefect's UI."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from winnow.tasks.errors import WinnowError

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Callback", "Stopped", "duration", "interruptible", "progress", "terminal", "unwatched"]

Callback = Callable[[int, int, str], None]  # (done, total, note)

log = logging.getLogger("winnow.tasks.progress")

LOG_SECONDS = 10.0  # between log lines
UI_SECONDS = 2.0  # between updates of the UI's progress artifact: each is a request to the server

_bars: Progress | None = None
_stopping = threading.Event()
_unwatched = False


def unwatched() -> None:
    """Say that this process's server is a temporary one, which nobody looks at."""
    global _unwatched
    _unwatched = True


class Stopped(WinnowError):
    """Work in another thread that ends because the run was interrupted."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C or SIGTERM in this block ends the other threads' work, too, when they next report progress.

    Prefect waits for them: without this, the run would go on until the training under way has ended.
    """
    _stopping.clear()
    try:
        yield
    except Exception:
        raise
    except BaseException:
        _stopping.set()
        raise


@contextmanager
def terminal(bars: Progress) -> Iterator[None]:
    """Show the progress of this process's tasks in these bars instead of log lines."""
    global _bars
    _bars = bars
    try:
        yield
    finally:
        _bars = None


@contextmanager
def progress(description: str) -> Iterator[Callback]:
    """A callback for ``(done, total, note)``, shown as a bar, as log lines and in the UI.

    >>> with progress("embed") as tell:
    ...     tell(1, 2, "shard 1")
    """
    started = logged = time.monotonic()
    bar = _bars.add_task(description, total=None, note="") if _bars is not None else None
    ui = _UIProgress(description)

    def tell(done: int, total: int, note: str = "") -> None:
        nonlocal logged
        if _stopping.is_set() and threading.current_thread() is not threading.main_thread():
            raise Stopped(
                f"{description} was stopped.",
                kept="finished steps and checkpoints",
                remedy="run the same command again",
            )
        now = time.monotonic()
        if _bars is not None and bar is not None:
            _bars.update(bar, completed=done, total=total, note=note)
        elif now - logged > LOG_SECONDS:
            logged = now
            left = (now - started) / max(done, 1) * (total - done)
            noted = f" ({note})" if note else ""
            log.info("%s: %d of %d%s, about %s left", description, done, total, noted, duration(left))
        ui.tell(now, done / max(total, 1))

    try:
        yield tell
    finally:
        if _bars is not None and bar is not None:
            _bars.remove_task(bar)
        ui.close()


def duration(seconds: float) -> str:
    """
    >>> duration(75)
    '1 min 15 s'
    """
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


class _UIProgress:
    """A progress artifact of the running Prefect task, if a server with a UI is there."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.artifact: Any = None
        self.last = time.monotonic()
        self.enabled = _server_is_watched()

    def tell(self, now: float, share: float) -> None:
        if not self.enabled or now - self.last < UI_SECONDS:
            return
        self.last = now
        self._send(100.0 * share)

    def close(self) -> None:
        if self.artifact is not None:
            self._send(100.0)

    def _send(self, percent: float) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        try:
            if self.artifact is None:
                key = re.sub("[^a-z0-9]+", "-", self.description.lower()).strip("-")
                self.artifact = create_progress_artifact(
                    percent, key=f"progress-{key}", description=self.description
                )
            else:
                update_progress_artifact(self.artifact, percent)
        except Exception as error:  # a picture of progress must never stop the work
            log.debug("no progress artifact: %s", error)
            self.enabled = False


def _server_is_watched() -> bool:
    """Whether this is a Prefect run on a server that outlives it (nobody watches the temporary one)."""
    from prefect.context import TaskRunContext
    from prefect.settings import PREFECT_API_URL

    return not _unwatched and TaskRunContext.get() is not None and PREFECT_API_URL.value() is not None
