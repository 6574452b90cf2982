"""The flows, run in this process on a small scale; faults on real processes are in test_faults.py."""

from __future__ import annotations

import json

import numpy as np
import pytest

from winnow.tasks.artifacts import Artifact
from winnow.tasks.errors import BadInput, MissingLabels, UnknownName
from winnow.tasks.provenance import UNCACHED, artifact_of
from winnow.tasks.provenance import steps as recorded
from winnow.tasks.store import store

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("flow_runs")]

SMALL = {
    "fractions": (0.2,),
    "seeds": (0,),
    "heads": {"heads": 2, "epochs": 5},
    "proxy": {"epochs": 3},
    "training": {"iterations": 40},
    "mis_ratio": 0.2,
}


def run(**parameters) -> Artifact:
    from winnow.flows.elfs import elfs

    return elfs(**{"dataset": "digits", **SMALL, **parameters})


def tasks_run() -> set[str]:
    return {step["task"] for step in recorded()}


def computed() -> list[str]:
    """Tasks that a cache could have spared."""
    return [step["task"] for step in recorded() if step["version"] != UNCACHED]


def test_elfs_end_to_end():
    result = run(store_dynamics=True)
    trials = result.table().to_pylist()
    assert [(t["method"], t["fraction"], t["samples"]) for t in trials] == [
        ("elfs", 0.2, 288),
        ("random", 0.2, 288),
        ("full", 1.0, 1442),
    ]
    assert all(0 < t["last_accuracy"] <= t["best_accuracy"] <= 1 for t in trials)
    report = store().read(result.notes["report"]).decode()
    for heading in ("Accuracy", "Pseudo-labels", "Selection", "Proxy training", "Cost", "Provenance"):
        assert f">{heading}</h2>" in report, heading
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "https://" not in report
    assert {
        "load",
        "embed",
        "knn",
        "cluster",
        "kmeans",
        "dynamics",
        "select",
        "annotate",
        "train",
        "report",
    } == tasks_run()
    dynamics = next(
        Artifact(**out) for step in recorded() for out in step["outputs"] if out["kind"] == "dynamics"
    )
    assert dynamics.rows == 3 * 1442
    scores = next(
        Artifact(**out) for step in recorded() for out in step["outputs"] if out["kind"] == "scores"
    )
    margins, ids = dynamics.numpy("margin"), dynamics.numpy("id")
    total = np.zeros(1442)
    np.add.at(total, ids, margins)
    assert np.allclose(total, scores.numpy("aum"), atol=1e-4), "the stored dynamics add up to the scores"


def test_what_is_label_free_sees_no_label():
    """No artifact before annotation holds a true label; the scores are the same whatever the labels are."""
    run()
    made = {step["task"]: step for step in recorded()}
    for task in ("embed", "knn", "cluster", "dynamics"):
        text = json.dumps(made[task]["inputs"])
        for digest in (word for word in text.split('"') if len(word) == 64):
            schema = artifact_of(digest).arrow_schema()
            assert "label" not in schema.names, (task, schema.names)


def test_again_everything_is_cached_and_other_parameters_reuse_what_they_can():
    first = run()
    before = {step["key"] for step in recorded()}
    assert run().digest == first.digest
    assert {step["key"] for step in recorded()} == before
    run(seeds=(0, 1), fractions=(0.2, 0.4))
    new = [step for step in recorded() if step["key"] not in before]
    assert {step["task"] for step in new} == {"select", "annotate", "train", "report"}
    assert len([step for step in new if step["task"] == "train"]) == 2 * 2 * 2 + 2 - 3


def test_mis_ratio_is_searched_without_labels():
    result = run(mis_ratio="auto", fractions=(0.7,), baselines=("random",))
    searched = [step for step in recorded() if step["task"] == "train"]
    assert len(searched) == 4 + 2  # the grid at 70 %, then elfs and random
    report = store().read(result.notes["report"]).decode()
    assert "Search for mis_ratio" in report
    assert "No true label was used" in report


