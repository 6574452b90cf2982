"""Search and trials, with which every flow ends: select with each method, annotate, train, judge.

Both are subflows, so that their many trainings are one dot in the graph of a run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from prefect import Flow, flow
from prefect.task_runners import ThreadPoolTaskRunner

from winnow.flows.methods import Method, Setting
from winnow.tasks.artifacts import Artifact
from winnow.tasks.data.task import annotate
from winnow.tasks.hardware import trial_workers
from winnow.tasks.plan import Pending, pending, planner
from winnow.tasks.progress import interruptible
from winnow.tasks.select.inputs import inputs_of
from winnow.tasks.select.task import select
from winnow.tasks.train.recipe import Recipe
from winnow.tasks.train.task import hold_out, label, train_on

__all__ = ["TRIALS", "Entrant", "search", "trials"]

R = TypeVar("R")


class _AsManyAsGPUs(ThreadPoolTaskRunner):
    """Threads for as many trainings as can run side by side, counted when a flow starts."""

    def duplicate(self) -> _AsManyAsGPUs:
        return _AsManyAsGPUs(max_workers=trial_workers())


TRIALS: Any = _AsManyAsGPUs()


@dataclass(frozen=True)
class Entrant:
    """A method, the signals that it reads, and the seeds of its trainings.

    Attributes:
        method: one whose parameters are settled.
        signals: artifacts by name.
        seeds: of the trainings.
        seed: of the selection; a random draw is new for each training.
    """

    method: Method
    signals: Mapping[str, Artifact]
    seeds: tuple[int, ...]
    seed: int


def _plannable(subflow: Flow[..., R]) -> Callable[..., R]:
    """A subflow that in a dry run is a plain function, since there is no flow run then."""

    @functools.wraps(subflow.fn)
    def called(*args: Any, **kwargs: Any) -> Any:
        return (subflow if planner() is None else subflow.fn)(*args, **kwargs)

    return called


@_plannable
@flow(name="search", flow_run_name="search-{method.name}", task_runner=TRIALS, validate_parameters=False)
@interruptible()
def search(
    train: Artifact,
    signals: Mapping[str, Artifact],
    method: Method,
    recipe: Recipe,
    *,
    seed: int = 0,
    seeds: int = 1,
    device: str = "auto",
) -> tuple[Method, list[dict[str, Any]]]:
    """The method with its open parameters chosen on a tenth of the training set, never on the test set.

    For each candidate: select among the other nine tenths and train on that selection, with the labels used
    for selecting (pseudo-labels where the method is label-free); judge on the tenth.

    Args:
        train: the samples.
        signals: artifacts by name, ``labels`` among them.
        method: with grids.
        recipe: of the trainings.
        seed: of the split and the selections.
        seeds: trainings per candidate.
        device: where to train.

    Returns:
        the settled method, and each search for the report.
    """
    labels = signals["labels"]
    held = hold_out(train, labels, share=0.1, seed=seed)
    how: dict[str, Any] = {"seed": seed, "among": held["rest"], **inputs_of(method.selector, signals)}
    under_way = []
    for setting in method.settings:
        candidates, futures = setting.candidates() if setting.grid else [], []
        for params in candidates:
            chosen = select(train, method.selector, setting.fraction, params=params, **how)
            kept = label(chosen, labels)
            futures.append(
                [train_on.submit(train, kept, held["held"], recipe, seed + i, device) for i in range(seeds)]
            )
        under_way.append((setting, candidates, futures))
    settled, searches = [], []
    for setting, candidates, futures in under_way:
        if (
            candidates
            and planner() is not None
            and pending([run.result() for runs in futures for run in runs])
        ):
            found = dict.fromkeys(setting.grid, Pending())  # by the run only
            setting = Setting(setting.fraction, {**setting.params, **found})
        elif candidates:
            tried = [[future.result().facts["last_accuracy"] for future in runs] for runs in futures]
            best = max(range(len(candidates)), key=lambda i: sum(tried[i]))  # the first of equals
            searches.append(_told(setting, candidates, tried, best, labels.kind))
            setting = Setting(setting.fraction, candidates[best])
        settled.append(setting)
    return replace(method, settings=tuple(settled)), searches


def _told(
    setting: Setting, candidates: Sequence[Mapping[str, Any]], tried: list[list[float]], best: int, kind: str
) -> dict[str, Any]:
    """A search, as the report shows it."""
    values = [{name: params[name] for name in setting.grid} for params in candidates]
    alone = len(setting.grid) == 1
    names = [
        next(iter(value.values())) if alone else ", ".join(f"{inner:g}" for inner in value.values())
        for value in values
    ]
    pseudo = kind == "pseudo_labels"
    words = "pseudo-labels" if pseudo else "labels"
    return {
        "fraction": setting.fraction,
        "name": ", ".join(setting.grid),
        "tried": [[name, accuracies] for name, accuracies in zip(names, tried, strict=True)],
        "chosen": names[best],
        "judged_on": f"held-out {words}",
        "text": (
            f"For each setting: select and train on 90 % of the training samples with their {words}, judge "
            f"on the other 10 %. {'No true label was used.' if pseudo else 'The test set was not used.'}"
        ),
    }


@_plannable
@flow(name="trials", flow_run_name="trials", task_runner=TRIALS, validate_parameters=False)
@interruptible()
def trials(
    train: Artifact, test: Artifact, entrants: Sequence[Entrant], recipe: Recipe, device: str = "auto"
) -> list[dict[str, Any]]:
    """Select with every method at every fraction, annotate, train with every seed.

    Returns:
        one dict per training: ``method``, ``fraction``, ``seed``, ``coreset`` (annotated) and ``metrics``.
    """
    results: list[dict[str, Any]] = []
    futures = []
    for entrant in entrants:
        for setting, seed, coreset in _coresets(train, entrant):
            trial = {"method": entrant.method.name, "fraction": setting.fraction, "seed": seed}
            results.append({**trial, "coreset": coreset})
            futures.append(train_on.submit(train, coreset, test, recipe, seed, device))
    return [{**trial, "metrics": future.result()} for trial, future in zip(results, futures, strict=True)]


def _coresets(train: Artifact, entrant: Entrant) -> Iterable[tuple[Setting, int, Artifact]]:
    """The annotated coreset of each setting and seed; only a random draw differs from seed to seed."""
    method = entrant.method
    inputs = inputs_of(method.selector, entrant.signals, balanced=method.balanced)
    how: dict[str, Any] = {"balanced": method.balanced, **inputs}

    def drawn(setting: Setting, seed: int) -> Artifact:
        params = dict(setting.params)
        chosen = select(train, method.selector, setting.fraction, params=params, seed=seed, **how)
        return annotate(train, chosen, f"{method.name}-{setting.fraction:g}")

    for setting in method.settings:
        same = None if method.selector == "random" else drawn(setting, entrant.seed)
        for seed in entrant.seeds:
            yield setting, seed, same or drawn(setting, seed)
