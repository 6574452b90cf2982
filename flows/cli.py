"""The command line: `winnow ls | run | show | export | cache | doctor`. Thin, and quick to start: heavy imports live in commands."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.tasks.errors import BadInput, UnknownName, WinnowError, did_you_mean

app = typer.Typer(
    name="winnow",
    help="Keep the training data worth keeping: coreset selection as cached, resumable Prefect flows.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(
    name="cache",
    help="The artifact store: what it holds, whether it is sound, why something was computed.",
    no_args_is_help=True,
)
app.add_typer(cache_app)

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("datasets", "embedders", "networks", "scores", "selectors", "policies", "flows", "deployments")


def main() -> None:
    """Entry point; Winnow's own errors are messages, not tracebacks."""
    try:
        app()
    except WinnowError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)
    except BrokenPipeError:  # `winnow ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


# -- ls ------------------------------------------------------------------------------------------------------


@app.command("ls")
def list_all(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(KINDS)}; default all")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable")] = False,
) -> None:
    """List what there is: datasets, embedders, networks, scores, selectors, policies, flows, deployments."""
    if kind is not None and kind not in KINDS:
        raise UnknownName(f"{kind!r} cannot be listed.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}")
    found = {name: _listed(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for name, entries in found.items():
        typer.secho(f"{name} ({len(entries)})", bold=True)
        width = max((len(entry["name"]) for entry in entries), default=0)
        for entry in entries:
            facts = ", ".join(f"{key} {_fact(value)}" for key, value in entry["facts"].items())
            text = " · ".join(part for part in (entry["summary"], facts) if part)
            typer.echo(f"  {entry['name']:<{width}}  {text}")


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(f"{v:,}" if isinstance(v, int) else str(v) for v in value.values())
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _listed(kind: str) -> list[dict[str, Any]]:
    if kind == "flows":
        return [
            {"name": name, "summary": summary, "facts": {}} for name, (_, summary) in sorted(_flows().items())
        ]
    if kind == "deployments":
        return [
            {"name": name, "summary": found["description"], "facts": {"pool": found["work_pool"]["name"]}}
            for name, found in _deployments().items()
        ]
    from winnow.tasks import registry

    entries = getattr(registry, kind)
    shown = ("classes", "samples", "size", "dim", "higher_is", "needs")
    return [
        {
            "name": entry.name,
            "summary": entry.summary,
            "facts": {k: v for k, v in entry.facts.items() if k in shown},
        }
        for entry in entries
    ]


def _flows() -> dict[str, tuple[str, str]]:
    """Flow name to (``module:function``, summary), read from the sources without importing them."""
    found = {}
    for file in sorted((ROOT / "flows").glob("*.py")):
        source = file.read_text(encoding="utf-8")
        if "@flow(" not in source:
            continue
        for node in ast.parse(source).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for decorator in node.decorator_list:
                if (
                    isinstance(decorator, ast.Call)
                    and isinstance(decorator.func, ast.Name)
                    and decorator.func.id == "flow"
                ):
                    names = [
                        k.value.value
                        for k in decorator.keywords
                        if k.arg == "name" and isinstance(k.value, ast.Constant)
                    ]
                    summary = (ast.get_docstring(node) or "").partition("\n")[0]
                    found[str(names[0]) if names else node.name] = (
                        f"winnow.flows.{file.stem}:{node.name}",
                        summary,
                    )
    return found


def _deployments() -> dict[str, dict[str, Any]]:
    """``flow/name`` to its entry of deployments/prefect.yaml."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load((ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8"), Loader=loader)
    names = {target.replace(":", "."): name for name, (target, _) in _flows().items()}
    return {f"{names[entry['entrypoint']]}/{entry['name']}": entry for entry in content["deployments"]}


# -- run -----------------------------------------------------------------------------------------------------


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A deployment (elfs/digits) or a flow (elfs)")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--param", help="key=value, the value as JSON or plain text; may be repeated"),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="No bars, no colours: one line an event")] = False,
) -> None:
    """Run a deployment's flow in this process: no server, no worker; finished steps come from the cache."""
    flows, deployments = _flows(), _deployments()
    if name in deployments:
        entry = deployments[name]
        target, parameters = entry["entrypoint"].rpartition(".")[::2], dict(entry.get("parameters", {}))
    elif name in flows:
        module, _, function = flows[name][0].partition(":")
        target, parameters = (module, function), {}
    else:
        known = [*deployments, *flows]
        raise UnknownName(
            f"{name!r} is not a deployment or flow.{did_you_mean(name, known)} Available: {', '.join(known)}"
        )
    parameters |= dict(_parameter(text) for text in parameter or [])

    from winnow.flows.terminal import run_flow

    sys.exit(run_flow(target[0], target[1], parameters, name=name, plain=plain))


@app.command()
def compare(
    dataset: Annotated[str, typer.Argument(help="A dataset (digits)")],
    methods: Annotated[
        str | None, typer.Option("--methods", help="Selectors, comma-separated; default all")
    ] = None,
    fractions: Annotated[
        str | None, typer.Option("--fractions", help="Shares to keep, comma-separated")
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Seeds, comma-separated")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--param", help="key=value of the flow compare, the value as JSON or plain text"),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="No bars, no colours: one line an event")] = False,
) -> None:
    """Compare selection methods on a dataset: one table, one figure, ranks, costs, significance."""
    parameters: dict[str, Any] = {"dataset": dataset} | dict(_parameter(text) for text in parameter or [])
    lists = (("methods", methods, str), ("fractions", fractions, float), ("seeds", seeds, int))
    for name, text, kind in lists:
        if text is not None:
            try:
                parameters[name] = [kind(part.strip()) for part in text.split(",") if part.strip()]
            except ValueError as error:
                raise BadInput(f"--{name} {text}: {error}.", remedy="separate values by commas") from error

    from winnow.flows.terminal import run_flow

    sys.exit(run_flow("winnow.flows.compare", "compare", parameters, name=f"compare {dataset}", plain=plain))


