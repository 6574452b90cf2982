"""Budgets, class balance and the checks that every selector shares."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import BadInput, MissingSignal
from tasks.registry import Entry
from tasks.select.signals import Selection, Signals

__all__ = ["check_size", "count", "order", "per_class", "run"]

HOW_TO_MAKE = {
    "labels": "give labels, or pseudo-labels from cluster heads",
    "features": "give embeddings (`winnow ls embedders`) or penultimate features",
    "graph": "compute it: tasks.embed.knn.knn(features, k)",
    "probabilities": "give softmax outputs of a trained network",
    "residuals": "give softmax outputs minus one-hot labels of a trained network",
    "scores": "record training dynamics: tasks.score.dynamics.DynamicsAccumulator",
}


def count(budget: int | float, n: int) -> int:
    """Samples to keep: an int as it is, a fraction in (0, 1] of n, truncated as the published code does.

    Raises:
        BadInput: outside its range, or a fraction that keeps no sample.

    >>> count(0.3, 200), count(7, 200), count(1.0, 200)
    (60, 7, 200)
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float | np.integer | np.floating):
        raise BadInput(f"budget = {budget!r}: give a number of samples (int) or a fraction in (0, 1] (float).")
    if isinstance(budget, int | np.integer):
        if not 1 <= budget <= n:
            raise BadInput(
                f"budget = {budget} samples of {n}: it must lie between 1 and {n}.",
                remedy="a fraction is written as a float: 1.0 keeps all",
            )
        return int(budget)
    if not 0 < budget <= 1:
        raise BadInput(f"fraction = {budget:g} is outside (0, 1].", remedy="the fraction is the share that is kept: 0.1 keeps 10 %")
    k = int(budget * n)
    if k < 1:
        raise BadInput(f"fraction = {budget:g} of {n} samples keeps none.", remedy=f"use at least {1 / n:.2g}")
    return k


def check_size(selector: Entry, n: int, k: int, params: Mapping[str, Any]) -> None:
    """Ask the selector's ``limit``, if it has one, before anything is computed.

    Args:
        selector: registry entry.
        n: samples.
        k: to keep.
        params: of the selector.

    Raises:
        BadInput: the selection would take too much memory.
    """
    if (target := selector.facts.get("limit")) is not None:
        module, _, name = target.partition(":")
        getattr(importlib.import_module(module), name)(n, k, **params)


def order(values: NDArray[Any], keys: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Rows by ascending value, ties by the random keys.

    As ``np.lexsort((keys, values))``, several times as fast where few values are tied: NumPy sorts one array by vector instructions.

    >>> order(np.array([2, 1, 1]), np.array([0.0, 0.9, 0.1])).tolist()
    [2, 1, 0]
    """
    rows = np.argsort(values)
    ordered = values[rows]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
        run = (~same[tied - 1]).cumsum()  # of equal values; the first one's number does not matter
        rows[tied] = rows[tied][np.lexsort((keys[rows[tied]], run))]
    return rows


def per_class(labels: NDArray[np.int64], k: int) -> dict[int, int]:
    """Split k over the classes in proportion to their sizes: largest remainder, at least 1 per non-empty class where k allows.

    >>> per_class(np.repeat([0, 1, 2], [90, 9, 1]), 10)
    {0: 8, 1: 1, 2: 1}
    """
    classes, sizes = np.unique(labels, return_counts=True)
    share = k * sizes / sizes.sum()
    given = np.minimum(np.floor(share).astype(np.int64), sizes)
    if k >= len(classes):
        given = np.maximum(given, 1)
    while (missing := k - given.sum()) != 0:
        # add where the shortfall is largest, take back where the excess is largest and more than one is held
        room = given < sizes if missing > 0 else given > (1 if k >= len(classes) else 0)
        gap = np.where(room, (share - given) * np.sign(missing), -np.inf)
        given[int(np.argmax(gap))] += np.sign(missing)
    return {int(c): int(g) for c, g in zip(classes, given, strict=True)}


def run(
    selector: Entry,
    signals: Signals,
    budget: int | float,
    *,
    generator: np.random.Generator | None = None,
    balanced: bool = False,
    **params: Any,
) -> Selection:
    """Check the signals and the budget, select, check the selection.

    Args:
        selector: registry entry.
        signals: of N samples.
        budget: samples (int) or fraction (float) to keep.
        generator: decides ties and random picks; default seed 0.
        balanced: split the budget over the classes of ``signals.labels`` and select within each.
        params: of the selector.

    Raises:
        MissingSignal: something that the selector needs is absent.
        BadInput: a parameter is wrong.
    """
    generator = generator if generator is not None else np.random.default_rng(0)
    needs = (*selector.needs, *(("labels",) if balanced else ()))
    missing = [need for need in dict.fromkeys(needs) if not signals.has(need)]
    if missing:
        raise MissingSignal(
            f"{selector.name} needs {', '.join(missing)}; {'none is' if len(missing) == 1 else 'they are not'} given.",
            remedy="; ".join(HOW_TO_MAKE[need] for need in missing),
        )
    k = count(budget, signals.n)
    try:
        if not balanced:
            selection = selector.function(signals, k, generator=generator, **params)
        else:
            assert signals.labels is not None
            parts = []
            for label, share in per_class(signals.labels, k).items():
                if share:
                    rows = np.flatnonzero(signals.labels == label)
                    part = selector.function(signals.rows(rows), share, generator=generator, **params)
                    parts.append(Selection(rows[part.indices], part.weights, part.gains))
            gains = [part.gains for part in parts if part.gains is not None]
            selection = Selection(
                np.concatenate([part.indices for part in parts]),
                np.concatenate([part.weights for part in parts]),
                np.concatenate(gains) if len(gains) == len(parts) else None,
            )
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise BadInput(
                f"{selector.name}: {str(error).partition(') ')[2] or error}.",
                remedy=f"docs/selectors.md lists {selector.name}'s parameters",
            ) from error
        raise
    return selection
