"""The command line as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from flows import cli
from tasks.artifacts import write
from tasks.registry import datasets, embedders, networks, scores, selectors

runner = CliRunner()


def winnow(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-c", "from flows.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, check=False)


def test_ls_lists_everything_and_imports_nothing_heavy():
    script = (
        "import sys; sys.argv = ['winnow', 'ls']; from flows.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'prefect', 'numpy', 'pyarrow', 'faiss') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for registry in (datasets, embedders, networks, scores, selectors):
        for name in registry.names():
            assert f"  {name} " in done.stdout
    for name in ("elfs/digits", "elfs/fashion_mnist", "elfs/cifar10", "elfs/cifar100", "elfs/stl10", "elfs/imagenet"):
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
    assert "vector: fixed_size_list" in shown.stdout
    assert "given by the user or an uncached step" in shown.stdout
    exported = runner.invoke(cli.app, ["export", made.digest[:8], str(tmp_path / "out.npz")])
    assert exported.exit_code == 0, exported
    assert np.load(tmp_path / "out.npz")["vector"].shape == (3, 2)
    again = winnow("export", made.digest[:8], str(tmp_path / "out.npz"))
    assert again.returncode == 1
    assert "exists" in again.stderr
    assert "1 files sound, 0 damaged" in runner.invoke(cli.app, ["cache", "verify"]).stdout
    made.path().write_bytes(b"x")
    assert runner.invoke(cli.app, ["cache", "verify"]).exit_code == 1


def test_doctor(empty_store):
    done = winnow("doctor", WINNOW_STORE=str(empty_store))
    assert "python" in done.stdout
    assert "store" in done.stdout
    assert done.returncode == 0, done.stdout
    broken = winnow("doctor", WINNOW_STORE="nonsense://x")
    assert broken.returncode == 1
    assert "set WINNOW_STORE" in broken.stdout
