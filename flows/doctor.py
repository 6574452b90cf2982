"""What `winnow doctor` looks at: each finding with the command that fixes it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from winnow.flows import catalogue

__all__ = ["examine"]

Finding = tuple[str, str, str, str]  # (ok | note | wrong, subject, what was found, what to do)


def examine() -> Iterator[Finding]:
    """Findings one by one, so that slow ones do not hold up the rest."""
    yield from _python()
    yield from _packages()
    yield from _torch()
    yield from _store()
    yield from _data()
    yield from _server()


def _python() -> Iterator[Finding]:
    fine = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield (
        "ok" if fine else "wrong",
        "python",
        platform.python_version(),
        "" if fine else "use Python 3.11 to 3.13: make venv PYTHON=python3.12",
    )


def _packages() -> Iterator[Finding]:
    from packaging.version import Version

    versions = {}
    for name in (
        "prefect",
        "fastapi",
        "torch",
        "torchvision",
        "timm",
        "open_clip_torch",
        "pyarrow",
        "webdataset",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            yield ("wrong", name, "not installed", "make venv")
    faiss = next((f"{name} {version(name)}" for name in ("faiss-gpu", "faiss-cpu") if _installed(name)), None)
    yield ("ok" if faiss else "wrong", "faiss", faiss or "not installed", "" if faiss else "make venv")
    yield ("ok", "packages", ", ".join(f"{name} {number}" for name, number in versions.items()), "")
    if "prefect" in versions and "fastapi" in versions and Version(versions["fastapi"]) >= Version("0.151"):
        yield (
            "wrong",
            "fastapi",
            f"{versions['fastapi']} keeps Prefect {versions['prefect']} from starting a server",
            "uv pip install 'fastapi<0.151'",
        )


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _torch() -> Iterator[Finding]:
    import torch

    from winnow.tasks.hardware import cpu_count

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield ("ok", "gpu", f"{len(names)}: {', '.join(names)}; CUDA {torch.version.cuda}", "")
    elif Path("/proc/driver/nvidia").exists():
        yield (
            "wrong",
            "gpu",
            "there is a driver, but torch sees no GPU",
            "check nvidia-smi and CUDA_VISIBLE_DEVICES; torch is built for CUDA " + str(torch.version.cuda),
        )
    else:
        yield ("note", "gpu", "none; CIFAR-sized recipes need one, elfs/digits does not", "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield ("ok", "cpu", f"{cpu_count()} cores, {memory:.0f} GiB", "")


def _store() -> Iterator[Finding]:
    from winnow.tasks.errors import StoreUnusable
    from winnow.tasks.provenance import steps
    from winnow.tasks.store import store
    from winnow.tasks.upkeep import outdated

    try:
        disk = store()
        disk.check()
    except StoreUnusable as error:
        yield ("wrong", "store", error.what, error.remedy)
        return
    free = (
        shutil.disk_usage(disk.local_root if disk.local_root.exists() else tempfile.gettempdir()).free / 2**30
    )
    yield (
        "ok" if free > 5 else "note",
        "store",
        f"{disk.uri}: {len(steps()):,} computations; {free:.0f} GiB free",
        "" if free > 5 else "winnow cache gc",
    )
    if outdated()[0]:
        yield ("note", "old results", *outdated())
    waiting = [folder for folder in (disk.local_root / "partial").glob("*") if folder.is_dir()]
    if waiting:
        yield (
            "note",
            "unfinished",
            f"{len(waiting)} tasks have checkpoints: "
            f"{', '.join(sorted(f.name.rpartition('-')[0] for f in waiting)[:5])}",
            "run the same flow again to go on from there",
        )


def _data() -> Iterator[Finding]:
    from winnow.tasks.hardware import data_root

    root = data_root()
    sets = (
        sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
        if root.is_dir()
        else []
    )
    yield (
        "ok",
        "data",
        f"{root}: {', '.join(sets) or 'empty; digits needs nothing, others are fetched or put there'}",
        "",
    )
    if os.environ.get("WINNOW_OFFLINE"):
        yield ("note", "offline", "WINNOW_OFFLINE is set: nothing is fetched", "")


def _server() -> Iterator[Finding]:
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if url is None:
        yield (
            "note",
            "server",
            "none configured: `winnow run` needs none; for the UI and deployments start one",
            "prefect server start --background && export PREFECT_API_URL=http://127.0.0.1:4200/api",
        )
        return
    import httpx

    try:
        httpx.get(f"{url}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        yield (
            "wrong",
            "server",
            f"{url} does not answer: {error}",
            "prefect server start --background, or unset PREFECT_API_URL",
        )
        return
    pools = {pool["name"]: pool for pool in httpx.post(f"{url}/work_pools/filter", json={}, timeout=5).json()}
    yield ("ok", "server", url, "")
    for name in ("cpu", "gpu"):
        if name not in pools:
            yield (
                "note",
                "work pool",
                f"{name} is missing",
                f"prefect work-pool create {name} --type process --overwrite",
            )
        else:
            ready = pools[name].get("status") == "READY"
            yield (
                "ok" if ready else "note",
                "work pool",
                f"{name}: {pools[name].get('status', 'unknown').lower()}",
                "" if ready else f"prefect worker start --pool {name}",
            )
    deployed = {
        deployment["name"]
        for deployment in httpx.post(f"{url}/deployments/filter", json={}, timeout=5).json()
    }
    if not deployed:
        yield (
            "note",
            "deployments",
            "none",
            f"prefect --no-prompt deploy --all --prefect-file {catalogue.FILE}",
        )
    else:
        yield ("ok", "deployments", f"{len(deployed)}: {', '.join(sorted(deployed))}", "")
