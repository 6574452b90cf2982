"""The code behind each cached task is tied to its version: changed results must not be mistaken for cached ones.

`make versions` records the present code, after the version of every task whose results changed has been raised.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
from pathlib import Path

RECORD = Path(__file__).parent / "task_versions.json"
MODULES = ("tasks.embed.task", "tasks.train.task", "tasks.score.task", "tasks.select.task", "tasks.report.task")


def code_of(module: str) -> str:
    """A digest of a module's code: comments, layout and docstrings do not count."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
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
                found[value.name] = {"version": value.cache_policy.version, "code": {name: code_of(name) for name in sorted(value.modules)}}
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
