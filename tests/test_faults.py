"""What a user fears: kill -9, damaged files, a full disk, two runs at once; real processes, the real flow."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]

# the whole flow in small: patches, 2 heads, a proxy, a search, 6 trainings
SMALL = {
    "fractions": [0.2],
    "seeds": [0, 1],
    "heads": {"heads": 2, "epochs": 12},
    "proxy": {"epochs": 4},
    "training": {"iterations": 60},
    "mis_ratio": 0.2,
}


def heed() -> None:
    """A shell that puts us into the background has its children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Store:
    """A store, and runs of the flow on it."""

    def __init__(self, folder: Path, server: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {**os.environ, **server, "WINNOW_STORE": str(folder)}

    def start(self) -> subprocess.Popen[str]:
        arguments = [
            argument for key, value in SMALL.items() for argument in ("-p", f"{key}={json.dumps(value)}")
        ]
        command = [
            sys.executable,
            "-c",
            "from winnow.flows.cli import main; main()",
            "run",
            "elfs/digits",
            "--plain",
            *arguments,
        ]
        return subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heed,
        )

    def run(self) -> str:
        """Run to the end; the digest of the trials."""
        return self.finish(self.start())

    @staticmethod
    def finish(process: subprocess.Popen[str]) -> str:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found = re.search(r"trials: ([0-9a-f]{12})", out)
        assert found is not None, out
        return found.group(1)

    def kill_when(self, ready, sent: signal.Signals = signal.SIGKILL, timeout: float = 120) -> int:
        """Start a run and kill it, and all it started, as soon as ``ready()`` holds; its exit status."""
        process = self.start()
        deadline = time.monotonic() + timeout
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, f"it ended before it could be killed: {process.communicate()}"
        os.killpg(process.pid, sent)
        process.communicate(timeout=timeout)
        return process.returncode

    def files(self, folder: str, pattern: str = "*") -> list[Path]:
        return sorted((self.folder / folder).glob(pattern)) if (self.folder / folder).exists() else []

    def computed(self) -> dict[str, int]:
        """When each finished computation (its record is there) was made, by key."""
        finished = {file.stem for file in self.files("records")}
        return {
            file.stem: file.stat().st_mtime_ns for file in self.files("provenance") if file.stem in finished
        }

    def of_task(self, task: str) -> dict:
        for file in self.files("provenance", f"{task}-*.json"):
            return json.loads(file.read_text())
        raise AssertionError(f"{task} never ran")


@pytest.fixture(scope="module")
def undisturbed(prefect_server, tmp_path_factory) -> Store:
    """A run that nothing happened to."""
    store = Store(tmp_path_factory.mktemp("undisturbed") / "store", prefect_server)
    store.trials = store.run()
    return store


@pytest.fixture
def copy(undisturbed, tmp_path) -> Store:
    """A copy of its store, to damage."""
    import shutil

    shutil.copytree(undisturbed.folder, tmp_path / "store")
    copied = Store(tmp_path / "store", {})
    copied.environment = {**undisturbed.environment, "WINNOW_STORE": str(copied.folder)}
    return copied


def test_run_again_computes_nothing(undisturbed):
    before = undisturbed.computed()
    assert undisturbed.run() == undisturbed.trials
    assert undisturbed.computed() == before


@pytest.mark.parametrize("moment", ["embed", "cluster", "dynamics", "train"])
def test_kill_9_inside_a_task(undisturbed, tmp_path, moment):
    store = Store(tmp_path / "store", {})
    store.environment = {**undisturbed.environment, "WINNOW_STORE": str(store.folder)}
    if moment == "embed":  # its one shard takes a moment: kill while it is being made
        store.kill_when(lambda: bool(store.files("locks", "embed-*")))
    else:  # its first checkpoint is there
        store.kill_when(
            lambda: (
                bool(store.files("partial", f"{moment}-*/*.state"))
                or bool(store.files("records", f"{moment}-*"))
            )
        )
    before = store.computed()
    assert store.run() == undisturbed.trials, "the same results, bit for bit"
    after = store.computed()
    assert {key: after[key] for key in before} == before, "nothing that was finished is computed again"


