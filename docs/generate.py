"""Writes the pages of docs/ that repeat what the code says: `make docs`.

Docstrings, signatures and facts are read from the sources without importing the methods, so that this needs
neither torch nor a device. The output depends on the sources alone; a test compares it with the committed
pages.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from winnow.flows import cli, presets
from winnow.tasks import registry
from winnow.tasks.registry import Entry, Registry

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
NOTICE = "<!-- Written by docs/generate.py from the code; `make docs` writes it anew. -->"
SECTIONS = (
    "Args",
    "Attributes",
    "Returns",
    "Yields",
    "Raises",
    "Cost",
    "References",
    "Differences from upstream",
)


@dataclass(frozen=True)
class Kind:
    """A page of one registry."""

    title: str
    intro: str
    shared: str = ""  # function whose Args describe what every method takes
    hidden: tuple[str, ...] = ()  # parameters described there, or not the user's
    shared_hidden: tuple[str, ...] = ()
    facts_hidden: tuple[str, ...] = ()


KINDS = {
    "datasets": Kind(
        "Datasets",
        "`winnow ls datasets` lists them; a flow takes one by name, and its options as `dataset_options`. "
        "[data.md](data.md) says which "
        "file goes where. A name that ends in `*` is a family: what stands in place of the `*` is handed to "
        "the dataset as `variant`.",
        facts_hidden=("splits",),
    ),
    "embedders": Kind(
        "Embedders",
        "`winnow ls embedders` lists them; a flow takes one by name as `embedder`. One vector a sample, from "
        "images that are read by row.",
        # the first three are what the DINO family shares a function with
        hidden=("name", "model", "published", "images", "device", "dtype", "generator"),
    ),
    "networks": Kind(
        "Networks",
        "`winnow ls networks` lists them; a flow takes one by name as `network` (trained on the coreset) or "
        "`proxy_network` (whose "
        "training dynamics are recorded).",
    ),
    "scores": Kind(
        "Scores",
        "`winnow ls scores` lists them; a flow takes one by name as `score`. Training streams all that "
        "training dynamics define with O(N) "
        "state; the functions below are their definitions on stored arrays. *Higher is* says which end of a "
        "score is hard: "
        "selectors turn scores by it.",
    ),
    "selectors": Kind(
        "Selectors",
        "`winnow ls selectors` lists them. In Python:\n\n"
        "```python\n"
        ">>> import numpy as np\n"
        ">>> from winnow.tasks.registry import selectors\n"
        ">>> from winnow.tasks.select.signals import Signals\n"
        '>>> signals = Signals(n=4, scores={"aum": np.array([0.1, 0.9, 0.5, 0.3])})\n'
        '>>> selectors.get("elfs")(signals, 0.5, mis_ratio=0.25, generator=np.random.default_rng(0)).indices.tolist()\n'
        "[3, 2]\n"
        "```",
        shared="winnow.tasks.select.budget:run",
        hidden=("signals", "budget", "generator"),
        shared_hidden=("selector", "params"),
        facts_hidden=("limit",),  # the function that refuses; under Raises, each page says what
    ),
    "policies": Kind("Hiding policies", "`winnow ls policies` lists them."),
}


# -- reading the code ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    default: str  # empty where there is none


@dataclass
class Doc:
    """A docstring taken apart."""

    summary: str = ""
    body: list[str] = field(default_factory=list)  # paragraphs
    examples: list[str] = field(default_factory=list)
    sections: dict[str, str] = field(default_factory=dict)

    @property
    def args(self) -> dict[str, str]:
        return _items(self.sections.get("Args", "") or self.sections.get("Attributes", ""))


@lru_cache(maxsize=64)
def module_tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {module}")
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def definition(target: str) -> ast.FunctionDef:
    """The function behind ``module:name``; of a class, its ``__init__``."""
    module, _, name = target.partition(":")
    for node in module_tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            if isinstance(node, ast.FunctionDef):
                return node
            return next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    raise AttributeError(target)


def assignments(module: str) -> dict[str, ast.expr]:
    """Module-level names that stand for a type or a constant."""
    return {
        target.id: node.value
        for node in module_tree(module).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def parameters(target: str) -> list[Parameter]:
    arguments = definition(target).args
    names = assignments(target.partition(":")[0])
    listed = [*arguments.posonlyargs, *arguments.args]
    defaults = [
        *[None] * (len(listed) - len(arguments.defaults)),
        *arguments.defaults,
        *arguments.kw_defaults,
    ]
    found = []
    for argument, default in zip([*listed, *arguments.kwonlyargs], defaults, strict=True):
        if argument.arg in ("self", "cls"):
            continue
        if isinstance(default, ast.Name) and default.id in names:
            default = names[default.id]
        kind = "" if argument.annotation is None else words(argument.annotation, names)
        found.append(Parameter(argument.arg, kind, "" if default is None else ast.unparse(default)))
    return found


def words(annotation: ast.expr, names: dict[str, ast.expr]) -> str:
    """A type as a reader of a table wants it.

    >>> words(ast.parse("Annotated[float, Field(gt=0, le=1)] | Literal['auto'] | None", mode="eval").body, {})
    "float in (0, 1] or 'auto' or None"
    """
    match annotation:
        case ast.Name(id=name) if name in names:
            return words(names[name], names)
        case ast.Constant(value=str() as quoted):
            return words(ast.parse(quoted, mode="eval").body, names)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return f"{words(left, names)} or {words(right, names)}"
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *notes])):
            return words(inner, names) + "".join(_bounds(note) for note in notes)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            values = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return " or ".join(ast.unparse(value) for value in values)
        case ast.Subscript(value=ast.Name(id="tuple" | "list"), slice=inner):
            element = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
            return f"list of {words(element, names)}"
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, value])):
            return f"map from {words(key, names)} to {words(value, names)}"
    return ast.unparse(annotation)


def _bounds(note: ast.expr) -> str:
    """What a pydantic ``Field`` adds to a number's type."""
    if not (isinstance(note, ast.Call) and isinstance(note.func, ast.Name) and note.func.id == "Field"):
        return ""
    given = {
        keyword.arg: ast.unparse(keyword.value)
        for keyword in note.keywords
        if keyword.arg in ("gt", "ge", "lt", "le")
    }
    low, high = given.get("ge", given.get("gt")), given.get("le", given.get("lt"))
    if low is not None and high is not None:
        return f" in {'[' if 'ge' in given else '('}{low}, {high}{']' if 'le' in given else ')'}"
    if low is not None:
        return f" {'≥' if 'ge' in given else '>'} {low}"
    return f" {'≤' if 'le' in given else '<'} {high}" if high is not None else ""


