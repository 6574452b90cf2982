"""A flow run shown in a terminal: a line per step, bars for long ones, the table, errors in words."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from winnow.flows import FLOWS
from winnow.flows.options import Shown, print_json
from winnow.tasks.errors import BadInput, TooLarge, WinnowError, did_you_mean
from winnow.tasks.progress import duration
from winnow.tasks.registry import loaded

if TYPE_CHECKING:
    from winnow.flows.plan import Step
    from winnow.tasks.artifacts import Artifact

__all__ = ["run_flow"]

# Steps that are many and short: counted, not shown one by one.
QUIET = ("annotate", "select", "train", "hold-out", "label")

Interrupt = Callable[[], int | None]  # the signal that asked the run to stop, if one did

_FINISHED = re.compile(r"^Finished in state (\w+)")


def run_flow(
    flow_name: str, base: dict[str, Any], changes: dict[str, Any], *, name: str, shown: Shown
) -> int:
    """Run and show a flow here; returns the exit status. The user's ``changes`` override ``base``."""
    # In processes that the run starts, no module in the current folder may shadow another.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    # Prefect reads these when it is imported. Its own console log is replaced by ours; the full log still
    # goes to the server.
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "DEBUG" if shown.verbose else "CRITICAL")
    if shown.verbose:
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "DEBUG")
    looks: dict[str, Any] = {"no_color": True, "force_terminal": False} if shown.plain else {}
    errors = Console(stderr=True, highlight=False, **looks)
    console = Console(stderr=True, highlight=False, quiet=shown.quiet, **looks)
    # a busy machine needs longer than 20 s
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    from winnow.flows.server import served_by, temporary_server

    started = time.monotonic()
    with _interrupts() as interrupt:
        try:
            server = None if shown.dry_run else temporary_server()
            with _watched(console, interrupt, shown) as counts:
                from winnow.tasks.store import store

                console.print(f"[bold]{name}[/]  store {store().uri}")
                store().check()
                flow = loaded(FLOWS[flow_name])
                parameters = _validated(flow, base, changes)
                if shown.dry_run:
                    return _show_plan(flow, parameters, shown)
                with served_by(server):
                    result = flow(**parameters)
            facts = _facts(flow_name, result, counts, time.monotonic() - started)
            if shown.as_json:
                print_json(facts)
            else:
                _show_result(console, result, facts)
            sys.stdout.flush()
            return 0
        except BaseException as error:
            sent = signal.SIGINT if isinstance(error, KeyboardInterrupt) else interrupt()
            if sent is None and not isinstance(error, Exception):
                raise
            status = _failed(errors, error, sent)
            return 3 if shown.dry_run and isinstance(error, TooLarge) else status


def _failed(console: Console, error: BaseException, sent: int | None) -> int:
    """Say how a run failed, or that the signal ``sent`` stopped it; returns the exit status."""
    goes_on = "Finished steps and checkpoints are kept; the same command goes on from there."
    if sent is not None:
        console.print(f"\n[yellow]stopped.[/] {goes_on}", soft_wrap=True)
        return 128 + sent
    if isinstance(error, WinnowError):
        console.print(f"[red bold]error:[/] {escape(str(error))}", soft_wrap=True)
    else:
        console.print_exception(max_frames=8)
        console.print(f"[red bold]failed.[/] {goes_on}", soft_wrap=True)
    return 1


@contextlib.contextmanager
def _interrupts() -> Iterator[Interrupt]:
    """Tells which of SIGINT and SIGTERM arrived, whatever became of the exception that Python raised for it.

    While serialising, pydantic turns any exception into an error of its own; Prefect, which serialises all
    the time, drops parameters that cause one, and has its own SIGTERM handler while a flow runs. The numbers
    in this pipe are written by the interpreter.
    """
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _terminate)

    arrived = bytearray()

    def interrupt() -> int | None:
        with contextlib.suppress(BlockingIOError):
            arrived.extend(os.read(reading, 4096))
        return next((number for number in arrived if number in (signal.SIGINT, signal.SIGTERM)), None)

    try:
        yield interrupt
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


class _Terminated(BaseException):
    """SIGTERM, sent again by Prefect after ending the flow run for it; or an interrupt that was swallowed."""


def _terminate(*_: Any) -> None:
    raise _Terminated


