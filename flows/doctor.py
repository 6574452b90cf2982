"""What `winnow doctor` looks at: each finding with the command that fixes it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from winnow.flows import catalogue

__all__ = ["examine"]

PACKAGES = ("prefect", "fastapi", "torch", "torchvision", "timm", "open_clip_torch", "pyarrow", "webdataset")

Finding = tuple[str, str, str, str]  # (ok | note | wrong, subject, what was found, what to do)


def examine() -> Iterator[Finding]:
    """Findings one by one, so that slow ones do not hold up the rest."""
    yield from _python()
    yield from _packages()
    yield from _torch()
    yield from _store()
    yield from _data()
    yield from _pretrained()
    yield from _server()


def _found(fine: object, subject: str, text: str, remedy: str, *, otherwise: str = "note") -> Finding:
    """A finding that needs its remedy only where it is not fine."""
    return ("ok", subject, text, "") if fine else (otherwise, subject, text, remedy)


def _python() -> Iterator[Finding]:
    fine = (3, 11) <= sys.version_info[:2] <= (3, 13)
    remedy = "use Python 3.11 to 3.13: make venv PYTHON=python3.12"
    yield _found(fine, "python", platform.python_version(), remedy, otherwise="wrong")


def _packages() -> Iterator[Finding]:
    from packaging.version import Version

    from winnow.tasks.hardware import installed

    versions = installed(*PACKAGES)
    for name in PACKAGES:
        if name not in versions:
            yield ("wrong", name, "not installed", "make venv")
    faiss = next((" ".join(found) for found in installed("faiss-gpu", "faiss-cpu").items()), None)
    yield _found(faiss, "faiss", faiss or "not installed", "make venv", otherwise="wrong")
    yield ("ok", "packages", ", ".join(f"{name} {number}" for name, number in versions.items()), "")
    if "prefect" in versions and "fastapi" in versions and Version(versions["fastapi"]) >= Version("0.151"):
        text = f"{versions['fastapi']} keeps Prefect {versions['prefect']} from starting a server"
        yield ("wrong", "fastapi", text, "uv pip install 'fastapi<0.151'")


def _torch() -> Iterator[Finding]:
    import torch

    from winnow.tasks.hardware import cpu_count

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield ("ok", "gpu", f"{len(names)}: {', '.join(names)}; CUDA {torch.version.cuda}", "")
    elif Path("/proc/driver/nvidia").exists():
        remedy = f"check nvidia-smi and CUDA_VISIBLE_DEVICES; torch is built for CUDA {torch.version.cuda}"
        yield ("wrong", "gpu", "there is a driver, but torch sees no GPU", remedy)
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
    folder = disk.local_root if disk.local_root.exists() else tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / 2**30
    holds = f"{disk.uri}: {len(steps()):,} computations; {free:.0f} GiB free"
    yield _found(free > 5, "store", holds, "winnow cache gc")
    if outdated()[0]:
        yield ("note", "old results", *outdated())
    partial = (disk.local_root / "partial").glob("*")
    waiting = sorted(folder.name.rpartition("-")[0] for folder in partial if folder.is_dir())
    if waiting:
        text = f"{len(waiting)} tasks have checkpoints: {', '.join(waiting[:5])}"
        yield ("note", "unfinished", text, "run the same flow again to go on from there")


def _data() -> Iterator[Finding]:
    from winnow.tasks.hardware import data_root

    root = data_root()
    sets = ", ".join(sorted(entry.name for entry in root.glob("[!.]*")))
    text = f"{root}: {sets or 'empty; digits needs nothing, others are fetched or put there'}"
    yield ("ok", "data", text, "")
    if os.environ.get("WINNOW_OFFLINE"):
        yield ("note", "offline", "WINNOW_OFFLINE is set: nothing is fetched", "")


def _pretrained() -> Iterator[Finding]:
    from winnow.tasks.embed.packages import INSTALL, PACKAGES, packaged
    from winnow.tasks.errors import WinnowError
    from winnow.tasks.hardware import installed

    versions = installed(*(package.name for package in PACKAGES.values()))
    sound, absent = [], [name for name, package in PACKAGES.items() if package.name not in versions]
    for name in PACKAGES.keys() - absent:
        try:
            packaged(name)
            sound.append(name)
        except WinnowError as error:
            yield ("wrong", "pretrained", error.what, error.remedy)
    if sound:
        yield ("ok", "pretrained", ", ".join(sorted(sound)), "")
    if absent:
        yield ("note", "pretrained", f"not installed: {', '.join(absent)}", INSTALL)


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
        remedy = "prefect server start --background, or unset PREFECT_API_URL"
        yield ("wrong", "server", f"{url} does not answer: {error}", remedy)
        return

    def listed(what: str) -> dict[str, dict[str, Any]]:
        found = httpx.post(f"{url}/{what}/filter", json={}, timeout=5).json()
        return {entry["name"]: entry for entry in found}

    pools = listed("work_pools")
    yield ("ok", "server", url, "")
    for name in ("cpu", "gpu"):
        if name not in pools:
            remedy = f"prefect work-pool create {name} --type process --overwrite"
            yield ("note", "work pool", f"{name} is missing", remedy)
        else:
            status = pools[name].get("status", "unknown")
            remedy = f"prefect worker start --pool {name}"
            yield _found(status == "READY", "work pool", f"{name}: {status.lower()}", remedy)
    deployed = sorted(listed("deployments"))
    text = f"{len(deployed)}: {', '.join(deployed)}" if deployed else "none"
    remedy = f"prefect --no-prompt deploy --all --prefect-file {catalogue.FILE}"
    yield _found(deployed, "deployments", text, remedy)
