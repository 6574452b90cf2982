"""A flow's parameters on the command line."""

from __future__ import annotations

import json
from typing import Any

from winnow.tasks.errors import BadInput

__all__ = ["parsed"]


def parsed(texts: list[str] | None) -> dict[str, Any]:
    """``key=value`` as a parameter; ``training.epochs=3`` as a field of one."""
    parameters: dict[str, Any] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BadInput(
                f"-p {text}: expected key=value.",
                remedy='for example -p dataset=digits -p "fractions=[0.1, 0.3]" -p training.epochs=30',
            )
        *outer, name = key.split(".")
        inside = parameters
        for part in outer:
            inside = inside.setdefault(part, {})
            if not isinstance(inside, dict):
                raise BadInput(f"-p {text}: {part} has been given as a whole.")
        try:
            inside[name] = json.loads(value)
        except ValueError:
            inside[name] = value
    return parameters