def _parameter(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise BadInput(
            f"-p {text}: expected key=value.",
            remedy='for example -p dataset=digits -p "fractions=[0.1, 0.3]"',
        )
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


# -- show, export --------------------------------------------------------------------------------------------


def _artifact(reference: str) -> Any:
    """The artifact of a digest's beginning."""
    from winnow.tasks.artifacts import find
    from winnow.tasks.provenance import artifact_of

    digests = find(reference.lower())
    if len(digests) > 1:
        raise BadInput(
            f"{reference} begins {len(digests)} digests: {', '.join(d[:16] for d in digests[:5])} …",
            remedy="give more digits",
        )
    if not digests:
        raise UnknownName(
            f"no artifact begins with {reference}.", remedy="`winnow cache ls` lists what there is"
        )
    return artifact_of(digests[0])


@app.command()
def show(
    artifact: Annotated[str, typer.Argument(help="The first digits of an artifact's digest")],
    rows: Annotated[int, typer.Option("--rows", help="Rows to print")] = 5,
) -> None:
    """Show an artifact: columns, first rows, which task made it, of what, with which parameters."""
    from winnow.tasks.artifacts import to_numpy
    from winnow.tasks.provenance import lineage

    found = _artifact(artifact)
    typer.secho(str(found), bold=True)
    for path in found.paths():
        typer.echo(f"  file     {path}")
    typer.echo(f"  size     {found.nbytes:,} bytes")
    for name, value in {**found.facts, **found.notes}.items():
        if name != "verdicts":
            typer.echo(f"  {name:<8} {_short(value)}")
    for column in found.arrow_schema():
        notes = {
            k.decode(): v.decode() for k, v in (column.metadata or {}).items() if not k.startswith(b"PARQUET")
        }
        typer.echo(f"  column   {column.name}: {column.type}{f'  {notes}' if notes else ''}")
    for batch in found.batches(rows=rows) if rows else ():
        columns = [
            to_numpy(values, field).tolist()
            for values, field in zip(batch.columns, batch.schema, strict=True)
        ]
        for row in zip(*columns, strict=True):
            cells = (f"{name}={_short(value)}" for name, value in zip(batch.schema.names, row, strict=True))
            typer.echo("  row      " + ", ".join(cells))
        break
    for depth, step in lineage(found.digest):
        if step is None:
            typer.echo("  " + "  " * depth + "given by the user or an uncached step")
            continue
        indent = "  " + "  " * depth
        how = f"{step['finished']}, {step['seconds']:g} s, {step.get('device', '')}"
        typer.secho(f"{indent}made by {step['task']} ({_version(step)}) {how}", bold=True)
        for key, value in step["inputs"].items():
            typer.echo(f"{indent}  {key}: {_short(value)}")
        if depth == 0:
            typer.echo(
                f"{indent}  python {step['python']}, "
                + ", ".join(f"{k} {v}" for k, v in step["versions"].items())
            )


def _version(step: dict[str, Any]) -> str:
    from winnow.tasks.provenance import UNCACHED

    return "runs every time" if step["version"] == UNCACHED else f"version {step['version']}"


def _short(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"artifact"}:
        return f"artifact {value['artifact'][:12]}"
    if isinstance(value, dict) and set(value) == {"model", "fields"}:
        value = value["fields"]
    if isinstance(value, str) and value.startswith(("0x1.", "-0x1.", "0x0.")):
        return f"{float.fromhex(value):g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}={_short(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return (
            f"[{', '.join(map(_short, value))}]"
            if len(value) <= 6
            else f"[{', '.join(map(_short, value[:4]))}, … {len(value)} values]"
        )
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