def parse(text: str) -> Doc:
    """Take a docstring in the house style apart.

    >>> found = parse("Sum.\\n\\na + b.\\n\\nArgs:\\n    a: first,\\n        a number.\\n    b: second.\\n\\n>>> 1 + 1\\n2")
    >>> found.summary, found.body, found.args, found.examples
    ('Sum.', ['a + b.'], {'a': 'first, a number.', 'b': 'second.'}, ['>>> 1 + 1\\n2'])
    """
    doc = Doc()
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        head, _, rest = block.partition("\n")
        name = head.removesuffix(":")
        if head.endswith(":") and name in SECTIONS:
            doc.sections[name] = inspect.cleandoc(rest)
        elif head.startswith("    ") and doc.sections:  # a later paragraph of the section before
            last = next(reversed(doc.sections))
            doc.sections[last] += "\n\n" + inspect.cleandoc(block)
        elif head.startswith(">>>"):
            doc.examples.append(block)
        elif not doc.summary:
            doc.summary = joined(block)
        else:
            doc.body.append(block)
    return doc


def joined(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())


def _items(section: str) -> dict[str, str]:
    """``name: meaning`` entries, a meaning going on in deeper lines; ``a, b: meaning`` describes both."""
    found: dict[str, str] = {}
    current: list[str] = []
    for line in section.splitlines():
        entry = re.match(r"([\w*]+(?:, [\w*]+)*): (.*)", line)
        if entry:
            current = [name.lstrip("*") for name in entry.group(1).split(", ")]
            found |= dict.fromkeys(current, entry.group(2))
        else:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in current}
    return found


def meanings(target: str, doc: Doc, seen: tuple[str, ...] = ()) -> dict[str, str]:
    """Meaning of each parameter, also where the docstring points to another function's: "Args as in :func:`other`"."""
    module, _, name = target.partition(":")
    found = dict(doc.args)
    for paragraph in doc.body:
        elsewhere = re.search(r"Args\b[^.]*? as in :func:`(\w+)`", joined(paragraph))
        if elsewhere and elsewhere.group(1) not in seen:
            other = f"{module}:{elsewhere.group(1)}"
            found = meanings(other, parse(Entry(other, other).doc), (*seen, name)) | found
    return found


# -- writing Markdown ----------------------------------------------------------------------------------------


def prose(text: str, known: Iterable[str] = ()) -> str:
    """Docstring text as Markdown: ``code``, references to functions of the same page, and nothing read as mark-up by accident."""
    known = set(known)

    def reference(found: re.Match[str]) -> str:
        name = found.group(1).lstrip("~").rpartition(".")[2]
        return f"[`{name}`](#{name})" if name in known else f"`{name}`"

    parts = re.split(r"(:\w+:`[^`]+`|``.+?``|`[^`]+`)", text)
    for i, part in enumerate(parts):
        if i % 2:
            role = re.fullmatch(r":\w+:`([^`]+)`", part)
            parts[i] = reference(role) if role else f"`{part.strip('`')}`"
        else:
            parts[i] = re.sub(r"([*<])|((?<![^\W_])_|_(?![^\W_]))", r"\\\1\2", part)
    return "".join(parts)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("|" + "".join(f" {cell(text)} |" if text else " |" for text in line) for line in lines)


