"""The comparison of methods: a real run in this process, in small; its table, ranks, costs and checks."""

from __future__ import annotations

import csv
import importlib
import inspect
import io

import numpy as np
import pytest
from typer.testing import CliRunner

from winnow.flows import cli, comparison
from winnow.flows.experiment import experiment
from winnow.flows.forms import value_at
from winnow.flows.methods import Method
from winnow.tasks.artifacts import Artifact
from winnow.tasks.errors import BadInput, UnknownName
from winnow.tasks.provenance import UNCACHED, artifact_of
from winnow.tasks.provenance import steps as recorded
from winnow.tasks.registry import selectors
from winnow.tasks.report.statistics import mean_ranks
from winnow.tasks.report.tables import comparison_table
from winnow.tasks.store import store

SMALL = {
    "dataset": "digits",
    "fractions": (0.1, 0.2),
    "seeds": (0, 1),
    "proxy": {"epochs": 2},
    "training": {"iterations": 20},
}


def run(**parameters) -> Artifact:
    from winnow.flows.compare import compare

    return compare(**{**SMALL, **parameters})


@pytest.mark.server
@pytest.mark.usefixtures("flow_runs")
def test_end_to_end():
    result = run(methods=("random", "d2", "top:el2n", "full"), params={"d2": {"neighbours": 3}})
    trials = result.table().to_pylist()
    assert len(trials) == 2 * (3 * 2 + 1)
    assert {(t["method"], t["fraction"], t["samples"]) for t in trials} == {
        *(
            (name, fraction, int(1442 * fraction))
            for name in ("random", "d2", "top:el2n")
            for fraction in (0.1, 0.2)
        ),
        ("full", 1.0, 1442),
    }
    steps = recorded()
    assert len([step for step in steps if step["task"] == "dynamics"]) == 2, (
        "one proxy a seed, which all methods read"
    )
    chosen = [
        step["inputs"] for step in steps if step["task"] == "select" and step["inputs"]["method"] == "d2/1"
    ]
    assert {step["params"]["neighbours"] for step in chosen} == {3}
    assert {step["seed"] for step in chosen} == {0, 1}, "the seed decides the selection, too"
    stem = result.notes["report"].removesuffix(".html")
    report = store().read(result.notes["report"]).decode()
    for heading in ("Accuracy", "Best epoch", "Proxy training", "Cost", "Provenance"):
        assert f">{heading}</h2>" in report, heading
    rows = list(csv.DictReader(io.StringIO(store().read(f"{stem}.csv").decode())))
    assert [(row["method"], float(row["fraction"])) for row in rows if row["method"] == "d2"] == [
        ("d2", 0.1),
        ("d2", 0.2),
    ]
    assert all(float(row["selection_seconds"]) > 0 for row in rows)
    assert "| d2 |" in store().read(f"{stem}.md").decode()
    before = {step["key"] for step in recorded()}
    assert (
        run(methods=("random", "d2", "top:el2n", "full"), params={"d2": {"neighbours": 3}}).digest
        == result.digest
    )
    assert {step["key"] for step in recorded()} == before


@pytest.mark.server
@pytest.mark.usefixtures("flow_runs")
@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"methods": ()}, BadInput, "methods is empty"),
        ({"methods": ("random", "random")}, BadInput, "names 'random' twice"),
        ({"methods": ("randm",)}, UnknownName, "Did you mean 'random'"),
        ({"methods": ("random",), "params": {"d2": {"neighbours": 3}}}, BadInput, "not among the methods"),
        (
            {"methods": ("d2",), "params": {"d2": {"neighbors": 3}}},
            BadInput,
            "d2 has no parameter 'neighbors'",
        ),
        ({"methods": ("random:aum",)}, BadInput, "does not select by a score"),
    ],
)
def test_bad_input(parameters, error, message):
    with pytest.raises(error, match=message):
        run(**parameters)
    assert recorded() == []


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.usefixtures("flow_runs")
@pytest.mark.parametrize("upstream", [False, True])
def test_every_method_runs_on_real_data(upstream):
    # the published kernels and gradients are per class, as DeepCore's default is
    result = run(
        fractions=(0.1,), seeds=(0,), training={"iterations": 5}, balanced=upstream, upstream=upstream
    )
    trials = result.table().to_pylist()
    every = [name for name in selectors.names() if name != "top"]
    assert [trial["method"] for trial in trials] == every
    others = {trial["method"] for trial in trials if trial["samples"] != 144}
    # the published gradmatch drops what it weighs 0, the published moderate rounds twice
    assert {"full"} <= others <= {"full", *(("gradmatch", "moderate") if upstream else ())}
    report = store().read(result.notes["report"]).decode()
    assert all(f">{name}<" in report for name in every)