def test_kill_9_again_and_again(undisturbed, tmp_path):
    """Killed every few seconds, it still gets there: each run goes on where the last one was stopped."""
    store = Store(tmp_path / "store", {})
    store.environment = {**undisturbed.environment, "WINNOW_STORE": str(store.folder)}
    for computations in (1, 4, 8):
        before = store.computed()
        store.kill_when(lambda wanted=computations: len(store.files("records")) >= wanted)
        after = store.computed()
        assert {key: after[key] for key in before} == before
    assert store.run() == undisturbed.trials


def test_a_resumed_run_makes_the_same_report(undisturbed, tmp_path):
    """Figures, tables, trials: whatever is drawn says nothing of the interruptions."""
    store = Store(tmp_path / "store", {})
    store.environment = {**undisturbed.environment, "WINNOW_STORE": str(store.folder)}
    assert store.kill_when(lambda: store.files("locks", "cluster-*"), signal.SIGINT) == 130
    assert store.kill_when(lambda: store.files("records", "train-*"), signal.SIGINT) == 130
    assert not store.files("results")
    assert store.run() == undisturbed.trials
    for folder, pattern in (("records", "report-*.json"), ("results", "*.json")):
        (resumed,) = store.files(folder, pattern)
        (expected,) = undisturbed.files(folder, pattern)
        assert (resumed.name, resumed.read_bytes()) == (expected.name, expected.read_bytes())
    (report,) = (
        output["digest"] for output in store.of_task("report")["outputs"] if output["kind"] == "report"
    )
    manifest = f"objects/{report[:2]}/{report}.json"
    assert (store.folder / manifest).read_bytes() == (undisturbed.folder / manifest).read_bytes()


@pytest.mark.parametrize(
    ("task", "damage"),
    [
        ("embed", "delete"),
        ("cluster", "truncate"),
        ("dynamics", "flip"),
        ("knn", "folder"),
        ("select", "manifest"),
    ],
)
def test_damaged_artifacts_are_made_again(copy, undisturbed, task, damage):
    outputs = copy.of_task(task)["outputs"]
    digest = outputs[0]["digest"]
    file = copy.folder / "objects" / digest[:2] / f"{digest}.json"
    if damage != "manifest":
        (part,) = json.loads(file.read_text())["parts"]
        file = copy.folder / "objects" / part["digest"][:2] / f"{part['digest']}.parquet"
    content = bytearray(file.read_bytes())
    if damage == "delete":
        file.unlink()
    elif damage == "folder":
        file.unlink()
        (file / "inner").mkdir(parents=True)
    elif damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 3] ^= 0x10
        file.write_bytes(content)
    before = copy.computed()
    assert copy.run() == undisturbed.trials
    after = copy.computed()
    changed = {key.rpartition("-")[0] for key in before if after[key] != before[key]}
    assert changed == {task}, "only the damaged artifact is made again"