def slug(heading: str) -> str:
    """GitHub's anchor of a heading.

    >>> slug("`timm:*`"), slug("What survives kill -9?")
    ('timm', 'what-survives-kill--9')
    """
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {fact(inner)}" for key, inner in value.items())
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def parameter_table(
    target: str, meaning: dict[str, str], hidden: Iterable[str], known: Iterable[str] = ()
) -> str:
    rows = [
        [code(p.name), p.type, code(p.default) or "required", prose(meaning.get(p.name, ""), known)]
        for p in parameters(target)
        if p.name not in hidden
    ]
    return table(["parameter", "type", "default", "meaning"], rows) if rows else ""


def source_link(module: str) -> str:
    path = f"{module.removeprefix('winnow.').replace('.', '/')}.py"
    return f"[{path}](../{path})"


def section(doc: Doc, name: str, known: Iterable[str] = ()) -> str:
    return f"**{name}:** " + prose(joined(doc.sections[name]), known)


def followed(entry: Entry) -> tuple[str, Doc]:
    """Target and docstring of a method; where that says "Options and details: ``other``", other's parameters, body and sections."""
    doc = parse(entry.doc)
    for paragraph in doc.body:
        if elsewhere := re.fullmatch(r"Options and details: (?::func:)?`+(\w+)`+\.", paragraph):
            target = f"{entry.target.partition(':')[0]}:{elsewhere.group(1)}"
            other = parse(Entry(target, target).doc)
            body = [*(each for each in doc.body if each != paragraph), *other.body]
            return target, Doc(
                doc.summary, body, doc.examples or other.examples, other.sections | doc.sections
            )
    return entry.target, doc


def paragraphs(doc: Doc, known: Iterable[str]) -> list[str]:
    """The body; what is indented is a display. Of "Args and errors as in …" the arguments stand in the table already."""
    found = []
    for block in doc.body:
        if all(line.startswith("    ") for line in block.splitlines()):
            found.append(f"```text\n{inspect.cleandoc(block)}\n```")
            continue
        text = re.sub(r"^Args( as in :func:`\w+`[.;] ?|, | and )", "", joined(block))
        if text:
            found.append(prose(text[:1].upper() + text[1:], known))
    return found


def method_section(entry: Entry, kind: Kind, known: set[str]) -> str:
    """One method: idea, maths, parameters, needs, cost, reference, differences, example."""
    target, doc = followed(entry)
    module = entry.target.partition(":")[0]
    facts = [
        f"*{name.replace('_', ' ')}* {fact(value)}"
        for name, value in entry.facts.items()
        if name not in ("needs", "limit") and fact(value)
    ]
    needy = getattr(entry, "needs", ())
    needs = [f"*needs* {', '.join(map(code, needy))}"] if needy else []
    parts = [
        f"## `{entry.name}`",
        prose(doc.summary, known),
        " · ".join([*needs, *facts, source_link(module)]),
        *paragraphs(doc, known),
    ]
    rows = parameter_table(target, meanings(target, doc), kind.hidden, known)
    if rows:
        parts.append(rows)
    parts += [
        section(doc, name, known) for name in ("Returns", "Yields", "Raises", "Cost") if name in doc.sections
    ]
    parts += [f"```python\n{text}\n```" for text in doc.examples]
    parts += [
        section(doc, name, known)
        for name in ("References", "Differences from upstream")
        if name in doc.sections
    ]
    return "\n\n".join(parts)


def registry_page(name: str) -> str:
    kind, entries = KINDS[name], list(_registry(name))
    known = {entry.name for entry in entries}
    columns = [
        key
        for key in dict.fromkeys(key for entry in entries for key in entry.facts)
        if key not in (*kind.facts_hidden, "needs", "limit")
    ]
    needy = any(getattr(entry, "needs", ()) for entry in entries)
    head = ["name", "", *(["needs"] if needy else []), *(column.replace("_", " ") for column in columns)]
    rows = [
        [
            f"[`{entry.name}`](#{slug(entry.name)})",
            prose(entry.summary, known),
            *([", ".join(getattr(entry, "needs", ()))] if needy else []),
            *(fact(entry.facts.get(column)) for column in columns),
        ]
        for entry in entries
    ]
    parts = [f"# {kind.title}", NOTICE, kind.intro, table(head, rows)]
    if kind.shared:
        doc = parse(Entry(kind.shared, kind.shared).doc)
        parts += [
            f"## Every {_registry(name).kind}",
            prose(doc.summary),
            parameter_table(kind.shared, meanings(kind.shared, doc), kind.shared_hidden),
        ]
        parts += [section(doc, "Raises")] if "Raises" in doc.sections else []
    parts += [method_section(entry, kind, known) for entry in entries]
    return "\n\n".join(parts) + "\n"


