"""Everything that can be known to be wrong before the first step is said here, before the first step."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from winnow.flows import presets
from winnow.flows.steps import Method
from winnow.tasks.artifacts import Artifact
from winnow.tasks.errors import BadInput, MissingLabels
from winnow.tasks.registry import datasets, embedders, networks, scores, selectors
from winnow.tasks.train.recipe import Recipe

__all__ = [
    "EVERYTHING",
    "baselines",
    "common",
    "elfs_preset",
    "embedder_exists",
    "entrants",
    "existing",
    "fits",
    "flat",
    "plan",
    "pseudo_labels_are_wanted",
    "recipe",
    "score_is_recorded",
    "selection_preset",
    "settings",
    "shortened",
    "sizes",
]

EVERYTHING = frozenset(
    {"scores", "labels", "features", "probabilities", "residuals"}
)  # what a labelled flow's proxy tells

Plan = dict[float, tuple[dict[str, Any], dict[str, tuple[Any, ...]]]]


def common(dataset: str, fractions: tuple[float, ...], seeds: tuple[int, ...], device: str) -> None:
    """Dataset, fractions, seeds and device of any flow.

    Raises:
        BadInput: naming the parameter.
    """
    from winnow.tasks import hardware

    datasets.get(dataset)
    if device not in (
        "auto",
        "cpu",
    ):  # these two are always there: no need to load torch for what may all be cached
        hardware.device(device)
    for name, values in (("fractions", fractions), ("seeds", seeds)):
        if not values:
            raise BadInput(
                f"{name} is empty.",
                remedy=f"give at least one, for example {name}={'[0.1]' if name == 'fractions' else '[0]'}",
            )
        if len(set(values)) != len(values):
            raise BadInput(f"{name} names {next(v for v in values if values.count(v) > 1)} twice.")


def score_is_recorded(score: str, *, final_pass: bool, passes: bool = False) -> None:
    """Refuse a score that the proxy's training does not give, nor with ``passes`` another pass through the trained proxy.

    Raises:
        BadInput: with those that it gives.
    """
    sources = {
        "dynamics",
        *(("logits", "residuals") if final_pass else ()),
        *(("network",) if passes else ()),
    }
    recorded = [entry.name for entry in scores if sources & set(entry.needs)]
    if score not in recorded:
        kind = "training dynamics" if not final_pass else "the proxy's training"
        raise BadInput(f"score = {score!r} is not recorded from {kind}. Scores: {', '.join(recorded)}")


def existing(*files: str | None) -> None:
    """Refuse a file that is not there; ``path#name`` picks one of its arrays."""
    for path in files:
        if path is not None and not Path(path.partition("#")[0]).expanduser().exists():
            raise BadInput(f"{path}: no such file.", remedy="give the path of a .parquet, .npy or .npz file")


def pseudo_labels_are_wanted(pseudo_labels: str | None, labels: str) -> None:
    """Refuse pseudo-labels that nothing would read, or that are not there."""
    if pseudo_labels is not None and labels != "pseudo":
        raise BadInput(
            "pseudo_labels is given, but labels = 'true'.",
            remedy="pass labels=pseudo to select without true labels",
        )
    existing(pseudo_labels)


def embedder_exists(embedder: str | None, embeddings: str | None) -> None:
    """Refuse an unknown embedder, or one beside the user's own embeddings."""
    if embedder is not None and embeddings is not None:
        raise BadInput("embedder and embeddings are both given.", remedy="give one of them")
    if embedder is not None:
        embedders.get(embedder)


def shortened(base: Recipe, iterations: int | None) -> Recipe:
    """The recipe with that many steps; None leaves it as it is."""
    return base if iterations is None else recipe(base, {"iterations": iterations})


def baselines(
    names: Iterable[str],
    score: str | None,
    signals: Iterable[str],
    *,
    method: str | None = None,
    balanced: bool = False,
    params: Mapping[str, Mapping[float, Mapping[str, Any]]] | None = None,
    fractions: Iterable[float] = (),
    recorded: bool = True,
    passes: bool = False,
) -> list[Method]:
    """Baselines by name; ``selector:score`` selects by another score than the method does.

    Args:
        names: of registered selectors.
        score: of the method; baselines that select by one get the same. None leaves each its own.
        signals: that the flow has.
        method: whose baselines these are, if any.
        balanced: split their budgets over the classes.
        params: known parameters of baselines, by name and fraction.
        fractions: kept.
        recorded: whether final scores and GraNd are among the scores.
        passes: whether the flow makes scores that take another pass through the trained proxy.

    Raises:
        BadInput: a baseline needs something that the flow does not make.
    """
    found = []
    for name in names:
        selector, _, other = name.partition(":")
        entry = selectors.get(selector)
        needs = set(entry.needs) - set(signals)
        if needs:
            raise BadInput(
                f"baseline {name!r} needs {', '.join(sorted(needs))}, which this flow does not make."
            )
        if name == method:
            raise BadInput(f"baselines names {method} itself.")
        takes_score = "score" in entry.parameters()
        if other:
            if not takes_score:
                raise BadInput(f"baseline {name!r}: {selector} does not select by a score of choice.")
            score_is_recorded(other, final_pass=recorded, passes=passes)
        if selector in scores and "scores" in entry.needs:
            score_is_recorded(selector, final_pass=recorded, passes=passes)  # a thin name over one score
        by = {"score": other or score} if takes_score and (other or score) else {}
        known = (params or {}).get(selector, {})
        table = {fraction: {**by, **_at(known, fraction)} for fraction in (*fractions, 1.0)}
        found.append(Method(name, selector, table, balanced and selector != "full"))
    return found


