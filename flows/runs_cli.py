"""The commands that look back at what ran: runs, open, report."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from winnow.flows.options import AsJson, print_json
from winnow.tasks.errors import BadInput

if TYPE_CHECKING:
    from winnow.tasks.runs import Run

__all__ = ["open_report", "report", "runs"]

Reference = Annotated[
    str | None, typer.Argument(help="The first digits of a run (`winnow runs`); default the newest")
]


def runs(
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="At most so many")] = 10,
    as_json: AsJson = False,
) -> None:
    """List what ran, the newest first: when, what, how long, the main result, the report or list."""
    from winnow.tasks import runs as ran

    known = ran.runs()
    if as_json:
        print_json([_facts(run) for run in known[:number]])
        return
    for run in known[:number]:
        seconds = "" if run.seconds is None else f"  {run.seconds:,.0f} s"
        when = f"{run.finished.astimezone():%Y-%m-%d %H:%M}"
        typer.secho(f"{when}  {run.id[:12]}  {_name(run)}{seconds}", bold=True)
        for line in filter(None, (run.result, _shown(run))):
            typer.echo(f"    {line}")
    if not known:
        from winnow.tasks.store import store

        typer.echo(f"nothing has run in {store().uri}")
    elif len(known) > number:
        typer.echo(f"{len(known) - number:,} more: winnow runs -n {len(known)}")


def _name(run: Run) -> str:
    return f"{run.flow} {run.about}" if run.flow == "select" else f"{run.flow}/{run.about}"


def _shown(run: Run) -> str | None:
    """Where what a run shows lies: its report, or the list that it wrote."""
    from winnow.tasks.store import store

    return store().address(run.report) if run.report else run.output


def _facts(run: Run) -> dict[str, Any]:
    return {**run.model_dump(mode="json"), "report": _shown(run) if run.report else None}


def open_report(run: Reference = None) -> None:
    """Open a run's report in the browser; without a display, or for a list, only print where it is."""
    from winnow.tasks.runs import find
    from winnow.tasks.store import store

    found = find(run)
    where = _shown(found)
    if where is None:
        raise BadInput(
            f"{found.id[:12]} ({_name(found)}) wrote neither a report nor a list.",
            remedy=f"`winnow show {found.digest[:12]}` shows what it chose",
        )
    if found.report and store().size(found.report) is None:
        raise BadInput(f"{where} is gone.", remedy="run the same command again: it comes from the cache")
    typer.echo(where)
    if found.report and store().local and _has_display():
        typer.launch(where)


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or any(
        map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    )


def report(
    run: Annotated[list[str], typer.Argument(help="The first digits of runs (`winnow runs`)")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="A .md, .tex (booktabs) or .csv file; default stdout"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put the accuracies of several runs into one table: Markdown, LaTeX, or CSV with all digits."""
    if output is not None and output.suffix not in (".md", ".tex", ".csv"):
        raise BadInput(f"-o {output}: the suffix decides the format.", remedy="give .md, .tex or .csv")
    from winnow.tasks.report.latex import to_latex
    from winnow.tasks.report.tables import accuracy_table, stacked, to_csv, to_markdown
    from winnow.tasks.runs import find

    found = list(dict.fromkeys(find(reference) for reference in run))
    rows = dict(zip(_labels(found), map(_rows, found), strict=True))
    flat = [{"run": name, **row} for name, those in rows.items() for row in those]
    tables = {name: accuracy_table(those) for name, those in rows.items()}
    table = next(iter(tables.values())) if len(tables) == 1 else stacked(tables)
    if as_json:
        print_json(flat)
    elif output is None:
        typer.echo(to_markdown(table))
    if output is not None:
        from winnow.tasks.files import atomic

        texts = {
            ".md": lambda: to_markdown(table),
            ".tex": lambda: to_latex(table),
            ".csv": lambda: to_csv(flat),
        }
        with atomic(output.absolute()) as temporary:
            temporary.write_text(texts[output.suffix]().rstrip("\n") + "\n", encoding="utf-8")
        typer.echo(f"{len(flat)} rows of {len(found)} runs -> {output}", err=as_json)


def _labels(found: Sequence[Run]) -> list[str]:
    """A name for each run, with its first digits where two have the same."""
    names = Counter(map(_name, found))
    return [f"{_name(run)} ({run.id[:8]})" if names[_name(run)] > 1 else _name(run) for run in found]


def _rows(run: Run) -> list[dict[str, Any]]:
    """A run's accuracies: mean, spread and difference from the baseline, by method and fraction."""
    from winnow.tasks.artifacts import Artifact
    from winnow.tasks.report.statistics import summarise

    if run.report is None:
        raise BadInput(
            f"{run.id[:12]} ({_name(run)}) is a choice from a pool: it has no accuracies.",
            remedy="give runs with a report (`winnow runs`)",
        )
    try:
        rows = summarise(Artifact.load(run.digest).table().to_pylist())
    except (KeyError, TypeError) as error:
        raise BadInput(f"{run.digest[:12]} is no table of trials.") from error
    times = ("seconds", "selection_seconds")  # those are beside the trials, not among them
    return [{name: value for name, value in row.items() if name not in times} for row in rows]
