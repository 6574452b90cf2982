"""What there is to run and to list, read without importing torch, NumPy or Prefect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from winnow.flows import FLOWS
from winnow.tasks import registry

__all__ = ["FILE", "KINDS", "deployments", "listed"]

FILE = Path(__file__).resolve().parents[1] / "deployments" / "prefect.yaml"

KINDS = ("datasets", "embedders", "networks", "scores", "selectors", "policies", "flows", "deployments")

_SHOWN = ("classes", "samples", "size", "dim", "higher_is", "needs")


def deployments() -> dict[str, dict[str, Any]]:
    """``flow/name`` to its entry of deployments/prefect.yaml."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load(FILE.read_text(encoding="utf-8"), Loader=loader)
    names = {target.replace(":", "."): name for name, target in FLOWS.items()}
    return {f"{names[entry['entrypoint']]}/{entry['name']}": entry for entry in content["deployments"]}


def listed(kind: str) -> list[dict[str, Any]]:
    """Entries of a kind: ``name``, ``summary`` and ``facts``."""
    if kind == "flows":
        summaries = {name: registry.docstring(target).partition("\n")[0] for name, target in FLOWS.items()}
        return [{"name": name, "summary": text, "facts": {}} for name, text in sorted(summaries.items())]
    if kind == "deployments":
        return [
            {"name": name, "summary": entry["description"], "facts": {"pool": entry["work_pool"]["name"]}}
            for name, entry in deployments().items()
        ]
    return [
        {
            "name": entry.name,
            "summary": entry.summary,
            "facts": {name: value for name, value in entry.facts.items() if name in _SHOWN},
        }
        for entry in getattr(registry, kind)
    ]
