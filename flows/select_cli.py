"""The commands around a choice from a pool: select, why, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.flows.parameters import parsed
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
    pool: Annotated[str, typer.Argument(help="A folder of images, a list, shards, a table, arrays")],
    budget: Annotated[str, typer.Option("-b", "--budget", help="1000, 0.1 or 10%")] = "10%",
    method: Annotated[
        str | None, typer.Option("-m", "--method", help="A selector (`winnow ls selectors`)")
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
    link_as: Annotated[str, typer.Option("--link-as", help="symlink, hardlink or copy")] = "symlink",
    labels: Annotated[
        str | None, typer.Option("--labels", help="Labels of the pool: a file with path or id, and label")
    ] = None,
    embeddings: Annotated[str | None, typer.Option("--embeddings", help="Your own embeddings")] = None,
    embedder: Annotated[str | None, typer.Option("--embedder", help="`winnow ls embedders`")] = None,
    scores: Annotated[str | None, typer.Option("--scores", help="Your own scores")] = None,
    logits: Annotated[
        str | None, typer.Option("--logits", help="Logits of your training: (epochs, samples, classes)")
    ] = None,
    balanced: Annotated[bool, typer.Option("--balanced", help="Each class its share of the budget")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of ties and random picks")] = 0,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--param", help="Any other parameter of the flow select: key=value"),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="No bars, no colours: one line an event")] = False,
) -> None:
    """Choose which samples of a pool to label, or to keep: a pool in, a list with reasons out."""
    given = {
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
    parameters: dict[str, Any] = {"pool": pool, "budget": budget_of(budget)}
    parameters |= {name: value for name, value in given.items() if value is not None}
    for name, value in parsed(parameter).items():
        if name in parameters and name not in ("seed", "link_as", "budget"):
            raise BadInput(f"{name} is given twice: as an option and with -p.")
        parameters[name] = value
    if labels is not None:
        parameters["dataset_options"] = {**(parameters.get("dataset_options") or {}), "labels": labels}

    from winnow.flows.terminal import run_flow

    sys.exit(run_flow("select", {}, parameters, name=f"select {pool}", plain=plain))


LIST = Annotated[Path, typer.Argument(help="A list that `winnow select -o` wrote")]


def verify(file: LIST) -> None:
    """Check that a list, the pool that it was chosen from and what the method read are as they were."""
    from winnow.tasks.select.receipt import verify as checked

    sound = True
    for same, line in checked(file):
        sound &= same
        typer.secho("ok      " if same else "changed ", fg="green" if same else "red", nl=False)
        typer.echo(line)
    if not sound:
        raise typer.Exit(1)


def why(
    sample: Annotated[str, typer.Argument(help="Its path or id, as the pool has it")], file: LIST
) -> None:
    """Say why a sample is in a list or not, and at which budget it would be."""
    from winnow.tasks.select.receipt import why as told

    for line in told(sample, file):
        typer.echo(line)
