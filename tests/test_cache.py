"""Keys, provenance, single flight: what is the same work, and who does it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from winnow.tasks import cache
from winnow.tasks.artifacts import Artifact, store, write
from winnow.tasks.cache import (
    ArtifactSerializer,
    FlockManager,
    cached_task,
    canonical,
    collect_garbage,
    context,
    lineage,
    verify,
    why,
)
from winnow.tasks.train.recipe import Recipe

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
    assert key(half, whole=moved.model_copy(update={"meta": {"note": "other"}})) == here


def test_a_live_object_as_input_is_refused_loudly():
    with pytest.raises(TypeError, match="ndarray"):
        half.fn(np.zeros(3))


def test_serializer_checks_artifacts():
    made = half.fn(toy.fn(4))
    blob = ArtifactSerializer().dumps({"a": made, "list": [made["part"], 1, None]})
    assert ArtifactSerializer().loads(blob) == {"a": made, "list": [made["part"], 1, None]}
    with pytest.raises(TypeError, match="write an Artifact"):
        ArtifactSerializer().dumps(np.zeros(3))
    made["part"].path().unlink()
    with pytest.raises(cache.ArtifactCorrupt):
        ArtifactSerializer().loads(blob)


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


def test_verify_and_gc():
    kept = toy.fn(3)
    stray = write("embeddings", {"id": np.arange(9), "vector": np.zeros((9, 2), np.float32)})
    assert verify() == (2, {})
    an_hour_ago = time.time() - 4000
    os.utime(stray.path(), (an_hour_ago, an_hour_ago))
    os.utime(kept.path(), (an_hour_ago, an_hour_ago))
    leftover = store().local_root / "objects" / ".tmp-killed"
    leftover.write_bytes(b"half a file")
    os.utime(leftover, (an_hour_ago, an_hour_ago))
    would, _ = collect_garbage(dry_run=True)
    assert stray.path().exists()
    gone, nbytes = collect_garbage()
    assert sorted(gone) == sorted(would) == sorted([stray.uri, "objects/.tmp-killed"])
    assert nbytes == stray.nbytes + 11
    assert kept.path().exists()
    kept.path().write_bytes(b"x")
    good, bad = verify(delete=True)
    assert (good, list(bad)) == (0, [kept.uri])
    assert not os.path.exists(store().path(kept.uri))


def test_gc_forgets_old_computations():
    made = toy.fn(3)
    name = store().names("provenance")[0]
    step = json.loads(store().read(name))
    store().write(name, json.dumps({**step, "finished": "2020-01-01T00:00:00+00:00"}).encode())
    os.utime(made.path(), (0, 0))
    assert collect_garbage()[0] == []
    gone, _ = collect_garbage(older_than_days=30)
    assert made.uri in gone
    assert name in gone


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
