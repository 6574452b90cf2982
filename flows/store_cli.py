"""The commands that look into the artifact store: show, export, cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.flows.options import AsJson, print_json
from winnow.tasks.errors import BadInput, UnknownName

__all__ = ["cache_app", "export", "show"]

cache_app = typer.Typer(
    name="cache",
    help="The artifact store: what it holds, whether it is sound, why something was computed.",
    no_args_is_help=True,
)

# -- show, export --------------------------------------------------------------------------------------------


def _artifact(reference: str) -> Any:
    """The artifact whose digest starts with ``reference``."""
    from winnow.tasks.artifacts import find
    from winnow.tasks.provenance import artifact_of, outdated

    digests = find(reference.lower())
    if len(digests) > 1:
        raise BadInput(
            f"{reference} begins {len(digests)} digests: {', '.join(d[:16] for d in digests[:5])} …",
            remedy="give more digits",
        )
    if not digests and (old := outdated(reference.lower())):
        raise BadInput(
            f"{reference} was written by an earlier version of Winnow, in a format that is no longer read.",
            kept=f"the table itself, which any Parquet reader opens: {old}",
            remedy="run its flow again: the result is computed anew, under another digest",
        )
    if not digests:
        raise UnknownName(
            f"no artifact begins with {reference}.", remedy="`winnow cache ls` lists what there is"
        )
    return artifact_of(digests[0])


def show(
    artifact: Annotated[str, typer.Argument(help="The first digits of an artifact's digest")],
    rows: Annotated[int, typer.Option("--rows", help="Rows to print")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show an artifact: columns, first rows, which task made it, from what, with which parameters."""
    from winnow.tasks.provenance import UNCACHED, lineage

    handle = _artifact(artifact)
    columns = [(column.name, str(column.type), _notes(column)) for column in handle.arrow_schema()]
    first = _first(handle, rows)
    steps = list(lineage(handle.digest))
    if as_json:
        print_json(
            {
                **handle.to_dict(),
                "files": list(map(str, handle.paths())),
                "columns": [{"name": name, "type": kind, **notes} for name, kind, notes in columns],
                "first": first,
                "lineage": [{"depth": depth, **step} for depth, step in steps if step is not None],
            }
        )
        return
    typer.secho(str(handle), bold=True)
    for path in handle.paths():
        typer.echo(f"  file     {path}")
    typer.echo(f"  size     {handle.nbytes:,} bytes")
    for name, value in {**handle.facts, **handle.notes}.items():
        if name != "verdicts":
            typer.echo(f"  {name:<8} {_short(value)}")
    for name, kind, notes in columns:
        typer.echo(f"  column   {name}: {kind}{f'  {notes}' if notes else ''}")
    for row in first:
        typer.echo("  row      " + ", ".join(f"{name}={_short(value)}" for name, value in row.items()))
    for depth, step in steps:
        indent = "  " + "  " * depth
        if step is None:
            typer.echo(f"{indent}given by the user or an uncached step")
            continue
        version = "runs every time" if step["version"] == UNCACHED else f"version {step['version']}"
        facts = (step["finished"], f"{step['seconds']:g} s", step.get("device"))
        how = ", ".join(fact for fact in facts if fact)
        typer.secho(f"{indent}made by {step['task']} ({version}) {how}", bold=True)
        for key, value in step["inputs"].items():
            typer.echo(f"{indent}  {key}: {_short(value)}")
        if depth == 0:
            versions = {"python": step["python"], **step["versions"]}
            typer.echo(f"{indent}  " + ", ".join(f"{k} {v}" for k, v in versions.items()))


def _notes(column: Any) -> dict[str, str]:
    """What a column's metadata says, besides Parquet's own."""
    notes = column.metadata or {}
    return {key.decode(): value.decode() for key, value in notes.items() if not key.startswith(b"PARQUET")}


def _first(handle: Any, rows: int) -> list[dict[str, Any]]:
    """The first rows of an artifact."""
    from winnow.tasks.columns import to_numpy

    for batch in handle.batches(rows=rows) if rows else ():
        columns = [
            values.to_pylist() if values.null_count else to_numpy(values, field).tolist()
            for values, field in zip(batch.columns, batch.schema, strict=True)
        ]
        return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]
    return []


