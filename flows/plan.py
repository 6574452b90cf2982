"""A dry run: which steps of a flow come from the cache, what the others will take, whether that fits.

Seconds and sizes are those of recorded steps of the same kind in this store, scaled to the work; memory is
that of the arrays which a step is known to hold at once, so a lower bound. Where nothing is known, nothing is
said.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from winnow.tasks import provenance, records
from winnow.tasks.cache import CachedTask, key_of
from winnow.tasks.errors import TooLarge
from winnow.tasks.plan import Pending, pending, planned_by
from winnow.tasks.registry import embedders
from winnow.tasks.select.budget import count
from winnow.tasks.store import store

__all__ = ["Plan", "Step", "check_room", "plan_of"]

FINAL = ("deliver", "publish")  # what they write is seen outside of the store's artifacts


@dataclass(frozen=True)
class Step:
    """A step of a planned run; None where something is unknown.

    Attributes:
        name: of the task's run.
        task: its name.
        state: ``each time`` is a short step that is not cached.
        seconds: that it will take.
        memory: bytes that it holds at once, at least.
        disk: bytes that it will write.
        runs: recorded steps that the estimate is taken from.
        resumes: whether there is a checkpoint, from which it goes on.
    """

    name: str
    task: str
    state: Literal["cached", "to do", "each time"]
    seconds: float | None = None
    memory: int | None = None
    disk: int | None = None
    runs: int = 0
    resumes: bool = False


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        steps: in their order.
    """

    steps: tuple[Step, ...]

    @property
    def left(self) -> list[Step]:
        """The steps that have to be computed."""
        return [step for step in self.steps if step.state == "to do"]

    def total(self) -> dict[str, Any]:
        """Sums of what is known, and how many steps have no known time."""
        left = self.left
        return {
            "cached": sum(step.state == "cached" for step in self.steps),
            "to_do": len(left),
            "seconds": round(sum(step.seconds or 0.0 for step in left), 1),
            "unknown_seconds": sum(step.seconds is None for step in left),
            "memory": max((step.memory or 0 for step in left), default=0),
            "disk": sum(step.disk or 0 for step in left),
        }


def plan_of(flow: Any, parameters: Mapping[str, Any]) -> Plan:
    """The steps that a flow would take with these parameters; nothing is computed.

    Only the data and the user's files are read, as at the start of every run: the cache is asked for results
    by their digests. What a search will choose is not known before it has run: the steps after it are to do.

    Args:
        flow: a Prefect flow.
        parameters: all that it needs, validated.

    Raises:
        WinnowError: what the flow itself refuses at its start.
    """
    planner = _Planner()
    with planned_by(planner):
        flow.fn(**parameters)
    return Plan(tuple(planner.steps))


def check_room(plan: Plan) -> None:
    """Refuse a plan that cannot fit into this machine's memory or on the store's disk.

    Raises:
        TooLarge: naming the step, or the disk.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for step in plan.left:
        if (step.memory or 0) > memory:
            raise TooLarge(
                f"{step.name} holds at least {size(step.memory)}; this machine has {size(memory)} of memory.",
                remedy="run it where there is more, or on fewer samples",
            )
    root = store().local_root
    while not root.exists():
        root = root.parent
    free, needed = shutil.disk_usage(root).free, plan.total()["disk"]
    if store().local and needed > free:
        raise TooLarge(
            f"The run writes about {size(needed)}; {store().uri} has {size(free)} free.",
            remedy="free some room (`winnow cache gc`), or set WINNOW_STORE elsewhere",
        )


def size(nbytes: int | None) -> str:
    """
    >>> size(2_500_000), size(3 * 10**9), size(None)
    ('2.5 MB', '3.0 GB', '?')
    """
    if nbytes is None:
        return "?"
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.1f} MB"


# -- going through the flow ----------------------------------------------------------------------------------


class _Planner:
    """Answers each call of a task with its recorded result, or notes that it is to do."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._seen: dict[str, Any] = {}
        self._recorded: dict[str, list[dict[str, Any]]] = {}
        for step in provenance.steps():
            self._recorded.setdefault(step["task"], []).append(step)

    def __call__(self, task: Any, arguments: dict[str, Any]) -> Any:
        name = task.task_run_name
        name = name.format(**arguments) if isinstance(name, str) else task.name
        open_ = pending(arguments)
        if not isinstance(task, CachedTask):
            self.steps.append(Step(name, task.name, "each time"))
            late = open_ or task.name in FINAL
            return _outcome(task.name, arguments) if late else task.fn(**arguments)
        if open_:
            self._to_do(name, task, arguments)
            return _outcome(task.name, arguments)
        key = key_of(task.payload(arguments))
        if key in self._seen:  # a run computes it once
            self.steps.append(Step(name, task.name, "cached"))
            return self._seen[key]
        result = records.read(key)
        if result is not None:
            self.steps.append(Step(name, task.name, "cached"))
            return self._seen.setdefault(key, result)
        resumes = store().scratch(key).directory.exists()
        self._to_do(name, task, arguments, resumes=resumes)
        return self._seen.setdefault(key, _outcome(task.name, arguments))

    def _to_do(self, name: str, task: Any, arguments: dict[str, Any], *, resumes: bool = False) -> None:
        rows, estimates = _rows(task.name, arguments), dict[str, Any]()
        if rows is not None:
            known = {key: None if pending(value) else value for key, value in arguments.items()}
            inputs = task.payload(known)["inputs"]
            rates = self._rates(task.name, _kind(inputs), arguments.get("device"))
            estimates["memory"] = _memory(task.name, arguments, rows)
            estimates["disk"] = _disk(task.name, arguments, rows)
            if rates:
                estimates["seconds"] = _work(task.name, inputs, rows) * statistics.median(s for s, _ in rates)
                estimates["disk"] = int(rows * statistics.median(nbytes for _, nbytes in rates))
                estimates["runs"] = len(rates)
        self.steps.append(Step(name, task.name, "to do", resumes=resumes, **estimates))

    @functools.cache  # noqa: B019  # a planner lives as long as its plan
    def _rates(self, task: str, kind: tuple[str, ...], device: str | None) -> list[tuple[float, float]]:
        """Seconds per unit of work and bytes per row of the recorded steps of this kind, on this device."""
        alike = (step for step in self._recorded.get(task, ()) if _on(step, device))
        return [rate for step in alike if (rate := _rate(step, kind)) is not None]


