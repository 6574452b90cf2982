"""Writes what repeats the code, pages of docs/ and the presets in deployments/prefect.yaml: `make docs`.

The output depends on the sources alone; a test compares it with the committed pages.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from sources import AFTER, BEFORE, Doc, Parameter, followed, joined, meanings, parameters, parse, without_args

from winnow.flows import FLOWS, forms, presets
from winnow.flows.catalogue import chosen, dataset_in, deployments
from winnow.tasks import registry
from winnow.tasks.registry import Entry, Registry, docstring
from winnow.tasks.train.recipe import HeadsConfig, Recipe

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
DEPLOYMENTS = ROOT / "deployments" / "prefect.yaml"
PRESET = "# the dataset's preset"
NOTICE = "<!-- Written by docs/generate.py from the code; `make docs` writes it anew. -->"


@dataclass(frozen=True)
class Kind:
    """The page of a registry."""

    title: str
    intro: str
    shared: str = ""  # function whose parameters every method takes
    hidden: tuple[str, ...] = ()  # parameters described there, or not for users
    shared_hidden: tuple[str, ...] = ()
    facts_hidden: tuple[str, ...] = ()
    columns_hidden: tuple[str, ...] = ()  # facts too long for the table


KINDS = {
    "datasets": Kind(
        "Datasets",
        "`winnow ls datasets` lists them. A flow takes one by name, and its options as `dataset_options`. "
        "[data.md](data.md) says which file goes where. A name that ends in `*` is a family: what stands in "
        "place of the `*` is handed to the dataset as `variant`.",
    ),
    "embedders": Kind(
        "Embedders",
        "`winnow ls embedders` lists them. A flow takes one by name as `embedder`. An embedder maps each "
        "image to one vector; images are read by row.",
        # the first three are what the DINO family shares a function with
        hidden=("name", "model", "published", "images", "device", "dtype", "generator"),
    ),
    "networks": Kind(
        "Networks",
        "`winnow ls networks` lists them. A flow takes one by name as `training.network` (trained on the "
        "coreset) or `proxy.network` (whose training dynamics are recorded).",
    ),
    "scores": Kind(
        "Scores",
        "`winnow ls scores` lists them. A flow takes one by name as `score`. Scores of training dynamics are "
        "accumulated during training, in O(N) state; the functions below define them on stored arrays. "
        "*Higher is* says which end of a score is hard; selectors turn scores by it.",
    ),
    "selectors": Kind(
        "Selectors",
        "`winnow ls selectors` lists them. In Python:\n\n"
        "```python\n"
        ">>> import numpy as np\n"
        ">>> from winnow.tasks.registry import selectors\n"
        ">>> from winnow.tasks.select.signals import Signals\n"
        '>>> signals = Signals(n=4, scores={"aum": np.array([0.1, 0.9, 0.5, 0.3])})\n'
        ">>> generator = np.random.default_rng(0)\n"
        '>>> selectors.get("elfs")(signals, 0.5, mis_ratio=0.25, generator=generator).indices.tolist()\n'
        "[3, 2]\n"
        "```",
        shared="winnow.tasks.select.budget:run",
        hidden=("signals", "budget", "generator"),
        shared_hidden=("selector", "params"),
        columns_hidden=("labels",),
        facts_hidden=("limit",),  # a function; each section says under Raises what it refuses
    ),
    "policies": Kind("Hiding policies", "`winnow ls policies` lists them."),
}


# -- writing Markdown ----------------------------------------------------------------------------------------


def prose(text: str, linked: Iterable[str] = ()) -> str:
    """Docstring text as Markdown: functions of the page are linked, and maths is not read as mark-up.

    >>> print(prose("The *most* certain of max_{j} < 3 * 4, as in :func:`top`.", ["top"]))
    The *most* certain of max\\_{j} \\< 3 \\* 4, as in [`top`](#top).
    """
    linked = set(linked)

    def reference(role: re.Match[str]) -> str:
        name = role.group(1).lstrip("~").rpartition(".")[2]
        return f"[`{name}`](#{name})" if name in linked else f"`{name}`"

    parts = re.split(r"(:\w+:`[^`]+`|``.+?``|`[^`]+`|(?<![\w*])\*[a-z]{2,}\*(?![\w*]))", text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.sub(r"([*<])|((?<![^\W_])_|_(?![^\W_]))", r"\\\1\2", part)
        elif role := re.fullmatch(r":\w+:`([^`]+)`", part):
            parts[i] = reference(role)
        elif part.startswith("`"):
            parts[i] = code(part.strip("`"))
    return "".join(parts)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines)


def slug(heading: str) -> str:
    """GitHub's anchor of a heading.

    >>> slug("`timm:*`"), slug("What survives kill -9?")
    ('timm', 'what-survives-kill--9')
    """
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def fact(value: Any, mark: str = "") -> str:
    """A fact in words, the items of a list marked as code where ``mark`` is a backtick."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {fact(inner)}" for key, inner in value.items())
    if isinstance(value, tuple):
        return ", ".join(f"{mark}{item}{mark}" for item in value)
    return "" if value is None else str(value)


