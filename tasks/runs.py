"""What ran: one small record per result, which a flow's last step writes and `winnow runs` reads.

It has what differs from run to run, which is why it is not in the results: when it ended, how long it took.

A store may be shared, so a record is data that somebody else may have written: each value is validated, and
a file that is not one counts as absent.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from winnow.tasks.artifacts import Artifact, Digest
from winnow.tasks.errors import BadInput, UnknownName
from winnow.tasks.store import store

__all__ = ["Run", "find", "record", "runs"]

Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]  # nothing that moves a cursor


class Run(BaseModel):
    """A finished run of a flow.

    Attributes:
        id: of the record: the digest of the trials, or for a choice that of the coreset and its settings.
        digest: of the artifact that the flow returned.
        flow: its name.
        about: dataset or pool.
        result: the main result in a line.
        finished: when.
        seconds: how long the last run took, whatever came from the cache; None outside of a flow.
        report: the report's name in the store, None where the flow makes none.
        output: file of the list that was written, if any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Digest
    digest: Digest
    flow: Line
    about: Line
    result: Line
    finished: Annotated[AwareDatetime, Field(strict=False)]
    seconds: Annotated[float, Field(ge=0)] | None
    report: Annotated[str, StringConstraints(pattern=r"^reports/[\w-]+\.html$")] | None = None
    output: Line | None = None


def record(
    result: Artifact,
    about: str,
    said: str,
    *,
    report: str | None = None,
    output: str | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Record the flow run that is about to end with this result; the same result again replaces its record.

    Args:
        result: what the flow returns.
        about: dataset or pool.
        said: the main result in a line.
        report: the report's name in the store; with one, the result is the table of trials.
        output: file of the list.
        settings: plain values that tell two choices with the same result apart.
    """
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    flow, now = context.flow.name if context and context.flow else "", datetime.now(UTC)
    identity = result.digest
    if report is None:  # in two pools, the same rows can be chosen
        told = json.dumps([identity, flow, about, settings], sort_keys=True, default=str)
        identity = hashlib.sha256(told.encode()).hexdigest()
    run = Run(
        id=identity,
        digest=result.digest,
        flow=flow,
        about=_printable(about),
        result=_printable(said),
        finished=now.replace(microsecond=0),
        seconds=round((now - context.start_time).total_seconds(), 1) if context else None,
        report=report,
        output=None if output is None else _printable(output),
    )
    store().write(f"runs/{identity}.json", run.model_dump_json(indent=1).encode())


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def runs() -> list[Run]:
    """Every recorded run, the newest first."""
    names = (name for name in store().names("runs") if name.endswith(".json"))
    found = (run for name in names if (run := _read(name)) is not None)
    return sorted(found, key=lambda run: (run.finished, run.id), reverse=True)


def _read(name: str) -> Run | None:
    try:
        run = Run.model_validate(store().read_json(name))
    except ValidationError:
        return None
    return run if name == f"runs/{run.id}.json" else None


def find(reference: str | None = None) -> Run:
    """The run whose id, or whose artifact's digest, begins with ``reference``; without one, the newest.

    Raises:
        UnknownName: there is none.
        BadInput: there are several.
    """
    known = runs()
    if reference is None:
        if not known:
            raise UnknownName(
                f"nothing has run in {store().uri}.", remedy="for example `winnow run elfs/digits`"
            )
        return known[0]
    begin = reference.lower()
    found = [run for run in known if run.id.startswith(begin)]
    found = found or [run for run in known if run.digest.startswith(begin)]
    if not found or len(begin) < 4:
        text = f"no run begins with {reference}." if len(begin) >= 4 else f"{reference!r} is too short."
        raise UnknownName(text, remedy="`winnow runs` lists them; give at least 4 digits")
    if len(found) > 1:
        raise BadInput(
            f"{reference} begins {len(found)} runs: {', '.join(run.id[:16] for run in found[:5])}.",
            remedy="give more digits, of the run's own",
        )
    return found[0]
