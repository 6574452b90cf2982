"""Names to implementations: one line a method, loaded when first used, so that listing costs nothing.

Each stage's ``__init__`` adds its entries here; ``winnow ls`` reads them without importing torch, NumPy or Prefect. ``$WINNOW_PLUGINS``
names files or modules, separated by commas, that add entries of one's own.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tasks.errors import BadInput, UnknownName

__all__ = ["Entry", "Registry", "datasets", "embedders", "networks", "policies", "scores", "selectors"]


@dataclass(frozen=True)
class Entry:
    """One registered implementation; calling it calls the function, which is imported on first use.

    Attributes:
        name: as the user wrote it; for a family such as ``timm:*`` the full name, for example ``timm:resnet18``.
        target: ``"package.module:function"``.
        needs: names of the signals that it reads (selectors).
        facts: anything worth listing, for example ``classes`` or ``dim``.
        variant: what stood in place of a family's ``*``, else None; handed to the function as keyword ``variant``.
    """

    name: str
    target: str
    needs: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    variant: str | None = None

    @cached_property
    def function(self) -> Callable[..., Any]:
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.variant is not None:
            kwargs["variant"] = self.variant
        return self.function(*args, **kwargs)

    @cached_property
    def doc(self) -> str:
        """The function's docstring, read from the source without importing it."""
        module, _, attribute = self.target.partition(":")
        docs = _docstrings(module)
        if attribute not in docs:
            raise AttributeError(f"{self.name}: {module} has no function {attribute}")
        return docs[attribute]

    @property
    def identity(self) -> str:
        """The name; of a plugin's entry, with a digest of its file, so that results are not taken for those of other code.

        The code of Winnow's own entries is tied to the versions of the tasks that call them.
        """
        module = self.target.partition(":")[0]
        if module.startswith("tasks."):
            return self.name
        origin = sys.modules[module].__spec__.origin if module in sys.modules else importlib.util.find_spec(module).origin  # type: ignore[union-attr]
        return f"{self.name}@{hashlib.sha256(Path(str(origin)).read_bytes()).hexdigest()[:12]}"

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.doc.partition("\n")[0]

    @property
    def reference(self) -> str:
        """The docstring's References section (paper, equation), on one line; empty where there is none."""
        _, _, section = self.doc.partition("References:\n")
        lines = section.split("\n\n")[0].splitlines()
        return " ".join(line.strip() for line in lines)


@lru_cache(maxsize=64)
def _docstrings(module: str) -> dict[str, str]:
    """Docstrings of a module's functions and classes, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {module}")
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    return {node.name: ast.get_docstring(node) or "" for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@dataclass(frozen=True)
class SelectorEntry(Entry):
    """A selector: called with signals and a budget, which are checked; ``balanced=True`` works for every selector with labels."""

    def __call__(self, signals: Any, budget: int | float, **kwargs: Any) -> Any:
        from tasks.select.budget import run

        return run(self, signals, budget, **kwargs)


class Registry:
    """Named implementations of one kind.

    >>> shapes = Registry("shape")
    >>> shapes.add("circle", "math:cos")
    >>> shapes.get("circle")(0.0)
    1.0
    >>> shapes.get("circel")
    Traceback (most recent call last):
    tasks.errors.UnknownName: 'circel' is not a shape. Did you mean 'circle'? Available: circle
    """

    def __init__(self, kind: str, *, stage: str | None = None, entry: type[Entry] = Entry) -> None:
        self.kind = kind
        self._stage = stage  # the package whose import registers the entries
        self._entry = entry
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, target: str | Callable[..., Any], *, needs: tuple[str, ...] = (), **facts: Any) -> None:
        """Register ``target``, a function or ``"package.module:function"``, under ``name``; a name ending in ``*`` is a family.

        Raises:
            BadInput: the name is taken.
        """
        if not isinstance(target, str):
            target = f"{target.__module__}:{target.__qualname__}"
        if name in self._entries:
            raise BadInput(f"{self.kind} {name!r} is registered twice: {self._entries[name].target} and {target}")
        self._entries[name] = self._entry(name, target, needs, facts)

    def _load(self) -> dict[str, Entry]:
        if self._stage is not None:
            importlib.import_module(self._stage)
            _load_plugins()
        return self._entries

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._load())

    def modules(self) -> tuple[str, ...]:
        """The modules of all entries, sorted: whose code a task that calls any of them depends on."""
        return tuple(sorted({entry.target.partition(":")[0] for entry in self}))

    def __iter__(self) -> Iterator[Entry]:
        return (self._entries[name] for name in self.names())

    def __contains__(self, name: str) -> bool:
        try:
            self.get(name)
        except UnknownName:
            return False
        return True

    def get(self, name: str) -> Entry:
        """The entry of that name, or of the family that it belongs to.

        Raises:
            UnknownName: with the nearest names and the whole list.
        """
        entries = self._load()
        if name in entries and not name.endswith("*"):
            return entries[name]
        for family in sorted((n for n in entries if n.endswith("*")), key=len, reverse=True):
            stem = family[:-1]
            if name.startswith(stem) and len(name) > len(stem):
                entry = entries[family]
                return self._entry(name, entry.target, entry.needs, entry.facts, variant=name[len(stem) :])
        close = difflib.get_close_matches(str(name), entries, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise UnknownName(f"{name!r} is not a {self.kind}.{hint} Available: {', '.join(sorted(entries))}")


_plugins: set[str] = set()  # that have been imported, or are being so


def _load_plugins() -> None:
    """Import what ``$WINNOW_PLUGINS`` names, once.

    Raises:
        BadInput: a plugin is not there, or fails.
    """
    for name in filter(None, map(str.strip, os.environ.get("WINNOW_PLUGINS", "").split(","))):
        if name in _plugins:
            continue
        _plugins.add(name)
        try:
            _import_plugin(name)
        except Exception as error:
            _plugins.discard(name)
            raise BadInput(
                f"plugin {name}: {type(error).__name__}: {error}", remedy="mend it, or take it out of the variable WINNOW_PLUGINS"
            ) from error


def _import_plugin(name: str) -> None:
    if not name.endswith(".py"):
        importlib.import_module(name)
        return
    path = Path(name).expanduser().resolve()
    module_name = f"winnow_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # registered functions are looked up by the module's name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise


datasets = Registry("dataset", stage="tasks.data")
embedders = Registry("embedder", stage="tasks.embed")
networks = Registry("network", stage="tasks.train")
policies = Registry("hiding policy", stage="tasks.train")
scores = Registry("score", stage="tasks.score")
selectors = Registry("selector", stage="tasks.select", entry=SelectorEntry)
