"""Budgets, class balance and the checks that every selector shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from winnow.tasks.errors import BadInput, MissingSignal, did_you_mean
from winnow.tasks.registry import SelectorEntry, loaded
from winnow.tasks.select.allocation import beyond
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["check_parameters", "check_room", "check_size", "count", "per_class", "run"]

Rows = NDArray[np.int64]

HOW_TO_MAKE = {
    "labels": "give labels, or pseudo-labels from cluster heads",
    "features": "give embeddings (`winnow ls embedders`) or penultimate features",
    "graph": "compute it: winnow.tasks.embed.knn.knn(features, k)",
    "probabilities": "give softmax outputs of a trained network",
    "residuals": "give softmax outputs minus one-hot labels of a trained network",
    "scores": "record training dynamics: winnow.tasks.score.dynamics.DynamicsAccumulator",
}


def count(budget: int | float, n: int, *, upstream: bool = False) -> int:
    """Samples to keep: an int as given, a fraction in (0, 1] of n rounded down.

    A product that is whole but for the rounding of floats counts as whole: 0.29 of 100 is 29. The published
    code truncates it to 28, and so does ``upstream``.

    Raises:
        BadInput: out of range, or a fraction that keeps no sample.

    >>> count(0.3, 200), count(7, 200), count(1.0, 200), count(0.29, 100)
    (60, 7, 200, 29)
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float | np.integer | np.floating):
        raise BadInput(
            f"budget = {budget!r}: give a number of samples (int) or a fraction in (0, 1] (float)."
        )
    if isinstance(budget, int | np.integer):
        if not 1 <= budget <= n:
            raise BadInput(
                f"budget = {budget} samples of {n}: it must lie between 1 and {n}.",
                remedy="a fraction is written as a float: 1.0 keeps all",
            )
        return int(budget)
    if not 0 < budget <= 1:
        raise BadInput(
            f"fraction = {budget:g} is outside (0, 1].",
            remedy="the fraction is the share that is kept: 0.1 keeps 10 %",
        )
    share = float(budget) * n
    k = round(share) if abs(share - round(share)) < 1e-9 * n and not upstream else int(share)
    if k < 1:
        raise BadInput(
            f"fraction = {budget:g} of {n} samples keeps none.", remedy=f"use at least {1 / n:.2g}"
        )
    return k


def check_size(selector: SelectorEntry, n: int, k: int, params: Mapping[str, Any]) -> None:
    """Ask the selector's ``limit``, if it has one, before anything is computed.

    Args:
        selector: registry entry.
        n: samples.
        k: to keep.
        params: of the selector.

    Raises:
        BadInput: the selection would take too much memory.
    """
    if selector.limit is not None:
        loaded(selector.limit)(n, k, **params)


def per_class(labels: NDArray[np.int64], k: int) -> dict[int, int]:
    """Split k over the classes by their sizes: largest remainder, at least 1 per class where k allows.

    >>> per_class(np.repeat([0, 1, 2], [90, 9, 1]), 10)
    {0: 8, 1: 1, 2: 1}
    """
    classes, sizes = np.unique(labels, return_counts=True)
    share = k * sizes / sizes.sum()
    shares = np.minimum(np.floor(share).astype(np.int64), sizes)
    if k >= len(classes):
        shares = np.maximum(shares, 1)
    while (missing := k - shares.sum()) != 0:
        # add where the shortfall is largest, take back where the excess is largest and more than one is held
        room = shares < sizes if missing > 0 else shares > (1 if k >= len(classes) else 0)
        gap = np.where(room, (share - shares) * np.sign(missing), -np.inf)
        shares[int(np.argmax(gap))] += np.sign(missing)
    return {int(c): int(g) for c, g in zip(classes, shares, strict=True)}


