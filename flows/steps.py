"""What the flows share: pseudo-labels, the search for hyper-parameters, trials of a method and its baselines."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from winnow.flows import presets
from winnow.tasks.artifacts import Artifact
from winnow.tasks.data.task import annotate, bring_embeddings, bring_pseudo_labels, load
from winnow.tasks.embed.task import checkpoint_digest, embed, knn, normalise
from winnow.tasks.hardware import trial_workers
from winnow.tasks.progress import interruptible
from winnow.tasks.registry import scores
from winnow.tasks.score.task import add_score, average_score, record_dynamics, takes_a_pass
from winnow.tasks.select.task import inputs_of, select
from winnow.tasks.train.recipe import Recipe
from winnow.tasks.train.task import cluster, cluster_kmeans, hold_out, label, train_on

__all__ = [
    "TRIALS",
    "Fraction",
    "Method",
    "Positive",
    "Pseudo",
    "Rate",
    "Seed",
    "Share",
    "Trials",
    "parameters",
    "pseudo_label",
    "run_trials",
    "search",
]

Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]

REPEAT = 1_000  # between the seeds of these trainings, so that they are none of the experiments'

TRIALS: Any = ThreadPoolTaskRunner(max_workers=trial_workers())


# -- pseudo-labels -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pseudo:
    """Pseudo-labels and what the report says of them."""

    labels: Artifact
    kmeans: Artifact | None = None
    head_losses: Artifact | None = None


def pseudo_label(
    train: Artifact,
    classes: int,
    preset: presets.ElfsPreset,
    *,
    embeddings: str | None = None,
    pseudo_labels: str | None = None,
    test: Artifact | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Pseudo:
    """Embed, link, cluster: ELFS's pseudo-labels; or the user's own. With ``test``, the epoch is chosen by its labels, as published."""
    if pseudo_labels is not None:
        return Pseudo(bring_pseudo_labels(train, pseudo_labels))
    oracle = None
    if embeddings is not None:
        features = bring_embeddings(train, embeddings)
    else:
        how: dict[str, Any] = {
            "options": preset.embedder_options,
            "checkpoint": checkpoint_digest(preset.embedder),
        }
        features = embed(train, preset.embedder, **how, seed=seed, device=device)
        oracle = (
            embed(test, preset.embedder, **how, learn_from=train, seed=seed, device=device)
            if test is not None
            else None
        )
    if preset.normalise != "none":
        oracle = oracle and normalise(oracle, preset.normalise, reference=features)
        features = normalise(features, preset.normalise)
    graph = knn(features, preset.neighbours, upstream=test is not None, device=device)
    found = cluster(
        features, graph, classes, preset.heads, seed=seed, device=device, test=test, test_embeddings=oracle
    )
    return Pseudo(
        found["pseudo_labels"], cluster_kmeans(features, classes, seed=seed, device=device), found["losses"]
    )


# -- what a proxy's training tells ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """Signals that selectors read, and what the report shows of their making."""

    signals: dict[str, Artifact]
    history: Artifact
    network: Artifact
    pseudo: Pseudo | None

    def pseudo_report(self) -> dict[str, Any]:
        """The pseudo-labels as ``draw`` takes them."""
        found = self.pseudo
        return (
            {}
            if found is None
            else {"pseudo_labels": found.labels, "kmeans": found.kmeans, "head_losses": found.head_losses}
        )


def record(
    train: Artifact,
    recipe: Recipe,
    labels: Literal["true", "pseudo"],
    classes: int,
    *,
    pseudo_labels: str | None = None,
    dataset_options: dict[str, Any] | None = None,
    normalised: bool = True,
    grand_batch: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Recorded:
    """Train a proxy on all samples, with true labels or ELFS's pseudo-labels: dynamics, final scores, features, logits."""
    dataset = train.notes["dataset"]
    pseudo = None
    if labels == "pseudo":
        pseudo = pseudo_label(
            train, classes, presets.elfs(dataset), pseudo_labels=pseudo_labels, seed=seed, device=device
        )
    known = load(dataset, "train", labels=True, options=dataset_options) if pseudo is None else pseudo.labels
    found = record_dynamics(
        train,
        known,
        recipe,
        seed=seed,
        final_pass=True,
        normalised=normalised,
        grand_batch=grand_batch,
        device=device,
    )
    signals = {
        "labels": known,
        "scores": found["scores"],
        "embeddings": found["features"],
        "logits": found["logits"],
    }
    return Recorded(signals, found["history"], found["network"], pseudo)


# -- the search for hyper-parameters -------------------------------------------------------------------------


