"""Shared fixtures: golden data, a store of its own for each test, one Prefect server for those that run flows."""

from __future__ import annotations

import os
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


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server on a database of its own, for tests that run flows."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    # a flow run without a heartbeat ends at once; with one it waits a second for its thread
    with prefect_test_harness(server_startup_timeout=120), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))
