"""What is the same work? Cache keys, the Prefect cache policy, records that are checked on a hit, single flight, provenance.

A task's key = its name + explicit version + canonical JSON of its parameters + digests of its input
artifacts. Never paths, times, devices, batch sizes of pure inference or worker counts. So a flow that failed
and is run again reuses every finished artifact, and two flows that want the same artifact compute it once.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import hashlib
import inspect
import json
import logging
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.filesystems import WritableFileSystem
from prefect.locking.protocol import LockManager
from prefect.serializers import Serializer
from prefect.transactions import IsolationLevel
from pydantic import BaseModel, Field

from winnow.tasks.artifacts import Artifact, Scratch, read_json, store
from winnow.tasks.errors import ArtifactCorrupt

__all__ = ["UNCACHED", "CachedTask", "Context", "cached_task", "canonical", "context", "uncached_task", "why"]

UNCACHED = "uncached"  # in place of a version, in the provenance of steps that always run

log = logging.getLogger("winnow.tasks.cache")

P = ParamSpec("P")
R = TypeVar("R")


# -- keys ----------------------------------------------------------------------------------------------------


def canonical(value: Any) -> Any:
    """An input as JSON that depends on its content only.

    Raises:
        TypeError: the input is an array, a path, a live object: anything whose content cannot be named for
            ever.

    >>> canonical({"b": (1, 2.5), "a": None})
    {'a': None, 'b': [1, '0x1.4000000000000p+1']}
    """
    if isinstance(value, Artifact):
        return {"artifact": value.digest}
    if isinstance(value, BaseModel):
        return {
            "model": type(value).__name__,
            "fields": {k: canonical(v) for k, v in sorted(value.__dict__.items())},
        }
    if isinstance(value, dict):
        return {str(k): canonical(v) for k, v in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float.hex(value)
    raise TypeError(
        f"{type(value).__name__} may not be an input of a cached task: pass an Artifact or plain values"
    )


@dataclass
class ArtifactPolicy(CachePolicy):
    """Prefect's cache policy of every Winnow task."""

    version: str = "1"
    ignore: tuple[str, ...] = ()
    seen_as: dict[str, Callable[[Any], Any]] = field(default_factory=dict)

    def payload(self, task: str, inputs: dict[str, Any]) -> dict[str, Any]:
        seen = {
            name: self.seen_as[name](value) if name in self.seen_as else value
            for name, value in inputs.items()
        }
        kept = {name: canonical(value) for name, value in sorted(seen.items()) if name not in self.ignore}
        return {"task": task, "version": self.version, "inputs": kept}

    def compute_key(
        self, task_ctx: Any, inputs: dict[str, Any], flow_parameters: dict[str, Any], **_: Any
    ) -> str:
        return key_of(self.payload(task_ctx.task.name, inputs))


