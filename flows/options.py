"""Options that the commands share."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["AsJson", "Config", "DryRun", "Parameters", "Plain", "Quiet", "Shown", "Verbose", "print_json"]

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable")]
Config = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="A YAML file of the flow's parameters; other options override it"),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("-p", "--param", help="key=value, the value as JSON or plain text; may be repeated"),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say which steps are cached, and what the others will take")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only errors and the result")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Also what Prefect and Winnow log to debug")]
Plain = Annotated[bool, typer.Option("--plain", help="No bars, no colours: one line an event")]


@dataclass(frozen=True)
class Shown:
    """How a run is shown.

    Attributes:
        plain: without bars and colours.
        as_json: the result as one JSON object on stdout; everything else goes to stderr.
        quiet: only errors and the result.
        verbose: all of Prefect's and Winnow's logs.
        dry_run: what the run would do, in place of the run.
    """

    plain: bool = False
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise typer.BadParameter("-q and -v are both given")


def print_json(value: Any) -> None:
    """Facts for a program, on stdout.

    >>> print_json({"score": float("nan"), "checksum": b"\\xff", "pair": (1, 2.5)})
    {
     "score": null,
     "checksum": "ff",
     "pair": [
      1,
      2.5
     ]
    }
    """
    typer.echo(json.dumps(_plain(value), indent=1, default=str, allow_nan=False))


def _plain(value: Any) -> Any:
    """Bytes as hexadecimal digits, and numbers that JSON has not as null."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value