def run(
    selector: SelectorEntry,
    signals: Signals,
    budget: int | float,
    *,
    generator: np.random.Generator | None = None,
    balanced: bool = False,
    upstream: bool = False,
    already: ArrayLike | None = None,
    **params: Any,
) -> Selection:
    """The entry to every selector: check signals, budget and parameters, put samples in order, select.

    Selectors see the samples in the order of their ids, so that neither draws nor rounding depend on how they
    are stored; the indices returned refer to the signals as given.

    Args:
        selector: registry entry.
        signals: of N samples.
        budget: samples (int) or fraction (float) to keep.
        generator: decides ties and random picks; default seed 0.
        balanced: split the budget over the classes of ``signals.labels`` and select within each.
        upstream: replay the published code.
        already: int64 (m,), rows that are there before the first pick. Selectors that pick one after another
            go on as if they had picked these first, in this order; others select among the rest. They are not
            among the indices, and do not count towards the budget.
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
            f"{selector.name} needs {', '.join(missing)}; "
            f"{'none is' if len(missing) == 1 else 'they are not'} given.",
            remedy="; ".join(HOW_TO_MAKE[need] for need in missing),
        )
    k = count(budget, signals.n, upstream=upstream)
    check_parameters(selector, params, upstream=upstream)
    before = _before(already, signals.n, k)
    order = signals.order()
    ordered = signals if order is None else signals.reordered(order)
    if order is not None and len(before):
        place = np.empty(signals.n, np.int64)
        place[order] = np.arange(signals.n)
        before = place[before]
    goes_on = len(before) and selector.accepts("already", upstream=upstream)

    def select(of: Signals, k: int, before: Rows) -> Selection:
        how = {"generator": generator, "upstream": upstream, **params}
        if goes_on:
            return selector.direct(of, k, already=before, **how)
        if not len(before):
            return selector.direct(of, k, **how)
        rest = np.setdiff1d(np.arange(of.n), before)
        chosen = selector.direct(of.rows(rest), k, **how)
        return replace(chosen, indices=rest[chosen.indices])

    chosen = _balanced(select, ordered, k, before, bool(goes_on)) if balanced else select(ordered, k, before)
    return chosen if order is None else replace(chosen, indices=order[chosen.indices])


def _before(already: ArrayLike | None, n: int, k: int) -> Rows:
    """``already`` as rows, checked.

    Raises:
        BadInput: not rows of the signals, one twice, or no room left for k picks.
    """
    if already is None:
        return np.empty(0, np.int64)
    rows = np.asarray(already)
    if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
        raise BadInput(f"already is {rows.dtype} of shape {rows.shape}: give row numbers, int64 (m,).")
    rows = rows.astype(np.int64)
    outside = np.flatnonzero((rows < 0) | (rows >= n))
    if len(outside):
        raise BadInput(f"already[{outside[0]}] = {rows[outside[0]]}: there are {n} samples.")
    values, counts = np.unique(rows, return_counts=True)
    if len(values) < len(rows):
        raise BadInput(f"already names row {values[counts > 1][0]} twice.")
    check_room(k, n, len(rows))
    return rows


def check_room(k: int, n: int, there: int) -> None:
    """Refuse to pick more than are left.

    Raises:
        BadInput: with the numbers.
    """
    if there + k > n:
        raise BadInput(
            f"budget = {k:,} samples, but {there:,} of {n:,} are there already.",
            remedy=f"ask for at most {n - there:,}" if there < n else "nothing is left to choose from",
        )


def check_parameters(selector: SelectorEntry, params: Iterable[str], *, upstream: bool = False) -> None:
    """Refuse parameters that the selector does not have.

    Raises:
        BadInput: naming the first one.
    """
    accepted = selector.parameters(upstream=upstream)
    for name in params:
        if name not in accepted:
            raise BadInput(
                f"{selector.name} has no parameter {name!r}.{did_you_mean(name, accepted)}",
                remedy=f"docs/selectors.md lists {selector.name}'s parameters",
            )


def _balanced(
    select: Callable[[Signals, int, Rows], Selection], signals: Signals, k: int, before: Rows, goes_on: bool
) -> Selection:
    """Each class's share of k, selected within the class; the parts one after another.

    With ``before``, shares are those of all that there will be, less what is there. A selector that goes on
    from it also sees classes that are complete, so that the next one's draws are as if it had picked them.
    """
    parts = []
    for label, share in _shares(signals.labels, k, before).items():
        there = before[signals.labels[before] == label]
        if share or (goes_on and len(there)):
            rows = np.flatnonzero(signals.labels == label)
            there = np.searchsorted(rows, there)
            part = select(signals.rows(rows), share, there)
            parts.append(replace(part, indices=rows[part.indices]))
    gains = [part.gains for part in parts if part.gains is not None]
    return Selection(
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate(gains) if len(gains) == len(parts) else None,
    )


def _shares(labels: NDArray[np.int64], k: int, before: Rows) -> dict[int, int]:
    shares = per_class(labels, k + len(before))
    have = np.bincount(np.searchsorted(list(shares), labels[before]), minlength=len(shares))
    return dict(zip(shares, beyond(np.array(list(shares.values())), have, k).tolist(), strict=True))