def test_upstream_says_that_it_saw_test_labels():
    result = run(upstream=True, heads={"heads": 2, "epochs": 41})
    report = store().read(result.notes["report"]).decode()
    assert "chosen by TEST LABELS" in report
    assert "(upstream=True)" in report
    labels = next(
        Artifact(**out) for step in recorded() for out in step["outputs"] if out["facts"].get("oracle")
    )
    assert labels.facts["oracle"] is True


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_own_embeddings_and_pseudo_labels(tmp_path, suffix):
    from winnow.tasks.data.load import load_split

    train = load_split("digits", "train")
    pixels = train.images.read(slice(None)).reshape(len(train), -1).astype(np.float32)
    clusters = train.truth.astype(np.int32)
    paths = {}
    for name, column, values in (("embeddings", "vector", pixels), ("pseudo_labels", "cluster", clusters)):
        paths[name] = path = str(tmp_path / f"{name}{suffix}")
        if suffix == ".npy":
            np.save(path, values)
        elif suffix == ".npz":
            np.savez(path, **{column: values})
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            shuffle = np.random.default_rng(0).permutation(len(values))
            moved = values[shuffle]
            stored = (
                moved if moved.ndim == 1 else pa.FixedSizeListArray.from_arrays(moved.ravel(), moved.shape[1])
            )
            pq.write_table(pa.table({"id": train.ids[shuffle], column: stored}), path)
    run(embeddings=paths["embeddings"], baselines=("random",))
    assert "embed" not in tasks_run()
    run(pseudo_labels=paths["pseudo_labels"], baselines=("random",))
    brought = [step for step in recorded() if step["task"] == "dynamics"]
    assert len(brought) == 2


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"dataset": "digit"}, UnknownName, "Did you mean 'digits'"),
        ({"embedder": "patchs"}, UnknownName, "Did you mean 'patches'"),
        ({"training": {"network": "convnt", "iterations": 4}}, UnknownName, "Did you mean 'convnet'"),
        ({"baselines": ("randm",)}, UnknownName, "Did you mean 'random'"),
        ({"score": "margin"}, BadInput, "score = 'margin'"),
        ({"device": "tpu9"}, BadInput, "not a device"),
        ({"fractions": ()}, BadInput, "fractions is empty"),
        ({"fractions": (0.2, 0.2)}, BadInput, "names 0.2 twice"),
        ({"fractions": (0.9,), "mis_ratio": 0.2}, BadInput, "cannot be kept"),
        ({"mis_ratio": {0.5: 0.1}}, BadInput, "not among the fractions"),
        ({"neighbours": 1442}, BadInput, "neighbours = 1442"),
        ({"fractions": (0.0001,)}, BadInput, "keeps none"),
        ({"embeddings": "nowhere.npy"}, BadInput, "no such file"),
        ({"training": {"iterations": 10, "epochs": 2}}, BadInput, "training: iterations and epochs are both"),
        ({"training": {"epoch": 2}}, BadInput, "training has no field 'epoch'. Did you mean 'epochs'"),
        ({"proxy": {"scheduler": "multistep"}}, BadInput, "proxy: milestones and scheduler='multistep'"),
        ({"heads": {"beta": 2}}, BadInput, "heads.beta: Input should be less than or equal to 1"),
        ({"dataset_options": {"verify": True}}, BadInput, "no option 'verify'"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(parameters, error, message):
    with pytest.raises(error, match=message):
        run(**parameters)
    assert computed() == [], "nothing was computed"


def test_embeddings_with_nan_are_refused(tmp_path):
    vectors = np.ones((1442, 4), np.float32)
    vectors[17, 2] = np.nan
    np.save(tmp_path / "v.npy", vectors)
    with pytest.raises(BadInput, match="row 17, column 2 is nan"):
        run(embeddings=str(tmp_path / "v.npy"))
    np.save(tmp_path / "v.npy", vectors[:10])
    with pytest.raises(BadInput, match="10 rows for 1,442 samples"):
        run(embeddings=str(tmp_path / "v.npy"))


def test_unlabelled_data_is_refused_with_a_reason(tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for i in range(12):
            (tmp_path / split).mkdir(exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)).save(
                tmp_path / split / f"{i}.png"
            )
    with pytest.raises(MissingLabels, match="no labels"):
        run(dataset=f"imagefolder:{tmp_path}")


def test_what_an_earlier_version_left_is_told_once(old_store, caplog):
    run(baselines=("random",))
    (told,) = [text for text in caplog.messages if "earlier version" in text]
    assert told.startswith(f"{old_store} holds 1 result of an earlier version of Winnow")
    assert "`winnow cache gc` deletes them" in told
    assert not [record for record in caplog.records if record.name == "winnow.tasks.cache"]


def test_a_store_that_cannot_be_reached_ends_a_flow_in_a_line(monkeypatch):
    """Whoever starts it: a worker, a script or `winnow run`."""
    from winnow.flows.elfs import elfs

    monkeypatch.setenv("WINNOW_STORE", "memory://unreachable")

    def refuse(*_, **__):
        raise ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 9)")

    monkeypatch.setattr(store().fs, "pipe_file", refuse)
    state = elfs("digits", **SMALL, return_state=True)
    assert state.is_failed()
    assert "StoreUnusable: Cannot use the store memory://unreachable: ConnectionRefusedError" in state.message
    assert "next: check the address, the network and the credentials" in state.message
    assert len(state.message.splitlines()) <= 4, state.message


def test_a_report_on_an_object_store_has_an_address(monkeypatch, tmp_path, caplog, capsys):
    from collections import Counter

    from rich.console import Console

    from winnow.flows.terminal import _facts, _show_result

    monkeypatch.setenv("WINNOW_STORE", "memory://bucket/store")
    monkeypatch.setenv("WINNOW_CACHE", str(tmp_path / "cache"))
    with caplog.at_level("INFO", logger="winnow"):
        result = run(baselines=("random",))
    address = f"report: memory:///bucket/store/{result.notes['report']}"
    assert address in caplog.messages
    _show_result(Console(), result, _facts("elfs", result, Counter(), 1.0))
    assert address in capsys.readouterr().out.splitlines()


@pytest.mark.gpu
def test_elfs_on_a_gpu():
    result = run(device="cuda")
    assert all(t["last_accuracy"] > 0.3 for t in result.table().to_pylist())
    made = {step["task"]: step for step in recorded()}
    assert "CPU" not in made["cluster"]["device"]