@pytest.mark.parametrize("damage", ["truncate", "rubbish"])
def test_damaged_records_are_made_again(copy, undisturbed, damage):
    record = copy.files("records", "cluster-*")[0]
    content = record.read_bytes()
    record.write_bytes(content[: len(content) // 2] if damage == "truncate" else b"\x00" * len(content))
    before = copy.computed()
    assert copy.run() == undisturbed.trials
    after = copy.computed()
    assert {key.rpartition("-")[0] for key in before if after[key] != before[key]} == {"cluster"}


def test_two_runs_at_once_compute_everything_once(undisturbed, tmp_path):
    store = Store(tmp_path / "store", {})
    store.environment = {**undisturbed.environment, "WINNOW_STORE": str(store.folder)}
    processes = [store.start(), store.start()]
    outputs = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for out, _ in outputs:
        assert f"trials: {undisturbed.trials}" in out
    taken = [int(re.search(r"steps, (\d+) from the cache", err).group(1)) for _, err in outputs]
    again = store.start()
    every = int(re.search(r"steps, (\d+) from the cache", again.communicate(timeout=300)[1]).group(1))
    # of the steps that can be cached, twice as many as one run has, each artifact's was computed by one of
    # the two runs
    assert 2 * every - sum(taken) == len(store.computed()), outputs


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of that size; needs the right to mount."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a file system of a fixed size cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def test_a_full_disk_is_said_and_gone_on_from(undisturbed, tmp_path):
    with small_disk(tmp_path / "disk", 400) as disk:
        store = Store(disk / "store", {})
        store.environment = {**undisturbed.environment, "WINNOW_STORE": str(store.folder)}
        process = store.start()
        _, err = process.communicate(timeout=300)
        assert process.returncode == 1
        assert "the disk is full" in err
        assert "WINNOW_STORE elsewhere" in err
        assert "Traceback" not in err
        before = store.computed()
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        assert store.run() == undisturbed.trials
        after = store.computed()
        assert {key: after[key] for key in before} == before


def test_an_exception_loses_nothing(undisturbed, tmp_path):
    """A step that fails (its artifact's folder cannot be made) leaves all that was finished before it."""
    store = Store(tmp_path / "store", {})
    store.environment = {**undisturbed.environment, "WINNOW_STORE": str(store.folder)}
    digest = undisturbed.of_task("dynamics")["outputs"][0]["digest"]
    in_the_way = store.folder / "objects" / digest[:2]
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("x")
    process = store.start()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "a file stands where it needs a folder" in " ".join(err.split())
    before = store.computed()
    assert before
    in_the_way.unlink()
    assert store.run() == undisturbed.trials
    after = store.computed()
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_during_a_training_ends_the_run_at_once(prefect_server, tmp_path, sent, status):
    """Trainings run in threads of their own, which must not keep an interrupted run alive."""
    environment = {**os.environ, **prefect_server, "WINNOW_STORE": str(tmp_path / "store")}
    long = [
        "-p",
        "mis_ratio=0.2",
        "-p",
        "heads.heads=2",
        "-p",
        "heads.epochs=3",
        "-p",
        "proxy.epochs=1",
        "-p",
        "training.iterations=1000000",
    ]
    command = [
        sys.executable,
        "-c",
        "from winnow.flows.cli import main; main()",
        "run",
        "elfs/digits",
        "--plain",
        *long,
    ]
    with open(tmp_path / "log", "w") as log:
        run = subprocess.Popen(command, env=environment, stderr=log, stdout=log, preexec_fn=heed)
    try:
        deadline = time.monotonic() + 120
        while "train convnet on" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            assert run.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        time.sleep(1)
        run.send_signal(sent)
        assert run.wait(60) == status
    finally:
        run.kill()
    assert "the same command goes on from there" in (tmp_path / "log").read_text()


INTERRUPTED_FLOW = """
import os

from prefect import flow, task
from pydantic import BaseModel, field_serializer


class Interrupts(BaseModel):
    sent: int

    @field_serializer("sent")
    def serialise(self, value):
        os.kill(os.getpid(), value)
        return value


@task
def step():
    pass


@flow
def interrupted(sent: Interrupts | int):  # Prefect serialises parameters when it makes the run
    if isinstance(sent, int):
        Interrupts(sent=sent).model_dump_json()
    step()
    print("never")
"""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["before a flow", "inside a flow"])
def test_an_interrupt_that_pydantic_makes_an_error_of_is_still_one(
    prefect_server, tmp_path, moment, sent, status
):
    """It wraps any exception raised while it serialises, as it does all through a run's first seconds."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED_FLOW)
    script = (
        "from winnow import flows; flows.FLOWS['interrupted'] = 'interrupted:interrupted'\n"
        "from winnow.flows.cli import main; main()"
    )
    parameter = json.dumps({"sent": sent} if moment == "before a flow" else sent)
    run = subprocess.run(
        [sys.executable, "-c", script, "run", "interrupted", "-p", f"sent={parameter}"],
        env={**os.environ, **prefect_server, "WINNOW_STORE": str(tmp_path / "store")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=heed,
        check=False,
    )
    assert run.returncode == status, run.stderr
    assert "never" not in run.stdout
    assert "Traceback" not in run.stderr
    assert "Finished steps and checkpoints are kept; the same command goes on from there" in run.stderr
