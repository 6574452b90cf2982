"""Options that the commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "Config", "Parameters", "Plain"]

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable")]
Config = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="A YAML file of the flow's parameters; other options override it"),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("-p", "--param", help="key=value, the value as JSON or plain text; may be repeated"),
]
Plain = Annotated[bool, typer.Option("--plain", help="No bars, no colours: one line an event")]
