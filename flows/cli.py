"""The command line: `winnow select | run | compare | ls | show | …`; heavy imports come late."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from winnow.flows import FLOWS, catalogue, completion, runs_cli, select_cli, store_cli
from winnow.flows.options import AsJson, Config, DryRun, Parameters, Plain, Quiet, Shown, Verbose, print_json
from winnow.flows.parameters import given
from winnow.tasks.errors import BadInput, UnknownName, WinnowError, did_you_mean

EXITS = (
    "Exit status: 0 done; 1 refused or failed (the message says what is kept and what to do next); 2 wrong "
    "usage; 3 a dry run found that it does not fit; 130 Ctrl-C; 143 terminated."
)

app = typer.Typer(
    name="winnow",
    help="Keep the training data worth keeping: coreset selection as cached, resumable Prefect flows.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    epilog=EXITS,
    pretty_exceptions_enable=False,
)
app.command()(select_cli.select)
app.command()(select_cli.why)
app.command()(select_cli.verify)
app.command()(runs_cli.runs)
app.command("open")(runs_cli.open_report)
app.command()(runs_cli.report)
app.command()(store_cli.show)
app.command()(store_cli.export)
app.add_typer(store_cli.cache_app)


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
    kind: Annotated[
        str | None,
        typer.Argument(
            help=f"One of {', '.join(catalogue.KINDS)}; default all", autocompletion=completion.kinds
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what there is: datasets, embedders, networks, scores, selectors, policies, flows, deployments."""
    if kind is not None and kind not in catalogue.KINDS:
        raise UnknownName(
            f"{kind!r} cannot be listed.{did_you_mean(kind, catalogue.KINDS)} "
            f"Kinds: {', '.join(catalogue.KINDS)}"
        )
    listing = {name: catalogue.listed(name) for name in ([kind] if kind else catalogue.KINDS)}
    if as_json:
        print_json(listing)
        return
    for name, entries in listing.items():
        typer.secho(f"{name} ({len(entries)})", bold=True)
        width = max((len(entry["name"]) for entry in entries), default=0)
        for entry in entries:
            facts = ", ".join(f"{key} {store_cli.fact(value)}" for key, value in entry["facts"].items())
            text = " · ".join(part for part in (entry["summary"], facts) if part)
            typer.echo(f"  {entry['name']:<{width}}  {text}")


# -- run -----------------------------------------------------------------------------------------------------


@app.command()
def run(
    name: Annotated[
        str,
        typer.Argument(
            help="A deployment (elfs/digits) or a flow (elfs)", autocompletion=completion.runnable
        ),
    ],
    config: Config = None,
    parameter: Parameters = None,
    plain: Plain = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    dry_run: DryRun = False,
) -> None:
    """Run a deployment's flow in this process: no server, no worker; finished steps come from the cache."""
    deployments = catalogue.deployments()
    if name not in deployments and name not in FLOWS:
        names = [*deployments, *FLOWS]
        raise UnknownName(
            f"{name!r} is not a deployment or flow.{did_you_mean(name, names)} Available: {', '.join(names)}"
        )
    base = catalogue.chosen(name) if name in deployments else {}
    flow = name.partition("/")[0]

    from winnow.flows.terminal import run_flow

    sys.exit(
        run_flow(
            flow,
            base,
            given(flow, config, parameter),
            name=name,
            shown=Shown(plain, as_json, quiet, verbose, dry_run),
        )
    )


@app.command()
def compare(
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="A dataset (digits); may stand in the file of -c", autocompletion=completion.datasets
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods", help="Selectors, comma-separated; default all", autocompletion=completion.selectors
        ),
    ] = None,
    fractions: Annotated[
        str | None, typer.Option("--fractions", help="Shares to keep, comma-separated")
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Seeds, comma-separated")] = None,
    config: Config = None,
    parameter: Parameters = None,
    plain: Plain = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    dry_run: DryRun = False,
) -> None:
    """Compare selection methods on a dataset: one table, one figure, ranks, costs, significance."""
    options = {} if dataset is None else {"dataset": dataset}
    parameters = given("compare", config, parameter, options)
    if "dataset" not in parameters:
        raise typer.BadParameter("missing; name a dataset, or a file with -c", param_hint="DATASET")
    lists = (("methods", methods, str), ("fractions", fractions, float), ("seeds", seeds, int))
    for name, text, kind in lists:
        if text is not None:
            try:
                parameters[name] = [kind(part.strip()) for part in text.split(",") if part.strip()]
            except ValueError as error:
                raise BadInput(f"--{name} {text}: {error}.", remedy="separate values by commas") from error

    from winnow.flows.terminal import run_flow

    sys.exit(
        run_flow(
            "compare",
            {},
            parameters,
            name=f"compare {parameters['dataset']}",
            shown=Shown(plain, as_json, quiet, verbose, dry_run),
        )
    )


# -- doctor --------------------------------------------------------------------------------------------------


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check versions, GPU, store, data, server; say what is wrong and the command that fixes it."""
    from winnow.flows.doctor import examine

    findings = []
    for mark, subject, text, remedy in examine():
        findings.append({"mark": mark, "subject": subject, "text": text, "next": remedy})
        if as_json:
            continue
        colour = {"ok": "green", "note": "yellow", "wrong": "red"}[mark]
        typer.secho(f"{mark:<6}", fg=colour, nl=False)
        typer.echo(f"{subject:<14} {text}")
        if remedy:
            typer.echo(f"{'':<20} next: {remedy}")
    if as_json:
        print_json(findings)
    if any(finding["mark"] == "wrong" for finding in findings):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
