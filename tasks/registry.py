"""Names to implementations: one line per method, loaded when first used, so that listing costs nothing.

Each stage's ``__init__`` adds its entries here; ``winnow ls`` reads them without importing torch, NumPy or
Prefect. ``$WINNOW_PLUGINS`` names files or modules, separated by commas, that add the user's own entries.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from winnow.tasks.errors import BadInput, UnknownName, did_you_mean

__all__ = [
    "DatasetEntry",
    "EmbedderEntry",
    "Entry",
    "NetworkEntry",
    "Registry",
    "ScoreEntry",
    "SelectorEntry",
    "datasets",
    "embedders",
    "networks",
    "policies",
    "scores",
    "selectors",
]


@dataclass(frozen=True)
class Entry:
    """One registered implementation; calling it calls the function, which is imported on first use.

    Attributes:
        name: as the user wrote it; for a family such as ``timm:*``, the full name, such as ``timm:resnet18``.
        target: ``"package.module:function"``.
        version: raised by hand when the code changes its results.
        upstream: target of the function that replays the published code, None where there is none.
        fixed: keyword arguments that make another entry's function into this one.
        variant: what stood in place of a family's ``*``, else None; passed to the function as keyword
            ``variant``.
        about: replaces the docstring where the function is another entry's.
        through: target of a function that calls the entry: ``through(entry, …)``; None calls it directly.
    """

    name: str
    target: str
    version: int = 1
    upstream: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None
    about: str = ""
    through: str | None = None

    @cached_property
    def function(self) -> Callable[..., Any]:
        return loaded(self.target)

    @cached_property
    def published(self) -> Callable[..., Any]:
        """The replay of the published code.

        Raises:
            BadInput: there is none.
        """
        if self.upstream is None:
            raise BadInput(
                f"{self.name} has no upstream mode.", remedy="leave upstream out: the method is as published"
            )
        return loaded(self.upstream)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.through is not None:
            return loaded(self.through)(self, *args, **kwargs)
        return self.direct(*args, **kwargs)

    def direct(self, *args: Any, upstream: bool = False, **kwargs: Any) -> Any:
        """Call the function, or with ``upstream`` its published replay, with the fixed arguments."""
        variant = {} if self.variant is None else {"variant": self.variant}
        function = self.published if upstream else self.function
        return function(*args, **variant, **{**self.fixed, **kwargs})

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that hold the entry's code."""
        return tuple(
            target.partition(":")[0] for target in (self.target, self.upstream) if target is not None
        )

    @property
    def replays(self) -> bool:
        """Whether the published code can be replayed."""
        return self.upstream is not None

    def parameters(self, *, upstream: bool = False) -> Mapping[str, inspect.Parameter]:
        """Keyword parameters that a caller may choose: not what is fixed, nor the generator."""
        function = self.published if upstream and self.replays else self.function
        return {
            name: parameter
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in (*_DOOR, *self.fixed)
        }

    def accepts(self, name: str, *, upstream: bool = False) -> bool:
        """Whether the function takes this argument."""
        function = self.published if upstream and self.replays else self.function
        return name in inspect.signature(function).parameters

    @cached_property
    def doc(self) -> str:
        """``about``, else the function's docstring, read from the source without importing it."""
        return self.about or docstring(self.target)

    @property
    def identity(self) -> str:
        """Name and version, as cache keys see an entry; for a plugin's, also a digest of its file."""
        named = f"{self.name}/{self.version}"
        module = self.target.partition(":")[0]
        if module.startswith("winnow."):
            return named
        spec = sys.modules[module].__spec__ if module in sys.modules else importlib.util.find_spec(module)
        assert spec is not None
        return f"{named}@{hashlib.sha256(Path(str(spec.origin)).read_bytes()).hexdigest()[:12]}"

    @property
    def facts(self) -> dict[str, Any]:
        """What entries of this kind say of themselves, for listings."""
        names = [f.name for f in fields(self) if f.name not in Entry.__dataclass_fields__]
        return {name: value for name in names if (value := getattr(self, name)) not in (None, (), {}, "")}

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


_DOOR = ("generator", "already")  # what the door of a stage passes on; not a caller's parameter


@dataclass(frozen=True)
class DatasetEntry(Entry):
    """A dataset: classes, samples by split, side and channels of its images, whether it can be downloaded."""

    classes: int | None = None
    samples: Mapping[str, int] = field(default_factory=dict)
    size: int | None = None
    channels: int | None = None
    download: bool = False

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.samples) or ("train", "test")


@dataclass(frozen=True)
class EmbedderEntry(Entry):
    """An embedder: length of its vectors, None where it varies; where its weights come from.

    ``learns`` says that an image's vector depends on the other images; only where it does not can parts be
    embedded and cached on their own.
    """

    dim: int | None = None
    weights: str = ""
    learns: bool = True


@dataclass(frozen=True)
class NetworkEntry(Entry):
    """A network: image sides that it takes, and the hardware that it is made for."""

    sizes: str = ""
    hardware: str = ""


@dataclass(frozen=True)
class ScoreEntry(Entry):
    """A score: what it is computed from, which end is hard, whether its paper averages it over trainings.

    One that needs ``dynamics`` is a :class:`~winnow.tasks.score.reducer.Reducer`; others are functions whose
    arguments are named after what they need.
    """

    needs: tuple[str, ...] = ()
    higher_is: Literal["easier", "harder"] = "harder"
    averaged: bool = False