def _at(values: Mapping[float, Any], fraction: float) -> Any:
    """The entry of a table by fraction, where 0.1 and 0.1000001 are the same; an empty one where there is none."""
    return next((value for known, value in values.items() if abs(known - fraction) < 1e-9), {})


def plan(
    fractions: tuple[float, ...],
    fixed: Mapping[str, Any],
    given: Mapping[str, Any],
    known: Mapping[float, Mapping[str, Any]],
    grid: Mapping[float, Mapping[str, tuple[Any, ...]]],
) -> Plan:
    """For each fraction: the parameters that are settled, and the values to try of the others.

    Args:
        fractions: kept.
        fixed: parameters that are never searched.
        given: the user's own: a value for all fractions, a table by fraction, ``"auto"`` to search, None to
            take what is known.
        known: the preset's, by fraction.
        grid: values to try, by fraction.

    Raises:
        BadInput: a table names a fraction that is not kept; a cut and a fraction do not fit together.
    """
    found: Plan = {}
    for name, value in given.items():
        if isinstance(value, dict):
            unknown = sorted(set(value) - set(fractions))
            if unknown:
                kept = ", ".join(f"{fraction:g}" for fraction in fractions)
                raise BadInput(
                    f"{name} is given for fraction {unknown[0]:g}, which is not among the fractions {kept}."
                )
    for fraction in fractions:
        settled, open_ = dict(fixed), {}
        for name, value in given.items():
            if isinstance(value, dict):
                mine = value.get(fraction, "auto")
            else:
                mine = _at(known, fraction).get(name, "auto") if value is None else value
            if mine == "auto":
                open_[name] = grid[fraction][name]
            else:
                settled[name] = mine
        found[fraction] = (settled, open_)
    return found


