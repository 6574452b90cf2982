"""A run's own Prefect API, for users who have set up no server.

Prefect can start such a server itself, but only once it is imported; it waits for it idly, and leaves it
behind when the run is killed. This one starts while the run is still loading its libraries, and ends with the
run, however that ends: it watches a pipe that the kernel closes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from winnow.tasks.errors import WinnowError

__all__ = ["Server", "ServerFailed", "configured", "served_by", "temporary_server"]

# In the server's process: serve until the pipe to the run is closed.
_SERVE = """
import os, sys, threading

def watch():
    sys.stdin.read()
    os._exit(0)

threading.Thread(target=watch, daemon=True).start()
import uvicorn
uvicorn.run("prefect.server.api.server:create_app", factory=True, host="127.0.0.1", port=int(sys.argv[1]),
log_level="error")
"""


_SETTINGS = {
    # as Prefect starts its own: no UI, no scheduler
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    # one transaction a second: one per event locks SQLite, and a request that meets the lock waits for 2 s
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}


class ServerFailed(WinnowError):
    """Prefect's server did not start."""


def configured() -> bool:
    """Whether the user may have chosen a server; if so, Prefect decides.

    Prefect could tell, but only once it is loaded, and by then a server must be on its way up.
    """
    variables = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_SERVER_EPHEMERAL_ENABLED")
    if any(map(os.environ.get, variables)):
        return True
    if any(Path(name).exists() for name in ("prefect.toml", ".env")):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()
    try:
        settings = tomllib.loads(profiles.read_text())
        return "PREFECT_API_URL" in settings.get("profiles", {}).get(settings.get("active", ""), {})
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True


def temporary_server(timeout: float = 120) -> Server | None:
    """Start a server and make Prefect, not yet imported, use it; None where the user may have one.

    It stops when this process ends, after Prefect has sent it the last log lines.
    """
    if configured() or "prefect" in sys.modules:
        return None
    server = Server(timeout)
    os.environ |= {
        "PREFECT_API_URL": f"http://127.0.0.1:{server.port}/api",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    }
    atexit.register(server.stop)  # last in, first out: Prefect registers its own later
    return server


@contextlib.contextmanager
def served_by(server: Server | None) -> Iterator[None]:
    """A flow is run in this block; on a temporary server, at whose pages nobody looks, with less ado.

    Raises:
        ServerFailed: the server has not started.
    """
    if server is None:
        yield
        return
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from winnow.tasks.progress import unwatched

    server.wait()
    unwatched()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):  # each flow waits for its last beat
        yield


class Server:
    """A server process, on its way up."""

    def __init__(self, timeout: float) -> None:
        self.deadline = time.monotonic() + timeout
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE, str(self.port)],  # -P: nothing from the current folder
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the run, which has to report how it ended
            env=os.environ | _SETTINGS,
        )

    def wait(self) -> None:
        """Return when the server answers.

        Raises:
            ServerFailed: it has ended, or has not answered in time.
        """
        while time.monotonic() < self.deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.05)
        self.stop()
        assert self.process.stderr is not None
        said = self.process.stderr.read().decode(errors="replace").strip().splitlines()[-3:]
        raise ServerFailed(
            f"Prefect's temporary server did not start: {' '.join(said) or 'no answer'}",
            remedy="run `winnow doctor`, or start one (`prefect server start`) and export PREFECT_API_URL=http://127.0.0.1:4200/api",
        )

    def stop(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()
