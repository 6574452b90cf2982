"""Shared fixtures: golden data, a store for each test, one Prefect server for those that run flows."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

# before Prefect is imported: no telemetry, no logging to the server, no home folder of the developer's
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """Load a fixture file made by the published code: ``golden("ccs")["strat00_index"]``."""
    cache: dict[str, dict[str, np.ndarray]] = {}

    def load(name: str) -> dict[str, np.ndarray]:
        if name not in cache:
            with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
                cache[name] = dict(archive)
        return cache[name]

    return load


@pytest.fixture
def empty_store(tmp_path, monkeypatch) -> Path:
    """An artifact store of this test's own."""
    monkeypatch.setenv("WINNOW_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def same_environment() -> Iterator[None]:
    """What a command sets for the process that it would be is gone after the test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def old_store(empty_store) -> Path:
    """A store as an earlier version left it: Prefect's own records, one table without a manifest."""

    import pyarrow as pa
    import pyarrow.parquet as pq

    content = io.BytesIO()
    pq.write_table(pa.table({"id": [1, 2]}), content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    key = "knn-85b92b86cc2a493fe8443dc2b35d02b6"
    table = f"objects/{digest[:2]}/{digest}.parquet"
    handle = {
        "digest": digest,
        "kind": "graph",
        "meta": {"k": 15},
        "nbytes": content.tell(),
        "rows": 2,
        "schema_version": 1,
    }
    result = json.dumps({"artifact": {**handle, "uri": table}})
    metadata = {"storage_key": key, "serializer": {"type": "winnow-artifact"}, "prefect_version": "3.8.8"}
    step = {
        "key": key,
        "task": "knn",
        "version": "1",
        "inputs": {"k": 15},
        "outputs": [{**handle, "uri": table}],
    }
    step |= {"seconds": 0.1, "finished": "2026-11-27T06:59:26+00:00", "python": "3.11.7", "versions": {}}
    files = {
        f"records/{key}": json.dumps({"metadata": metadata, "result": result}),
        f"provenance/{key}.json": json.dumps(step),
        f"results/{digest}.json": json.dumps(
            {"digest": digest, "report": "reports/elfs-digits-37bd3d9f.html"}
        ),
        "reports/elfs-digits-37bd3d9f.html": "<html></html>",
    }
    for name, text in files.items():
        (empty_store / name).parent.mkdir(parents=True, exist_ok=True)
        (empty_store / name).write_text(text)
    (empty_store / table).parent.mkdir(parents=True)
    (empty_store / table).write_bytes(content.getvalue())
    return empty_store


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A Prefect server of the tests' own; the environment that makes a process, or this one, use it."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-services"]
    with open(home / "server.log", "w") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_until_healthy(server, f"{environment['PREFECT_API_URL']}/health", home / "server.log")
        yield environment
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _wait_until_healthy(server: subprocess.Popen, url: str, log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"the Prefect server did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture
def flow_runs(prefect_server, empty_store) -> Iterator[None]:
    """Flows run in this process, on the tests' server and a store of this test's own."""
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    # a flow run without a heartbeat ends at once; with one it waits a second for its thread
    with temporary_settings(
        {PREFECT_API_URL: prefect_server["PREFECT_API_URL"], PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    ):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))
