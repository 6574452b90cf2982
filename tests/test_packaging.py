"""One import package, winnow, wherever it is installed and whatever modules lie in the user's folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "fractions": [0.2],
    "seeds": [0],
    "heads": {"heads": 2, "epochs": 3},
    "proxy": {"epochs": 1},
    "training": {"iterations": 10},
    "mis_ratio": 0.2,
    "baselines": ["random"],
}


OURS = ("tasks.py", "tasks/__init__.py", "flows/__init__.py", "deployments.py")


def with_modules(folder: Path, names: Iterable[str]) -> Path:
    """The folder with modules of a user's, of which none may be imported."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise SystemExit(f'{__file__} was imported')\n")
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    """A user's folder whose modules bear the names of Winnow's folders and of one of Python's own modules."""
    return with_modules(tmp_path_factory.mktemp("foreign"), [*OURS, "select.py"])


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    """The command as installers make it: a script, so that Python looks for modules beside it, not here."""
    script = tmp_path_factory.mktemp("bin") / "winnow"
    script.write_text("from winnow.flows.cli import main\nmain()\n")
    return [sys.executable, str(script)]


def run(arguments: list[str], folder: Path, timeout: float = 120, **environment: str) -> str:
    """A command in a folder, where nothing but PYTHONPATH says where Winnow is; what it says."""
    done = subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- foreign modules
# -------------------------------------------------------------------------------------------


def test_import_in_a_foreign_folder(foreign):
    script = """
import sys

import numpy as np
import winnow

kept = winnow.select(np.array([[0.0], [0.1], [5.0], [9.0]]), method="k_center", budget=3, seed=1)
print(sorted(kept.indices.tolist()), {"tasks", "flows", "select"} & set(sys.modules))
"""
    assert run([sys.executable, "-c", script], foreign).strip() == "[0, 2, 3] set()"


def test_every_public_name_in_a_foreign_folder(foreign):
    script = (
        "import winnow; modules = (getattr(winnow, name).__module__ for name in winnow.__all__); "
        "print([module for module in modules if not module.startswith('winnow')])"
    )
    assert run([sys.executable, "-P", "-c", script], foreign).strip() == "[]"


def test_the_command_in_a_foreign_folder(foreign, command):
    listed = json.loads(run([*command, "ls", "--json"], foreign))
    assert {"elfs", "compare"} <= {entry["name"] for entry in listed["flows"]}
    assert any(entry["name"] == "elfs/digits" for entry in listed["deployments"])


SPAWNING_FLOW = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from prefect import flow


@flow
def spawning():
    for method in ("spawn", "forkserver"):
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
            print(method, pool.submit(abs, -3).result())
