"""The command line as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from winnow.flows import cli
from winnow.tasks.artifacts import write
from winnow.tasks.registry import datasets, embedders, networks, scores, selectors

runner = CliRunner()


def winnow(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from winnow.flows.cli import main; main()", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, check=False
    )


def test_ls_lists_everything_and_imports_nothing_heavy():
    script = (
        "import sys; sys.argv = ['winnow', 'ls']; from winnow.flows.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'prefect', 'numpy', 'pyarrow', 'faiss') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    for registry in (datasets, embedders, networks, scores, selectors):
        for name in registry.names():
            assert f"  {name} " in done.stdout
    for name in (
        "elfs/digits",
        "elfs/fashion_mnist",
        "elfs/cifar10",
        "elfs/cifar100",
        "elfs/stl10",
        "elfs/imagenet",
    ):
        assert name in done.stdout


def test_ls_json():
    found = json.loads(runner.invoke(cli.app, ["ls", "selectors", "--json"]).stdout)
    assert {entry["name"] for entry in found["selectors"]} == set(selectors.names())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ls", "dataset"), "Did you mean 'datasets'?"),
        (("run", "elfs/digit"), "Did you mean 'elfs/digits'?"),
        (("run", "elfs/digits", "-p", "fractions"), "expected key=value"),
        (("run", "elfs/digits", "-p", "fraction=[0.1]"), "Did you mean 'fractions'?"),
        (("run", "elfs/digits", "-p", "fractions=[1.5]"), "less than or equal to 1"),
        (("run", "elfs/digits", "-p", "fractions=[0]"), "greater than 0"),
        (("run", "elfs"), "needs the parameter 'dataset'"),
        (("show", "abcd"), "no artifact begins with abcd"),
        (("show", "zz"), "not the beginning of a digest"),
        (("cache", "why", "embed"), "never computed"),
    ],
)
def test_mistakes_are_explained_in_a_line_or_two(arguments, message, tmp_path):
    done = winnow(*arguments, WINNOW_STORE=str(tmp_path))
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr


def test_show_export_and_cache(empty_store, tmp_path):
    made = write("embeddings", {"id": np.arange(3), "vector": np.ones((3, 2), np.float32)})
    shown = runner.invoke(cli.app, ["show", made.digest[:8]])
    assert shown.exit_code == 0
    assert "vector: fixed_size_binary[8]  {'dtype': 'float32', 'shape': '2'}" in shown.stdout
    assert "given by the user or an uncached step" in shown.stdout
    exported = runner.invoke(cli.app, ["export", made.digest[:8], str(tmp_path / "out.npz")])
    assert exported.exit_code == 0, exported
    assert np.load(tmp_path / "out.npz")["vector"].shape == (3, 2)
    again = winnow("export", made.digest[:8], str(tmp_path / "out.npz"))
    assert again.returncode == 1
    assert "exists" in again.stderr
    assert "2 files sound, 0 damaged" in runner.invoke(cli.app, ["cache", "verify"]).stdout
    made.paths()[0].write_bytes(b"x")
    assert runner.invoke(cli.app, ["cache", "verify"]).exit_code == 1


def test_doctor(empty_store):
    done = winnow("doctor", WINNOW_STORE=str(empty_store))
    assert "python" in done.stdout
    assert "store" in done.stdout
    assert done.returncode == 0, done.stdout
    broken = winnow("doctor", WINNOW_STORE="nonsense://x")
    assert broken.returncode == 1
    assert "WINNOW_STORE=nonsense://x: Protocol not known" in broken.stdout
    assert "next: install the fsspec package of that protocol, or use a folder" in broken.stdout


@pytest.mark.parametrize(
    ("files", "environment", "expected"),
    [
        ({}, {}, False),
        ({"profiles.toml": 'active = "local"\n[profiles.local]\n'}, {}, False),
        (
            {"profiles.toml": 'active = "lab"\n[profiles.lab]\nPREFECT_API_URL = "http://lab:4200/api"\n'},
            {},
            True,
        ),
        ({"profiles.toml": "not toml ["}, {}, True),
        ({}, {"PREFECT_API_URL": "http://lab:4200/api"}, True),
        ({}, {"PREFECT_PROFILE": "lab"}, True),
    ],
)
def test_a_server_of_the_user_s_is_never_bypassed(tmp_path, monkeypatch, files, environment, expected):
    from winnow.flows.server import configured

    for name in list(os.environ):
        if name.startswith("PREFECT_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    for name, value in ({"PREFECT_HOME": str(tmp_path)} | environment).items():
        monkeypatch.setenv(name, value)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert configured() is expected


@pytest.mark.server
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for child processes in /proc")
def test_a_killed_run_leaves_no_server_behind(tmp_path):
    """Without a server of the user's, a run starts its own, which ends with it whatever happens."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {
        "HOME": str(tmp_path),
        "WINNOW_STORE": str(tmp_path / "store"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    run = subprocess.Popen(
        [sys.executable, "-m", "winnow.flows.cli", "run", "elfs/digits"],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    deadline = time.monotonic() + 60
    while not children.read_text().split() and time.monotonic() < deadline:
        time.sleep(0.05)
    (server,) = children.read_text().split()
    assert b"prefect.server" in Path(f"/proc/{server}/cmdline").read_bytes()
    run.kill()
    run.wait()
    while (
        Path(f"/proc/{server}/cmdline").exists()
        and Path(f"/proc/{server}/cmdline").read_bytes()
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert not Path(f"/proc/{server}/cmdline").exists() or not Path(f"/proc/{server}/cmdline").read_bytes(), (
        "the server is still there"
    )


@pytest.mark.parametrize("command", [("show",), ("export", "out.parquet")])
def test_a_result_of_an_earlier_version_is_not_shown_but_explained(old_store, tmp_path, command):
    name, *rest = command
    (table,) = old_store.rglob("*.parquet")
    digest = table.stem
    done = winnow(name, digest[:12], *(str(tmp_path / file) for file in rest), WINNOW_STORE=str(old_store))
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert f"{digest[:12]} was written by an earlier version of Winnow" in said
    assert str(table) in said
    assert "next: run its flow again" in said
    assert "Traceback" not in done.stderr


def test_what_an_earlier_version_left_is_told_and_deleted(old_store):
    for command in (["cache", "verify"], ["doctor"]):
        done = runner.invoke(cli.app, command)
        assert done.exit_code == 0, done.output
        assert f"{old_store} holds 1 result of an earlier version of Winnow" in done.output
        assert "next: `winnow cache gc` deletes them" in done.output
    assert "0 damaged" in runner.invoke(cli.app, ["cache", "verify"]).output
    for file in old_store.rglob("*"):
        os.utime(file, (0, 0))
    assert runner.invoke(cli.app, ["cache", "gc"]).exit_code == 0
    left = sorted(file.relative_to(old_store).parts[0] for file in old_store.rglob("*") if file.is_file())
    assert left == ["reports", "results"]
    assert "earlier version" not in runner.invoke(cli.app, ["cache", "verify"]).output