def key_of(payload: dict[str, Any]) -> str:
    """File name of a record: the task's name and a digest of everything that its result depends on."""
    digest = hashlib.sha256(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return f"{payload['task']}-{digest[:32]}"


# -- records: JSON, written atomically, artifacts checked on a hit -------------------------------------------


class ArtifactSerializer(Serializer):
    """Task results as JSON: artifacts, plain values, and lists, tuples and dicts of them."""

    type: str = Field(default="winnow-artifact", frozen=True)

    def dumps(self, obj: Any) -> bytes:
        return json.dumps(_to_json(obj), sort_keys=True).encode()

    def loads(self, blob: bytes) -> Any:
        value = _from_json(json.loads(blob))
        for artifact in artifacts_in(value):
            # Prefect loads a record to ask whether it exists, and takes any exception as "no"
            artifact.path()
        return value


def _to_json(value: Any) -> Any:
    if isinstance(value, Artifact):
        return {"artifact": value.model_dump()}
    if isinstance(value, dict):
        return {"dict": {str(k): _to_json(v) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [_to_json(v) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a cached task may not return {type(value).__name__}: write an Artifact")


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "artifact" in value:
        return Artifact(**value["artifact"])
    if "dict" in value:
        return {k: _from_json(v) for k, v in value["dict"].items()}
    return [_from_json(v) for v in value["list"]]


def artifacts_in(value: Any) -> Iterator[Artifact]:
    """Every artifact inside a task's inputs or result."""
    if isinstance(value, Artifact):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from artifacts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from artifacts_in(inner)


_damaged: dict[
    str, str
    # key -> why its record or artifact was not usable, for the log and the provenance of the recomputation
] = {}


class RecordStorage(WritableFileSystem):
    """Prefect's result records in the artifact store, replaced atomically; a record whose artifact is damaged reads as absent."""

    _block_type_name: ClassVar[str] = "Winnow records"
    _block_type_slug: ClassVar[str] = "winnow-records"

    def _resolve_path(self, path: str) -> None:
        """Records are named by their key alone; without this Prefect looks for the key under the current folder."""

    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]  # Prefect calls it with _sync=True
        content = store().read(f"records/{path}")
        try:
            record = json.loads(content)
            ArtifactSerializer().loads(record["result"].encode())
        except (ArtifactCorrupt, ValueError, KeyError, TypeError) as error:
            reason = error.what if isinstance(error, ArtifactCorrupt) else "Its record was damaged."
            if path not in _damaged:
                log.warning("%s: %s Recomputing it.", path.rpartition("-")[0], reason)
            _damaged[path] = reason
            raise
        return content

    async def aread_path(self, path: str) -> bytes:
        return await asyncio.to_thread(self.read_path, path)

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> None:  # type: ignore[override]
        store().write(f"records/{path}", content)
        store().scratch(path).clear()  # only now is the work safe without its checkpoints
        _damaged.pop(path, None)

    async def awrite_path(self, path: str, content: bytes) -> None:
        await asyncio.to_thread(self.write_path, path, content)


# -- single flight -------------------------------------------------------------------------------------------


class FlockManager(LockManager):
    """One computation per key among all threads and processes of this host.

    Built on ``flock``: the kernel drops the lock when its holder dies by any cause. (Prefect's own file lock
    stays behind after ``kill -9`` and every later run waits for ever.)
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, int]] = {}
        self._mutex = threading.Lock()

    def __deepcopy__(self, memo: Any) -> FlockManager:  # Prefect copies cache policies
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # and pickles tasks for process pools
        return (FlockManager, ())

    def _file(self, key: str) -> Path:
        return store().local_root / "locks" / f"{key}.lock"

    def _try(self, key: str, holder: str) -> bool:
        with self._mutex:
            if key in self._held:
                return self._held[key][0] == holder
            file = self._file(key)
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode())
            self._held[key] = (holder, descriptor)
            return True

    def _attempts(self, key: str, timeout: float | None) -> Iterator[float]:
        """Seconds to sleep before each next try; says once that it waits."""
        start, told = time.monotonic(), False
        while timeout is None or time.monotonic() - start < timeout:
            if not told and time.monotonic() - start > 1.0:
                told = True
                holder = self._file(key).read_text().strip() if self._file(key).exists() else ""
                log.info(
                    "%s: another run computes the same artifact (%s); waiting for it.",
                    key.rpartition("-")[0],
                    holder or "this process",
                )
            yield 0.1

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        if self._try(key, holder):
            return True
        for pause in self._attempts(key, acquire_timeout):
            time.sleep(pause)
            if self._try(key, holder):
                return True
        return False

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        return await asyncio.to_thread(self.acquire_lock, key, holder, acquire_timeout, hold_timeout)

    def release_lock(self, key: str, holder: str) -> None:
        with self._mutex:
            if key not in self._held or self._held[key][0] != holder:
                raise ValueError(f"{holder} holds no lock on {key}")
            os.close(self._held.pop(key)[1])

    def is_locked(self, key: str) -> bool:
        if key in self._held:
            return True
        probe = "probe"
        if self._try(key, probe):
            self.release_lock(key, probe)
            return False
        return True

    def is_lock_holder(self, key: str, holder: str) -> bool:
        return key in self._held and self._held[key][0] == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        if not self.is_locked(key):
            return True
        for pause in self._attempts(key, timeout):
            time.sleep(pause)
            if not self.is_locked(key):
                return True
        return False

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        return await asyncio.to_thread(self.wait_for_lock, key, timeout)


_locks = FlockManager()


# -- tasks ---------------------------------------------------------------------------------------------------


@dataclass
class Context:
    """The running task: its scratch folder, and what it notes for the provenance (device, dtype, …)."""

    task: str
    key: str
    scratch: Scratch
    notes: dict[str, Any] = field(default_factory=dict)


_context: ContextVar[Context] = ContextVar("winnow-task")


def context() -> Context:
    """The context of the running cached task."""
    return _context.get()


class CachedTask(Task[P, R]):
    """A Prefect task whose result is an artifact in the configured store.

    Attributes:
        modules: modules whose code decides the result; a test ties their content to ``version``.
    """

    modules: tuple[str, ...] = ()

    # The store is looked up when the task runs: a worker, a test or a user may set it after this module is
    # imported.
    @property
    def result_storage(self) -> RecordStorage:
        return RecordStorage()

    @result_storage.setter
    def result_storage(self, _: Any) -> None:
        pass


def cached_task(
    *,
    version: str,
    name: str,
    run_name: str | Callable[[], str],
    ignore: tuple[str, ...] = (),
    seen_as: dict[str, Callable[[Any], Any]] | None = None,
    modules: tuple[str, ...] = (),
) -> Callable[[Callable[P, R]], CachedTask[P, R]]:
    """Decorator: a function from artifacts and plain values to artifacts, computed once per content of its inputs.

    Args:
        version: raised by hand when the code changes its results.
        name: the task's name in keys, logs and the UI.
        run_name: name of each run, a template over the parameters.
        ignore: parameters that cannot change the result (device, batch size of inference, …).
        seen_as: parameter to a function that leaves of its value what can change the result.
        modules: modules whose code decides the result, beside the one of the function; what they import
            counts, too.
    """
    policy = ArtifactPolicy(version=version, ignore=ignore, seen_as=seen_as or {}).configure(
        lock_manager=_locks, isolation_level=IsolationLevel.SERIALIZABLE
    )

    def decorate(function: Callable[P, R]) -> CachedTask[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def body(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            payload = policy.payload(
                name, bound.arguments
            )  # a TypeError here is louder than Prefect's, which runs uncached
            key = key_of(payload)
            current = Context(name, key, store().scratch(key))
            token = _context.set(current)
            start = time.perf_counter()
            try:
                result = function(*args, **kwargs)
            finally:
                _context.reset(token)
            _record_provenance(key, payload, result, time.perf_counter() - start, **current.notes)
            return result

        task: CachedTask[P, R] = CachedTask(
            fn=body,
            name=name,
            task_run_name=run_name,
            cache_policy=policy,
            result_serializer=ArtifactSerializer(),
            persist_result=True,
            cache_result_in_memory=False,
        )
        task.modules = (function.__module__, *modules)
        return task

    return decorate


def uncached_task(*, name: str, run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Decorator: a step that is cheap or looks at the outside world, hence runs every time; what it made is traced all the same."""

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def body(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            inputs = {key: canonical(value) for key, value in sorted(bound.arguments.items())}
            payload = {"task": name, "version": UNCACHED, "inputs": inputs}
            start = time.perf_counter()
            result = function(*args, **kwargs)
            key = key_of({**payload, "outputs": [artifact.digest for artifact in artifacts_in(result)]})
            if store().size(f"provenance/{key}.json") is None:
                _record_provenance(key, payload, result, time.perf_counter() - start)
            return result

        return Task(fn=body, name=name, task_run_name=run_name, cache_policy=NO_CACHE)

    return decorate


def _record_provenance(key: str, payload: dict[str, Any], result: Any, seconds: float, **notes: Any) -> None:
    provenance = {
        **payload,
        "key": key,
        "outputs": [artifact.model_dump() for artifact in artifacts_in(result)],
        "seconds": round(seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": library_versions(),
        **notes,
    }
    if reason := _damaged.get(key):
        provenance["recomputed_because"] = reason
    store().write(f"provenance/{key}.json", json.dumps(provenance, indent=1, sort_keys=True).encode())


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in (
        "winnow",
        "torch",
        "torchvision",
        "timm",
        "open_clip_torch",
        "faiss-gpu",
        "faiss-cpu",
        "numpy",
        "scikit-learn",
        "pyarrow",
        "prefect",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# -- looking back --------------------------------------------------------------------------------------------


def provenances() -> list[dict[str, Any]]:
    """Every recorded computation, oldest first."""
    found = [read_json(name) for name in store().names("provenance")]
    return sorted((p for p in found if p is not None), key=lambda p: (p["finished"], p["key"]))


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and set(value) == {"model", "fields"}:
        value = value["fields"]
    if isinstance(value, dict) and value and set(value) != {"artifact"}:
        return {
            k: v
            for name, inner in value.items()
            for k, v in _leaves(inner, f"{path}.{name}" if path else name).items()
        }
    return {path: value}


def why(task: str) -> dict[str, Any] | None:
    """Why the newest computation of ``task`` was not a cache hit: the inputs in which it differs from the nearest earlier one.

    Returns:
        ``{"run", "nearest", "changed": {input: (before, now)}, "because"}``; None when the task never ran.
        ``nearest`` is None for a first computation; ``because`` names a damaged record or artifact.
    """
    runs = [p for p in provenances() if p["task"] == task]
    if not runs:
        return None
    newest = runs[-1]
    now = _leaves({"version": newest["version"], **newest["inputs"]})
    best: tuple[int, dict[str, Any], dict[str, Any]] | None = None
    for earlier in reversed(runs[:-1]):
        before = _leaves({"version": earlier["version"], **earlier["inputs"]})
        changed = {
            name: (before.get(name), now.get(name))
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        }
        if best is None or len(changed) < best[0]:
            best = (len(changed), earlier, changed)
    return {
        "run": newest,
        "nearest": best[1] if best else None,
        "changed": best[2] if best else {},
        "because": newest.get("recomputed_because"),
    }


def known_artifacts() -> dict[str, Artifact]:
    """Every artifact that a recorded computation made, by digest; the newest description of each."""
    return {output["digest"]: Artifact(**output) for step in provenances() for output in step["outputs"]}


def lineage(digest: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The computation that made an artifact, then those that made its inputs, and so on: (depth, step), each step once.

    A step is None where an artifact came from a user's file or a step that is not cached.
    """
    made: dict[str, dict[str, Any]] = {
        output["digest"]: step for step in provenances() for output in step["outputs"]
    }
    seen: set[str] = set()
    waiting = [(0, digest)]
    while waiting:
        depth, current = waiting.pop()
        step = made.get(current)
        if step is None:
            if depth == 0:
                yield depth, None
            continue
        if step["key"] in seen:
            continue
        seen.add(step["key"])
        yield depth, step
        waiting += [(depth + 1, each) for each in reversed(list(_digests(step["inputs"])))]


def _digests(value: Any) -> Iterator[str]:
    """Digests of the artifacts inside a canonical payload."""
    if isinstance(value, dict):
        if set(value) == {"artifact"} and isinstance(value["artifact"], str):
            yield value["artifact"]
        else:
            for inner in value.values():
                yield from _digests(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _digests(inner)


def verify(*, delete: bool = False) -> tuple[int, dict[str, str]]:
    """Check every artifact against its digest, and every record.

    Args:
        delete: remove what is damaged, so that the next run makes it anew.

    Returns:
        number of sound files, and the damaged ones with what is wrong.
    """
    place = store()
    good, bad = 0, {}
    for name in place.names("objects"):
        digest = name.rpartition("/")[2].removesuffix(".parquet")
        with place.fs.open(place.path(name), "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                good += 1
            else:
                bad[name] = "its content is not what its digest says"
    for name in place.names("records"):
        try:
            record = json.loads(place.read(name))
            missing = [
                a for a in artifacts_in(_from_json(json.loads(record["result"]))) if place.size(a.uri) is None
            ]
        except (ValueError, KeyError, TypeError):
            bad[name] = "it cannot be read"
            continue
        if missing:
            bad[name] = f"its artifact {missing[0].digest[:12]} is missing"
        else:
            good += 1
    if delete:
        for name in bad:
            place.delete(name)
    return good, bad


def collect_garbage(*, older_than_days: int | None = None, dry_run: bool = False) -> tuple[list[str], int]:
    """Delete artifacts that no computation made or read and no report shows, scratch of finished tasks, leftovers of killed writes.

    Args:
        older_than_days: also forget computations that finished before that, and what only they refer to.
        dry_run: only say what would go.

    Returns:
        names of what went, and their bytes.
    """
    place = store()
    limit = time.time() - 86_400 * older_than_days if older_than_days is not None else -float("inf")
    kept: set[str] = set()
    gone: list[str] = []
    for name in place.names("provenance"):
        step = read_json(name)
        finished = datetime.fromisoformat(step["finished"]).timestamp() if step else -float("inf")
        if step is None or finished < limit:
            gone += [name, f"records/{name.removeprefix('provenance/').removesuffix('.json')}"]
            continue
        kept |= {output["digest"] for output in step["outputs"]} | set(_digests(step["inputs"]))
    for name in place.names("results"):
        result = read_json(name)
        if result is not None:
            kept.add(result["digest"])
    recent = time.time() - 3600  # a running flow may have written it a moment ago
    for name in place.names("objects"):
        if name.rpartition("/")[2].removesuffix(".parquet") not in kept and place.modified(name) < recent:
            gone.append(name)
    sizes = {name: place.size(name) for name in gone}
    gone = [name for name in gone if sizes[name] is not None]
    nbytes = sum(size for size in sizes.values() if size is not None)
    if not dry_run:
        for name in gone:
            place.delete(name)
    for file in _leftovers(place.local_root, recent):
        gone.append(str(file.relative_to(place.local_root)))
        nbytes += file.stat().st_size
        if not dry_run:
            file.unlink(missing_ok=True)
    return gone, nbytes


def _leftovers(root: Path, before: float) -> Iterator[Path]:
    """Temporary files of killed writes, and scratch of tasks that have a record by now."""
    for file in root.rglob(".tmp-*"):
        if file.is_file() and file.stat().st_mtime < before:
            yield file
    for folder in (root / "partial").glob("*"):
        if (root / "records" / folder.name).exists():
            yield from (file for file in folder.rglob("*") if file.is_file())