@app.command()
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

    found = _artifact(artifact)
    if destination.exists() and not force:
        raise BadInput(f"{destination} exists.", remedy="choose another name or pass --force")
    provenance = [step for _, step in lineage(found.digest) if step is not None]
    export_table(found, destination, provenance)
    typer.echo(f"{found} -> {destination} ({destination.stat().st_size:,} bytes)")


# -- cache ---------------------------------------------------------------------------------------------------


@cache_app.command("ls")
def cache_list(task: Annotated[str | None, typer.Argument(help="Only this task")] = None) -> None:
    """List what was computed, oldest first: task, what it made, how long it took."""
    from winnow.tasks.provenance import steps
    from winnow.tasks.store import store

    total, shown = 0, ("method", "fraction", "embedder", "last_accuracy")
    for step in steps():
        if task in (None, step["task"]):
            for output in step["outputs"]:
                about = output["facts"] | output["notes"]
                total += output["nbytes"]
                typer.echo(
                    f"{step['finished'][:19].replace('T', ' ')}  {step['task']:<16} {output['kind']:<14} "
                    f"{output['digest'][:12]}"
                    f"  {output['rows']:>10,} rows {output['nbytes'] / 1e6:>9,.2f} MB "
                    f"{step['seconds']:>8,.1f} s"
                    f"  {' '.join(_fact(about[k]) for k in shown if k in about)}"
                )
    typer.echo(f"{total / 1e6:,.1f} MB in {store().uri}")


@cache_app.command("verify")
def cache_verify(
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete damaged files, so that the next run makes them anew")
    ] = False,
) -> None:
    """Read every artifact and record and check it against its digest."""
    from winnow.tasks.upkeep import verify

    good, bad = verify(delete=delete)
    for name, reason in bad.items():
        typer.secho(f"damaged: {name}: {reason}{' (deleted)' if delete else ''}", fg="red")
    typer.echo(f"{good} files sound, {len(bad)} damaged")
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
    """Delete what no record refers to, scratch of finished tasks and leftovers of killed runs."""
    from winnow.tasks.upkeep import collect_garbage

    gone, nbytes = collect_garbage(older_than_days=older_than, dry_run=dry_run)
    for name in gone:
        typer.echo(f"{'would delete' if dry_run else 'deleted'} {name}")
    typer.echo(f"{len(gone)} files, {nbytes / 1e6:,.1f} MB {'would be ' if dry_run else ''}freed")


@cache_app.command("why")
def cache_why(task: Annotated[str, typer.Argument(help="A task, for example embed")]) -> None:
    """Say why a task's newest computation was not taken from the cache: which input changed."""
    from winnow.tasks.provenance import steps, why

    found = why(task)
    if found is None:
        ran = sorted({step["task"] for step in steps()})
        raise UnknownName(
            f"task {task!r} was never computed in this store. Computed: {', '.join(ran) or 'none'}"
        )
    newest = found["run"]
    typer.secho(f"{newest['key']}, computed {newest['finished']}", bold=True)
    if found["because"]:
        typer.echo(f"recomputed because: {found['because']}")
    elif found["nearest"] is None:
        typer.echo("It was the first computation of this task.")
    elif not found["changed"]:
        typer.echo("Nothing changed: its record had been deleted.")
    else:
        typer.echo(f"The nearest earlier computation ({found['nearest']['finished']}) differs in:")
        for name, (before, now) in found["changed"].items():
            typer.echo(f"  {name}: {_short(before)} -> {_short(now)}")


# -- doctor --------------------------------------------------------------------------------------------------


@app.command()
def doctor() -> None:
    """Check versions, GPU, store, data, server; say what is wrong and the command that mends it."""
    from winnow.flows.doctor import examine

    wrong = 0
    for mark, subject, text, remedy in examine():
        colour = {"ok": "green", "note": "yellow", "wrong": "red"}[mark]
        typer.secho(f"{mark:<6}", fg=colour, nl=False)
        typer.echo(f"{subject:<14} {text}")
        if remedy:
            typer.echo(f"{'':<20} next: {remedy}")
        wrong += mark == "wrong"
    if wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
