"""What there is to run and to list, read without importing torch, NumPy or Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from winnow.flows import FLOWS
from winnow.tasks import registry

__all__ = ["FILE", "KINDS", "chosen", "dataset_in", "deployments", "listed"]

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


def chosen(name: str) -> dict[str, Any]:
    """Parameters of a deployment that differ from the preset's.

    A run in this process starts from these, so that the preset follows what the user changes: a table for one
    score is not kept for another.
    """
    from winnow.flows import presets

    parameters = deployments()[name].get("parameters", {})
    preset = presets.as_json(name.partition("/")[0], dataset_in(parameters))
    return {key: value for key, value in parameters.items() if value != preset.get(key)}


def dataset_in(parameters: Mapping[str, Any]) -> str:
    """The dataset, or the pool, that a deployment is about."""
    return parameters.get("dataset") or parameters["pool"]


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
