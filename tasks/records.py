"""Records: which artifacts a task made from which inputs. One JSON format, which only this module reads.

A store may be shared, so a record is data that somebody else may have written: it is parsed as plain JSON,
each of its values is validated, and its checksum compared. Anything else counts as absent. (Prefect's own
records name the class that reads them, pickle for instance: whoever can write one could run code wherever it
is read.)
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from typing import Any

from winnow.tasks.artifacts import Artifact
from winnow.tasks.errors import ArtifactCorrupt
from winnow.tasks.store import Damaged, store

__all__ = ["Unusable", "artifacts_in", "load", "name_of", "outdated", "read", "save", "why_recomputed"]

log = logging.getLogger("winnow.tasks.cache")

FORMAT = 2  # 1 was Prefect's own


class Unusable(ValueError):
    """A record, or an artifact that it names, that cannot be used; the message says why."""


def name_of(key: str) -> str:
    """A record's name in the store."""
    return f"records/{key}.json"


def save(key: str, result: Any) -> None:
    """Record a task's result: artifacts, plain values, and lists, tuples and dicts of them.

    Raises:
        TypeError: something else is in it.
    """
    body = {"format": FORMAT, "key": key, "result": to_json(result)}
    content = json.dumps({**body, "sha256": _checksum(body)}, sort_keys=True).encode()
    store().write(name_of(key), content)
    _reasons.pop(key, None)


def load(key: str) -> Any:
    """A recorded result, whose artifacts have been checked.

    Raises:
        FileNotFoundError: there is no record of that key.
        Unusable: it, or an artifact that it names, is damaged; logged once.
    """
    try:
        result = parsed(store().read(name_of(key)), key)
        for artifact in artifacts_in(result):
            artifact.check()
    except (Unusable, Damaged, ArtifactCorrupt) as error:
        reason = error.what if isinstance(error, ArtifactCorrupt) else f"Its record cannot be used: {error}."
        if key not in _reasons:
            log.warning("%s: %s Recomputing it.", key.rpartition("-")[0], reason)
        _reasons[key] = reason
        raise Unusable(reason) from error
    return result


def read(key: str) -> Any | None:
    """Like :func:`load`, but None where there is no such result."""
    try:
        return load(key)
    except (FileNotFoundError, Unusable):
        return None


_reasons: dict[str, str] = {}  # key -> why its record was not usable


def why_recomputed(key: str) -> str | None:
    """Why a record that this process looked up was unusable, for the provenance of its recomputation."""
    return _reasons.get(key)


def outdated() -> list[str]:
    """Names of the records that an earlier version of Winnow wrote, which this one does not read."""
    return [name for name in store().names("records") if not name.endswith(".json")]


# -- the format ----------------------------------------------------------------------------------------------


def parsed(content: bytes, key: str) -> Any:
    """A record's result; its artifacts are not checked.

    Raises:
        Unusable: not a record of that key in this format.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unusable("it is no JSON") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise Unusable("it is in another format")
    checksum = body.pop("sha256", None)
    if set(body) != {"format", "key", "result"} or body["key"] != key or checksum != _checksum(body):
        raise Unusable("its content has changed")
    return from_json(body["result"])


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def to_json(value: Any) -> Any:
    if isinstance(value, Artifact):
        return {"artifact": value.to_dict()}
    if isinstance(value, dict):
        return {"dict": {str(k): to_json(v) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [to_json(v) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a cached task may not return {type(value).__name__}: write an Artifact")


def from_json(value: Any) -> Any:
    """Raises: Unusable: not what :func:`to_json` gives."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict) and len(value) == 1:
        ((kind, inner),) = value.items()
        if kind == "artifact":
            try:
                return Artifact(**inner)
            except (TypeError, ValueError) as error:
                raise Unusable("it describes an artifact wrongly") from error
        if kind == "dict" and isinstance(inner, dict):
            return {k: from_json(v) for k, v in inner.items()}
        if kind == "list" and isinstance(inner, list):
            return [from_json(v) for v in inner]
    raise Unusable("it holds something that no task returns")


def artifacts_in(value: Any) -> Iterator[Artifact]:
    """Every artifact inside a task's inputs or result."""
    if isinstance(value, Artifact):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from artifacts_in(inner)