def _short(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"artifact"}:
        return f"artifact {value['artifact'][:12]}"
    if isinstance(value, dict) and set(value) == {"model", "fields"}:
        value = value["fields"]
    if isinstance(value, str) and value.startswith(("0x1.", "-0x1.", "0x0.")):
        return f"{float.fromhex(value):g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}={_short(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list) and len(value) > 6:
        return f"[{', '.join(map(_short, value[:4]))}, … {len(value)} values]"
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def export(
    artifact: Annotated[str, typer.Argument(help="The first digits of an artifact's digest")],
    destination: Annotated[
        Path, typer.Argument(help="A file: .parquet, .csv, .npz, or .npy for a coreset's ids")
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file")] = False,
) -> None:
    """Copy an artifact out of the store; a Parquet file carries its provenance in the footer."""
    from winnow.tasks.export import export_table
    from winnow.tasks.provenance import lineage

    handle = _artifact(artifact)
    if destination.exists() and not force:
        raise BadInput(f"{destination} exists.", remedy="choose another name or pass --force")
    provenance = [step for _, step in lineage(handle.digest) if step is not None]
    export_table(handle, destination, provenance)
    typer.echo(f"{handle} -> {destination} ({destination.stat().st_size:,} bytes)")


# -- cache ---------------------------------------------------------------------------------------------------


@cache_app.command("ls")
def cache_list(
    task: Annotated[str | None, typer.Argument(help="Only this task")] = None, as_json: AsJson = False
) -> None:
    """List what was computed, oldest first: task, what it made, how long it took."""
    from winnow.tasks.provenance import steps
    from winnow.tasks.store import store

    computed = [step for step in steps() if task in (None, step["task"])]
    if as_json:
        print_json(computed)
        return
    total, shown = 0, ("method", "fraction", "embedder", "last_accuracy")
    for step in computed:
        for output in step["outputs"]:
            about = output["facts"] | output["notes"]
            total += output["nbytes"]
            typer.echo(
                f"{step['finished'][:19].replace('T', ' ')}  {step['task']:<16} {output['kind']:<14} "
                f"{output['digest'][:12]}"
                f"  {output['rows']:>10,} rows {output['nbytes'] / 1e6:>9,.2f} MB "
                f"{step['seconds']:>8,.1f} s"
                f"  {' '.join(fact(about[k]) for k in shown if k in about)}"
            )
    typer.echo(f"{total / 1e6:,.1f} MB in {store().uri}")


@cache_app.command("verify")
def cache_verify(
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete damaged files, so that the next run makes them anew")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every artifact and record and check it against its digest."""
    from winnow.tasks.upkeep import outdated, verify

    good, bad = verify(delete=delete)
    if as_json:
        print_json({"sound": good, "damaged": bad, "deleted": bool(bad) and delete})
        raise typer.Exit(1 if bad else 0)
    for name, reason in bad.items():
        typer.secho(f"damaged: {name}: {reason}{' (deleted)' if delete else ''}", fg="red")
    typer.echo(f"{good} files sound, {len(bad)} damaged")
    what, remedy = outdated()
    if what:
        typer.secho(f"{what}\nnext: {remedy}", fg="yellow")
    if bad:
        if not delete:
            typer.echo(
                "next: run the same flow again (only what is damaged is recomputed), or `winnow cache verify "
                "--delete`"
            )
        raise typer.Exit(1)


@cache_app.command("gc")
def cache_gc(
    older_than: Annotated[
        int | None, typer.Option("--older-than", help="Also forget computations older than so many days")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go")] = False,
) -> None:
    """Delete what no record refers to, scratch files of finished tasks, and leftovers of killed runs."""
    from winnow.tasks.upkeep import collect_garbage

    gone, nbytes = collect_garbage(older_than_days=older_than, dry_run=dry_run)
    for name in gone:
        typer.echo(f"{'would delete' if dry_run else 'deleted'} {name}")
    typer.echo(f"{len(gone)} files, {nbytes / 1e6:,.1f} MB {'would be ' if dry_run else ''}freed")


@cache_app.command("why")
def cache_why(
    task: Annotated[str, typer.Argument(help="A task, for example embed")], as_json: AsJson = False
) -> None:
    """Say why a task's newest computation was not taken from the cache: which input changed."""
    from winnow.tasks.provenance import steps, why

    reason = why(task)
    if reason is None:
        ran = sorted({step["task"] for step in steps()})
        raise UnknownName(
            f"task {task!r} was never computed in this store. Computed: {', '.join(ran) or 'none'}"
        )
    if as_json:
        print_json(reason)
        return
    newest = reason["run"]
    typer.secho(f"{newest['key']}, computed {newest['finished']}", bold=True)
    if reason["because"]:
        typer.echo(f"recomputed because: {reason['because']}")
    elif reason["nearest"] is None:
        typer.echo("It was the first computation of this task.")
    elif not reason["changed"]:
        typer.echo("Nothing changed: its record had been deleted.")
    else:
        typer.echo(f"The nearest earlier computation ({reason['nearest']['finished']}) differs in:")
        for name, (before, now) in reason["changed"].items():
            typer.echo(f"  {name}: {_short(before)} -> {_short(now)}")


def fact(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(f"{v:,}" if isinstance(v, int) else str(v) for v in value.values())
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
