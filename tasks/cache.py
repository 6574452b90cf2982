"""What is the same work? Cache keys, Prefect's cache policy over records, one computation per key.

A task's key = its name + explicit version + canonical JSON of its parameters + digests of its input
artifacts. Never paths, times, devices, batch sizes of pure inference or worker counts. So a flow that failed
and is run again reuses every finished artifact, and two flows that want the same artifact compute it once.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.filesystems import WritableFileSystem
from prefect.locking.protocol import LockManager
from prefect.results import ResultRecord, ResultRecordMetadata
from prefect.serializers import Serializer
from prefect.transactions import IsolationLevel
from pydantic import BaseModel, Field

from winnow.tasks import locks, plan, provenance, records
from winnow.tasks.artifacts import Artifact
from winnow.tasks.store import Scratch, store

__all__ = [
    "CachedTask",
    "Context",
    "StepTask",
    "cached_task",
    "canonical",
    "context",
    "key_of",
    "uncached_task",
]

log = logging.getLogger("winnow.tasks.cache")

P = ParamSpec("P")
R = TypeVar("R")


# -- keys ----------------------------------------------------------------------------------------------------


def canonical(value: Any) -> Any:
    """An input as JSON that depends on its content only.

    Raises:
        TypeError: the input is an array, a path, a live object: anything whose content has no lasting name.

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
    """The Prefect cache policy of every Winnow task."""

    version: str = "1"
    ignore: tuple[str, ...] = ()
    seen_as: dict[str, Callable[[Any], Any]] = field(default_factory=dict)

    def payload(self, task: str, inputs: dict[str, Any]) -> dict[str, Any]:
        seen = inputs | {name: see(inputs[name]) for name, see in self.seen_as.items() if name in inputs}
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


# -- Prefect's side of records -------------------------------------------------------------------------------


class ArtifactSerializer(Serializer):
    """How task results pass through Prefect: as the JSON of :mod:`winnow.tasks.records`."""

    type: str = Field(default="winnow-artifact", frozen=True)

    def dumps(self, obj: Any) -> bytes:
        return json.dumps(records.to_json(obj), sort_keys=True).encode()

    def loads(self, blob: bytes) -> Any:
        return records.from_json(json.loads(blob))


class RecordStorage(WritableFileSystem):
    """Prefect's view of the store's records; one that cannot be used reads as absent.

    What Prefect reads is rebuilt from a validated record: nothing in the store decides how it is read.
    """

    _block_type_name: ClassVar[str] = "Winnow records"
    _block_type_slug: ClassVar[str] = "winnow-records"

    def _resolve_path(self, path: str) -> None:
        """Records are named by their key; without this Prefect looks for the key under the current folder."""

    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]  # Prefect passes _sync
        metadata = ResultRecordMetadata(storage_key=path, serializer=ArtifactSerializer())
        return ResultRecord(metadata=metadata, result=records.load(path)).serialize()

    async def aread_path(self, path: str) -> bytes:
        return await asyncio.to_thread(self.read_path, path)

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> None:  # type: ignore[override]
        records.save(path, ArtifactSerializer().loads(json.loads(content)["result"].encode()))
        store().scratch(path).clear()  # only now is the work safe without its checkpoints

    async def awrite_path(self, path: str, content: bytes) -> None:
        await asyncio.to_thread(self.write_path, path, content)


# -- single flight -------------------------------------------------------------------------------------------


class FlockManager(LockManager):
    """One computation per key among all threads and processes of this host.

    Built on ``flock``: the kernel drops the lock when its holder dies, whatever the cause. (Prefect's own
    file lock stays behind after ``kill -9``, and every later run waits for ever.)
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, int]] = {}
        self._mutex = threading.Lock()

    def __deepcopy__(self, memo: Any) -> FlockManager:  # Prefect copies cache policies
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # and pickles tasks for process pools
        return (FlockManager, ())

    def _try(self, key: str, holder: str) -> bool:
        with self._mutex:
            if key in self._held:
                return self._held[key][0] == holder
            descriptor = locks.try_lock(store().lock_file(key))
            if descriptor is None:
                return False
            self._held[key] = (holder, descriptor)
            return True

    def _wait(self, key: str, done: Callable[[], bool], timeout: float | None) -> bool:
        """Whether ``done`` became true in time; logs once that it is waiting."""
        start, told = time.monotonic(), False
        while not done():
            waited = time.monotonic() - start
            if timeout is not None and waited >= timeout:
                return False
            if not told and waited > 1.0:
                told = True
                task = key.rpartition("-")[0]
                holder = locks.holder_of(store().lock_file(key)) or "this process"
                log.info("%s: another run computes the same artifact (%s); waiting for it.", task, holder)
            time.sleep(0.1)
        return True

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        return self._wait(key, lambda: self._try(key, holder), acquire_timeout)

    async def aacquire_lock(self, *args: Any, **options: Any) -> bool:
        return await asyncio.to_thread(self.acquire_lock, *args, **options)

    def release_lock(self, key: str, holder: str) -> None:
        with self._mutex:
            if key not in self._held or self._held[key][0] != holder:
                raise ValueError(f"{holder} holds no lock on {key}")
            os.close(self._held.pop(key)[1])

    def is_locked(self, key: str) -> bool:
        if key in self._held:
            return True
        free = self._try(key, "probe")
        if free:
            self.release_lock(key, "probe")
        return not free

    def is_lock_holder(self, key: str, holder: str) -> bool:
        return key in self._held and self._held[key][0] == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        return self._wait(key, lambda: not self.is_locked(key), timeout)

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        return await asyncio.to_thread(self.wait_for_lock, key, timeout)


_locks = FlockManager()


# -- tasks ---------------------------------------------------------------------------------------------------


@dataclass
class Context:
    """The running task: its scratch folder, and what it notes for the provenance (device, dtype, …)."""

    scratch: Scratch
    notes: dict[str, Any] = field(default_factory=dict)


_context: ContextVar[Context] = ContextVar("winnow-task")


def context() -> Context:
    """The context of the running cached task."""
    return _context.get()


class StepTask(Task[P, R]):
    """A Prefect task that a dry run plans instead of running."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (planner := plan.planner()) is not None:
            return planner(self, _bound(self.fn, args, kwargs))
        return super().__call__(*args, **kwargs)

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        if (planner := plan.planner()) is not None:
            return plan.Done(planner(self, _bound(self.fn, args, kwargs)))
        return super().submit(*args, **kwargs)