def _outcome(task: str, arguments: Mapping[str, Any]) -> Pending:
    """What a step that has not run would give, as far as that is known."""
    rows = _rows(task, arguments)
    if task == "select" and rows is not None and not pending(arguments["among"]):
        among = arguments["among"]
        n = rows if among is None else among.rows
        facts = {"method": arguments["method"], "fraction": arguments["budget"], "of": n}
        return Pending(count(arguments["budget"], n), facts)
    if task == "hold-out" and rows is not None:
        held = max(1, int(arguments["share"] * rows))
        return Pending(rows, parts={"held": Pending(held), "rest": Pending(rows - held)})
    given = arguments.get("coreset") if task in ("annotate", "label") else None
    facts = dict(given.facts) if given is not None else _dim(arguments)
    return Pending(rows, facts)


def _rows(task: str, arguments: Mapping[str, Any]) -> int | None:
    """The samples that a step works on: those of a coreset that it labels or trains on, else all."""
    first = next(iter(arguments.values()), None)
    if task in ("annotate", "label", "train"):
        first = arguments["coreset"]
    if isinstance(first, list):
        first = first[0] if first else None
    rows = getattr(first, "rows", None)
    return rows if isinstance(rows, int) else None


def _dim(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The length of the vectors that a step makes or reads, where it is known."""
    if "embedder" in arguments:
        dim = embedders.get(arguments["embedder"]).dim
    else:
        embeddings = arguments.get("embeddings")
        dim = None if embeddings is None else embeddings.facts.get("dim")
    return {"dim": dim} if isinstance(dim, int) else {}


# -- estimates -----------------------------------------------------------------------------------------------


def _kind(inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes steps of one task comparable: the method, embedder, score, heads or network that it runs."""
    named = [inputs.get(name) for name in ("embedder", "method", "name", "heads")]
    return (*map(str, named), str((inputs.get("recipe") or {}).get("network")))


def _on(step: Mapping[str, Any], device: str | None) -> bool:
    """Whether a step ran on such a device as this; the number of threads is left out."""
    return device is None or str(step.get("device")).partition(",")[0] == _machine(device)


@functools.cache
def _machine(device: str) -> str:
    from winnow.tasks import hardware

    return hardware.describe(hardware.device(device)).partition(",")[0]


def _work(task: str, inputs: Mapping[str, Any], rows: int) -> float:
    """What the time of a step is proportional to: pairs, picks, samples seen in training, or rows."""
    recipe = (inputs.get("recipe") or {}).get("recipe", {}).get("fields", {})
    if recipe.get("iterations"):
        return float(recipe["iterations"] * recipe["batch_size"])
    if recipe.get("epochs"):
        return float(rows * recipe["epochs"])
    if task == "select":
        return float(rows * _number(inputs["budget"], rows))
    return float(rows) ** 2 if task == "knn" else float(rows)


def _number(budget: Any, n: int) -> int:
    """Samples of a budget as keys have it: floats in hexadecimal digits."""
    return count(float.fromhex(budget) if isinstance(budget, str) else budget, n)


def _rate(step: Mapping[str, Any], kind: tuple[str, ...]) -> tuple[float, float] | None:
    """A recorded step's seconds per unit of work, and bytes per row; None if it is of another kind."""
    outputs = step["outputs"]
    said = (output["facts"].get(name) for output in outputs for name in ("of", "samples"))
    counted = [value for value in said if isinstance(value, int)]
    rows = counted[0] if counted else max((output["rows"] for output in outputs), default=0)
    try:
        work = _work(step["task"], step["inputs"], rows) if _kind(step["inputs"]) == kind else 0.0
    except (KeyError, TypeError, ValueError, AttributeError):  # anybody may have written it
        return None
    seconds = step["seconds"]
    if not (work > 0 and math.isfinite(work) and rows > 0 and math.isfinite(seconds) and seconds >= 0):
        return None
    return seconds / work, sum(output["nbytes"] for output in outputs) / rows


def _memory(task: str, arguments: Mapping[str, Any], rows: int) -> int | None:
    """Bytes of the float32 matrices that a step holds at once, at least."""
    dim = _dim(arguments).get("dim")
    if dim is None or task not in ("embed", "normalise", "knn", "cluster", "kmeans", "select", "explain"):
        return None
    return 4 * rows * dim + (8 * rows * arguments["k"] if task == "knn" else 0)


def _disk(task: str, arguments: Mapping[str, Any], rows: int) -> int | None:
    """Bytes of what a step writes: vectors in float16, normalised ones in float32, a graph's two columns."""
    if task == "knn":
        return int(8 * rows * arguments["k"])
    dim = _dim(arguments).get("dim")
    if dim is None or task not in ("embed", "normalise"):
        return None
    return (2 if task == "embed" else 4) * rows * dim
