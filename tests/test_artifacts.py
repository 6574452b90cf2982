"""The store: content-addressed, atomic, checked; damage and full disks are said, never half-read."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from winnow.tasks import artifacts
from winnow.tasks import store as storage
from winnow.tasks.artifacts import Artifact, ArtifactWriter, find, joined, write
from winnow.tasks.columns import to_arrow, to_numpy
from winnow.tasks.errors import ArtifactCorrupt, BadInput, StoreUnusable
from winnow.tasks.export import export_table
from winnow.tasks.store import Scratch, store

pytestmark = pytest.mark.usefixtures("empty_store")


def embeddings(n: int = 20, seed: int = 0) -> Artifact:
    vectors = np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float16)
    return write(
        "embeddings", {"id": np.arange(n), "vector": vectors}, facts={"dim": 4}, notes={"embedder": "toy"}
    )


def test_equal_content_has_one_file_and_one_digest():
    first, second, other = embeddings(), embeddings(), embeddings(seed=1)
    assert first.digest == second.digest != other.digest
    assert first.paths() == second.paths()
    assert len(store().names("objects")) == 4, "a manifest and a part each"
    assert first.numpy("vector").shape == (20, 4)
    assert first.numpy("vector").dtype == np.float16


def test_handle_survives_json():
    first = embeddings()
    assert Artifact(**json.loads(json.dumps(first.to_dict()))) == first
    assert pickle.loads(pickle.dumps(first)) == first
    with pytest.raises(AttributeError, match="does not change"):
        first.rows = 3
    with pytest.raises(ValueError, match="digest"):
        Artifact("table", "../../etc/passwd", 1, 1)


def test_facts_are_part_of_the_identity_and_notes_are_not():
    columns = {"id": np.arange(3), "aum": np.zeros(3, np.float32)}
    plain = write("scores", columns)
    assert write("scores", columns, notes={"by": "me"}).digest == plain.digest
    other = write("scores", columns, facts={"classes": 10})
    assert other.digest != plain.digest
    assert other.parts == plain.parts, "the content lies there once"
    assert Artifact.load(other.digest).facts == {"classes": 10}


def test_writing_batches_equals_writing_once():
    vectors = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float16)
    with ArtifactWriter("embeddings") as writer:
        for start in range(0, 20, 7):
            writer.write({"id": np.arange(start, min(start + 7, 20)), "vector": vectors[start : start + 7]})
        made = writer.finish()
    assert np.array_equal(made.numpy("vector"), embeddings().numpy("vector"))
    assert sum(batch.num_rows for batch in made.batches(rows=6)) == 20
    assert len(made.parts) == 1


def test_large_content_is_split_into_parts(monkeypatch):
    whole = embeddings()
    monkeypatch.setattr(artifacts, "PART_BYTES", 16 * 6)  # 16 bytes a row: an id and four halves
    parts = embeddings()
    assert [part.rows for part in parts.parts] == [6, 6, 6, 2]
    assert np.array_equal(parts.numpy("vector"), whole.numpy("vector"))
    assert np.array_equal(np.concatenate(list(parts.column("vector").blocks(5))), whole.numpy("vector"))
    with ArtifactWriter("embeddings") as writer:
        for row in range(20):
            writer.write({"id": [row], "vector": whole.numpy("vector")[row : row + 1]})
        assert [part.rows for part in writer.finish().parts] == [6, 6, 6, 2]


def test_artifacts_are_joined_without_a_copy():
    one, other = embeddings(seed=1), embeddings(seed=2)
    both = joined([one, other])
    assert both.rows == 40
    assert both.parts == (*one.parts, *other.parts)
    assert both.facts == one.facts
    assert np.array_equal(both.numpy("vector")[20:], other.numpy("vector"))
    with pytest.raises(BadInput, match="differ in kind or facts"):
        joined([one, write("scores", {"id": np.arange(2), "aum": np.zeros(2)})])


def test_a_column_is_read_when_it_is_asked_for():
    made = embeddings()
    vectors, ids = made.column("vector"), made.column("id")
    assert (vectors.shape, ids.shape, len(ids)) == ((20, 4), (20,), 20)
    assert np.array_equal(np.asarray(vectors), made.numpy("vector"))
    assert np.asarray(ids).tolist() == list(range(20))


@pytest.mark.parametrize("dtype", ["float16", "float32", "int32", "int64"])
def test_matrices_keep_dtype_and_shape(dtype):
    values = np.arange(12).reshape(4, 3).astype(dtype)
    field, column = to_arrow("matrix", values[:, ::-1])
    for chunks in (column, pa.chunked_array([column[:1], column[1:]])):
        back = to_numpy(chunks, field)
        assert back.dtype == dtype
        assert np.array_equal(back, values[:, ::-1])


def test_uids_are_bytes_of_one_length():
    uids = np.array([bytes(range(i, i + 16)) for i in range(5)], "S16")
    made = write("scores", {"id": uids, "clip": np.arange(5.0)})
    assert made.arrow_schema().field("id").type == pa.binary(16)
    assert made.numpy("id").dtype == "S16"
    assert np.array_equal(made.numpy("id"), uids)


def test_a_failed_write_leaves_nothing():
    def interrupted() -> None:
        with ArtifactWriter("embeddings") as writer:
            writer.write({"id": np.arange(3), "vector": np.zeros((3, 4), np.float16)})
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        interrupted()
    assert list(store().local_root.rglob("*.parquet")) == []
    assert list(store().local_root.rglob(".tmp-*")) == []


@pytest.mark.parametrize("what", ["manifest", "part"])
@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "folder", "folder with a file"])
def test_damage_is_noticed_and_named_and_mended(what, damage):
    made = embeddings()
    file = store().local_root / (made.name if what == "manifest" else made.parts[0].name)
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[:-5])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    if damage.startswith("folder"):
        file.mkdir()
    if damage == "folder with a file":
        (file / "stray").write_text("x")
    with pytest.raises(ArtifactCorrupt, match=made.digest[:12]) as error:
        made.table()
    assert "recomputed" in str(error.value)
    assert str(file) in str(error.value)
    assert embeddings().digest == made.digest, "writing it again mends it"
    assert made.table().num_rows == 20


def test_a_handle_that_says_otherwise_is_refused():
    made = embeddings()
    for lie in ({"rows": 21}, {"facts": {"dim": 5}}, {"kind": "scores"}, {"nbytes": 1}):
        with pytest.raises(ArtifactCorrupt, match="not what its handle says"):
            Artifact(**{**made.to_dict(), **lie}).check()
    made.check()


@pytest.mark.parametrize(
    ("kind", "columns", "what"),
    [
        ("nonsense", {"id": np.arange(2)}, "not a kind"),
        ("embeddings", {"id": np.arange(2)}, "column 'vector' is missing"),
        (
            "embeddings",
            {"id": np.arange(2), "vector": np.zeros((2, 3))},
            "not a matrix of float16 or float32",
        ),
        (
            "graph",
            {
                "id": np.arange(2),
                "neighbours": np.zeros(2, np.int32),
                "similarity": np.zeros((2, 1), np.float32),
            },
            "not a matrix of int32 or int64",
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

    monkeypatch.setattr(storage.os, "replace", full)
    with pytest.raises(StoreUnusable, match="the disk is full") as error:
        embeddings()
    assert "kept: every finished artifact" in str(error.value)


def test_a_remote_store(monkeypatch, tmp_path):
    monkeypatch.setenv("WINNOW_STORE", "memory://winnow-test")
    monkeypatch.setenv("WINNOW_CACHE", str(tmp_path / "cache"))
    made = embeddings()
    assert made.numpy("id").tolist() == list(range(20))
    assert store().address("reports/x.html") == "memory:///winnow-test/reports/x.html"
    name = made.parts[0].name
    assert store().names("objects") == sorted([made.name, name])
    (copy,) = (tmp_path / "cache").rglob("*.parquet")
    copy.write_bytes(b"rubbish")
    assert made.table().num_rows == 20, "a damaged copy is fetched again"
    store().write(name, b"rubbish")
    copy.unlink()
    with pytest.raises(ArtifactCorrupt):
        made.table()


def test_a_store_that_cannot_be_reached_is_said_in_a_line(monkeypatch):
    monkeypatch.setenv("WINNOW_STORE", "memory://winnow-unreachable")

    def refuse(*_, **__):
        raise ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 9)")

    monkeypatch.setattr(store().fs, "pipe_file", refuse)
    with pytest.raises(StoreUnusable, match=r"ConnectionRefusedError: .*Connect call failed") as error:
        store().check()
    assert "check the address, the network and the credentials" in str(error.value)


def test_a_file_where_the_store_needs_a_folder(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("WINNOW_STORE", str(tmp_path / "file"))
    with pytest.raises(StoreUnusable, match="a file stands where it needs a folder"):
        store().check()


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
        table = pq.read_table(target)
        assert b'"embed"' in table.schema.metadata[b"winnow.provenance"]
        assert table.schema.field("vector").type == pa.list_(pa.float32())
        assert np.allclose(table.column("vector").to_pylist(), made.numpy("vector"))
    if suffix == ".csv":
        assert target.read_text().splitlines()[0] == '"id","vector"'
    with pytest.raises(BadInput, match="suffix"):
        export_table(made, tmp_path / "out.xls")


def test_an_export_without_rows_can_be_read(tmp_path):
    made = write("embeddings", {"id": np.arange(0), "vector": np.empty((0, 3), np.float16)})
    export_table(made, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.num_rows == 0
    assert table.schema.field("vector").type.value_type == pa.float32()


def test_scratch_is_checked(tmp_path):
    scratch = Scratch(tmp_path / "partial")
    assert scratch.load("epoch") is None
    state = {"weights": torch.arange(4.0), "epoch": 3, "rng": [1, 2], "nested": {"none": None, "text": "a"}}
    scratch.save("epoch", state)
    loaded = scratch.load("epoch")
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state
    file = tmp_path / "partial" / "epoch.state"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert scratch.load("epoch") is None, "a damaged checkpoint reads as absent"
    os.truncate(file, 10)
    assert scratch.load("epoch") is None
    scratch.clear()
    assert scratch.load("epoch") is None