@dataclass(frozen=True)
class SelectorEntry(Entry):
    """A selector: signals that it needs, or uses if present; ``limit`` refuses what would not fit.

    ``labels`` is "pseudo" where its paper trains the proxy on pseudo-labels.
    """

    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    limit: str | None = None
    labels: Literal["pseudo"] | None = None


E = TypeVar("E", bound=Entry)


def loaded(target: str) -> Any:
    """The object behind ``"package.module:name"``."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def docstring(target: str) -> str:
    """The docstring behind ``"package.module:name"``, read from the source without importing it."""
    module, _, attribute = target.partition(":")
    docs = _docstrings(module)
    if attribute not in docs:
        raise AttributeError(f"{module} has no function {attribute}")
    return docs[attribute]


@lru_cache(maxsize=64)
def _docstrings(module: str) -> dict[str, str]:
    """Docstrings of a module's functions and classes, and its own for its values, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {module}")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    docs = {
        target.id: ast.get_docstring(tree) or ""
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    definitions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return docs | {node.name: ast.get_docstring(node) or "" for node in definitions}


class Registry(Generic[E]):
    """Named implementations of one kind.

    Args:
        kind: its name in messages.
        entry: class of the entries, whose fields :meth:`add` takes.
        stage: the package whose import registers them, and to which targets such as ``".d2:d2"`` are
            relative.
        through: for every entry; see :class:`Entry`.

    >>> shapes = Registry("shape", Entry)
    >>> shapes.add("circle", "math:cos")
    >>> shapes.get("circle")(0.0)
    1.0
    >>> shapes.get("circel")
    Traceback (most recent call last):
    winnow.UnknownName: 'circel' is not a shape. Did you mean 'circle'? Available: circle
    """

    def __init__(
        self, kind: str, entry: type[E], *, stage: str | None = None, through: str | None = None
    ) -> None:
        self.kind = kind
        self._entry, self._stage, self._through = entry, stage, self._absolute(through, stage)
        self._entries: dict[str, E] = {}

    @staticmethod
    def _absolute(target: str | Callable[..., Any] | None, stage: str | None, name: str = "") -> str | None:
        if callable(target):
            return f"{target.__module__}:{target.__qualname__}"
        if target is None:
            return None
        named = target if ":" in target else f"{target}:{name}"
        return f"{stage}{named}" if target.startswith(".") else named

    def add(self, name: str, target: str | Callable[..., Any] = "", **facts: Any) -> None:
        """Register ``target`` under ``name``.

        Args:
            name: one that ends in ``*`` is a family.
            target: a function, or ``"package.module:function"``; ``".module"`` is relative to the stage, the
                function being named as the entry, and so is the module if nothing is given.
            facts: fields of the registry's entries; ``upstream`` and ``limit`` are targets, too, and
                ``upstream=True`` is the same module and function in the stage's package ``upstream``.

        Raises:
            BadInput: the name is taken.
        """
        target = target or f".{name}"
        if facts.get("upstream") is True:
            facts["upstream"] = f".upstream{target}"
        facts |= {
            key: self._absolute(facts[key], self._stage, name)
            for key in ("upstream", "limit")
            if key in facts
        }
        function = str(self._absolute(target, self._stage, name))
        if name in self._entries:
            raise BadInput(
                f"{self.kind} {name!r} is registered twice: {self._entries[name].target} and {function}"
            )
        self._entries[name] = self._entry(name, function, through=self._through, **facts)

    def _load(self) -> dict[str, E]:
        if self._stage is not None:
            importlib.import_module(self._stage)
            _load_plugins()
        return self._entries

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._load())

    def __iter__(self) -> Iterator[E]:
        return (self._entries[name] for name in self.names())

    def __len__(self) -> int:
        return len(self._load())

    def __contains__(self, name: str) -> bool:
        try:
            self.get(name)
        except UnknownName:
            return False
        return True

    def get(self, name: str) -> E:
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
                return replace(entries[family], name=name, variant=name[len(stem) :])
        raise UnknownName(
            f"{name!r} is not a {self.kind}.{did_you_mean(name, entries)} "
            f"Available: {', '.join(sorted(entries))}"
        )


_plugins: set[str] = set()  # imported, or being imported


def _load_plugins() -> None:
    """Import what ``$WINNOW_PLUGINS`` names, once.

    Raises:
        BadInput: a plugin is missing or fails.
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
                f"plugin {name}: {type(error).__name__}: {error}",
                remedy="mend it, or take it out of the variable WINNOW_PLUGINS",
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


datasets = Registry("dataset", DatasetEntry, stage="winnow.tasks.data")
embedders = Registry("embedder", EmbedderEntry, stage="winnow.tasks.embed")
networks = Registry("network", NetworkEntry, stage="winnow.tasks.train")
policies = Registry("hiding policy", Entry, stage="winnow.tasks.train")
scores = Registry("score", ScoreEntry, stage="winnow.tasks.score")
selectors = Registry("selector", SelectorEntry, stage="winnow.tasks.select", through=".budget:run")