@interruptible()
def search(
    train: Artifact,
    signals: Mapping[str, Artifact],
    method: str,
    fraction: float,
    fixed: Mapping[str, Any],
    grid: Mapping[str, Iterable[Any]],
    recipe: Recipe,
    *,
    seed: int = 0,
    seeds: int = 1,
    device: str = "auto",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A selector's parameters at one fraction, chosen on a random tenth of the training set, never on the test set.

    For each setting: select among the other nine tenths and train on that selection, with the labels that are
    selected with (pseudo-labels where the method is label-free); judge on the tenth.

    Args:
        train: the samples.
        signals: artifacts by name, ``labels`` among them.
        method: registered selector.
        fraction: share to keep.
        fixed: parameters that are given.
        grid: values to try of each other parameter; settings that do not fit the fraction are left out.
        recipe: of the trainings.
        seed: of the split and the selections.
        seeds: trainings of each setting.
        device: where.

    Returns:
        the chosen parameters, and the search for the report.
    """
    labels = signals["labels"]
    held = hold_out(train, labels, share=0.1, seed=seed)
    settings = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    settings = [each for each in settings if each.get("mis_ratio", 0) + fraction <= 1 + 1e-9]
    futures: list[list[PrefectFuture[Artifact]]] = []
    for setting in settings:
        chosen = select(
            train,
            method,
            fraction,
            params={**fixed, **setting},
            seed=seed,
            among=held["rest"],
            **inputs_of(method, signals),
        )
        kept = label(chosen, labels)
        futures.append(
            [train_on.submit(train, kept, held["held"], recipe, seed + each, device) for each in range(seeds)]
        )
    tried = [[future.result().facts["last_accuracy"] for future in runs] for runs in futures]
    best = max(range(len(settings)), key=lambda i: sum(tried[i]))  # the first of equals
    named = next(iter(grid)) if len(grid) == 1 else ", ".join(grid)
    names = [
        setting[named] if len(grid) == 1 else ", ".join(f"{value:g}" for value in setting.values())
        for setting in settings
    ]
    pseudo = labels.kind == "pseudo_labels"
    kind = "pseudo-labels" if pseudo else "labels"
    text = (
        f"For each setting: select and train on 90 % of the training samples with their {kind}, judge on the "
        "other 10 %. " + ("No true label was used." if pseudo else "The test set was not used.")
    )
    shown = {
        "name": named,
        "tried": dict(zip(names, tried, strict=True)),
        "chosen": names[best],
        "judged_on": f"held-out {kind}",
        "text": text,
    }
    return {**fixed, **settings[best]}, shown


def parameters(
    train: Artifact,
    signals: Mapping[str, Artifact],
    method: str,
    plan: Mapping[float, tuple[dict[str, Any], dict[str, tuple[Any, ...]]]],
    recipe: Recipe,
    *,
    seed: int = 0,
    seeds: int = 1,
    device: str = "auto",
) -> tuple[dict[float, dict[str, Any]], dict[float, dict[str, Any]]]:
    """The selector's parameters at each fraction: those that ``plan`` has settled, and those that are searched; and the searches."""
    params, searches = {}, {}
    for fraction, (settled, grid) in plan.items():
        params[fraction] = settled
        if grid:
            params[fraction], searches[fraction] = search(
                train, signals, method, fraction, settled, grid, recipe, seed=seed, seeds=seeds, device=device
            )
    return params, searches


# -- trials --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A selector as it enters a comparison.

    Attributes:
        name: in tables and figures.
        selector: registered name.
        params: by fraction; what is not there has the selector's defaults.
        balanced: split the budget over the classes.
    """

    name: str
    selector: str
    params: Mapping[float, Mapping[str, Any]] = field(default_factory=dict)
    balanced: bool = False


@dataclass
class Trials:
    """Trainings under way and the coresets that they are of."""

    futures: list[tuple[str, float, int, PrefectFuture[Artifact]]] = field(default_factory=list)
    coresets: dict[tuple[str, float], Artifact] = field(default_factory=dict)

    def results(self) -> dict[str, Any]:
        """Both as ``draw`` takes them; waits for the trainings."""
        with interruptible():
            trials = [
                (method, fraction, seed, future.result()) for method, fraction, seed, future in self.futures
            ]
        return {
            "trials": trials,
            "coresets": [(method, fraction, kept) for (method, fraction), kept in self.coresets.items()],
        }


@interruptible()
def run_trials(
    train: Artifact,
    test: Artifact,
    methods: Iterable[Method],
    signals: Mapping[str, Artifact],
    *,
    fractions: Iterable[float],
    seeds: Iterable[int],
    recipe: Recipe,
    seed: int = 0,
    device: str = "auto",
) -> Trials:
    """Select with every method at every fraction, annotate, train with every seed.

    The whole set is trained on once a seed; a random draw is new for each seed; other selectors select once,
    with ``seed``.
    """
    trials, seeds = Trials(), tuple(seeds)
    for method in methods:
        given = inputs_of(method.selector, signals, balanced=method.balanced)
        for fraction in (1.0,) if method.selector == "full" else tuple(fractions):
            params = dict(method.params.get(fraction, {}))
            for each in seeds:
                kept = trials.coresets.get((method.name, fraction))
                if kept is None or method.selector == "random":
                    drawn = each if method.selector == "random" else seed
                    chosen = select(
                        train,
                        method.selector,
                        fraction,
                        params=params,
                        seed=drawn,
                        balanced=method.balanced,
                        **given,
                    )
                    kept = annotate(train, chosen, f"{method.name}-{fraction:g}")
                    trials.coresets.setdefault((method.name, fraction), kept)
                trials.futures.append(
                    (method.name, fraction, each, train_on.submit(train, kept, test, recipe, each, device))
                )
    return trials


# -- comparisons ---------------------------------------------------------------------------------------------


def run_comparison(
    train: Artifact,
    test: Artifact,
    methods: Sequence[Method],
    *,
    classes: int,
    fractions: Iterable[float],
    seeds: Iterable[int],
    proxy: Recipe,
    training: Recipe,
    dataset_options: dict[str, Any] | None = None,
    repeats: int = 1,
    pseudo_labels: str | None = None,
    normalised: bool = True,
    grand_batch: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Every method at every fraction with every seed, the whole pipeline anew for each seed; what ``draw_comparison`` takes.

    All methods of a seed read the same proxy's labels, features, residuals, probabilities and dynamics. Three
    kinds read more: ELFS a proxy that is trained on pseudo-labels, other scores the trained proxy's gradients
    at each image, GraNd the mean over ``repeats`` proxies.
    """
    found: dict[str, Any] = {"trials": [], "coresets": [], "histories": {}}
    everyone: list[tuple[int, Trials]] = []
    known: dict[str, Any] = {
        "dataset_options": dataset_options,
        "normalised": normalised,
        "grand_batch": grand_batch,
        "device": device,
    }
    for seed in seeds:
        recorded = record(train, proxy, "true", classes, seed=seed, **known)
        found["histories"][seed] = recorded.history
        by_source: dict[str | None, list[Method]] = {}
        for method in methods:
            by_source.setdefault(_own_source(method, repeats), []).append(method)
        for source, mine in by_source.items():
            signals = dict(recorded.signals)
            if source == "elfs":
                preset = presets.elfs(train.notes["dataset"])
                pseudo = pseudo_label(
                    train, classes, preset, pseudo_labels=pseudo_labels, seed=seed, device=device
                )
                dynamics = record_dynamics(train, pseudo.labels, proxy, seed=seed, device=device)
                signals = {"labels": pseudo.labels, "scores": dynamics["scores"]}
            elif source is not None:
                again = range(1, repeats if scores.get(source).averaged else 1)
                proxies = [
                    recorded,
                    *(
                        record(train, proxy, "true", classes, seed=seed + REPEAT * each, **known)
                        for each in again
                    ),
                ]
                signals["scores"] = _with_score(source, train, proxies, proxy, device)
            trials = run_trials(
                train,
                test,
                mine,
                signals,
                fractions=fractions,
                seeds=(seed,),
                recipe=training,
                seed=seed,
                device=device,
            )
            everyone.append((seed, trials))
    for seed, trials in everyone:
        results = trials.results()
        found["trials"] += results["trials"]
        found["coresets"] += [
            (method, fraction, seed, kept) for method, fraction, kept in results["coresets"]
        ]
    place = {method.name: i for i, method in enumerate(methods)}
    found["trials"].sort(key=lambda trial: place[trial[0]])
    return found


def _own_source(method: Method, repeats: int) -> str | None:
    """What a method reads that no other does: pseudo-labels, or a score that takes more than the proxy's training."""
    if method.selector == "elfs":
        return "elfs"
    score = next((params["score"] for params in method.params.values() if "score" in params), method.selector)
    averaged = score in scores and scores.get(score).averaged
    return score if takes_a_pass(score) or (averaged and repeats > 1) else None


def _with_score(
    name: str, train: Artifact, proxies: Sequence[Recorded], recipe: Recipe, device: str
) -> Artifact:
    """The first proxy's scores with this one, averaged over all of them."""
    found = []
    for one in proxies:
        labels, recorded = one.signals["labels"], one.signals["scores"]
        found.append(
            add_score(train, labels, recorded, one.network, recipe, name, device=device)
            if takes_a_pass(name)
            else recorded
        )
    return found[0] if len(found) == 1 else average_score(found, name)
