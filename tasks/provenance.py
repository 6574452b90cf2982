"""Looking back: which step made an artifact, from what, how; and why a step was computed again."""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from winnow.tasks import records
from winnow.tasks.artifacts import Artifact, Handle
from winnow.tasks.hardware import installed
from winnow.tasks.store import store

__all__ = ["UNCACHED", "artifact_of", "lineage", "maker", "outdated", "record", "step", "steps", "why"]

UNCACHED = "uncached"  # in place of a version: a step that always runs

Step = dict[str, Any]


class _Step(BaseModel):
    """What a recorded step must have; anybody may have written a file in a shared store."""

    model_config = ConfigDict(extra="allow")

    task: str
    version: str
    key: str
    inputs: dict[str, Any]
    outputs: list[Handle]
    seconds: float
    finished: AwareDatetime
    python: str
    versions: dict[str, str]


def record(key: str, payload: Step, result: Any, seconds: float, **notes: Any) -> None:
    """Record a computation and, for each artifact that it made, where to find this record."""
    artifacts = list(records.artifacts_in(result))
    content = {
        **payload,
        "key": key,
        "outputs": [artifact.to_dict() for artifact in artifacts],
        "seconds": round(seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": library_versions(),
        **notes,
    }
    if reason := records.why_recomputed(key):
        content["recomputed_because"] = reason
    store().write(f"provenance/{key}.json", json.dumps(content, indent=1, sort_keys=True).encode())
    for artifact in artifacts:
        store().write(f"made/{artifact.digest}.json", json.dumps({"step": key}).encode())


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    return installed(
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
    )


def step(key: str) -> Step | None:
    """A recorded computation; None where there is none, or its file is damaged."""
    content = store().read_json(f"provenance/{key}.json")
    try:
        _Step.model_validate(content)
    except ValidationError:
        return None
    return content


def steps() -> list[Step]:
    """Every recorded computation, oldest first."""
    keys = (name.removeprefix("provenance/").removesuffix(".json") for name in store().names("provenance"))
    sound = (content for key in keys if (content := step(key)) is not None)
    return sorted(sound, key=lambda content: (content["finished"], content["key"]))


def maker(digest: str) -> Step | None:
    """The newest computation that made an artifact; None if unknown."""
    content = store().read_json(f"made/{digest}.json")
    key = content.get("step") if isinstance(content, dict) else None
    return step(key) if isinstance(key, str) and "/" not in key else None


def artifact_of(digest: str) -> Artifact:
    """The handle of a stored artifact, with the notes that its step gave it."""
    outputs = (maker(digest) or {"outputs": []})["outputs"]
    return Artifact.load(digest, next((o["notes"] for o in outputs if o["digest"] == digest), None))


def outdated(prefix: str) -> str | None:
    """Address of the first table of an earlier Winnow whose digest starts with ``prefix``, if any."""
    for name in store().names("provenance"):
        content = store().read_json(name)
        outputs = content.get("outputs") if isinstance(content, dict) else None
        for output in outputs if isinstance(outputs, list) else ():
            if isinstance(output, dict) and "schema_version" in output:
                digest = str(output.get("digest"))
                table = f"objects/{digest[:2]}/{digest}.parquet"
                if digest.startswith(prefix) and store().size(table) is not None:
                    return store().address(table)
    return None


def lineage(digest: str) -> Iterator[tuple[int, Step | None]]:
    """The computation that made an artifact, then those that made its inputs, and so on.

    Yields:
        (depth, step), each step once; None instead of the first step if the artifact's maker is unknown.
    """
    seen: set[str] = set()
    waiting = [(0, digest)]
    while waiting:
        depth, current = waiting.pop()
        made = maker(current)
        if made is None:
            if depth == 0:
                yield depth, None
            continue
        if made["key"] in seen:
            continue
        seen.add(made["key"])
        yield depth, made
        waiting += [(depth + 1, digest) for digest in reversed(list(digests_in(made["inputs"])))]


def digests_in(value: Any) -> Iterator[str]:
    """Digests of the artifacts inside a canonical payload."""
    if isinstance(value, dict) and set(value) == {"artifact"} and isinstance(value["artifact"], str):
        yield value["artifact"]
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from digests_in(inner)


def why(task: str) -> dict[str, Any] | None:
    """Why the newest computation of ``task`` missed the cache: how it differs from the nearest earlier one.

    Returns:
        ``{"run", "nearest", "changed": {input: (before, now)}, "because"}``; None if the task never ran.
        ``nearest`` is None for a first computation; ``because`` names a damaged record or artifact.
    """
    runs = [content for content in steps() if content["task"] == task]
    if not runs:
        return None
    newest = runs[-1]
    now = _leaves({"version": newest["version"], **newest["inputs"]})
    nearest, changed = None, {}
    for earlier in reversed(runs[:-1]):
        before = _leaves({"version": earlier["version"], **earlier["inputs"]})
        names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if nearest is None or len(names) < len(changed):
            nearest, changed = earlier, {name: (before.get(name), now.get(name)) for name in names}
    return {
        "run": newest,
        "nearest": nearest,
        "changed": changed,
        "because": newest.get("recomputed_because"),
    }


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and set(value) == {"model", "fields"}:
        value = value["fields"]
    if isinstance(value, dict) and value and set(value) != {"artifact"}:
        return {
            leaf: content
            for name, inner in value.items()
            for leaf, content in _leaves(inner, f"{path}.{name}" if path else name).items()
        }
    return {path: value}