@pytest.mark.server
@pytest.mark.usefixtures("flow_runs")
def test_elfs_on_pseudo_labels_of_ones_own(tmp_path):
    path = tmp_path / "clusters.npy"
    np.save(path, np.random.default_rng(0).integers(0, 10, 1442))
    run(methods=("random", "elfs"), fractions=(0.1,), seeds=(0,), pseudo_labels=str(path))
    assert {"embed", "cluster"}.isdisjoint(step["task"] for step in recorded())
    (chosen,) = (
        step["inputs"]
        for step in recorded()
        if step["task"] == "select" and step["inputs"]["method"] == "elfs/1"
    )
    assert artifact_of(chosen["scores"]["artifact"]).rows == 1442
    with pytest.raises(BadInput, match="no such file"):
        run(pseudo_labels=str(tmp_path / "none.npy"))


@pytest.mark.server
@pytest.mark.usefixtures("flow_runs")
def test_parts_on_several_workers_add_up_to_the_whole():
    for seed in (0, 1):
        run(methods=("random", "herding"), seeds=(seed,))
    parts = {step["key"] for step in recorded()}
    whole = run(methods=("random", "herding"))
    new = [step["task"] for step in recorded() if step["key"] not in parts and step["version"] != UNCACHED]
    assert new == ["comparison"]
    assert {trial["seed"] for trial in whole.table().to_pylist()} == {0, 1}


@pytest.mark.server
@pytest.mark.usefixtures("flow_runs")
def test_grand_is_averaged_over_proxies_of_its_own_seeds():
    run(
        fractions=(0.1,),
        seeds=(0,),
        methods=("grand", "top:grand_full", "el2n"),
        proxy={"network": "mlp", "epochs": 2},
        repeats=3,
    )
    steps = {
        task: [step for step in recorded() if step["task"] == task]
        for task in ("dynamics", "add-score", "average-score", "select")
    }
    seeds = {step["inputs"]["seed"] for step in steps["dynamics"]}
    assert len(seeds) == 3
    assert 0 in seeds
    assert len(steps["add-score"]) == 3, "the gradients of all parameters, of each proxy"
    read = {
        step["inputs"]["params"].get("score", step["inputs"]["method"].partition("/")[0]): step["inputs"][
            "scores"
        ]["artifact"]
        for step in steps["select"]
    }
    for step in steps["average-score"]:
        name, parts = (
            step["inputs"]["name"],
            [artifact_of(one["artifact"]) for one in step["inputs"]["scores"]],
        )
        mean = Artifact(**step["outputs"][0])
        assert len(parts) == 3
        np.testing.assert_allclose(
            mean.numpy(name), np.mean([one.numpy(name) for one in parts], axis=0), rtol=1e-6
        )
        np.testing.assert_array_equal(mean.numpy("aum"), parts[0].numpy("aum"))
        assert mean.digest == read[name]
    last_layer, everything = (artifact_of(read[name]).numpy(name) for name in ("grand", "grand_full"))
    assert (everything > 0).all()
    assert np.corrcoef(last_layer, everything)[0, 1] > 0.5
    assert artifact_of(read["el2n"]).digest not in {read["grand"], read["grand_full"]}


@pytest.mark.server
@pytest.mark.usefixtures("flow_runs")
def test_what_is_too_large_is_refused_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr("winnow.tasks.select.similarity.DENSE_BYTES", 2**20)
    with pytest.raises(
        BadInput, match=r"craig at 0.1 kept: the dense kernel of 1,442 samples takes(.|\n)*neighbours=100"
    ):
        run(methods=("random", "craig"))
    assert [step for step in recorded() if step["version"] != UNCACHED] == []
    sparse = contest(["craig", "facility_location", "graph_cut"], dataset="cifar10")
    assert {method.settings[0].params["neighbours"] for method in sparse} == {100}
    own = contest(["craig"], {"craig": {"neighbours": 7}}, dataset="cifar10")
    assert own[0].settings[0].params["neighbours"] == 7


def contest(names, params=None, **others) -> list[Method]:
    arguments = {
        "fractions": (0.1,),
        "seeds": (0,),
        "balanced": False,
        "device": "cpu",
        "upstream": False,
        "repeats": 1,
    }
    return comparison.contest(experiment("compare", arguments | others), names, params or {})


def test_presets_and_own_parameters_meet():
    mine = contest(
        ["ccs", "d2", "random"],
        {"ccs": {"strata": 20}},
        dataset="cifar10",
        fractions=(0.1, 0.4),
        balanced=True,
        upstream=True,
    )
    ccs, d2, random = ([dict(setting.params) for setting in method.settings] for method in mine)
    assert ccs[0] == {"upstream": True, "mis_ratio": 0.3, "strata": 20}
    assert ccs[1] == {"upstream": True, "strata": 20}
    assert d2[0]["neighbours"] == 5
    assert random[0] == {}
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
    table = comparison_table(costly)
    assert table.columns == (
        "method",
        "10 % kept",
        "30 % kept",
        "100 % kept",
        "rank",
        "selection",
        "training",
    )
    assert table.rows[0] == ("a", "90.0", "70.0", "–", "1.5", "0.5 s", "2.0 min")
    assert table.rows[2] == ("full", "–", "–", "100.0", "–", "0.5 s", "2.0 min")
    assert table.bold == {(0, 1), (1, 2)}
    assert comparison_table(trials).columns[-1] == "rank", "no column of what nobody knows"