def elfs_preset(
    dataset: str,
    *,
    embedder: str | None = None,
    embedder_options: dict[str, Any] | None = None,
    normalise: str | None = None,
    neighbours: int | None = None,
    heads: dict[str, Any] | None = None,
    proxy: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> presets.ElfsPreset:
    """ELFS's preset of a dataset with the user's own values in it.

    Raises:
        BadInput: naming the parameter.
    """
    preset = presets.elfs(dataset)
    if embedder is not None:
        embedders.get(embedder)
    changes: dict[str, Any] = {
        "embedder": embedder,
        "embedder_options": {}
        if embedder not in (None, preset.embedder) and embedder_options is None
        else embedder_options,
        "normalise": normalise,
        "neighbours": neighbours,
        "heads": preset.heads | _given(heads or {}),
        "proxy": recipe(preset.proxy, proxy or {}),
        "training": recipe(preset.training, training or {}),
    }
    return preset.model_copy(update=_given(changes))


def selection_preset(
    preset: presets.SelectionPreset, *, proxy: dict[str, Any], training: dict[str, Any], score: str | None
) -> presets.SelectionPreset:
    """A preset with the user's own values in it; another score than the preset's makes its parameters unknown.

    Raises:
        BadInput: naming the parameter.
    """
    if score is not None:
        score_is_recorded(score, final_pass=True)
    changes: dict[str, Any] = {
        "proxy": recipe(preset.proxy, proxy),
        "training": recipe(preset.training, training),
        "score": score,
        "params": {} if score not in (None, preset.score) else None,
    }
    return preset.model_copy(update=_given(changes))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def recipe(base: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with other values; a length in epochs replaces one in iterations and the other way round."""
    changes = _given(changes)
    if "network" in changes:
        networks.get(changes["network"])
    if {"epochs", "iterations"} <= set(changes):
        raise BadInput(
            "iterations and epochs are both given.",
            remedy="give the length of the coreset training in one of them",
        )
    if "epochs" in changes:
        changes["iterations"] = None
    elif "iterations" in changes:
        changes["epochs"] = None
    try:
        return Recipe(**{**base.model_dump(), **changes})
    except ValidationError as error:  # pydantic's first reason, without its address
        reason = error.errors()[0]
        where = ".".join(map(str, reason["loc"]))
        raise BadInput(
            f"recipe{f' ({where})' if where else ''}: {reason['msg'].removeprefix('Value error, ')}."
        ) from error


def fits(
    train: Artifact, planned: Plan, *, clusters: int | None = None, graph_neighbours: int | None = None
) -> int:
    """Number of classes (or clusters), after the sizes have been checked against the data.

    Raises:
        BadInput: k ≥ N, a cut and a budget that do not fit together.
        MissingLabels: there is nothing to annotate the coreset with.
    """
    from winnow.tasks.select.budget import count
    from winnow.tasks.select.elfs import check_fits

    n = train.rows
    if not train.facts["labelled"]:
        raise MissingLabels(
            f"{train.notes['dataset']}/train has no labels to annotate a coreset with.",
            remedy="run the flow on labelled data: the coreset is annotated and trained on to be compared",
        )
    if graph_neighbours is not None and graph_neighbours >= n:
        raise BadInput(
            f"neighbours = {graph_neighbours} of {n} samples.", remedy=f"pass neighbours <= {n - 1}"
        )
    classes = clusters or train.facts["classes"]
    if not 2 <= classes <= n:
        raise BadInput(
            f"clusters = {classes} for {n} samples.", remedy="pass 2 or more clusters, at most one a sample"
        )
    for fraction, (settled, open_) in planned.items():
        budget = count(float(fraction), n)
        if "mis_ratio" in settled:
            check_fits(n, budget, settled["mis_ratio"])
        k = settled.get("neighbours", max(open_.get("neighbours", (0,))))
        if k >= n:
            raise BadInput(f"neighbours = {k} of {n} samples.", remedy=f"pass neighbours <= {n - 1}")
    return classes


def sizes(train: Artifact, methods: Iterable[Method], fractions: Iterable[float]) -> None:
    """Refuse a selection that would not fit into memory, before anything is trained for it.

    Raises:
        BadInput: naming the method; classes of equal size are assumed where budgets are balanced.
    """
    from winnow.tasks.select.budget import check_size, count

    for method, fraction in itertools.product(methods, fractions):
        n = train.rows // (train.facts["classes"] if method.balanced else 1)
        try:
            check_size(
                selectors.get(method.selector),
                n,
                count(fraction, n) if fraction * n >= 1 else 1,
                method.params.get(fraction, {}),
            )
        except BadInput as error:
            raise BadInput(
                f"{method.name} at {fraction:g} kept: {error.what}", remedy=error.remedy
            ) from error


def entrants(
    names: Sequence[str],
    dataset: str,
    fractions: tuple[float, ...],
    *,
    balanced: bool,
    params: Mapping[str, Mapping[str, Any]],
    upstream_batch: int | None = None,
) -> list[Method]:
    """The methods of a comparison, with the presets' parameters where there are any and the user's own before them.

    On a dataset that is too large for a dense kernel, methods that can take the kNN-sparse one do.
    ``upstream_batch`` replays the published code of those that have such a mode; some of it divides gradients
    by the size of the proxy's batches, which this is.

    Raises:
        BadInput: a name twice or none at all; parameters of a method that does not take part, or that it does
            not have.
    """
    if not names:
        raise BadInput("methods is empty.", remedy='give at least one, for example methods=["random", "d2"]')
    if len(set(names)) != len(names):
        raise BadInput(
            f"methods names {next(name for name in names if list(names).count(name) > 1)!r} twice."
        )
    stray = sorted(set(params) - {name.partition(":")[0] for name in names})
    if stray:
        raise BadInput(f"params names {stray[0]!r}, which is not among the methods {', '.join(names)}.")
    from winnow.tasks.select.budget import check_parameters

    upstream = upstream_batch is not None
    sparse = presets.sparse(dataset, balanced=balanced, upstream=upstream)
    known: dict[str, dict[float, dict[str, Any]]] = {}
    for name in {name.partition(":")[0] for name in names}:
        entry = selectors.get(name)
        replay = upstream and entry.replays
        check_parameters(entry, params.get(name, {}), upstream=replay)
        published = {
            **{method: dict.fromkeys(fractions, settings) for method, settings in sparse.items()},
            "elfs": {
                fraction: {"mis_ratio": value} for fraction, value in presets.elfs(dataset).mis_ratio.items()
            },
            "ccs": presets.ccs(dataset).params,
            "d2": presets.d2(dataset).params,
        }.get(name, {})
        mode: dict[str, Any] = {"upstream": True} if replay else {}
        if replay and "batch" in entry.parameters(upstream=True):
            mode["batch"] = upstream_batch
        known[name] = {
            fraction: {**mode, **_at(published, fraction), **params.get(name, {})} for fraction in fractions
        }
    return baselines(
        names, None, EVERYTHING, balanced=balanced, params=known, fractions=fractions, passes=True
    )


def settings(preset: BaseModel, *, without: Iterable[str] = (), **others: Any) -> dict[str, Any]:
    """What a run was made with, for its report: the preset's values and others; without those that the user's files replaced."""
    return flat(**preset.model_dump(exclude=set(without)), **others)


def flat(**values: Any) -> dict[str, Any]:
    """Values of dicts under ``name.key``.

    >>> flat(seed=0, proxy={"epochs": 20, "iterations": None})
    {'seed': 0, 'proxy.epochs': 20}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = value.items() if isinstance(value, dict) else None
        found |= (
            {name: value}
            if inner is None
            else {f"{name}.{key}": one for key, one in inner if one is not None}
        )
    return found
