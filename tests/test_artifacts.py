"""The store: content-addressed, atomic, checked; damage and full disks are said, never half-read."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pytest
import torch

from winnow.tasks import artifacts
from winnow.tasks.artifacts import Artifact, ArtifactWriter, Scratch, export_table, find, store, write
from winnow.tasks.errors import ArtifactCorrupt, BadInput, StoreUnusable

pytestmark = pytest.mark.usefixtures("empty_store")


def embeddings(n: int = 20, seed: int = 0) -> Artifact:
    vectors = np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float16)
    return write("embeddings", {"id": np.arange(n), "vector": vectors}, meta={"embedder": "toy"})


def test_equal_content_has_one_file_and_one_digest():
    first, second, other = embeddings(), embeddings(), embeddings(seed=1)
    assert first.digest == second.digest != other.digest
    assert first.path() == second.path()
    assert len(store().names("objects")) == 2
    assert first.numpy("vector").shape == (20, 4)
    assert first.numpy("vector").dtype == np.float16


def test_handle_survives_json():
    first = embeddings()
    assert Artifact.model_validate_json(first.model_dump_json()) == first


def test_writing_batches_equals_writing_once():
    vectors = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float16)
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float16(), 4))])
    with ArtifactWriter("embeddings", schema) as writer:
        for start in range(0, 20, 7):
            writer.write({"id": np.arange(start, min(start + 7, 20)), "vector": vectors[start : start + 7]})
        made = writer.finish()
    assert np.array_equal(made.numpy("vector"), embeddings().numpy("vector"))
    assert sum(batch.num_rows for batch in made.batches(rows=6)) == 20


def test_a_failed_write_leaves_nothing():
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float16(), 4))])

    def interrupted() -> None:
        with ArtifactWriter("embeddings", schema) as writer:
            writer.write({"id": np.arange(3), "vector": np.zeros((3, 4), np.float16)})
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        interrupted()
    assert list(store().local_root.rglob("*.parquet")) == []
    assert list(store().local_root.rglob(".tmp-*")) == []


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
def test_damage_is_noticed_and_named(damage):
    made = embeddings()
    file = made.path()
    if damage == "delete":
        file.unlink()
    elif damage == "truncate":
        os.truncate(file, made.nbytes - 5)
    else:
        content = bytearray(file.read_bytes())
        content[made.nbytes // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=made.digest[:12]) as error:
        made.table()
    assert "recomputed" in str(error.value)
    assert str(file) in str(error.value)
    assert embeddings().digest == made.digest, "writing it again mends it"
    assert made.table().num_rows == 20


@pytest.mark.parametrize(
    ("kind", "columns", "what"),
    [
        ("nonsense", {"id": np.arange(2)}, "not a kind"),
        ("embeddings", {"id": np.arange(2)}, "column 'vector' is missing"),
        ("embeddings", {"id": np.arange(2), "vector": np.zeros((2, 3))}, "fixed_size_list<.*double"),
        (
            "graph",
            {
                "id": np.arange(2),
                "neighbours": np.zeros(2, np.int32),
                "similarity": np.zeros((2, 1), np.float32),
            },
            "fixed-size list",
        ),
        ("scores", {"id": np.arange(2)}, "no score column"),
        ("scores", {"id": np.arange(2), "aum": np.zeros(3)}, "different length"),
    ],
)
def test_wrong_columns_are_refused(kind, columns, what):
    with pytest.raises(BadInput, match=what):
        write(kind, columns)


def test_full_disk_is_said(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts.os, "replace", full)
    with pytest.raises(StoreUnusable, match="the disk is full") as error:
        embeddings()
    assert "kept: every finished artifact" in str(error.value)


def test_a_remote_store(monkeypatch, tmp_path):
    monkeypatch.setenv("WINNOW_STORE", "memory://winnow-test")
    monkeypatch.setenv("WINNOW_CACHE", str(tmp_path / "cache"))
    made = embeddings()
    assert made.numpy("id").tolist() == list(range(20))
    assert store().names("objects") == [made.uri]
    store().fs.pipe_file(store().path(made.uri), b"rubbish")
    for copy in (tmp_path / "cache").rglob("*.parquet"):
        copy.unlink()
    with pytest.raises(ArtifactCorrupt):
        made.table()


def test_unknown_protocol(monkeypatch):
    monkeypatch.setenv("WINNOW_STORE", "nonsense://x")
    with pytest.raises(StoreUnusable, match="nonsense"):
        store()


def test_find_by_prefix():
    made = embeddings()
    assert find(made.digest[:8]) == [made.digest]
    with pytest.raises(BadInput):
        find("xyz!")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz", ".npy"])
def test_export(tmp_path, suffix):
    made = embeddings()
    target = tmp_path / f"out{suffix}"
    export_table(made, target, [{"task": "embed"}])
    assert target.stat().st_size > 0
    if suffix == ".npy":
        assert np.load(target).tolist() == list(range(20))
    if suffix == ".npz":
        assert np.array_equal(np.load(target)["vector"], made.numpy("vector"))
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        assert b'"embed"' in pq.read_schema(target).metadata[b"winnow.provenance"]
    if suffix == ".csv":
        assert target.read_text().splitlines()[0] == '"id","vector"'
    with pytest.raises(BadInput, match="suffix"):
        export_table(made, tmp_path / "out.xls")


def test_scratch_is_checked(tmp_path):
    scratch = Scratch(tmp_path / "partial")
    assert scratch.load("epoch") is None
    state = {"weights": torch.arange(4.0), "epoch": 3, "rng": [1, 2], "nested": {"none": None, "text": "a"}}
    scratch.save("epoch", state)
    loaded = scratch.load("epoch")
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state
    assert scratch.names() == ["epoch"]
    file = tmp_path / "partial" / "epoch.state"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert scratch.load("epoch") is None, "a damaged checkpoint reads as absent"
    os.truncate(file, 10)
    assert scratch.load("epoch") is None
    scratch.clear()
    assert scratch.names() == []
