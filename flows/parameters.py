"""A flow's parameters on the command line: from a file, and one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from winnow.tasks.errors import BadInput

__all__ = ["from_file", "given", "parsed"]


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
        try:
            content = json.loads(value)
        except ValueError:
            content = value
        _put(parameters, key, content, f"-p {text}")
    return parameters


def _put(parameters: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a parameter, or with a dot a field of one."""
    *outer, name = key.split(".")
    for part in outer:
        parameters = parameters.setdefault(part, {})
        if not isinstance(parameters, dict):
            raise BadInput(f"{where}: {part} has been given as a whole.")
    parameters[name] = value


def from_file(file: Path, flow: str) -> dict[str, Any]:
    """A flow's parameters in a YAML (or JSON) file; ``training.epochs: 3`` is a field of one.

    Args:
        file: a mapping. Its entry ``flow``, if there is one, says which flow it is for.
        flow: the flow that is run.

    Raises:
        BadInput: no such file, no such mapping, an entry given twice, or a file for another flow.
    """
    import yaml

    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_loader())
    except OSError as error:
        raise BadInput(f"-c {file}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"-c {file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise BadInput(
            f"-c {file}: expected parameters by name.", remedy="for example a line `seeds: [0, 1, 2]`"
        )
    made_for = content.pop("flow", flow)
    if made_for != flow:
        raise BadInput(f"-c {file} is for the flow {made_for}, not {flow}.", remedy="give a file for it")
    parameters: dict[str, Any] = {}
    for key, value in content.items():
        _put(parameters, key, value, f"-c {file}")
    return parameters


def _loader() -> Any:
    """Plain YAML, but 1e-3 is a number, as in JSON, and a key that stands twice is refused."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            if twice := [key for key, _ in node.value if names.count(key.value) > 1]:
                text = f"{twice[-1].value} is given twice"
                raise yaml.constructor.ConstructorError(None, None, text, twice[-1].start_mark)
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader


def given(
    flow: str, file: Path | None, texts: list[str] | None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A file's parameters, overridden by a command's own options, and these by those given one by one."""
    changes = {**(options or {}), **parsed(texts)}
    if file is None:
        return changes
    from winnow.flows.forms import merged

    return merged(from_file(file, flow), changes)
