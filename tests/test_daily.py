"""The command line in daily work: parameter files, what ran, tables of several runs, facts as JSON."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from winnow.flows import cli
from winnow.flows.parameters import from_file
from winnow.tasks.errors import BadInput

runner = CliRunner()


@pytest.fixture
def parameters(monkeypatch) -> dict:
    """What the command that is invoked would run with."""
    seen: dict = {}
    monkeypatch.setattr(
        "winnow.flows.terminal.run_flow", lambda flow, base, changes, **_: seen.update(changes) or 0
    )
    return seen


# -- parameter files -----------------------------------------------------------------------------------------


def test_a_file_gives_parameters_that_options_override(tmp_path, parameters):
    file = tmp_path / "p.yaml"
    file.write_text(
        "flow: elfs\ndataset: digits\nseeds: [0, 1]\ntraining: {epochs: 9, lr: 1e-3}\nproxy.batch_size: 64\n"
    )
    done = runner.invoke(
        cli.app, ["run", "elfs", "-c", str(file), "-p", "training.iterations=30", "-p", "seeds=[2]"]
    )
    assert done.exit_code == 0, done.output
    assert parameters == {
        "dataset": "digits",
        "seeds": [2],
        "training": {"lr": 0.001, "iterations": 30},
        "proxy": {"batch_size": 64},
    }


def test_a_file_describes_a_choice_or_a_comparison(tmp_path, parameters):
    file = tmp_path / "p.yaml"
    file.write_text("pool: digits\nbudget: 50\nmethod: random\nseed: 3\n")
    assert runner.invoke(cli.app, ["select", "-c", str(file), "--seed", "4"]).exit_code == 0
    assert parameters == {"pool": "digits", "budget": 50, "method": "random", "seed": 4}
    parameters.clear()
    file.write_text("dataset: digits\nmethods: [random]\n")
    assert runner.invoke(cli.app, ["compare", "-c", str(file), "--methods", "d2"]).exit_code == 0
    assert parameters == {"dataset": "digits", "methods": ["d2"]}


@pytest.mark.parametrize("command", ["select", "compare"])
def test_what_no_file_gives_must_be_said(command, parameters):
    done = runner.invoke(cli.app, [command])
    assert done.exit_code == 2
    assert "missing" in done.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flow: d2\nseeds: [0]\n", "is for the flow d2, not elfs"),
        ("seeds: [0\n", "is no YAML"),
        ("- seeds\n", "expected parameters by name"),
        ("", "expected parameters by name"),
        ("1: 2\n", "expected parameters by name"),
        ("seeds: [0]\nseeds: [1]\n", "seeds is given twice"),
        ("training: {lr: 1, lr: 2}\n", "lr is given twice"),
        ("training: 3\ntraining.lr: 1\n", "training has been given as a whole"),
        ("x: !!python/object/apply:os.getcwd []\n", "is no YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(BadInput, match=message):
        from_file(file, "elfs")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"-c .*none\.yaml: No such file"):
        from_file(tmp_path / "none.yaml", "elfs")


@pytest.mark.server
def test_an_unknown_name_in_a_file_is_refused_with_the_nearest(tmp_path, flow_runs):
    file = tmp_path / "p.yaml"
    for text, message in (
        ("fraction: [0.1]\n", "Did you mean 'fractions'?"),
        ("pool: digits\n", "elfs has no parameter 'pool'"),
        ("training: {epoch: 3}\n", "Did you mean 'epochs'?"),
    ):
        file.write_text(text)
        done = runner.invoke(cli.app, ["run", "elfs/digits", "-c", str(file)])
        assert done.exit_code == 1
        assert message in " ".join(done.output.split())
