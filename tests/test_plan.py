"""Dry runs: what is cached, what is to do, what it will take, whether it fits; and nothing is computed."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from winnow.flows import cli
from winnow.flows.plan import Plan, Step, check_room, plan_of
from winnow.tasks import provenance
from winnow.tasks.errors import BadInput, TooLarge
from winnow.tasks.registry import loaded
from winnow.tasks.store import store

pytestmark = pytest.mark.usefixtures("same_environment")

runner = CliRunner()

SMALL = {
    "dataset": "digits",
    "fractions": (0.2,),
    "seeds": (0,),
    "proxy": {"epochs": 2},
    "training": {"iterations": 10},
}


def flow_of(name: str):
    return loaded(f"winnow.flows.{name}:{name}")


def planned(name: str, **parameters) -> Plan:
    flow = flow_of(name)
    return plan_of(flow, flow.validate_parameters(parameters))


def states(plan: Plan) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for step in plan.steps:
        found.setdefault(step.state, set()).add(step.task)
    return found


def computed() -> set[str]:
    return {step["key"] for step in provenance.steps() if step["version"] != provenance.UNCACHED}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("elfs", {"mis_ratio": "auto", "heads": {"heads": 2, "epochs": 2}}),
        ("ccs", {"baselines": ("random", "aum")}),
        ("d2", {"labels": "pseudo", "heads": {"heads": 2, "epochs": 2}}),
        ("deepcore", {"method": "craig"}),
        ("compare", {"methods": ("random", "moderate", "grand", "elfs"), "repeats": 2}),
    ],
)
def test_every_flow_is_planned_without_a_step(empty_store, name, parameters):
    parameters = {key: value for key, value in parameters.items() if name != "d2" or key != "heads"}
    plan = planned(name, **SMALL, **parameters)
    assert not computed()
    found = states(plan)
    assert {"dynamics", "select", "train"} <= found["to do"]
    assert {"load", "annotate", "publish"} <= found["each time"]
    assert "cached" not in found or found["cached"] <= {"select", "train", "label"}, (
        "what the run itself makes"
    )
    assert not store().names("reports")
    assert not store().names("runs")
    assert all(step.seconds is None for step in plan.left), "nothing was ever measured in this store"


@pytest.mark.server
def test_a_plan_says_what_the_run_then_does(flow_runs):
    small = {**SMALL, "baselines": ("random",)}
    before = planned("ccs", **small, mis_ratio=0.1)
    flow_of("ccs")(**small, mis_ratio=0.1)
    first = computed()
    assert len(first) == len(before.left)
    after = planned("ccs", **small, mis_ratio=0.1)
    assert after.left == []
    assert after.total()["cached"] == len(before.left)

    again = planned("ccs", **small, mis_ratio=0.2)
    assert [step.task for step in again.left] == ["select", "train", "report"]
    assert {"dynamics"} <= states(again)["cached"]
    flow_of("ccs")(**small, mis_ratio=0.2)
    assert len(computed() - first) == len(again.left)


@pytest.mark.server
def test_times_are_those_of_recorded_steps_of_the_same_kind(flow_runs):
    small = {**SMALL, "baselines": ("random",), "mis_ratio": 0.1}
    flow_of("ccs")(**small)
    measured = [step["seconds"] for step in provenance.steps() if step["task"] == "train"]
    (train, *_) = (s for s in planned("ccs", **{**small, "seeds": (1,)}).left if s.task == "train")
    assert train.runs == 2
    assert train.seconds == pytest.approx(np.median(measured), rel=1e-6)
    longer = {**small, "training": {"iterations": 30}}
    (train, *_) = (step for step in planned("ccs", **longer).left if step.task == "train")
    assert train.seconds == pytest.approx(3 * np.median(measured), rel=1e-6)
    other = {**small, "training": {"iterations": 10, "network": "lenet"}}
    (train, *_) = (step for step in planned("ccs", **other).left if step.task == "train")
    assert (train.seconds, train.runs) == (None, 0), "another network was never timed"


@pytest.mark.server
def test_a_search_is_planned_as_far_as_it_is_known(flow_runs):
    small = {**SMALL, "baselines": ("random",), "search_iterations": 5}
    before = planned("ccs", **small, mis_ratio="auto")
    flow_of("ccs")(**small, mis_ratio="auto")
    assert len(before.left) >= len(computed())
    assert planned("ccs", **small, mis_ratio="auto").left == []


@pytest.mark.server
def test_records_that_somebody_else_wrote_break_no_plan(flow_runs):
    small = {**SMALL, "baselines": ("random",), "mis_ratio": 0.1}
    flow_of("ccs")(**small)
    step = next(step for step in provenance.steps() if step["task"] == "train")
    for i, change in enumerate(
        (
            {"inputs": {**step["inputs"], "recipe": [1]}},
            {"inputs": {**step["inputs"], "recipe": {"network": 3, "recipe": 4}}},
            {"inputs": {}},
            {"seconds": -1.0},
            {"seconds": float("nan")},
            {"outputs": []},
        )
    ):
        content = {**step, "key": f"train-{i:032}", **change}
        store().write(f"provenance/train-{i:032}.json", json.dumps(content).encode())
    (train, *_) = (s for s in planned("ccs", **{**small, "seeds": (1,)}).left if s.task == "train")
    assert train.runs == 2


def test_what_a_flow_refuses_a_dry_run_refuses(empty_store):
    with pytest.raises(BadInput, match="names ccs itself"):
        planned("ccs", **SMALL, baselines=("ccs",))


def test_a_plan_that_does_not_fit_is_refused(empty_store, monkeypatch):
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    check_room(Plan((Step("embed-x", "embed", "to do", memory=pages),)))
    with pytest.raises(TooLarge, match="embed-x holds at least"):
        check_room(Plan((Step("embed-x", "embed", "to do", memory=pages + 1),)))
    check_room(Plan((Step("embed-x", "embed", "cached", memory=pages + 1),)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    check_room(Plan((Step("a", "a", "to do", disk=50), Step("b", "b", "to do", disk=50))))
    with pytest.raises(TooLarge, match="The run writes about"):
        check_room(Plan((Step("a", "a", "to do", disk=50), Step("b", "b", "to do", disk=51))))


def test_sizes_of_what_is_known(empty_store, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((500, 8, 8, 3), np.uint8))
    (embed,) = (
        step
        for step in planned(
            "select", pool=f"{tmp_path}/x.npy", method="k_center", embedder="dinov2_vits14"
        ).left
        if step.task == "embed"
    )
    assert (embed.memory, embed.disk) == (4 * 500 * 384, 2 * 500 * 384)


# -- the command line ----------------------------------------------------------------------------------------


def test_dry_run_of_the_commands(empty_store, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("fractions: [0.2]\nseeds: [0]\n")
    done = runner.invoke(cli.app, ["run", "elfs/digits", "-c", str(file), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "to do      train × 3  time unknown" in done.stdout
    assert "0 steps from the cache, 12 to do, 12 of unknown time" in done.stdout
    done = runner.invoke(cli.app, ["compare", "digits", "--methods", "random", "--dry-run", "--json"])
    facts = json.loads(done.stdout)
    assert facts["total"]["to_do"] == len([step for step in facts["steps"] if step["state"] == "to do"])
    keep = tmp_path / "keep.csv"
    done = runner.invoke(cli.app, ["select", "digits", "-m", "random", "-o", str(keep), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert not keep.exists()
    assert not computed()


def test_exit_status_3_is_what_does_not_fit(empty_store, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((33_000, 2), np.float32))
    pool = f"{tmp_path}/x.npy"
    arguments = ["select", pool, "--embeddings", pool, "-m", "facility_location", "-b", "10", "--dry-run"]
    assert runner.invoke(cli.app, arguments).exit_code == 0, "a large pool's kernel is sparse"
    done = runner.invoke(cli.app, [*arguments, "-p", "params.neighbours=null"])
    assert done.exit_code == 3, done.output
    assert "GiB" in done.stderr
    done = runner.invoke(cli.app, ["run", "ccs/digits", "-p", 'baselines=["ccs"]', "--dry-run"])
    assert done.exit_code == 1
