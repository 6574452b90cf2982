"""The code behind each cached task is tied to its version: changed results must not be mistaken for cached ones.

`make versions` records the present code, after the version of every task whose results changed has been raised.
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

RECORD = Path(__file__).parent / "task_versions.json"
MODULES = ("tasks.embed.task", "tasks.train.task", "tasks.score.task", "tasks.select.task", "tasks.report.task")
PLUMBING = {"tasks.artifacts", "tasks.cache", "tasks.errors", "tasks.progress", "tasks.registry"}  # keeps and tells results, decides none


def implementation(modules: Iterable[str]) -> list[str]:
    """These modules and those of ours that they import, wherever in their code. What a ``task`` module imports, each task names."""
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
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tasks"):
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
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def tasks() -> dict[str, dict]:
    from tasks.cache import CachedTask

    found = {}
    for module in MODULES:
        for value in vars(importlib.import_module(module)).values():
            if isinstance(value, CachedTask):
                code = {name: code_of(name) for name in implementation(value.modules)}
                found[value.name] = {"version": value.cache_policy.version, "code": code}
    return dict(sorted(found.items()))


def test_code_and_version_agree():
    recorded, present = json.loads(RECORD.read_text()), tasks()
    assert set(recorded) == set(present), "run `make versions`"
    for name, now in present.items():
        changed = [module for module, code in now["code"].items() if recorded[name]["code"].get(module) != code]
        assert not changed or now["version"] != recorded[name]["version"], (
            f"{', '.join(changed)} changed, which task {name!r} (version {now['version']}) runs. If results can differ, raise its version; "
            "then run `make versions`."
        )
        assert now == recorded[name], f"task {name!r}: version raised; run `make versions` to record it"


def test_every_task_names_its_own_module():
    for name, found in tasks().items():
        assert any(module.endswith(".task") for module in found["code"]), name


if __name__ == "__main__":
    RECORD.write_text(json.dumps(tasks(), indent=1) + "\n")
    print(f"{RECORD.name}: {len(tasks())} tasks recorded")