def _validated(flow: Any, base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Parameters converted to the flow's types; errors name the parameter."""
    from prefect.exceptions import ParameterTypeError

    from winnow.flows.forms import NESTED, merged

    names = list(flow.parameters.properties)
    fields = [f"{name}.{field}" for name in names for field in getattr(NESTED.get(name), "model_fields", ())]
    for name in changes:
        if name not in names:
            inside = [field for field in fields if field.endswith(f".{name}")]
            hint = (
                f" Did you mean {' or '.join(inside)}?" if inside else did_you_mean(name, [*names, *fields])
            )
            raise BadInput(f"{flow.name} has no parameter {name!r}.{hint} Parameters: {', '.join(names)}")
    parameters = merged(base, changes)
    for name in flow.parameters.required or []:
        if name not in parameters:
            raise BadInput(f"{flow.name} needs the parameter {name!r}.", remedy=f"pass -p {name}=…")
    try:
        return flow.validate_parameters(parameters)
    except ParameterTypeError as error:
        # pydantic's listing, one parameter and one reason per line, without its links
        said = filter(None, map(str.strip, str(error).splitlines()))
        lines = [line for line in said if "errors.pydantic.dev" not in line]
        raise BadInput(f"{flow.name}: " + "\n  ".join(lines[1:] or lines)) from error


@contextlib.contextmanager
def _watched(console: Console, interrupt: Interrupt, shown: Shown) -> Iterator[Counter[str]]:
    """Steps and log lines on the console, with bars if it is a terminal."""
    barred = console.is_terminal and not shown.quiet
    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not barred,
    )
    from prefect.logging.configuration import setup_logging

    from winnow.tasks.progress import terminal

    setup_logging()  # now rather than at the first run, where it would replace our handlers

    counts: Counter[str] = Counter()
    steps = _Steps(console, counts, interrupt)
    ours: logging.Handler
    if barred:  # the bars show the rest
        ours = RichHandler(console=console, show_time=False, show_path=False, level=logging.WARNING)
    else:
        ours = logging.StreamHandler()
        ours.setFormatter(logging.Formatter("    %(message)s"))
        ours.addFilter(lambda record: record.name != "winnow.tasks.report")  # shown at the end
    if shown.quiet:
        ours.setLevel(logging.ERROR)
    if shown.verbose:  # Prefect's handler shows everything, ours included
        ours = logging.NullHandler()
        logging.getLogger("prefect.events").setLevel(logging.INFO)  # each event would be eight lines
    listeners: list[tuple[logging.Logger, logging.Handler]] = [
        (logging.getLogger("prefect.task_runs"), steps),
        (logging.getLogger("winnow"), ours),
    ]
    for logger, handler in listeners:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if shown.verbose else logging.INFO)
    try:
        with bars, terminal(bars) if barred else contextlib.nullcontext():
            yield counts
    finally:
        for logger, handler in listeners:
            logger.removeHandler(handler)


class _Steps(logging.Handler):
    """Prefect's "Finished in state …" as one short line per step."""

    def __init__(self, console: Console, counts: Counter[str], interrupt: Interrupt) -> None:
        super().__init__(logging.INFO)
        self.console, self.counts, self.interrupt = console, counts, interrupt

    def emit(self, record: logging.LogRecord) -> None:
        finished = _FINISHED.match(record.getMessage())
        if finished is None:
            return
        name = str(getattr(record, "task_run_name", ""))
        state = finished.group(1)
        main = threading.current_thread() is threading.main_thread()
        if main and state in ("Cached", "Completed") and self.interrupt() is not None:
            raise _Terminated  # nobody but us has noticed
        self.counts["cached" if state == "Cached" else "computed" if state == "Completed" else "failed"] += 1
        if name.startswith(QUIET) and state in ("Cached", "Completed"):
            trained = self.counts["trainings"] = self.counts["trainings"] + name.startswith("train-")
            if name.startswith("train-") and trained % 10 == 0:
                self.console.print(f"  [green]·[/] {trained} trainings")
            return
        mark = {"Cached": "[blue]=[/]", "Completed": "[green]✓[/]"}.get(state, "[red]✗[/]")
        self.console.print(f"  {mark} {name}" + (" [dim]from the cache[/]" if state == "Cached" else ""))


