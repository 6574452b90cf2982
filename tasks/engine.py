"""Work over parts: each part is computed once for its content, in this process, in threads or in processes.

Results are recorded part by part, so a run that was interrupted, or one with a few more parts, computes only
the rest. An engine is a function of the parts that are left; Ray or work pools would be further entries of
:data:`ENGINES`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, ClassVar, Protocol, TypeVar

from winnow.tasks import locks, records
from winnow.tasks.artifacts import Artifact
from winnow.tasks.cache import canonical, key_of
from winnow.tasks.errors import BadInput, WinnowError, did_you_mean
from winnow.tasks.hardware import cpu_count
from winnow.tasks.store import store

__all__ = ["ENGINES", "Work", "map_parts"]

log = logging.getLogger("winnow.tasks.engine")

P = TypeVar("P", contravariant=True)
Q = TypeVar("Q")


class Work(Protocol[P]):
    """What is done with a part. Other processes receive it pickled.

    Attributes:
        task: name in keys and logs.
        version: raised by hand when its results change.
    """

    task: ClassVar[str]
    version: ClassVar[str]

    def inputs(self, part: P, /) -> dict[str, Any]:
        """Everything that the part's result depends on: plain values, digests, artifacts."""
        ...

    def __call__(self, part: P, /) -> Artifact: ...


Engine = Callable[[Work[Any], Sequence[tuple[str, Any]], int], Iterator[tuple[str, Artifact]]]


def map_parts(
    work: Work[Q],
    parts: Sequence[Q],
    *,
    engine: str = "here",
    workers: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Artifact]:
    """The artifact of each part, in order; those already recorded are not computed again.

    Args:
        work: what is done with a part.
        parts: what it is done with.
        engine: ``here`` (one after another), ``threads`` or ``processes``.
        workers: parts at a time; default one per core.
        progress: called with (parts done, parts in all, note).

    Raises:
        BadInput: no such engine.
        WinnowError: a worker process died; finished parts are kept.
    """
    if engine not in ENGINES:
        raise BadInput(f"engine = {engine!r}.{did_you_mean(engine, ENGINES)} Engines: {', '.join(ENGINES)}")
    named = {"task": work.task, "version": work.version}
    keys = [key_of({**named, "inputs": canonical(work.inputs(part))}) for part in parts]
    done = {key: artifact for key in keys if isinstance(artifact := records.read(key), Artifact)}
    left = {key: part for key, part in zip(keys, parts, strict=True) if key not in done}
    if done:
        log.info("%s: %d of %d parts are done already", work.task, len(done), len(parts))
    for key, artifact in ENGINES[engine](
        work, list(left.items()), min(workers or cpu_count(), max(1, len(left)))
    ):
        done[key] = artifact
        if progress is not None:
            progress(len(done), len(parts), "parts")
    return [done[key] for key in keys]


def _compute(work: Work[Q], key: str, part: Q) -> Artifact:
    """A part's artifact, computed by one run at a time."""
    with locks.held(store().lock_file(key)):
        artifact = records.read(key)
        if not isinstance(artifact, Artifact):
            artifact = work(part)
            records.save(key, artifact)
        return artifact


def _here(work: Work[Q], left: Sequence[tuple[str, Q]], workers: int) -> Iterator[tuple[str, Artifact]]:
    for key, part in left:
        yield key, _compute(work, key, part)


def _pooled(pool: Executor, work: Work[Q], left: Sequence[tuple[str, Q]]) -> Iterator[tuple[str, Artifact]]:
    futures = {pool.submit(_compute, work, key, part): key for key, part in left}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _threads(work: Work[Q], left: Sequence[tuple[str, Q]], workers: int) -> Iterator[tuple[str, Artifact]]:
    yield from _pooled(ThreadPoolExecutor(workers), work, left)


def _processes(work: Work[Q], left: Sequence[tuple[str, Q]], workers: int) -> Iterator[tuple[str, Artifact]]:
    import multiprocessing

    context = multiprocessing.get_context("spawn")  # a forked child would inherit CUDA and held locks
    threads = max(1, cpu_count() // workers)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(threads,))
    try:
        yield from _pooled(pool, work, left)
    except BrokenProcessPool as error:
        raise WinnowError(
            f"{work.task}: a worker process died (killed, or out of memory).",
            kept="every part that was finished",
            remedy="run the same command again, with fewer workers if memory was short",
        ) from error


def _start_worker(threads: int) -> None:
    import os

    os.environ["WINNOW_THREADS"] = str(threads)


ENGINES: dict[str, Engine] = {"here": _here, "threads": _threads, "processes": _processes}
