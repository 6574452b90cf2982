"""The code behind each cached task is tied to its version: changed results are not taken for cached ones.

`make versions` records the present code, after the version of every task whose results changed has been
raised.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
from collections.abc import Iterable
from copy import deepcopy
from functools import cache
from pathlib import Path

from winnow.tasks import registry

RECORD = Path(__file__).parent / "task_versions.json"
MODULES = (
    "winnow.tasks.embed.task",
    "winnow.tasks.train.task",
    "winnow.tasks.score.task",
    "winnow.tasks.select.task",
    "winnow.tasks.report.task",
)
PLUMBING = {
    "winnow.tasks.artifacts",
    "winnow.tasks.cache",
    "winnow.tasks.columns",
    "winnow.tasks.errors",
    "winnow.tasks.progress",
    "winnow.tasks.registry",
}  # keeps and tells results, decides none


def implementation(modules: Iterable[str]) -> list[str]:
    """These modules and those of ours that they import; what a ``task`` module imports, each task names."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        if module.endswith(".task"):
            continue
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("winnow.tasks"):
                inner = (f"{node.module}.{alias.name}" for alias in node.names)
                names = {name if is_module(name) else node.module for name in inner}
                waiting.extend(names - PLUMBING)
    return sorted(found)


@cache
def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is none
        return False


@cache
def tree_of(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def code_of(module: str) -> str:
    """A digest of a module's code: comments, layout and docstrings do not count."""
    tree = deepcopy(tree_of(module))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def tasks() -> dict[str, tuple[str, list[str]]]:
    """Version of each cached task, and the modules whose code it is."""
    from winnow.tasks.cache import CachedTask

    found = {}
    for module in MODULES:
        for value in vars(importlib.import_module(module)).values():
            if isinstance(value, CachedTask):
                found[value.name] = (value.cache_policy.version, implementation(value.modules))
    return found


def methods() -> dict[str, tuple[str, list[str]]]:
    """The same of each registered method whose version is in the keys of what it makes."""
    kinds = (registry.embedders, registry.networks, registry.scores, registry.selectors)
    return {
        f"{kind.kind} {entry.name}": (str(entry.version), implementation(entry.modules))
        for kind in kinds
        for entry in kind
    }


def present() -> dict[str, dict[str, str]]:
    everything = {**tasks(), **methods()}
    modules = {module for _, those in everything.values() for module in those}
    return {
        "versions": {name: version for name, (version, _) in sorted(everything.items())},
        "code": {module: code_of(module) for module in sorted(modules)},
    }


def test_code_and_version_agree():
    recorded, now = json.loads(RECORD.read_text()), present()
    for name, (version, modules) in {**tasks(), **methods()}.items():
        changed = [module for module in modules if recorded["code"].get(module) != now["code"][module]]
        assert not changed or version != recorded["versions"].get(name), (
            f"{', '.join(changed)} changed, which {name!r} (version {version}) runs. If results can differ, "
            "raise its version; then run `make versions`."
        )
    assert now == recorded, "run `make versions`"


def test_every_task_names_its_own_module():
    for name, (_, modules) in tasks().items():
        assert any(module.endswith(".task") for module in modules), name


if __name__ == "__main__":
    found = present()
    RECORD.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{RECORD.name}: {len(found['versions'])} tasks and methods recorded")