def _show_plan(flow: Any, parameters: dict[str, Any], shown: Shown) -> int:
    """Print what a run would do; returns the exit status.

    Raises:
        TooLarge: it would not fit.
    """
    from winnow.flows.plan import check_room, plan_of, size

    plan = plan_of(flow, parameters)
    total = plan.total()
    if shown.as_json:
        print_json({"flow": flow.name, "steps": [asdict(step) for step in plan.steps], "total": total})
    else:
        out = Console(no_color=shown.plain or None, highlight=False)
        groups: dict[tuple[str, str], list[Step]] = {}
        for step in plan.steps:
            name = step.task if step.name.startswith(QUIET) else step.name
            groups.setdefault((name, step.state), []).append(step)
        for (name, state), steps in groups.items():
            several = f" × {len(steps)}" if len(steps) > 1 else ""
            out.print(f"{state:<9}  {name}{several}{_estimated(steps)}", markup=False, soft_wrap=True)
        words = [f"{total['cached']} steps from the cache, {total['to_do']} to do"]
        if total["to_do"] > total["unknown_seconds"]:
            words.append(f"about {duration(total['seconds'])}")
        if total["unknown_seconds"]:
            words.append(f"{total['unknown_seconds']} of unknown time")
        words += [f"{of} {size(total[of])} or more" for of in ("memory", "disk") if total[of]]
        out.print(", ".join(words), soft_wrap=True)
    check_room(plan)
    return 0


def _estimated(steps: list[Step]) -> str:
    """What steps of one kind will take together."""
    from winnow.flows.plan import size

    if steps[0].state != "to do":
        return ""
    known = [step.seconds for step in steps if step.seconds is not None]
    recorded = max(step.runs for step in steps)
    words = [f"about {duration(sum(known))} (from {recorded} recorded)" if known else "time unknown"]
    if 0 < len(known) < len(steps):
        words.append(f"{len(steps) - len(known)} of unknown time")
    if memory := max(step.memory or 0 for step in steps):
        words.append(f"at least {size(memory)} of memory")
    if disk := sum(step.disk or 0 for step in steps):
        words.append(f"{size(disk)} on disk")
    if any(step.resumes for step in steps):
        words.append("goes on from a checkpoint")
    return f"  {', '.join(words)}"


def _facts(flow: str, result: Any, counts: Counter[str], seconds: float) -> dict[str, Any]:
    """What a run made, for programs."""
    from winnow.tasks.artifacts import Artifact
    from winnow.tasks.report.statistics import summarise
    from winnow.tasks.store import store

    steps = {"cached": counts["cached"], "computed": counts["computed"]}
    ran = {"flow": flow, "seconds": round(seconds, 1), "steps": steps}
    if not isinstance(result, Artifact):  # a flow of somebody else's
        return ran
    report, output = result.notes.get("report"), result.notes.get("output")
    return {
        **ran,
        "digest": result.digest,
        "kind": result.kind,
        "rows": result.rows,
        "report": None if report is None else store().address(report),
        "output": None if output is None else str(Path(output).absolute()),
        "accuracies": None if report is None else summarise(result.table().to_pylist()),
        "verdicts": result.facts.get("verdicts", []),
    }


def _show_result(console: Console, result: Any, facts: dict[str, Any]) -> None:
    out = Console(no_color=console.no_color or None, highlight=False)
    if "digest" in facts:
        _show_artifact(out, result, facts)
    steps, cached = sum(facts["steps"].values()), facts["steps"]["cached"]
    console.print(f"[dim]{steps} steps, {cached} from the cache, {facts['seconds']} s[/]")


def _show_artifact(out: Console, result: Artifact, facts: dict[str, Any]) -> None:
    from winnow.tasks.report.tables import accuracy_table, comparison_table, to_rich

    digest, made = result.digest[:12], "trials" if facts["report"] else result.kind
    if facts["report"]:
        compared = result.facts["compared"]
        rows = result.table().to_pylist() if compared else facts["accuracies"]
        out.print(to_rich(comparison_table(rows) if compared else accuracy_table(rows)))
    elif "of" in result.facts:
        out.print(f"{result.rows:,} of {result.facts['of']:,} by {result.facts['method']}", markup=False)
    lines = [*facts["verdicts"], *(f"{name}: {facts[name]}" for name in ("report", "output") if facts[name])]
    for line in (*lines, f"{made}: {digest} (`winnow show {digest}`)"):
        out.print(line, soft_wrap=True, markup=False)
