"""The house: one package, stages that import downwards only, no circles, files of a readable length."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("data", "embed", "train", "score", "select", "report")  # each imports only those before it
FILES = {
    ".".join(("winnow", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): file
    for folder in ("tasks", "flows")
    for file in (ROOT / folder).rglob("*.py")
}


@lru_cache(maxsize=1)
def imports() -> dict[str, set[str]]:
    """Modules of ours that each of ours imports, wherever in its code."""
    edges: dict[str, set[str]] = {}
    for module, file in FILES.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
                named |= inner or {node.module}
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
        edges[module] = (named & FILES.keys()) - {module}
    return edges


def floor(module: str) -> int:
    """0 for what all stages share, then the stages, then the flows."""
    _, folder, *rest = module.split(".")
    if folder == "flows":
        return len(STAGES) + 1
    return 1 + STAGES.index(rest[0]) if rest and rest[0] in STAGES else 0


def test_no_import_goes_upwards():
    assert not [(a, b) for a, others in imports().items() for b in others if floor(b) > floor(a)]


def test_no_imports_go_in_circles():
    left = dict(imports())
    while ends := [module for module, others in left.items() if not others & left.keys()]:
        for module in ends:
            del left[module]
    assert not left


def test_selectors_import_no_other_selector_and_no_replay():
    from winnow.tasks.registry import selectors

    methods = {entry.target.partition(":")[0] for entry in selectors}
    for module, others in imports().items():
        if module.startswith("winnow.tasks.select.") and ".upstream." not in module:
            assert not {other for other in others if ".upstream." in other}, module
        if module in methods:
            assert not others & (methods - {module}), module


@pytest.mark.parametrize("module", sorted(FILES))
def test_files_are_short(module):
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= 450


def test_no_clean_function_has_an_upstream_branch():
    """Published replays are functions of their own, which the table names."""
    from winnow.tasks.registry import scores, selectors

    for entry in (*selectors, *scores):
        module, _, name = entry.target.partition(":")
        for node in ast.parse(FILES[module].read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                assert "upstream" not in {inner.arg for inner in ast.walk(node) if isinstance(inner, ast.arg)}