def _registry(name: str) -> Registry:
    found = getattr(registry, name)
    assert isinstance(found, Registry)
    return found


def flows_page() -> str:
    flows = sorted(cli._flows().items())
    rows = [[f"[`{name}`](#{slug(name)})", prose(summary)] for name, (_, summary) in flows]
    parts = [
        "# Flows",
        NOTICE,
        "`winnow ls flows` lists them. Parameters are flat, so that each can be given on its own: `winnow "
        "run elfs/digits -p 'seeds=[0]'` "
        "in this process, `prefect deployment run elfs/digits -p 'seeds=[0]'` on a server, or in the form of "
        "the UI. Lists and maps are "
        "written as JSON. [deployments.md](deployments.md) has the ready-made runs.",
        table(["flow", ""], rows),
    ]
    for name, (target, _) in flows:
        doc = parse(Entry(name, target).doc)
        parts += [
            f"## `{name}`",
            prose(doc.summary),
            source_link(target.partition(":")[0]),
            *paragraphs(doc, ()),
        ]
        parts.append(parameter_table(target, meanings(target, doc), ()))
        parts += [
            section(doc, each) for each in ("References", "Differences from upstream") if each in doc.sections
        ]
        if hasattr(presets, name):
            parts.append(preset_table(name))
    return "\n\n".join(parts) + "\n"


def preset_table(flow: str) -> str:
    """What a flow's None stands for, dataset by dataset."""
    make = getattr(presets, flow)
    names = [*(entry.name for entry in registry.datasets if not entry.name.endswith("*")), "any other"]
    values = {name: make(name).model_dump(exclude_unset=True, exclude_none=True) for name in names}
    columns = [key for key in type(make("")).model_fields if any(key in preset for preset in values.values())]
    rows = [
        [code(name) if name != "any other" else name, *(_plain(preset.get(key, "")) for key in columns)]
        for name, preset in values.items()
    ]
    head = f"### Presets of `{flow}`\n\n{prose(inspect.cleandoc(presets.__doc__ or ''))}"
    meaning = parse(type(make("")).__doc__ or "").args
    legend = "; ".join(f"*{key.replace('_', ' ')}*: {prose(meaning[key].rstrip('.'))}" for key in columns)
    return (
        f"{head} {legend}." + "\n\n" + table(["dataset", *(key.replace("_", " ") for key in columns)], rows)
    )


def _plain(value: Any) -> str:
    return prose(
        ", ".join(f"{key}: {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)
    )


def deployments_page() -> str:
    deployments = cli._deployments()
    first = next(iter(deployments))
    rows = []
    for (name, entry), note in zip(deployments.items(), _deployment_notes(), strict=True):
        given = ", ".join(f"{key}={value}" for key, value in entry.get("parameters", {}).items())
        rows.append(
            [code(name), entry["description"], code(entry["work_pool"]["name"]), code(given), prose(note)]
        )
    intro = (
        "The ready-made runs of [deployments/prefect.yaml](../deployments/prefect.yaml). `winnow run "
        f"{first}` runs one in this process, "
        f"`prefect deployment run {first}` on a server: see [deploying.md](deploying.md). Parameters that "
        "are not named have the flow's "
        "defaults: see [flows.md](flows.md). Times are orders of magnitude, and published results are read "
        "off a figure."
    )
    head = ["deployment", "", "work pool", "parameters", "cost and published result"]
    return "\n\n".join(["# Deployments", NOTICE, intro, table(head, rows)]) + "\n"


def _deployment_notes() -> list[str]:
    """The comment above each entry of prefect.yaml: expected time, hardware, published result."""
    found, comment = [], []
    for line in (
        (ROOT / "deployments" / "prefect.yaml")
        .read_text(encoding="utf-8")
        .partition("\ndeployments:")[2]
        .splitlines()
    ):
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip(" #"))
        elif line.startswith("- "):
            found.append(" ".join(comment))
            comment = []
    return found


# -- all pages -----------------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """File name to content of every generated page."""
    found = {f"{name}.md": registry_page(name) for name in KINDS if _registry(name).names()}
    return found | {"flows.md": flows_page(), "deployments.md": deployments_page()}


def main() -> None:
    for name, content in pages().items():
        file = DOCS / name
        changed = not file.exists() or file.read_text(encoding="utf-8") != content
        if changed:
            file.write_text(content, encoding="utf-8")
        print(f"docs/{name}: {'written' if changed else 'up to date'}")


if __name__ == "__main__":
    main()