def parameter_table(listed: Iterable[Parameter], meaning: dict[str, str], linked: Iterable[str] = ()) -> str:
    rows = [
        [code(p.name), p.type, code(p.default) or "required", prose(meaning.get(p.name, ""), linked)]
        for p in listed
    ]
    return table(["parameter", "type", "default", "meaning"], rows) if rows else ""


def source_link(target: str) -> str:
    path = f"{target.partition(':')[0].removeprefix('winnow.').replace('.', '/')}.py"
    return f"[{path}](../{path})"


def sections(doc: Doc, names: Iterable[str], linked: Iterable[str] = ()) -> list[str]:
    return [f"**{n}:** {prose(joined(doc.sections[n]), linked)}" for n in names if n in doc.sections]


def paragraphs(doc: Doc, linked: Iterable[str] = ()) -> list[str]:
    """The body as Markdown: an indented paragraph is a display, and the one after it may end its sentence."""
    written = []
    for block in doc.body:
        if all(line.startswith("    ") for line in block.splitlines()):
            written.append(f"```text\n{inspect.cleandoc(block)}\n```")
        else:
            written.append(prose(without_args(joined(block)), linked))
    return [text for text in written if text]


# -- pages ---------------------------------------------------------------------------------------------------


def method_section(entry: Entry, kind: Kind, linked: set[str]) -> str:
    """One method: idea, maths, parameters, needs, cost, reference, differences, example, replay."""
    target, doc = followed(entry)
    facts = [
        f"*{name.replace('_', ' ')}* {fact(value, '`')}"
        for name, value in entry.facts.items()
        if name not in kind.facts_hidden and fact(value)
    ]
    hidden = {*kind.hidden, *entry.fixed}
    listed = [parameter for parameter in parameters(target) if parameter.name not in hidden]
    parts = [
        f"## `{entry.name}`",
        prose(doc.summary, linked),
        " · ".join([*facts, source_link(entry.target)]),
        fixed_arguments(entry, linked),
        *paragraphs(doc, linked),
        parameter_table(listed, meanings(target) | doc.args, linked),
        *sections(doc, BEFORE, linked),
        *(f"```python\n{text}\n```" for text in doc.examples),
        *sections(doc, AFTER, linked),
    ]
    if entry.upstream is not None:
        hidden |= {parameter.name for parameter in listed}
        extra = [parameter for parameter in parameters(entry.upstream) if parameter.name not in hidden]
        replay = prose(parse(docstring(entry.upstream)).summary, linked)
        link = source_link(entry.upstream)
        parts.append(f"**Upstream:** `upstream=True` replays the published code ({link}). {replay}")
        parts.append(parameter_table(extra, meanings(entry.upstream), linked))
    return "\n\n".join(part for part in parts if part)