"""


@pytest.mark.server
def test_processes_of_a_run_in_a_foreign_folder(foreign, tmp_path, prefect_server):
    """Embedding and decoding start processes, which Python gives the current folder on their path."""
    (tmp_path / "spawning.py").write_text(SPAWNING_FLOW)
    (tmp_path / "winnow").write_text(
        "from winnow import flows\nfrom winnow.flows.cli import main\n"
        "flows.FLOWS['spawning'] = 'spawning:spawning'\nif __name__ == '__main__': main()\n"
    )
    said = run(
        [sys.executable, str(tmp_path / "winnow"), "run", "spawning"],
        foreign,
        WINNOW_STORE=str(tmp_path / "store"),
        **prefect_server,
    )
    assert "spawn 3\nforkserver 3\n" in said


@pytest.mark.server
@pytest.mark.slow
def test_a_run_and_a_worker_in_a_foreign_folder(foreign, command, tmp_path, prefect_server):
    """The worker's run is the same run: it takes all that can be cached from the first.

    Its process has the work pool's folder first on its path, by Prefect's doing: there Python's own modules
    could be replaced, but none of Winnow's.
    """
    environment = {**prefect_server, "WINNOW_STORE": str(tmp_path / "store")}
    parameters = [text for name, value in TINY.items() for text in ("-p", f"{name}={json.dumps(value)}")]
    said = run([*command, "run", "elfs/digits", "--plain", *parameters], foreign, **environment)
    trials = re.search(r"trials: ([0-9a-f]{12})", said)
    assert trials is not None, said

    api = prefect_server["PREFECT_API_URL"]
    prefect = str(Path(sys.executable).with_name("prefect"))
    ask(f"{api}/work_pools/", name="cpu", type="process")
    file = str(ROOT / "deployments" / "prefect.yaml")
    run([prefect, "--no-prompt", "deploy", "-n", "digits", "--prefect-file", file], foreign, **environment)
    deployment = ask(f"{api}/deployments/name/elfs/digits")
    created = ask(
        f"{api}/deployments/{deployment['id']}/create_flow_run",
        parameters={**deployment["parameters"], **TINY},
        job_variables={"working_dir": str(with_modules(tmp_path, OURS))},
        state={"type": "SCHEDULED"},
    )
    before = sorted((tmp_path / "store" / "records").iterdir())
    once = ["--run-once", "--limit", "1"]  # with a limit, it waits for the run's end
    said = run([prefect, "worker", "start", "--pool", "cpu", *once], foreign, **environment)
    finished = ask(f"{api}/flow_runs/{created['id']}")
    assert finished["state"]["type"] == "COMPLETED", said
    assert sorted((tmp_path / "store" / "records").iterdir()) == before


def ask(url: str, **content: Any) -> Any:
    """What the server answers to a POST of that content, or to a GET."""
    request = urllib.request.Request(
        url, json.dumps(content).encode() if content else None, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


# -- distributions
# ---------------------------------------------------------------------------------------------


def build(source: Path, target: str, destination: Path) -> Path:
    """A distribution of a source tree, made offline."""
    pytest.importorskip("hatchling")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(destination)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (made,) = destination.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_one_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0] for name in names} == {
        "winnow",
        f"{wheel.name.split('-py3')[0]}.dist-info",
    }
    assert {"winnow/py.typed", "winnow/deployments/prefect.yaml", "winnow/tasks/select/d2.py"} <= names
    sources = {
        f"{'' if folder == 'winnow' else 'winnow/'}{file.relative_to(ROOT).as_posix()}"
        for folder in ("winnow", "tasks", "flows", "deployments")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in names if name.startswith("winnow/")} == sources


def test_the_source_distribution_makes_the_same_wheel(wheel, tmp_path):
    archive = build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    again = build(source, "wheel", tmp_path / "wheel")
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


@pytest.mark.slow
def test_the_installed_wheel_in_a_foreign_folder(wheel, foreign, tmp_path):
    """Installing a wheel of Python files into a folder is unpacking it there."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = """
import importlib, winnow
from pathlib import Path
from winnow.flows.catalogue import deployments
from winnow.flows.cli import main

assert Path(winnow.__file__).is_relative_to({root!r}), winnow.__file__
flows = set()
for entry in deployments().values():
    module, name = entry["entrypoint"].rsplit(".", 1)
    flow = getattr(importlib.import_module(module), name)
    flow.validate_parameters(entry["parameters"])
    flows.add(flow.name)
print(*sorted(flows))
main()
"""
    (tmp_path / "script").write_text(script.format(root=str(tmp_path)))
    said = run(
        [sys.executable, str(tmp_path / "script"), "ls", "deployments"], foreign, PYTHONPATH=str(tmp_path)
    )
    assert said.splitlines()[0] == "ccs compare d2 deepcore elfs select"
    assert "elfs/digits" in said


def test_every_public_name_has_a_docstring_with_an_example():
    import winnow

    for name in winnow.__all__:
        value = getattr(winnow, name)
        assert ">>>" in (value.__doc__ or type(value).__doc__ or ""), name