def test_what_differs_from_random_is_marked():
    spread = (0.0, 0.01, 0.02)
    trials = [trial("random", 0.1, seed, 0.8 + more) for seed, more in enumerate(spread)]
    trials += [trial("good", 0.1, seed, 0.9 + more + 0.001 * seed) for seed, more in enumerate(spread)]
    trials += [trial("bad", 0.1, seed, 0.7 + more + 0.001 * seed) for seed, more in enumerate(spread)]
    trials += [trial("alike", 0.1, seed, 0.8 + more + 0.05 * (seed - 1)) for seed, more in enumerate(spread)]
    cells = {row[0]: row[1] for row in comparison_table(trials).rows}
    assert {name: text[-1] if text[-1] in "↑↓" else "" for name, text in cells.items()} == {
        "good": "↑",
        "alike": "",
        "random": "",
        "bad": "↓",
    }


def test_command_line_reads_lists(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "winnow.flows.terminal.run_flow", lambda flow, base, parameters, **_: seen.update(parameters) or 0
    )
    arguments = [
        "compare",
        "digits",
        "--methods",
        "random, d2",
        "--fractions",
        "0.1,0.3",
        "--seeds",
        "0,1",
        "-p",
        "training.iterations=30",
    ]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert seen == {
        "dataset": "digits",
        "methods": ["random", "d2"],
        "fractions": [0.1, 0.3],
        "seeds": [0, 1],
        "training": {"iterations": 30},
    }
    wrong = CliRunner().invoke(cli.app, ["compare", "digits", "--seeds", "0,x"])
    assert isinstance(wrong.exception, BadInput)


@pytest.mark.server
@pytest.mark.usefixtures("flow_runs")
def test_deepcore_runs_one_method_with_the_published_options():
    from winnow.flows.deepcore import deepcore

    result = deepcore(
        "digits",
        method="deepfool",
        fractions=(0.1,),
        seeds=(0,),
        baselines=("random",),
        proxy={"epochs": 1, "network": "mlp"},
        training={
            "iterations": 20,
            "optimizer": "adam",
            "lr": 0.01,
            "nesterov": False,
            "scheduler": "step",
            "step_size": 10,
            "test_interval": 10,
        },
    )
    assert {(t["method"], t["samples"]) for t in result.table().to_pylist()} == {
        ("deepfool", 144),
        ("random", 144),
    }
    steps = {step["task"]: step for step in recorded()}
    assert steps["dynamics"]["inputs"]["recipe"]["recipe"]["fields"]["network"] == "mlp"
    assert steps["train"]["inputs"]["recipe"]["recipe"]["fields"]["optimizer"] == "adam"
    history = Artifact(**steps["train"]["outputs"][0]).table().to_pylist()
    assert [row["step"] for row in history if row["split"] == "test"] == [9, 18, 20]  # 3 steps an epoch
    scores = Artifact(**steps["add-score"]["outputs"][0])
    assert (scores.numpy("deepfool") >= 0).all()
    chosen = [step for step in recorded() if step["task"] == "select"]
    assert all(step["inputs"]["balanced"] for step in chosen)
    with pytest.raises(BadInput, match="step_size"):
        deepcore("digits", method="random", baselines=(), training={"scheduler": "step"})


@pytest.mark.parametrize(
    ("flow", "name", "value"),
    [
        ("elfs", "mis_ratio", 0.25),
        ("ccs", "mis_ratio", 0.1),
        ("d2", "gamma_reverse", 0.0),
        ("d2", "neighbours", 5),
        ("d2", "mis_ratio", 0.2),
    ],
)
def test_a_preset_s_table_is_for_the_preset_s_score(flow, name, value):
    """Unless the user gives the values: those of one score say nothing about another."""
    function = getattr(importlib.import_module(f"winnow.flows.{flow}"), flow).fn
    arguments = {p.name: p.default for p in inspect.signature(function).parameters.values()}
    arguments |= {"dataset": "digits", "fractions": (0.1,)}
    assert value_at(experiment(flow, arguments).values[name], 0.1) == value
    assert value_at(experiment(flow, arguments | {"score": "entropy"}).values.get(name), 0.1) == "auto"
    given = {"score": "entropy", name: value}
    assert value_at(experiment(flow, arguments | given).values[name], 0.1) == value
