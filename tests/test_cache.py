"""Keys, provenance, single flight: what is the same work, and who does it."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import time

import numpy as np
import pytest

from winnow.tasks import cache, records
from winnow.tasks.artifacts import Artifact, write
from winnow.tasks.cache import ArtifactSerializer, FlockManager, cached_task, canonical, context
from winnow.tasks.errors import StoreUnusable
from winnow.tasks.provenance import lineage, maker, why
from winnow.tasks.store import store
from winnow.tasks.train.recipe import Recipe
from winnow.tasks.upkeep import collect_garbage, verify

pytestmark = pytest.mark.usefixtures("empty_store")


@cached_task(version="1", name="toy", run_name="toy-{n}", ignore=("device",))
def toy(n: int, *, scale: float = 1.0, device: str = "cpu") -> Artifact:
    context().notes["device"] = device
    return write("embeddings", {"id": np.arange(n), "vector": np.full((n, 2), scale, np.float32)})


@cached_task(version="1", name="half", run_name="half")
def half(whole: Artifact) -> dict[str, Artifact]:
    return {
        "part": write(
            "embeddings",
            {"id": np.arange(whole.rows // 2), "vector": whole.numpy("vector")[: whole.rows // 2]},
        )
    }


def key(task, **inputs):
    return cache.key_of(task.cache_policy.payload(task.name, inputs))


def test_canonical_values():
    made = toy.fn(3)
    assert canonical(made) == {"artifact": made.digest}
    assert canonical((1, [2.5, None, True])) == [1, ["0x1.4000000000000p+1", None, True]]
    assert canonical({"b": 1, "a": 2}) == canonical({"a": 2, "b": 1})
    assert canonical(Recipe(epochs=1)) != canonical(Recipe(epochs=2))
    for live in (np.zeros(3), {1, 2}, object(), lambda: 0, b"x"):
        with pytest.raises(TypeError, match="may not be an input"):
            canonical(live)


def test_keys_name_content_not_circumstances(monkeypatch, tmp_path):
    first = key(toy, n=3, scale=1.0, device="cpu")
    assert key(toy, n=3, scale=1.0, device="cuda") == first
    assert key(toy, n=4, scale=1.0, device="cpu") != first
    assert key(toy, n=3, scale=1.0 + 1e-12, device="cpu") != first
    made = toy.fn(3)
    here = key(half, whole=made)
    monkeypatch.setenv("WINNOW_STORE", str(tmp_path / "elsewhere"))
    moved = toy.fn(3)
    assert key(half, whole=Artifact(**{**moved.to_dict(), "notes": {"note": "other"}})) == here


def test_a_live_object_as_input_is_refused_loudly():
    with pytest.raises(TypeError, match="ndarray"):
        half.fn(np.zeros(3))


def test_results_are_json():
    made = half.fn(toy.fn(4))
    blob = ArtifactSerializer().dumps({"a": made, "list": [made["part"], 1, None]})
    assert ArtifactSerializer().loads(blob) == {"a": made, "list": [made["part"], 1, None]}
    with pytest.raises(TypeError, match="write an Artifact"):
        ArtifactSerializer().dumps(np.zeros(3))


def test_why_names_the_changed_input():
    assert why("toy") is None
    toy.fn(3)
    first = why("toy")
    assert first["nearest"] is None
    toy.fn(3, scale=2.0)
    changed = why("toy")["changed"]
    assert list(changed) == ["scale"]
    assert [float.fromhex(value) for value in changed["scale"]] == [1.0, 2.0]


def test_lineage_goes_back_to_the_first_step():
    whole = toy.fn(6, device="somewhere")
    part = half.fn(whole)["part"]
    steps = [(depth, step["task"]) for depth, step in lineage(part.digest)]
    assert steps == [(0, "half"), (1, "toy")]
    made = next(iter(lineage(whole.digest)))[1]
    assert made["device"] == "somewhere"
    assert made["versions"]["numpy"] == np.__version__
    assert list(lineage("0" * 64)) == [(0, None)]


def objects(*artifacts: Artifact) -> list[str]:
    return sorted(name for a in artifacts for name in (a.name, *(part.name for part in a.parts)))


def aged(names) -> None:
    for name in names:
        os.utime(store().local_root / name, (0, 0))


def test_verify_and_gc():
    kept = toy.fn(3)
    stray = write("embeddings", {"id": np.arange(9), "vector": np.zeros((9, 2), np.float32)})
    records.save("toy-0", kept)
    assert verify() == (5, {"records/" + store().names("provenance")[0].partition("/")[2]: "it is missing"})
    leftover = "objects/.tmp-killed"
    store().write(leftover, b"half a file")
    strays = objects(stray)
    aged([*objects(kept), *strays, leftover])
    would, _ = collect_garbage(dry_run=True)
    stray.check()
    sizes = sum(store().size(name) for name in strays)
    gone, nbytes = collect_garbage()
    assert sorted(gone) == sorted(would) == sorted([*strays, leftover])
    assert nbytes == sizes + 11
    kept.check()


def test_verify_finds_what_is_damaged_or_missing():
    made = toy.fn(3)
    (name,) = store().names("provenance")
    key = name.removeprefix("provenance/").removesuffix(".json")
    records.save(key, made)
    record = records.name_of(key)
    assert verify() == (3, {})
    content = store().read(record)
    part = made.parts[0].name
    for damaged, reason in (
        (part, "its content is not"),
        (made.name, "its content is not"),
        (record, "its content has changed"),
    ):
        before = store().read(damaged)
        flipped = bytearray(before)
        flipped[before.rindex(b"1" if damaged == record else before[-9:-8])] ^= 1
        store().write(damaged, bytes(flipped))
        assert reason in verify()[1][damaged]
        store().write(damaged, before)
    store().delete(part)
    assert verify()[1] == {made.name: f"its part {made.parts[0].digest[:12]} is missing"}
    toy.fn(3)
    store().delete(made.name)
    assert verify()[1] == {record: f"its artifact {made.digest[:12]} is missing"}
    toy.fn(3)
    store().delete(record)
    assert verify()[1] == {record: "it is missing"}
    store().write(record, content)
    assert verify() == (3, {})
    store().write(part, b"x")
    good, bad = verify(delete=True)
    assert (good, list(bad)) == (2, [part])
    assert store().size(part) is None


def test_gc_forgets_old_computations():
    made = toy.fn(3)
    name = store().names("provenance")[0]
    step = json.loads(store().read(name))
    store().write(name, json.dumps({**step, "finished": "2020-01-01T00:00:00+00:00"}).encode())
    names = objects(made)
    aged(names)
    assert collect_garbage()[0] == []
    gone, _ = collect_garbage(older_than_days=30)
    assert {*names, name, f"made/{made.digest}.json"} <= set(gone)


def test_gc_deletes_what_an_earlier_version_left():
    store().write("records/embed-0123", b'{"metadata": {}, "result": "{}"}')
    store().write(f"objects/aa/{'a' * 64}.parquet", b"x")
    aged([f"objects/aa/{'a' * 64}.parquet"])
    assert len(collect_garbage()[0]) == 2


# -- records -------------------------------------------------------------------------------------------------


HOSTILE = {
    "pickle": {"type": "pickle"},
    "a decoder of one's own": {"type": "json", "object_decoder": "subprocess.Popen"},
    "ours, with more": {"type": "winnow-artifact", "jsonlib": "os"},
}


@pytest.mark.parametrize("serializer", HOSTILE.values(), ids=HOSTILE)
def test_a_record_cannot_say_how_it_is_read(serializer, tmp_path, caplog):
    """Prefect obeys a record that names its serializer: these two ran commands once."""
    target, key = tmp_path / "run", f"toy-{serializer['type']}-{len(serializer)}"
    command = ["touch", str(target)]
    payload = base64.b64encode(pickle.dumps(Command(command))).decode()
    for result in (payload, json.dumps({"args": command}), json.dumps({"artifact": {"kind": "x"}})):
        body = {
            "metadata": {"storage_key": key, "expiration": None, "serializer": serializer},
            "result": result,
        }
        for name in (f"records/{key}.json", f"records/{key}"):
            store().write(name, json.dumps(body).encode())
        storage = cache.RecordStorage()
        with pytest.raises(records.Unusable):
            storage.read_path(key)
        assert records.read(key) is None
        assert not target.exists()
    assert "Its record cannot be used: it is in another format. Recomputing it." in caplog.text


class Command:
    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __reduce__(self):
        return (subprocess.call, (self.words,))


def test_prefect_reads_back_what_was_recorded():
    from prefect.results import ResultRecord

    made = toy.fn(3)
    records.save("toy-1", {"out": made, "n": [1, None, 0.5]})
    record = ResultRecord.deserialize(cache.RecordStorage().read_path("toy-1"))
    assert record.result == {"out": made, "n": [1, None, 0.5]}
    cache.RecordStorage().write_path("toy-2", record.serialize())
    assert records.load("toy-2") == record.result


@pytest.mark.parametrize(
    "result",
    [
        {"artifact": {"kind": "embeddings", "digest": "../../etc/passwd", "rows": 1, "nbytes": 1}},
        {"artifact": {"kind": "embeddings", "digest": "a" * 64, "rows": "1", "nbytes": 1}},
        {"artifact": {"kind": "embeddings", "digest": "a" * 64, "rows": 1, "nbytes": 1, "uri": "x"}},
        {"dict": [1]},
        {"list": {}},
        {"object": "x"},
        {"dict": {}, "list": []},
    ],
)
def test_a_record_of_anything_else_counts_as_absent(result):
    body = {"format": records.FORMAT, "key": "toy-1", "result": result}
    store().write("records/toy-1.json", json.dumps({**body, "sha256": records._checksum(body)}).encode())
    with pytest.raises(records.Unusable):
        records.load("toy-1")


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"format": 2}'])
def test_rubbish_counts_as_absent(content):
    store().write("records/toy-1.json", content)
    store().write("provenance/toy-1.json", content)
    store().write(f"made/{'a' * 64}.json", content)
    assert records.read("toy-1") is None
    assert maker("a" * 64) is None
    assert why("toy") is None
    assert list(lineage("a" * 64)) == [(0, None)]
    assert "records/toy-1.json" in verify()[1]


def test_a_folder_in_a_record_s_place_heals():
    made = toy.fn(3)
    (store().local_root / "records" / "toy-1.json" / "inner").mkdir(parents=True)
    assert records.read("toy-1") is None
    records.save("toy-1", made)
    assert records.load("toy-1") == made


# -- single flight -------------------------------------------------------------------------------------------


def _hold(place: str, started, forever: bool) -> None:
    os.environ["WINNOW_STORE"] = place
    locks = FlockManager()
    assert locks.acquire_lock("toy-1", "child", acquire_timeout=5)
    started.set()
    time.sleep(60 if forever else 0.5)
    locks.release_lock("toy-1", "child")


def test_one_holder_among_threads():
    locks = FlockManager()
    assert locks.acquire_lock("toy-1", "a")
    assert locks.acquire_lock("toy-1", "a"), "the holder has it already"
    assert not locks.acquire_lock("toy-1", "b", acquire_timeout=0.3)
    assert locks.is_locked("toy-1")
    assert locks.is_lock_holder("toy-1", "a")
    assert not locks.wait_for_lock("toy-1", timeout=0.2)
    with pytest.raises(ValueError, match="holds no lock"):
        locks.release_lock("toy-1", "b")
    locks.release_lock("toy-1", "a")
    assert not locks.is_locked("toy-1")
    assert locks.wait_for_lock("toy-1")


@pytest.mark.parametrize("killed", [False, True])
def test_one_holder_among_processes_even_killed_ones(empty_store, killed):
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Event()
    child = spawn.Process(target=_hold, args=(str(empty_store), started, killed))
    child.start()
    assert started.wait(60)
    locks = FlockManager()
    assert not locks.acquire_lock("toy-1", "parent", acquire_timeout=0.2)
    if killed:
        os.kill(child.pid, signal.SIGKILL)
    assert locks.acquire_lock("toy-1", "parent", acquire_timeout=10)
    locks.release_lock("toy-1", "parent")
    child.join(10)


def test_a_store_that_would_vanish_with_a_worker_s_run_is_refused(monkeypatch, tmp_path):
    from winnow.flows import checks
    from winnow.tasks import store as storage

    monkeypatch.delenv("WINNOW_STORE")
    monkeypatch.setattr(storage, "store_uri", lambda: str(tmp_path / "run" / ".winnow"))
    monkeypatch.setattr(checks, "gettempdir", lambda: str(tmp_path))
    checks.storage()  # nobody deletes the current folder of a run in this process
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "0")
    with pytest.raises(StoreUnusable, match="WINNOW_STORE is not set") as error:
        checks.storage()
    assert "next: set WINNOW_STORE where the worker is started" in str(error.value)
    monkeypatch.setattr(checks, "gettempdir", lambda: str(tmp_path / "elsewhere"))
    checks.storage()
