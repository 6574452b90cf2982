"""Signatures and docstrings for the pages of docs/, read from the sources.

The methods are not imported, which would take torch and seconds.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import inspect
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from winnow.tasks.registry import Entry, docstring

BEFORE = ("Returns", "Yields", "Raises", "Cost")  # sections before a method's example
AFTER = ("References", "Differences from upstream")
SECTIONS = ("Args", "Attributes", *BEFORE, *AFTER)


# -- signatures ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    default: str  # empty where there is none


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
    """Names of a module that stand for a type or a constant, also those imported from other modules here."""
    names: dict[str, ast.expr] = {}
    for node in module_tree(module).body:
        if isinstance(node, ast.Assign):
            names |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("winnow."):
            origin = assignments(node.module)
            spelled_out = _SpelledOut(origin)
            names |= {
                a.asname or a.name: spelled_out.visit(copy.deepcopy(origin[a.name]))
                for a in node.names
                if a.name in origin
            }
    return names


class _SpelledOut(ast.NodeTransformer):
    """Replaces names by what they stand for."""

    def __init__(self, names: dict[str, ast.expr]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.visit(copy.deepcopy(self.names[node.id])) if node.id in self.names else node


def parameters(target: str) -> list[Parameter]:
    """Those of a function or class; a value, such as a score's reducer, has none."""
    module, _, name = target.partition(":")
    names = assignments(module)
    if name in names:
        return []
    arguments = definition(target).args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = [None] * (len(positional) - len(arguments.defaults))
    defaults = [*required, *arguments.defaults, *arguments.kw_defaults]
    listed = []
    for argument, default in zip([*positional, *arguments.kwonlyargs], defaults, strict=True):
        if argument.arg in ("self", "cls"):
            continue
        if isinstance(default, ast.Name) and default.id in names:
            default = names[default.id]
        type_ = "" if argument.annotation is None else words(argument.annotation, names)
        listed.append(Parameter(argument.arg, type_, "" if default is None else ast.unparse(default)))
    return listed


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
        case ast.Subscript(value=ast.Name(id="At")):
            return "{fraction, value}"
        case ast.Call(func=ast.Name(id="_changes"), args=[model]):
            return f"fields of {ast.unparse(model)}"
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, value])):
            return f"map from {words(key, names)} to {words(value, names)}"
    return ast.unparse(annotation)


def _bounds(note: ast.expr) -> str:
    """What a pydantic ``Field`` adds to the type of a number."""
    if not (isinstance(note, ast.Call) and isinstance(note.func, ast.Name) and note.func.id == "Field"):
        return ""
    limits = {keyword.arg: ast.unparse(keyword.value) for keyword in note.keywords}
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if low is not None and high is not None:
        return f" in {'[' if 'ge' in limits else '('}{low}, {high}{']' if 'le' in limits else ')'}"
    if low is not None:
        return f" {'≥' if 'ge' in limits else '>'} {low}"
    return f" {'≤' if 'le' in limits else '<'} {high}" if high is not None else ""


# -- docstrings ----------------------------------------------------------------------------------------------


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


def parse(text: str) -> Doc:
    r"""Take a docstring in the house style apart.

    >>> doc = parse("Sum.\n\na + b.\n\nArgs:\n    a: first,\n        a number.\n    b: second.\n\n>>> 1\n1")
    >>> doc.summary, doc.body, doc.args, doc.examples
    ('Sum.', ['a + b.'], {'a': 'first, a number.', 'b': 'second.'}, ['>>> 1\n1'])
    """
    doc = Doc()
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        head, _, rest = block.partition("\n")
        name = head.removesuffix(":")
        if head.endswith(":") and name in SECTIONS:
            doc.sections[name] = inspect.cleandoc(rest)
        elif head.startswith("    ") and doc.sections:  # a further paragraph of the last section
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
    items: dict[str, str] = {}
    current: list[str] = []
    for line in section.splitlines():
        entry = re.match(r"([\w*]+(?:, [\w*]+)*): (.*)", line)
        if entry:
            current = [name.lstrip("*") for name in entry.group(1).split(", ")]
            items |= dict.fromkeys(current, entry.group(2))
        else:
            items |= {name: f"{items[name]} {line.strip()}".strip() for name in current}
    return items


def meanings(target: str, seen: tuple[str, ...] = ()) -> dict[str, str]:
    """Meaning of each parameter, also where the docstring says "Args as in :func:`other`"."""
    module, doc = target.partition(":")[0], parse(docstring(target))
    inherited: dict[str, str] = {}
    for paragraph in doc.body:
        reference = re.search(r"Args\b[^.]*? as in :func:`~?([\w.]+)`", joined(paragraph))
        if reference and (other := _target(reference.group(1), module)) not in seen:
            inherited |= meanings(other, (*seen, target))
    return inherited | doc.args


def _target(reference: str, module: str) -> str:
    """``module:name`` of a function, which is in the module itself if the reference has no dot."""
    origin, _, name = reference.rpartition(".")
    return f"{origin or module}:{name}"


def followed(entry: Entry) -> tuple[str, Doc]:
    """Target and docstring of a method; "Options and details: ``other``" leads to the other function's."""
    doc = parse(entry.doc)
    for paragraph in doc.body:
        if reference := re.fullmatch(r"Options and details: (?::func:)?`+~?([\w.]+)`+\.", paragraph):
            target = _target(reference.group(1), entry.target.partition(":")[0])
            other = parse(docstring(target))
            body = [*(block for block in doc.body if block != paragraph), *other.body]
            sections = other.sections | doc.sections
            return target, Doc(doc.summary, body, doc.examples or other.examples, sections)
    return entry.target, doc


def without_args(paragraph: str) -> str:
    """The paragraph without its pointer to another function's arguments, which the table shows.

    Only a word left at its start is capitalised, never a symbol.

    >>> without_args("Args, returns and errors as in :func:`aum`.")
    'Returns and errors as in :func:`aum`.'
    >>> without_args("Args as in :func:`aum`; σ_i is the spread."), without_args("which is monotone.")
    ('σ_i is the spread.', 'which is monotone.')
    """
    rest = re.sub(r"^Args( as in :func:`[\w.~]+`[.;] ?|, | and )", "", paragraph)
    starts_with_word = rest != paragraph and re.match(r"[a-z]{2,}[ ,]", rest)
    return rest[:1].upper() + rest[1:] if starts_with_word else rest
