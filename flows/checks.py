"""Everything that can be known to be wrong before the first step is said here, before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows import presets
from tasks.artifacts import Artifact
from tasks.errors import BadInput, MissingLabels
from tasks.registry import datasets, embedders, networks, scores, selectors
from tasks.train.recipe import Recipe

__all__ = ["baseline_params", "elfs_fits", "elfs_preset", "mis_ratio_of", "settings"]

MisRatio = float | str | dict[float, float] | None


def elfs_preset(
    dataset: str,
    *,
    fractions: tuple[float, ...],
    seeds: tuple[int, ...],
    score: str,
    mis_ratio: MisRatio,
    baselines: tuple[str, ...],
    device: str,
    upstream: bool,
    files: tuple[str | None, str | None],
    embedder: str | None = None,
    embedder_options: dict[str, Any] | None = None,
    normalise: str | None = None,
    neighbours: int | None = None,
    heads: dict[str, Any] | None = None,
    proxy: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> presets.ElfsPreset:
    """The dataset's preset with the user's own values in it; names, files, fractions and the device are checked.

    Raises:
        BadInput: naming the parameter.
    """
    from tasks import hardware

    datasets.get(dataset)
    if device not in ("auto", "cpu"):  # these two are always there: no need to load torch for what may all be cached
        hardware.device(device)
    for name, values in (("fractions", fractions), ("seeds", seeds)):
        if not values:
            raise BadInput(f"{name} is empty.", remedy=f"give at least one, for example {name}={'[0.1]' if name == 'fractions' else '[0]'}")
        if len(set(values)) != len(values):
            raise BadInput(f"{name} names {next(v for v in values if values.count(v) > 1)} twice.")
    recorded = [entry.name for entry in scores if "dynamics" in entry.needs]
    if score not in recorded:
        raise BadInput(f"score = {score!r} is not recorded from training dynamics. Scores: {', '.join(recorded)}")
    for method in baselines:
        needs = set(selectors.get(method).needs) - {"scores"}
        if needs:
            raise BadInput(f"baseline {method!r} needs {', '.join(sorted(needs))}, which this label-free comparison does not make.")
        if method == "elfs":
            raise BadInput("baselines names elfs itself.")
    if isinstance(mis_ratio, dict):
        unknown = sorted(set(mis_ratio) - set(fractions))
        if unknown:
            raise BadInput(f"mis_ratio is given for fraction {unknown[0]:g}, which is not among the fractions {_list(fractions)}.")
    for path in files:
        if path is not None and not Path(path.partition("#")[0]).expanduser().exists():
            raise BadInput(f"{path}: no such file.", remedy="give the path of a .parquet, .npy or .npz file")
    if upstream and (files[0] is not None or files[1] is not None):
        raise BadInput("upstream=True chooses the epoch on embedded test images; your own embeddings or pseudo-labels leave it none.")
    preset = presets.elfs(dataset)
    if embedder is not None:
        embedders.get(embedder)
    changes: dict[str, Any] = {
        "embedder": embedder,
        "embedder_options": {} if embedder not in (None, preset.embedder) and embedder_options is None else embedder_options,
        "normalise": normalise,
        "neighbours": neighbours,
        "heads": preset.heads | _given(heads or {}),
        "proxy": _recipe(preset.proxy, proxy or {}),
        "training": _recipe(preset.training, training or {}),
    }
    return preset.model_copy(update=_given(changes))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _list(values: tuple[Any, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _recipe(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with other values; a length in epochs replaces one in iterations and the other way round."""
    changes = _given(changes)
    if "network" in changes:
        networks.get(changes["network"])
    if {"epochs", "iterations"} <= set(changes):
        raise BadInput("iterations and epochs are both given.", remedy="give the length of the coreset training in one of them")
    if "epochs" in changes:
        changes["iterations"] = None
    elif "iterations" in changes:
        changes["epochs"] = None
    return Recipe(**{**recipe.model_dump(), **changes})


def mis_ratio_of(mis_ratio: MisRatio, preset: presets.ElfsPreset, fraction: float) -> float | None:
    """The share of hardest samples to drop where this fraction is kept; None when it is to be searched."""
    if mis_ratio == "auto":
        return None
    if isinstance(mis_ratio, dict):
        return mis_ratio.get(fraction)
    if mis_ratio is None:
        return next((value for known, value in preset.mis_ratio.items() if abs(known - fraction) < 1e-9), None)
    assert not isinstance(mis_ratio, str)
    return mis_ratio


def elfs_fits(
    train: Artifact,
    preset: presets.ElfsPreset,
    clusters: int | None,
    fractions: tuple[float, ...],
    mis_ratio: MisRatio,
    *,
    clustered: bool,
) -> int:
    """Number of clusters, after the sizes have been checked against the data.

    Raises:
        BadInput: k ≥ N, a cut and a budget that do not fit together.
        MissingLabels: there is nothing to annotate the coreset with.
    """
    from tasks.select.budget import count
    from tasks.select.elfs import check_fits

    n = train.rows
    if not train.meta["labelled"]:
        raise MissingLabels(
            f"{train.meta['dataset']}/train has no labels to annotate a coreset with.",
            remedy="run the flow on labelled data: the coreset is annotated and trained on to be compared",
        )
    if clustered and preset.neighbours >= n:
        raise BadInput(f"neighbours = {preset.neighbours} of {n} samples.", remedy=f"pass neighbours <= {n - 1}")
    classes = clusters or train.meta["classes"]
    if not 2 <= classes <= n:
        raise BadInput(f"clusters = {classes} for {n} samples.", remedy="pass 2 or more clusters, at most one a sample")
    for fraction in fractions:
        budget = count(float(fraction), n)
        value = mis_ratio_of(mis_ratio, preset, fraction)
        if value is not None:
            check_fits(n, budget, value)
    return classes


def baseline_params(method: str, score: str) -> dict[str, Any]:
    """Parameters of a baseline: those that select by a score get the same score."""
    return {"score": score} if "scores" in selectors.get(method).needs else {}


def settings(preset: presets.ElfsPreset, embeddings: str | None, pseudo_labels: str | None, **others: Any) -> dict[str, Any]:
    """What a run was made with, for its report: the preset's values and others, flat; what the user's files replaced is left out."""
    made = preset.model_dump()
    replaced = (
        ("embedder", "embedder_options", "normalise", "neighbours", "heads") if pseudo_labels else ("embedder_options",) * bool(embeddings)
    )
    if embeddings or pseudo_labels:
        made["embedder"] = "own embeddings" if embeddings else "own pseudo-labels"
    made = {name: value for name, value in made.items() if name not in replaced or name == "embedder"}
    flat: dict[str, Any] = {}
    for name, value in {**made, **others}.items():
        inner = value.items() if isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": one for key, one in inner if one is not None}
    return flat
