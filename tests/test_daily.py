"""The command line in daily work: parameter files, what ran, tables of several runs, facts as JSON."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from winnow.flows import cli
from winnow.flows.parameters import from_file
from winnow.tasks import runs
from winnow.tasks.artifacts import Artifact, write
from winnow.tasks.errors import BadInput, UnknownName
from winnow.tasks.store import store

pytestmark = pytest.mark.usefixtures("same_environment")

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


# -- what ran ------------------------------------------------------------------------------------------------


def ran(about: str = "digits", fractions: tuple[float, ...] = (0.1, 0.3), lift: float = 0.0) -> Artifact:
    """Trials, and a record of the run that made them."""
    lines = [
        {
            "method": method,
            "fraction": fraction,
            "seed": seed,
            "samples": 100,
            "last_accuracy": accuracy + lift + 0.01 * seed,
            "best_accuracy": 0.99,
        }
        for method, accuracy in (("random", 0.8), ("d2_100%", 0.9))
        for fraction in fractions
        for seed in (0, 1)
    ]
    columns = {name: [line[name] for line in lines] for name in lines[0]}
    trials = write("table", columns, facts={"dataset": about, "verdicts": ["d2 wins."], "compared": False})
    runs.record(trials, about, "d2 wins.", report=f"reports/d2-{trials.digest[:8]}.html")
    store().write(f"reports/d2-{trials.digest[:8]}.html", b"<html></html>")
    return trials


def chosen(about: str) -> Artifact:
    """A choice from a pool, and its record."""
    coreset = write(
        "coreset",
        {
            "id": np.array([1, 2]),
            "rank": np.int32([0, 1]),
            "weight": np.float32([1, 1]),
            "label": np.int32([0, 0]),
        },
        facts={"method": "random", "fraction": 0.1, "of": 20},
    )
    runs.record(coreset, about, "2 of 20 by random", output="/data/keep.csv", settings={"pool": about})
    return coreset


def winnow(*arguments: str) -> str:
    done = runner.invoke(cli.app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_runs_and_choices_are_listed(empty_store):
    assert "nothing has run" in winnow("runs")
    trials, coreset = ran(), chosen("/pools/a")
    assert chosen("/pools/b").digest == coreset.digest
    known = runs.runs()
    assert len(known) == 3, "one coreset of two pools is two runs"
    listed = winnow("runs")
    for text in ("d2 wins.", f"reports/d2-{trials.digest[:8]}.html", "2 of 20 by random", "/pools/b"):
        assert text in listed
    facts = json.loads(winnow("runs", "--json"))
    assert {fact["id"] for fact in facts} == {run.id for run in known}
    assert {fact["output"] for fact in facts} == {None, "/data/keep.csv"}
    assert "2 more" in winnow("runs", "-n", "1")
    ran()
    assert len(runs.runs()) == 3, "the same result again is the same run"


@pytest.mark.parametrize(
    "change",
    [
        {"report": "reports/../../evil.html"},
        {"report": "/etc/passwd"},
        {"result": "\x1b[2J"},
        {"digest": "zz"},
        {"finished": "yesterday"},
        {"seconds": -1},
        {"more": 1},
        {"id": "0" * 64},
    ],
)
def test_a_record_that_is_none_counts_as_absent(empty_store, change):
    """Anybody may have written a file in a shared store."""
    ran()
    (run,) = runs.runs()
    content = run.model_dump(mode="json") | change
    store().write(f"runs/{run.id}.json", json.dumps(content).encode())
    assert runs.runs() == []
    store().write(f"runs/{run.id}.json", b"{")
    assert runs.runs() == []


def test_what_a_run_says_moves_no_cursor(empty_store):
    ran("a\x1b[2Jb\n")
    assert runs.runs()[0].about == "a?[2Jb?"


def test_open_prints_where_there_is_no_display(empty_store, monkeypatch):
    opened = []
    monkeypatch.setattr("typer.launch", opened.append)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    trials = ran()
    path = f"{empty_store}/reports/d2-{trials.digest[:8]}.html"
    assert winnow("open").strip() == path
    assert opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    assert winnow("open", trials.digest[:6]).strip() == path
    assert opened == [path]
    chosen("/pools/a")
    choice = next(run for run in runs.runs() if run.report is None)
    assert winnow("open", choice.id[:12]).strip() == "/data/keep.csv"
    assert opened == [path], "only reports of the store are opened"
    store().delete(f"reports/d2-{trials.digest[:8]}.html")
    with pytest.raises(BadInput, match="is gone"):
        winnow("open", trials.digest[:6])


def test_runs_are_found_by_their_first_digits(empty_store):
    with pytest.raises(UnknownName, match="nothing has run"):
        runs.find()
    chosen("/pools/a")
    coreset = chosen("/pools/b")
    with pytest.raises(BadInput, match="begins 2 runs"):
        runs.find(coreset.digest[:8])
    with pytest.raises(UnknownName, match="no run begins with"):
        runs.find("ffffffff")
    with pytest.raises(UnknownName, match="too short"):
        runs.find(coreset.digest[:2])


def test_one_table_of_several_runs(empty_store, tmp_path):
    one, two = ran(), ran(fractions=(0.2,), lift=0.05)
    names = [one.digest[:8], two.digest[:8]]
    lines = winnow("report", *names).splitlines()
    assert lines[0] == "| run | method | 10 % kept | 20 % kept | 30 % kept |"
    assert len(lines) == 2 + 4 + 2
    assert "85.5 ± 0.7" in lines[4]
    assert "digits" in lines[4]
    assert names[1] in lines[4], "two runs of the same flow and dataset are told apart"
    winnow("report", *names, "-o", str(tmp_path / "t.tex"))
    latex = (tmp_path / "t.tex").read_text()
    assert r"\toprule" in latex
    assert r"d2\_100\%" in latex
    assert r"\textbf{90.5 $\pm$ 0.7}" in latex
    assert "±" not in latex
    winnow("report", *names, "-o", str(tmp_path / "t.csv"))
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["last_mean"]) for row in rows] == pytest.approx(
        [0.805, 0.805, 0.905, 0.905, 0.855, 0.955]
    )
    assert json.loads(winnow("report", names[0], "--json"))[0]["method"] == "random"
    assert "| method | 10 % kept | 30 % kept |" in winnow("report", names[0])


def test_what_cannot_be_put_into_a_table(empty_store):
    chosen("/pools/a")
    (choice,) = runs.runs()
    with pytest.raises(BadInput, match="it has no accuracies"):
        winnow("report", choice.id[:8])
    with pytest.raises(BadInput, match="the suffix decides"):
        winnow("report", choice.id[:8], "-o", "table.xls")
    ran()
    trials = write("table", {"a": [1]}, facts={"dataset": "x"})
    runs.record(trials, "x", "", report="reports/x-0.html")
    with pytest.raises(BadInput, match="has no 'method'"):
        winnow("report", trials.digest[:8])


@pytest.mark.server
def test_flows_record_their_runs(flow_runs, tmp_path):
    from winnow.flows.ccs import ccs
    from winnow.flows.select import select

    small = {"proxy": {"epochs": 2}, "training": {"iterations": 5}, "baselines": ("random",)}
    result = ccs(dataset="digits", fractions=(0.2,), seeds=(0,), mis_ratio=0.1, **small)
    np.save(tmp_path / "x.npy", np.eye(30, dtype=np.float32))
    pool = f"{tmp_path}/x.npy"
    kept = select(pool=pool, embeddings=pool, budget=3, method="k_center", output=f"{tmp_path}/keep.csv")
    choice, trained = sorted(runs.runs(), key=lambda run: run.flow, reverse=True)
    assert (trained.flow, trained.about, trained.digest) == ("ccs", "digits", result.digest)
    assert trained.result.startswith("At 20 % kept")
    assert trained.seconds > 0
    assert store().size(trained.report)
    assert (choice.flow, choice.digest, choice.output) == ("select", kept.digest, f"{tmp_path}/keep.csv")
    assert choice.about == f"{tmp_path}/x.npy"
    assert choice.result == "3 of 30 by k_center"
    assert "| random |" in winnow("report", trained.id[:8])


# -- facts for programs --------------------------------------------------------------------------------------


def test_facts_as_json(empty_store):
    trials, coreset = ran(), chosen("/pools/a")
    shown = json.loads(winnow("show", coreset.digest[:8], "--json", "--rows", "1"))
    assert shown["digest"] == coreset.digest
    assert shown["facts"] == {"method": "random", "fraction": 0.1, "of": 20}
    assert shown["first"] == [{"id": 1, "rank": 0, "weight": 1.0, "label": 0}]
    assert [column["name"] for column in shown["columns"]] == ["id", "rank", "weight", "label"]
    assert shown["lineage"] == []
    found = json.loads(winnow("cache", "verify", "--json"))
    assert found["damaged"] == {}
    trials.paths()[0].write_bytes(b"x")
    damaged = runner.invoke(cli.app, ["cache", "verify", "--json"])
    assert damaged.exit_code == 1
    assert len(json.loads(damaged.stdout)["damaged"]) == 1
    findings = json.loads(winnow("doctor", "--json"))
    assert {"python", "store"} <= {finding["subject"] for finding in findings}


@pytest.mark.server
def test_a_run_prints_one_object(flow_runs, tmp_path):
    np.save(tmp_path / "x.npy", np.eye(30, dtype=np.float32))
    pool, keep = f"{tmp_path}/x.npy", f"{tmp_path}/keep.csv"
    arguments = ["select", pool, "--embeddings", pool, "-b", "3", "-m", "k_center", "-o", keep]
    facts = json.loads(winnow(*arguments, "--json"))
    assert (facts["rows"], facts["output"], facts["report"]) == (3, keep, None)
    assert facts["steps"]["computed"] > 0
    assert "3 of 30 by k_center" in winnow(*arguments)
    checked = json.loads(winnow("verify", keep, "--json"))
    assert all(check["same"] for check in checked)
    assert "k_center" in "".join(check["text"] for check in checked)
    assert json.loads(winnow("why", "0", keep, "--json"))["told"]
    assert {step["task"] for step in json.loads(winnow("cache", "ls", "--json"))} >= {"select", "deliver"}
    assert json.loads(winnow("cache", "why", "select", "--json"))["nearest"] is None
    small = ["-p", "training.iterations=5", "-p", "proxy.epochs=1", "--fractions", "0.2", "--seeds", "0"]
    facts = json.loads(winnow("compare", "digits", "--methods", "random", *small, "--json"))
    assert [row["method"] for row in facts["accuracies"]] == ["random"]
    assert facts["report"].endswith(".html")
    assert facts["rows"] == 1


# -- how much is shown, completion, exit status ------------------------------------------------------------


@pytest.mark.server
def test_quiet_shows_the_result_and_errors_only(flow_runs, tmp_path):
    np.save(tmp_path / "x.npy", np.eye(30, dtype=np.float32))
    arguments = ["select", f"{tmp_path}/x.npy", "-m", "random", "--plain"]
    loud = runner.invoke(cli.app, [*arguments, "-b", "3"])
    assert "select-random" not in loud.stderr, "short steps are counted"
    assert "load" in loud.stderr
    quiet = runner.invoke(cli.app, [*arguments, "-b", "4", "-q"])
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert "4 of 30 by random" in quiet.stdout
    refused = runner.invoke(cli.app, [*arguments, "-b", "31", "-q"])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "error:" in refused.stderr


@pytest.mark.server
def test_verbose_shows_debug_logs_once(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(30, dtype=np.float32))
    command = [sys.executable, "-c", "from winnow.flows.cli import main; main()", "select"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"HOME": str(tmp_path), "WINNOW_STORE": str(tmp_path / "store")}
    done = subprocess.run(
        [*command, f"{tmp_path}/x.npy", "-m", "random", "-b", "3", "-v", "-o", f"{tmp_path}/keep.txt"],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=True,
    )
    assert "DEBUG" in done.stderr
    assert done.stderr.count("keep.txt: 3 rows") == 1
    assert "DEBUG" not in done.stdout


def test_quiet_and_verbose_exclude_each_other():
    done = runner.invoke(cli.app, ["select", "digits", "-q", "-v"])
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("winnow run elfs/dig", "elfs/digits"),
        ("winnow run com", "compare"),
        ("winnow ls sel", "selectors"),
        ("winnow compare dig", "digits"),
        ("winnow select digits -m mod", "moderate"),
        ("winnow select digits --embedder pat", "patches"),
        ("winnow compare digits --methods random,d2,mod", "random,d2,moderate"),
    ],
)
def test_the_shell_completes_names_cheaply(words, found):
    script = (
        "import sys; sys.argv = ['winnow']; from winnow.flows.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'prefect', 'numpy', 'pyarrow', 'rich.progress') if m in sys.modules])"
    )
    asked = {"_WINNOW_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ | asked,
    )
    *names, heavy = done.stdout.splitlines()
    assert found in names, done.stdout + done.stderr
    assert heavy == "[]"


def test_a_broken_plugin_breaks_no_completion(monkeypatch):
    from winnow.flows import completion

    monkeypatch.setattr("winnow.tasks.registry.selectors.names", lambda: 1 / 0)
    assert completion.selectors("r") == []


def test_exit_statuses_are_in_the_help():
    text = " ".join(winnow("--help").split())
    for status in ("0 done", "1 refused or failed", "2 wrong usage", "3 a dry run", "130 Ctrl-C", "143"):
        assert status in text