def fixed_arguments(entry: Entry, linked: set[str]) -> str:
    """Of a name for another function with fixed arguments: which function, which arguments."""
    if not entry.fixed:
        return ""
    values = {name: f'"{v}"' if isinstance(v, str) else repr(v) for name, v in entry.fixed.items()}
    arguments = ", ".join(code(f"{name} = {value}") for name, value in values.items())
    function = entry.target.partition(":")[2]
    return f"{prose(f':func:`{function}`', linked)} with {arguments}."


def registry_page(name: str) -> str:
    kind, entries = KINDS[name], list(_registry(name))
    linked = {entry.name for entry in entries}
    columns = [
        column
        for column in dict.fromkeys(column for entry in entries for column in entry.facts)
        if column not in (*kind.facts_hidden, *kind.columns_hidden)
    ]
    rows = [
        [
            f"[`{entry.name}`](#{slug(entry.name)})",
            prose(entry.summary, linked),
            *(fact(entry.facts.get(column)) for column in columns),
        ]
        for entry in entries
    ]
    head = ["name", "", *(column.replace("_", " ") for column in columns)]
    parts = [f"# {kind.title}", NOTICE, kind.intro, table(head, rows)]
    if kind.shared:
        doc = parse(docstring(kind.shared))
        listed = [p for p in parameters(kind.shared) if p.name not in kind.shared_hidden]
        parts += [f"## Every {_registry(name).kind}", prose(doc.summary)]
        parts += [parameter_table(listed, meanings(kind.shared)), *sections(doc, ["Raises"])]
    parts += [method_section(entry, kind, linked) for entry in entries]
    return "\n\n".join(parts) + "\n"


def _registry(name: str) -> Registry:
    entries = getattr(registry, name)
    assert isinstance(entries, Registry)
    return entries


def flows_page() -> str:
    flows = sorted(FLOWS.items())
    about = {name: parse(docstring(target)).summary for name, target in flows}
    parts = [
        "# Flows",
        NOTICE,
        "`winnow ls flows` lists them. A parameter is set by name, a field of a nested one after a dot: "
        "`winnow run elfs/digits -p 'seeds=[0]' -p training.epochs=30` in this process, `prefect deployment "
        "run elfs/digits -p 'seeds=[0]'` on a server, or in the form of the UI. Lists and maps are written "
        "as JSON. [deployments.md](deployments.md) has the ready-made runs.",
        table(["flow", ""], [[f"[`{name}`](#{slug(name)})", prose(text)] for name, text in about.items()]),
    ]
    for name, target in flows:
        doc = parse(docstring(target))
        parts += [f"## `{name}`", prose(doc.summary), source_link(target), *paragraphs(doc)]
        parts += [parameter_table(parameters(target), forms.COMMON | doc.args), *sections(doc, AFTER)]
        parts.append(preset_table(name))
    return "\n\n".join(parts + [nested_table(model) for model in (Recipe, HeadsConfig)]) + "\n"


def nested_table(model: type[BaseModel]) -> str:
    """The fields of the flows' parameters of this type."""
    of = " and ".join(f"`{name}`" for name, kind in forms.NESTED.items() if kind is model)
    rows = [
        [code(name), _schema_type(schema), code(repr(schema.get("default"))), prose(joined(meaning))]
        for name, schema in model.model_json_schema()["properties"].items()
        if (meaning := schema["description"])
    ]
    head = f"## `{model.__name__}`: the fields of {of}\n\n{prose(parse(model.__doc__ or '').summary)}"
    return f"{head}\n\n{table(['field', 'type', 'default', 'meaning'], rows)}"


def _schema_type(field: Mapping[str, Any]) -> str:
    """A JSON schema's type in words."""
    if "anyOf" in field:
        return " or ".join(_schema_type(option) for option in field["anyOf"])
    if "enum" in field:
        return " or ".join(repr(value) for value in field["enum"])
    return {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}.get(
        field["type"], field["type"]
    )


