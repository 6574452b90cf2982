"""The labelled flows, ccs and d2, in small: real runs in this process on a store of their own."""

from __future__ import annotations

import numpy as np
import pytest

from winnow.tasks.artifacts import Artifact
from winnow.tasks.errors import BadInput, UnknownName
from winnow.tasks.provenance import UNCACHED, artifact_of
from winnow.tasks.provenance import steps as recorded
from winnow.tasks.store import store

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("flow_runs")]

SMALL = {
    "dataset": "digits",
    "fractions": (0.2,),
    "seeds": (0,),
    "proxy": {"epochs": 3},
    "training": {"iterations": 40},
}
KNOWN = {"ccs": {"mis_ratio": 0.1}, "d2": {"mis_ratio": 0.1, "neighbours": 5, "gamma_reverse": 0.1}}


def run(method: str, **parameters) -> Artifact:
    from winnow.flows.ccs import ccs
    from winnow.flows.d2 import d2

    return {"ccs": ccs, "d2": d2}[method](**{**SMALL, **KNOWN[method], **parameters})


def made(task: str) -> list[dict]:
    return [step for step in recorded() if step["task"] == task]


@pytest.mark.parametrize("method", ["ccs", "d2"])
def test_end_to_end_with_every_baseline(method):
    result = run(method)
    trials = result.table().to_pylist()
    names = {"ccs": ["random", "aum", "forgetting", "el2n", "top:final_entropy", "full"]}.get(
        method, ["random", "ccs", "aum", "forgetting", "el2n", "moderate", "prototypicality", "badge", "full"]
    )
    assert [trial["method"] for trial in trials] == [method, *names]
    assert {trial["samples"] for trial in trials} == {288, 1442}
    report = store().read(result.notes["report"]).decode()
    for heading in ("Accuracy", "Selection", "Proxy training", "Cost", "Provenance"):
        assert f">{heading}</h2>" in report, heading
    assert "Pseudo-labels" not in report
    scores = Artifact(
        **next(out for step in made("dynamics") for out in step["outputs"] if out["kind"] == "scores")
    )
    assert {"aum", "el2n", "forgetting", "grand", "final_entropy", "final_loss", "final_confidence"} <= set(
        scores.arrow_schema().names
    )
    assert np.isfinite(scores.numpy("grand")).all()
    before = {step["key"] for step in recorded()}
    assert run(method).digest == result.digest
    assert {step["key"] for step in recorded()} == before, "again, everything comes from the cache"


@pytest.mark.parametrize("method", ["ccs", "d2"])
def test_search_is_judged_on_training_samples(method):
    grid = {"ccs": {"mis_ratio": "auto"}, "d2": {"gamma_reverse": "auto"}}[method]
    result = run(method, **grid, baselines=("random",), search_iterations=10)
    tried = {"ccs": 6, "d2": 3}[method]
    trained = made("train")
    assert len(trained) == tried + 2
    held = {
        output["digest"]
        for step in made("hold-out")
        for output in step["outputs"]
        if output["facts"]["method"] == "hold-out held"
    }
    assert sum(step["inputs"]["evaluation"]["artifact"] in held for step in trained) == tried
    assert f"Search for {next(iter(grid))} at 20 % kept" in store().read(result.notes["report"]).decode()


@pytest.mark.parametrize("method", ["ccs", "d2"])
def test_pseudo_labels_make_it_label_free(method, tmp_path):
    clusters = np.random.default_rng(0).integers(0, 10, 1442).astype(np.int32)
    np.save(tmp_path / "clusters.npy", clusters)
    result = run(method, labels="pseudo", pseudo_labels=str(tmp_path / "clusters.npy"), baselines=("random",))
    for task in ("dynamics", "select"):
        for step in made(task):
            labels = step["inputs"]["labels"]
            if labels is not None:
                assert artifact_of(labels["artifact"]).kind == "pseudo_labels", task
    report = store().read(result.notes["report"]).decode()
    assert "without labels" in report
    assert ">Pseudo-labels</h2>" in report


def test_upstream_scores_images_as_published():
    run("ccs", baselines=("random",))
    run("ccs", baselines=("random",), upstream=True)
    ours, theirs = (
        Artifact(**next(out for out in step["outputs"] if out["kind"] == "scores"))
        for step in sorted(made("dynamics"), key=lambda step: not step["inputs"]["normalised"])
    )
    assert np.array_equal(ours.numpy("aum"), theirs.numpy("aum")), "the training is the same"
    assert not np.allclose(ours.numpy("final_entropy"), theirs.numpy("final_entropy"))


def test_d2_reads_the_embedder_that_is_asked_for(tmp_path):
    run("d2", embedder="pixels", baselines=("random",))
    assert made("embed")
    vectors = np.random.default_rng(0).normal(size=(1442, 8)).astype(np.float32)
    np.save(tmp_path / "own.npy", vectors)
    run("d2", embeddings=str(tmp_path / "own.npy"), baselines=("random",), graph_mode="per_class")
    assert made("bring-embeddings")


@pytest.mark.parametrize(
    ("method", "parameters", "error", "message"),
    [
        ("ccs", {"dataset": "digit"}, UnknownName, "Did you mean 'digits'"),
        ("ccs", {"score": "margin"}, BadInput, "score = 'margin'"),
        ("ccs", {"mis_ratio": 0.9}, BadInput, "cannot be kept"),
        ("ccs", {"baselines": ("ccs",)}, BadInput, "names ccs itself"),
        ("ccs", {"baselines": ("random:aum",)}, BadInput, "does not select by a score"),
        ("ccs", {"baselines": ("top:margin",)}, BadInput, "score = 'margin'"),
        ("ccs", {"pseudo_labels": "clusters.npy"}, BadInput, "labels = 'true'"),
        ("ccs", {"labels": "pseudo", "pseudo_labels": "clusters.npy"}, BadInput, "no such file"),
        ("d2", {"neighbours": 1442}, BadInput, "neighbours = 1442"),
        ("d2", {"neighbours": {0.3: 5}}, BadInput, "not among the fractions"),
        ("d2", {"embedder": "patchs"}, UnknownName, "Did you mean 'patches'"),
        ("d2", {"embedder": "pixels", "embeddings": "x.npy"}, BadInput, "no such file"),
        ("d2", {"seeds": ()}, BadInput, "seeds is empty"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(method, parameters, error, message):
    with pytest.raises(error, match=message):
        run(method, **parameters)
    assert [step for step in recorded() if step["version"] != UNCACHED] == []
