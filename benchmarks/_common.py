"""What every benchmark says of itself: machine, versions, load, medians; one JSON line a run."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Threads that spin while they wait would steal the core from whatever else a shared machine runs, and count
# as CPU time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
WINNOW = [sys.executable, "-c", "from winnow.flows.cli import main; main()"]

if str(ROOT) not in sys.path:  # run as a script: the repository, not this folder, holds the packages
    sys.path.insert(0, str(ROOT))


def hardware(device: str = "cpu") -> str:
    """Short name of the hardware for file names, such as ``x86_64-2cpu`` or ``nvidia-h200``; no host name."""
    if device.startswith("cuda"):
        import torch

        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
    return f"{platform.machine()}-{_cores()}cpu"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def commit_of(checkout: Path) -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def environment(device: str = "cpu") -> dict[str, Any]:
    """Machine and versions of a run."""
    import numpy
    import torch

    return {
        "hardware": hardware(device),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ["OMP_WAIT_POLICY"],
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "commit": commit_of(ROOT),
        "date": time.strftime("%Y-%m-%d"),
    }


@contextlib.contextmanager
def fresh_home(checkout: Path = ROOT) -> Iterator[dict[str, str]]:
    """Environment of commands of a checkout that see nobody's settings, store or server."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home, "WINNOW_STORE": f"{home}/store"}
        environment |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PYTHONPATH": str(checkout.resolve())}
        environment.pop("PREFECT_API_URL", None)
        yield environment


def options(*parameters: str) -> list[str]:
    """Parameters of `winnow run`: ``seed=1`` becomes ``-p seed=1``."""
    return [word for parameter in parameters for word in ("-p", parameter)]


def timed(run: Callable[[], Any], device: str = "cpu") -> tuple[float, float]:
    """Wall and CPU seconds of one call; the work queued on a GPU included."""
    import torch

    def settle() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    settle()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    settle()
    return time.perf_counter() - wall, time.process_time() - cpu


def median(values: list[float]) -> float:
    return statistics.median(values)


def compare(
    runs: dict[str, Callable[[], Any]], repeats: int, device: str = "cpu"
) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each, taken in turns so that a busy machine disturbs all alike."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(timed(run, device))
    return {
        name: (median([wall for wall, _ in pairs]), median([cpu for _, cpu in pairs]))
        for name, pairs in taken.items()
    }


def record(name: str, result: dict[str, Any], device: str = "cpu") -> None:
    """Print one JSON line and append it to ``results/<name>-<hardware>-torch<version>.jsonl``."""
    import torch

    line = json.dumps({"benchmark": name, **result, **environment(device)})
    RESULTS.mkdir(exist_ok=True)
    version = torch.__version__.partition("+")[0]
    with open(RESULTS / f"{name}-{hardware(device)}-torch{version}.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line)