def preset_table(flow: str) -> str:
    """What a flow's None stands for, dataset by dataset."""
    names = [*(entry.name for entry in registry.datasets if not entry.name.endswith("*")), "any other"]
    values = {name: presets.PRESETS[flow](name) for name in names}
    columns = list(dict.fromkeys(key for preset in values.values() for key in preset))
    rows = [
        [code(name) if name != "any other" else name, *(_plain(preset.get(key)) for key in columns)]
        for name, preset in values.items()
    ]
    head = f"### Presets of `{flow}`\n\n{prose(inspect.cleandoc(presets.__doc__ or ''))}"
    return head + "\n\n" + table(["dataset", *columns], rows)


def _plain(value: Any) -> str:
    """A preset's value in a cell."""
    if isinstance(value, dict):
        return prose(", ".join(f"{key} {inner}" for key, inner in value.items()))
    if isinstance(value, list):
        return ", ".join(f"{at.value:g} at {at.fraction:g}" for at in value)
    return "" if value is None else prose(str(value))


def deployments_page() -> str:
    listed = deployments()
    first = next(iter(listed))
    rows = []
    for (name, entry), note in zip(listed.items(), _deployment_notes(), strict=True):
        values = ", ".join(f"{key}={value}" for key, value in chosen(name).items())
        pool = entry["work_pool"]["name"]
        rows.append([code(name), entry["description"], code(pool), code(values), prose(note)])
    intro = (
        "The ready-made runs of [deployments/prefect.yaml](../deployments/prefect.yaml). `winnow run "
        f"{first}` runs one in this process, `prefect deployment run {first}` on a server: see "
        "[deploying.md](deploying.md). Parameters that are not named have the flow's defaults and the "
        "preset's values: see [flows.md](flows.md). Times are orders of magnitude, and published results are "
        "read off a figure."
    )
    head = ["deployment", "", "work pool", "parameters", "cost and published result"]
    return "\n\n".join(["# Deployments", NOTICE, intro, table(head, rows)]) + "\n"


def deployments_file() -> str:
    """prefect.yaml with each deployment's own parameters followed by its dataset's preset."""
    written = []
    for block in DEPLOYMENTS.read_text(encoding="utf-8").split("\n\n"):
        own, _, _ = block.rstrip("\n").partition(f"\n    {PRESET}\n")
        if name := re.search(r"^- <<: \*(\w+)$", own, re.M):
            parameters = yaml.safe_load(own.partition("  parameters:\n")[2])
            values = presets.as_json(name[1], dataset_in(parameters))
            added = {key: value for key, value in values.items() if key not in parameters}
            lines = yaml.safe_dump(added, default_flow_style=None, sort_keys=False, width=80).splitlines()
            own = "\n".join([own, f"    {PRESET}", *(f"    {line}" for line in lines)])
        written.append(own)
    return "\n\n".join(written) + "\n"


def _deployment_notes() -> list[str]:
    """The comment above each entry of prefect.yaml: expected time, hardware, published result."""
    text = DEPLOYMENTS.read_text(encoding="utf-8")
    notes, comment = [], []
    for line in text.partition("\ndeployments:")[2].splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip(" #"))
        elif line.startswith("- "):
            notes.append(" ".join(comment))
            comment = []
    return notes


def pages() -> dict[str, str]:
    """File name to content of every generated page."""
    written = {f"{name}.md": registry_page(name) for name in KINDS if _registry(name).names()}
    return written | {"flows.md": flows_page(), "deployments.md": deployments_page()}


def write(file: Path, content: str) -> None:
    changed = not file.exists() or file.read_text(encoding="utf-8") != content
    if changed:
        file.write_text(content, encoding="utf-8")
    print(f"{file.relative_to(ROOT)}: {'written' if changed else 'up to date'}")


def main() -> None:
    write(DEPLOYMENTS, deployments_file())
    for name, content in pages().items():
        write(DOCS / name, content)


if __name__ == "__main__":
    main()
