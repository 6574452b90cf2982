"""``winnow select``: a pool in, a list out, in small: real runs on pools made from digits."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import winnow
from winnow.flows.select_cli import budget_of
from winnow.tasks import lists
from winnow.tasks.data.load import load_split
from winnow.tasks.errors import BadInput, MissingSignal, UnknownName
from winnow.tasks.provenance import steps as recorded
from winnow.tasks.select.receipt import read_receipt, receipt_of, verify, why

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("flow_runs")]

N = 120


@pytest.fixture
def pool(tmp_path):
    """A flat folder of images with odd names."""
    digits = load_split("digits", "train")
    folder = tmp_path / "pool"
    folder.mkdir()
    for row in range(N):
        Image.fromarray(digits.images.array[row, ..., 0]).save(folder / f"im #{row:03} ü.png")
    return folder


@pytest.fixture
def arrays(tmp_path):
    """A pool of which only embeddings are known."""
    features = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", features)
    return tmp_path / "x.npy", features


def choose(pool, **parameters):
    from winnow.flows.select import select

    return select(pool=str(pool), **parameters)


def rows_in(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def made(task):
    return [step for step in recorded() if step["task"] == task]


def test_a_list_of_files_with_reasons_and_a_receipt(pool, tmp_path):
    keep = tmp_path / "keep.csv"
    chosen = choose(pool, budget=20, method="k_center", embedder="pixels", output=str(keep))
    rows = rows_in(keep)
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(20)]
    assert len({row["path"] for row in rows}) == chosen.rows == 20
    assert all((pool / row["path"]).is_file() for row in rows)
    assert rows[0]["why"] == "the first, drawn at random"
    assert rows[1]["why"].startswith("farthest from all before it: ")
    assert float(rows[1]["score"]) >= float(rows[2]["score"])
    assert all(same for same, _ in verify(keep))
    assert read_receipt(keep).coreset == chosen.digest
    content = keep.read_bytes()
    choose(pool, budget=20, method="k_center", embedder="pixels", output=str(keep))
    assert keep.read_bytes() == content, "the same bytes on a rerun"
    assert len(made("select")) == 1, "from the cache"
    keep.write_bytes(content + b"\n")
    assert [line.split()[0] for same, line in verify(keep) if not same] == ["list"]
    (pool / "new.png").write_bytes((pool / rows[0]["path"]).read_bytes())
    assert [line.split()[0] for same, line in verify(keep) if not same] == ["list", "pool"]


def test_what_was_dropped_and_why(arrays, tmp_path):
    path, features = arrays
    output = tmp_path / "all.jsonl"
    choose(
        path, budget=10, method="facility_location", embeddings=str(path), output=str(output), everything=True
    )
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["kept"] for row in rows] == [True] * 10 + [False] * (N - 10)
    kept = [int(row["path"]) for row in rows[:10]]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for row in rows[10:]:
        similarity = unit[kept] @ unit[int(row["path"])]
        nearest = kept[int(similarity.argmax())]
        assert row["near"] == str(nearest)
        assert row["why"] == f"{similarity.max():.2f} similar to kept {nearest}"


def test_a_large_pool_gets_a_sparse_kernel(arrays, tmp_path, monkeypatch):
    from winnow.flows import presets

    path, features = arrays
    monkeypatch.setattr(presets, "DENSE_SAMPLES", N - 1)
    output = tmp_path / "keep.csv"
    choose(path, budget=10, embeddings=str(path), output=str(output))
    assert read_receipt(output).params == {"neighbours": 100}
    expected = winnow.select(features, "facility_location", 10, neighbours=100).indices
    assert {int(row["path"]) for row in rows_in(output)} == set(expected.tolist())
    choose(path, budget=10, embeddings=str(path), output=str(output), params={"neighbours": 5})
    assert read_receipt(output).params == {"neighbours": 5}


def test_labels_of_a_pool_reach_methods_that_only_use_them(arrays, tmp_path):
    path, _ = arrays
    rng = np.random.default_rng(3)
    np.save(tmp_path / "y.npy", rng.integers(0, 3, N))
    np.savez(tmp_path / "s.npz", aum=rng.normal(size=N))
    choose(
        path,
        budget=12,
        method="d2",
        score="aum",
        embeddings=str(path),
        scores=f"{tmp_path}/s.npz",
        params={"graph_mode": "per_class"},
        dataset_options={"labels": f"{tmp_path}/y.npy"},
        output=f"{tmp_path}/o.csv",
    )
    assert len(rows_in(tmp_path / "o.csv")) == 12


def test_why_a_sample_is_in_a_list_or_not(arrays, tmp_path):
    path, features = arrays
    output = tmp_path / "keep.csv"
    choose(path, budget=10, method="facility_location", embeddings=str(path), output=str(output))
    order = winnow.select(features, "facility_location", N).indices.tolist()
    kept = [int(row["path"]) for row in rows_in(output)]
    assert why(str(kept[3]), output)[1] == "pick 4 of 10 by facility_location"
    lines = why(str(next(row for row in order if row not in kept)), output)
    assert "similar to kept" in lines[0]
    assert "was kept at pick " in lines[1]
    assert lines[2].startswith("it would enter at pick ")
    with pytest.raises(BadInput, match="999 is not among the 120 samples"):
        why("999", output)
    receipt_of(output).write_text("{}")
    with pytest.raises(BadInput, match="is not a receipt"):
        why("1", output)
    receipt_of(output).unlink()
    with pytest.raises(BadInput, match=r"keep\.csv\.receipt\.json: no such file"):
        why("1", output)


def test_the_next_round_goes_on_from_what_is_there(arrays, tmp_path):
    path, _ = arrays
    for name, budget, already in (("one", 8, None), ("both", 16, None), ("two", 8, "one")):
        choose(
            path,
            budget=budget,
            method="k_center",
            embeddings=str(path),
            output=f"{tmp_path}/{name}.csv",
            already=None if already is None else f"{tmp_path}/{already}.csv",
        )
    listed = {
        name: [row["path"] for row in rows_in(tmp_path / f"{name}.csv")] for name in ("one", "both", "two")
    }
    assert listed["one"] + listed["two"] == listed["both"]


def test_scores_of_ones_own(arrays, tmp_path):
    path, _ = arrays
    scores = np.random.default_rng(1).normal(size=N)
    np.savez(tmp_path / "s.npz", aum=scores, words=np.array(["a"] * N))
    choose(path, budget=5, method="aum", scores=f"{tmp_path}/s.npz", output=f"{tmp_path}/o.csv")
    rows = rows_in(tmp_path / "o.csv")
    assert [int(row["path"]) for row in rows] == np.argsort(scores)[:5].tolist()
    assert rows[0]["why"].startswith("harder than 99 %, aum ")


def test_logits_of_ones_own_training(arrays, tmp_path):
    path, _ = arrays
    rng = np.random.default_rng(2)
    labels, logits = rng.integers(0, 4, N), rng.normal(size=(3, N, 4)).astype(np.float32)
    np.save(tmp_path / "y.npy", labels)
    np.save(tmp_path / "z.npy", logits)
    choose(
        path,
        budget=6,
        method="elfs",
        logits=f"{tmp_path}/z.npy",
        dataset_options={"labels": f"{tmp_path}/y.npy"},
        output=f"{tmp_path}/o.csv",
    )
    shifted = logits - logits.max(axis=2, keepdims=True)
    probs = np.exp(shifted) / np.exp(shifted).sum(axis=2, keepdims=True)
    own = np.take_along_axis(probs, np.broadcast_to(labels[None, :, None], (3, N, 1)), 2)[..., 0]
    np.put_along_axis(probs, np.broadcast_to(labels[None, :, None], (3, N, 1)), -1, 2)
    margin = (own - probs.max(axis=2)).sum(axis=0)
    assert {int(row["path"]) for row in rows_in(tmp_path / "o.csv")} == set(np.argsort(margin)[:6].tolist())


def test_elfs_without_labels_on_a_folder(pool, tmp_path):
    small = {"heads": 2, "epochs": 5, "batch_size": 64, "hidden": 16, "bottleneck": 8}
    proxy = {"network": "convnet", "epochs": 2, "batch_size": 32}
    choose(
        pool,
        budget=0.1,
        method="elfs",
        embedder="pixels",
        clusters=4,
        neighbours=5,
        heads=small,
        proxy=proxy,
        params={"mis_ratio": 0.2},
        output=f"{tmp_path}/o.csv",
        everything=True,
    )
    rows = rows_in(tmp_path / "o.csv")
    assert sum(row["kept"] == "True" for row in rows) == 12
    mislabelled = [row for row in rows if row["why"].startswith("likely mislabelled, among the 24 hardest")]
    assert len(mislabelled) == 24
    assert all("harder than" in row["why"] or "easier than" in row["why"] for row in rows[:12])


def test_links(pool, tmp_path):
    picked = tmp_path / "picked"
    choose(pool, budget=5, method="random", link=str(picked), output=f"{tmp_path}/o.txt")
    names = (tmp_path / "o.txt").read_text().splitlines()
    assert sorted(os.listdir(picked)) == sorted(names)
    assert all((picked / name).is_symlink() and (picked / name).read_bytes() for name in names)
    choose(pool, budget=5, method="random", link=str(picked))
    other = picked / names[0]
    other.unlink()
    other.write_bytes(b"someone else's")
    with pytest.raises(BadInput, match="is there already, and is not"):
        choose(pool, budget=5, method="random", link=str(picked))
    assert other.read_bytes() == b"someone else's"


@pytest.mark.parametrize("kind", [name for name in lists.FORMATS if name not in ("csv", "jsonl", "txt")])
def test_every_format(pool, tmp_path, kind):
    output = tmp_path / f"o{lists.FORMATS[kind][0]}"
    choose(pool, budget=4, method="random", output=str(output), output_format=kind)
    text = output.read_bytes()
    if kind == "tsv":
        names = [row["path"] for row in csv.DictReader(text.decode().splitlines(), delimiter="\t")]
    elif kind == "parquet":
        names = pq.read_table(output).column("path").to_pylist()
    elif kind == "label-studio":
        tasks = json.loads(text)
        names = [task["data"]["path"] for task in tasks]
        assert all(task["data"]["image"].endswith(name) for task, name in zip(tasks, names, strict=True))
    elif kind == "cvat":
        names = [image.get("name") for image in ElementTree.fromstring(text).iter("image")]
    elif kind == "coco":
        names = [image["file_name"] for image in json.loads(text)["images"]]
    else:
        names = [
            os.path.relpath(line, pool) if kind == "yolo" else line for line in text.decode().splitlines()
        ]
    assert len(set(names)) == 4
    assert all((pool / name).is_file() for name in names)


def test_the_python_call(pool):
    names = sorted(path.name for path in pool.iterdir())
    chosen = winnow.select(pool, "k_center", 6, embedder="pixels", already=[names[3], names[50]])
    features = winnow.embed(load_split(f"pool:{pool}").images, "pixels").astype(np.float16)
    expected = winnow.select(features, "k_center", 6, already=np.array([3, 50]))
    assert not {3, 50} & set(chosen.indices.tolist())
    assert set(chosen.indices.tolist()) == set(expected.indices.tolist())


BAD = {
    "budget": ({"budget": N + 1}, BadInput, f"budget = {N + 1} samples of {N}"),
    "fraction": ({"budget": 0.001}, BadInput, "keeps none"),
    "method": ({"method": "k_centre"}, UnknownName, "Did you mean 'k_center'"),
    "parameter": ({"params": {"metrik": 1}}, BadInput, "Did you mean 'metric'"),
    "embedder": ({"embedder": "pixel"}, UnknownName, "Did you mean 'pixels'"),
    "output suffix": ({"output": "keep.xls"}, BadInput, r"\.xls suffix"),
    "output folder": ({"output": "/no/such/folder/keep.csv"}, BadInput, "there is no folder /no/such/folder"),
    "output format": ({"output": "keep.json", "output_format": "cocoa"}, BadInput, "Did you mean 'coco'"),
    "format of nothing": ({"output_format": "coco"}, BadInput, "but no output"),
    "suffix of format": (
        {"output": "keep.csv", "output_format": "coco"},
        BadInput,
        r"written to a \.json file",
    ),
    "already": ({"already": "nothing.csv"}, BadInput, r"already: nothing\.csv: no such file"),
    "embeddings": ({"embeddings": "nothing.npy"}, BadInput, r"embeddings: nothing\.npy: no such file"),
    "scores": ({"scores": "nothing.npy"}, BadInput, r"scores: nothing\.npy: no such file"),
    "both": (
        {"embeddings": "x.npy", "embedder": "pixels"},
        BadInput,
        "embedder and embeddings are both given",
    ),
    "labels": ({"method": "elfs"}, BadInput, "needs labels or pseudo-labels"),
    "balanced": ({"method": "random", "balanced": True}, BadInput, "needs labels or pseudo-labels"),
    "mis_ratio": (
        {"method": "elfs", "budget": 0.9, "params": {"mis_ratio": 0.5}},
        BadInput,
        "cannot be kept",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_computed(pool, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((N, 2)))
    parameters, error, message = BAD[name]
    defaults = {"method": "k_center", "budget": 10}
    if "embeddings" not in parameters and "embedder" not in parameters:
        defaults["embedder"] = "pixels"
    with pytest.raises(error, match=message):
        choose(pool, **{**defaults, **parameters})
    assert not [step for step in recorded() if step["task"] not in ("load", "bring-already")]
    assert not Path("keep.csv").exists()


def test_an_array_pool_without_embeddings_says_so(arrays):
    with pytest.raises(BadInput, match="holds arrays, no images"):
        choose(arrays[0], budget=5, method="k_center", embedder="pixels")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path\nnobody.png\n", r"nobody\.png \(row 0\) is not among the 120 samples"),
        ("path\n", "lists nothing"),
        ("name\nnobody.png\n", "nobody"),
    ],
)
def test_lists_of_what_is_there_that_do_not_fit(pool, tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(BadInput, match=message):
        choose(pool, budget=5, method="random", already=f"{tmp_path}/a.csv")


def test_already_twice(pool, tmp_path):
    name = sorted(path.name for path in pool.iterdir())[0]
    (tmp_path / "a.txt").write_text(f"{name}\n{name}\n")
    with pytest.raises(BadInput, match="is listed twice, in rows 0 and 1"):
        choose(pool, budget=5, method="random", already=f"{tmp_path}/a.txt")


def test_budgets_in_words():
    assert [budget_of(text) for text in ("7", "0.5", "50%", "1")] == [7, 0.5, 0.5, 1]
    with pytest.raises(BadInput, match="--budget many"):
        budget_of("many")


def test_signals_that_nothing_makes():
    with pytest.raises(MissingSignal):
        winnow.select(np.zeros((4, 2)), "aum", 2)
