"""The commands around a choice from a pool: select, why, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from winnow.flows import completion
from winnow.flows.options import AsJson, Config, DryRun, Parameters, Plain, Quiet, Shown, Verbose, print_json
from winnow.flows.parameters import given, parsed
from winnow.tasks.errors import BadInput

__all__ = ["select", "verify", "why"]


def budget_of(text: str) -> int | float:
    """A number of samples, a share, or a percentage.

    >>> budget_of("1000"), budget_of("0.1"), budget_of("12.5%")
    (1000, 0.1, 0.125)
    """
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise BadInput(
            f"--budget {text}: give a number of samples, a share or a percentage.",
            remedy="for example --budget 1000, --budget 0.1 or --budget 10%",
        ) from error


def select(
    pool: Annotated[
        str | None,
        typer.Argument(
            help="A folder of images, a list, shards, a table, arrays, a dataset; may stand in -c's file",
            autocompletion=completion.datasets,
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("-b", "--budget", help="1000, 0.1 or 10%; default 10%")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "-m", "--method", help="A selector (`winnow ls selectors`)", autocompletion=completion.selectors
        ),
    ] = None,
    already: Annotated[
        str | None, typer.Option("--already", help="A list of what is labelled already: go on from there")
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="A .csv, .tsv, .jsonl, .parquet or .txt file")
    ] = None,
    output_format: Annotated[
        str | None, typer.Option("--as", help="label-studio, cvat, coco, yolo or fiftyone")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List what was dropped, too, and why")] = False,
    link: Annotated[str | None, typer.Option("--link", help="Link the chosen files into this folder")] = None,
    link_as: Annotated[
        str | None, typer.Option("--link-as", help="symlink (the default), hardlink or copy")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Labels of the pool: a file with path or id, and label")
    ] = None,
    embeddings: Annotated[str | None, typer.Option("--embeddings", help="Your own embeddings")] = None,
    embedder: Annotated[
        str | None,
        typer.Option("--embedder", help="`winnow ls embedders`", autocompletion=completion.embedders),
    ] = None,
    scores: Annotated[str | None, typer.Option("--scores", help="Your own scores")] = None,
    logits: Annotated[
        str | None, typer.Option("--logits", help="Logits of your training: (epochs, samples, classes)")
    ] = None,
    balanced: Annotated[bool, typer.Option("--balanced", help="Each class its share of the budget")] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Of ties and random picks; default 0")] = None,
    config: Config = None,
    parameter: Parameters = None,
    plain: Plain = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    dry_run: DryRun = False,
) -> None:
    """Choose which samples of a pool to label, or to keep: a pool in, a list with reasons out."""
    options = {
        "pool": pool,
        "budget": None if budget is None else budget_of(budget),
        "method": method,
        "already": already,
        "output": output,
        "output_format": output_format,
        "everything": everything or None,
        "link": link,
        "link_as": link_as,
        "embeddings": embeddings,
        "embedder": embedder,
        "scores": scores,
        "logits": logits,
        "balanced": balanced or None,
        "seed": seed,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if twice := sorted(set(options) & set(parsed(parameter))):
        raise BadInput(f"{twice[0]} is given twice: as an option and with -p.")
    parameters = given("select", config, parameter, options)
    if labels is not None:
        parameters["dataset_options"] = {**(parameters.get("dataset_options") or {}), "labels": labels}
    if "pool" not in parameters:
        raise typer.BadParameter("missing; name a pool, or a file with -c", param_hint="POOL")

    from winnow.flows.terminal import run_flow

    sys.exit(
        run_flow(
            "select",
            {},
            parameters,
            name=f"select {parameters['pool']}",
            shown=Shown(plain, as_json, quiet, verbose, dry_run),
        )
    )


LIST = Annotated[Path, typer.Argument(help="A list that `winnow select -o` wrote")]


def verify(file: LIST, as_json: AsJson = False) -> None:
    """Check that a list, the pool that it was chosen from and what the method read are as they were."""
    from winnow.tasks.select.receipt import verify as checked

    found = list(checked(file))
    if as_json:
        print_json([{"same": same, "text": line} for same, line in found])
    else:
        for same, line in found:
            typer.secho("ok      " if same else "changed ", fg="green" if same else "red", nl=False)
            typer.echo(line)
    if not all(same for same, _ in found):
        raise typer.Exit(1)


def why(
    sample: Annotated[str, typer.Argument(help="Its path or id, as the pool has it")],
    file: LIST,
    as_json: AsJson = False,
) -> None:
    """Say why a sample is in a list or not, and at which budget it would be."""
    from winnow.tasks.select.receipt import why as told

    lines = list(told(sample, file))
    if as_json:
        print_json({"sample": sample, "told": lines})
        return
    for line in lines:
        typer.echo(line)