class CachedTask(StepTask[P, R]):
    """A Prefect task whose result is an artifact in the configured store.

    Attributes:
        modules: modules whose code decides the result; a test ties their content to ``version``.
        payload: what a call's key is made of, from its arguments by name.
    """

    modules: tuple[str, ...] = ()
    payload: Callable[[dict[str, Any]], dict[str, Any]]

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
    """Decorator: a function from artifacts and plain values to artifacts, computed once per set of inputs.

    Args:
        version: raised by hand when the code changes its results.
        name: the task's name in keys, logs and the UI.
        run_name: name of each run, a template over the parameters.
        ignore: parameters that cannot change the result (device, batch size of inference, …).
        seen_as: parameter to a function that reduces its value to what can change the result.
        modules: modules whose code decides the result, besides the function's own; what they import counts,
            too.
    """
    policy = ArtifactPolicy(version=version, ignore=ignore, seen_as=seen_as or {}).configure(
        lock_manager=_locks, isolation_level=IsolationLevel.SERIALIZABLE
    )

    def decorate(function: Callable[P, R]) -> CachedTask[P, R]:
        @functools.wraps(function)
        def body(*args: P.args, **kwargs: P.kwargs) -> R:
            # a TypeError here is louder than Prefect's, which runs uncached
            payload = policy.payload(name, _bound(function, args, kwargs))
            key = key_of(payload)
            current = Context(store().scratch(key))
            token = _context.set(current)
            start = time.perf_counter()
            try:
                result = function(*args, **kwargs)
            finally:
                _context.reset(token)
            provenance.record(key, payload, result, time.perf_counter() - start, **current.notes)
            return _as_read(result)

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
        task.payload = functools.partial(policy.payload, name)
        return task

    return decorate


def _bound(function: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """A call's arguments by name, with their defaults."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


_results: list[Any] = []


def _as_read(result: Any) -> Any:
    """A result as it comes out of its record, so that a flow sees no difference.

    It is kept for as long as the process lives: Prefect knows dicts, lists and their keys by their addresses,
    and would take a new object at a freed address for a result of this task.
    """
    read = records.from_json(json.loads(json.dumps(records.to_json(result))))
    _results.append(read)
    return read


def step_task(*, name: str, run_name: str) -> Callable[[Callable[P, R]], StepTask[P, R]]:
    """Decorator: a step that runs every time and is not recorded."""

    def decorate(function: Callable[P, R]) -> StepTask[P, R]:
        return StepTask(fn=function, name=name, task_run_name=run_name, cache_policy=NO_CACHE)

    return decorate


def uncached_task(*, name: str, run_name: str) -> Callable[[Callable[P, R]], StepTask[P, R]]:
    """Decorator: a step that is cheap or looks at the outside world; it runs every time and is recorded."""

    def decorate(function: Callable[P, R]) -> StepTask[P, R]:
        @functools.wraps(function)
        def body(*args: P.args, **kwargs: P.kwargs) -> R:
            policy = ArtifactPolicy(version=provenance.UNCACHED)
            payload = policy.payload(name, _bound(function, args, kwargs))
            start = time.perf_counter()
            result = function(*args, **kwargs)
            outputs = [artifact.digest for artifact in records.artifacts_in(result)]
            key = key_of({**payload, "outputs": outputs})
            if provenance.step(key) is None:
                provenance.record(key, payload, result, time.perf_counter() - start)
            return _as_read(result)

        return step_task(name=name, run_name=run_name)(body)

    return decorate
