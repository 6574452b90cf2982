"""The comparison of methods: a real run in this process, in small; its table, ranks, costs and checks."""

from __future__ import annotations

import csv
import io

import pytest
from typer.testing import CliRunner

from flows import checks, cli
from tasks.artifacts import Artifact, store
from tasks.cache import provenances
from tasks.errors import BadInput, UnknownName
from tasks.report.tables import mean_ranks, ranking_table

SMALL = {"dataset": "digits", "fractions": (0.1, 0.2), "seeds": (0, 1), "proxy_epochs": 2, "iterations": 20}


def run(**parameters) -> Artifact:
    from flows.compare import compare

    return compare(**{**SMALL, **parameters})


@pytest.mark.server
@pytest.mark.usefixtures("flow_runs")
def test_end_to_end():
    result = run(methods=("random", "d2", "top:el2n", "full"), params={"d2": {"neighbours": 3}})
    trials = result.table().to_pylist()
    assert len(trials) == 2 * (3 * 2 + 1)
    assert {(t["method"], t["fraction"], t["samples"]) for t in trials} == {
        *((name, fraction, int(1442 * fraction)) for name in ("random", "d2", "top:el2n") for fraction in (0.1, 0.2)),
        ("full", 1.0, 1442),
    }
    steps = provenances()
    assert len([step for step in steps if step["task"] == "dynamics"]) == 2, "one proxy a seed, which all methods read"
    chosen = [step["inputs"] for step in steps if step["task"] == "select" and step["inputs"]["method"] == "d2"]
    assert {step["params"]["neighbours"] for step in chosen} == {3}
    assert {step["seed"] for step in chosen} == {0, 1}, "the seed decides the selection, too"
    stem = result.meta["report"].removesuffix(".html")
    report = store().read(result.meta["report"]).decode()
    for heading in ("Accuracy", "Ranks and costs", "Proxy training", "Cost", "Provenance"):
        assert f">{heading}</h2>" in report, heading
    rows = list(csv.DictReader(io.StringIO(store().read(f"{stem}.csv").decode())))
    assert [(row["method"], float(row["fraction"])) for row in rows if row["method"] == "d2"] == [("d2", 0.1), ("d2", 0.2)]
    assert all(float(row["selection_seconds"]) > 0 for row in rows)
    assert "| d2 |" in store().read(f"{stem}.md").decode()
    before = {step["key"] for step in provenances()}
    assert run(methods=("random", "d2", "top:el2n", "full"), params={"d2": {"neighbours": 3}}).digest == result.digest
    assert {step["key"] for step in provenances()} == before


@pytest.mark.server
@pytest.mark.usefixtures("flow_runs")
@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"methods": ()}, BadInput, "methods is empty"),
        ({"methods": ("random", "random")}, BadInput, "names 'random' twice"),
        ({"methods": ("randm",)}, UnknownName, "Did you mean 'random'"),
        ({"methods": ("random",), "params": {"d2": {"neighbours": 3}}}, BadInput, "not among the methods"),
        ({"methods": ("d2",), "params": {"d2": {"neighbors": 3}}}, BadInput, "d2 has no parameter 'neighbors'"),
        ({"methods": ("random:aum",)}, BadInput, "does not select by a score"),
    ],
)
def test_bad_input(parameters, error, message):
    with pytest.raises(error, match=message):
        run(**parameters)
    assert provenances() == []


def test_presets_and_own_parameters_meet():
    mine = checks.entrants(["ccs", "d2", "random"], "cifar10", (0.1, 0.4), balanced=True, params={"ccs": {"strata": 20}}, upstream=True)
    ccs, d2, random = mine
    assert ccs.params[0.1] == {"upstream": True, "mis_ratio": 0.3, "strata": 20}
    assert ccs.params[0.4] == {"upstream": True, "strata": 20}
    assert d2.params[0.1]["neighbours"] == 5
    assert random.params[0.1] == {}
    assert all(method.balanced for method in mine)


def trial(method: str, fraction: float, seed: int, accuracy: float, **others) -> dict:
    accuracies = {"last_accuracy": accuracy, "best_accuracy": accuracy}
    return {"method": method, "fraction": fraction, "seed": seed, **accuracies, **others}


def test_ranks_are_means_over_fractions_and_seeds():
    trials = [
        trial("a", 0.1, 0, 0.9),
        trial("b", 0.1, 0, 0.8),
        trial("a", 0.3, 0, 0.7),
        trial("b", 0.3, 0, 0.95),
        trial("full", 1.0, 0, 1.0),
    ]
    assert mean_ranks(trials) == {"a": 1.5, "b": 1.5}
    costly = [{**each, "selection_seconds": 0.5, "seconds": 120.0} for each in trials]
    table = ranking_table(costly)
    assert table.columns == ("method", "mean rank", "selection", "training")
    assert table.rows[0][1:] == ("1.5", "0.5 s", "2.0 min")
    assert "full" not in {row[0] for row in table.rows}


def test_command_line_reads_lists(monkeypatch):
    seen = {}
    monkeypatch.setattr("flows.terminal.run_flow", lambda module, function, parameters, **_: seen.update(parameters) or 0)
    arguments = ["compare", "digits", "--methods", "random, d2", "--fractions", "0.1,0.3", "--seeds", "0,1", "-p", "iterations=30"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert seen == {"dataset": "digits", "methods": ["random", "d2"], "fractions": [0.1, 0.3], "seeds": [0, 1], "iterations": 30}
    wrong = CliRunner().invoke(cli.app, ["compare", "digits", "--seeds", "0,x"])
    assert isinstance(wrong.exception, BadInput)


@pytest.mark.server
@pytest.mark.usefixtures("flow_runs")
def test_deepcore_runs_one_method_with_the_published_options():
    from flows.deepcore import deepcore

    result = deepcore(
        "digits", method="deepfool", fractions=(0.1,), seeds=(0,), baselines=("random",), selection_epochs=1, selection_network="mlp",
        iterations=20, optimizer="adam", lr=0.01, nesterov=False, scheduler="step", step_size=10,
    )  # fmt: skip
    assert {(t["method"], t["samples"]) for t in result.table().to_pylist()} == {("deepfool", 144), ("random", 144)}
    steps = {step["task"]: step for step in provenances()}
    assert steps["dynamics"]["inputs"]["recipe"]["fields"]["network"] == "mlp"
    assert steps["train"]["inputs"]["recipe"]["fields"]["optimizer"] == "adam"
    scores = Artifact(**steps["deepfool"]["outputs"][0])
    assert (scores.numpy("deepfool") >= 0).all()
    chosen = [step for step in provenances() if step["task"] == "select"]
    assert all(step["inputs"]["balanced"] for step in chosen)
    with pytest.raises(BadInput, match="step_size"):
        deepcore("digits", method="random", baselines=(), scheduler="step")
