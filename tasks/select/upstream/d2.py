"""D2 Pruning as published: d2pruning@bf1ea46."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.allocation import check_fits
from winnow.tasks.select.d2 import MODES, check_arguments, checked_priorities, classes_among, messages
from winnow.tasks.select.graphs import neighbourhoods
from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.upstream.allocation import water_fill

__all__ = ["d2", "iterative_selection", "published_greedy"]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Rows = NDArray[np.int64]
Picks = tuple[Rows, NDArray[np.float64]]  # positions, and priorities when picked

_EPSILON = 1e-7  # no message carries less, except on precomputed neighbours
_DATACOMP_SHIFT = 0.115  # added to CLIP scores so that they are not negative


def d2(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    score: str = "forgetting",
    neighbours: int = 5,
    gamma_forward: float = 1.0,
    gamma_reverse: float = 0.1,
    mis_ratio: float = 0.0,
    graph_mode: str = "symmetric",
    distance_scale: float = 1.0,
    similarity: str = "cosine",
) -> Selection:
    """D2's published modes: raw scores and distances, negative messages, samples by ascending AUM if known.

    ``graph_mode="symmetric"`` is upstream's ``graph``, "directed" the same on precomputed neighbours,
    "per_class" its ``class`` and "datacomp" its DataComp script.

    References:
        Upstream: d2pruning@bf1ea46 core/data/sampling.py, core/data/Coreset.py, select_d2_datacomp.py.
    """
    check_arguments(signals, (*MODES, "datacomp"), graph_mode, neighbours, distance_scale, similarity)
    for name, gamma in (("gamma_forward", gamma_forward), ("gamma_reverse", gamma_reverse)):
        if not np.isfinite(gamma):
            raise BadInput(f"{name} = {gamma}: give a number.")
    dropped = check_fits(signals.n, budget, mis_ratio)
    by_aum = dropped or "aum" in signals.scores
    kept = np.argsort(signals.score("aum"), kind="stable")[dropped:] if by_aum else np.arange(signals.n)
    raw = signals.score(score).astype(np.float64)
    parts, shares = [kept], [budget]
    if graph_mode == "per_class":
        raw = raw - raw[kept].min() if score == "aum" else raw
        parts = classes_among(signals.labels, kept)
        shares = water_fill(np.array([len(rows) for rows in parts]), budget).tolist()
    graphs = neighbourhoods(
        signals,
        parts,
        neighbours,
        directed=graph_mode in ("directed", "datacomp"),
        distance_scale=distance_scale,
        similarity=similarity,
    )
    least = -np.inf if graph_mode == "directed" else _EPSILON
    picks, priorities = [], []
    for rows, share, (near, distances, indptr) in zip(parts, shares, graphs, strict=True):
        scores = raw[rows]
        if graph_mode == "per_class" and len(rows) <= neighbours:  # kept whole, whatever its share
            picks.append(rows)
            continue
        if graph_mode == "datacomp":
            scores, distances = np.maximum(scores + _DATACOMP_SHIFT, least), distances**2
        g = scores + messages(np.maximum(scores, least), near, np.exp(-gamma_forward * distances), indptr)
        repulsion = np.exp(-gamma_reverse * distances)
        if graph_mode == "datacomp":
            chosen, priority = iterative_selection(
                g.astype(np.float32), near, repulsion, share, indptr=indptr
            )
        else:
            chosen, priority = published_greedy(g, near, repulsion, share, indptr=indptr)
        picks.append(rows[chosen])
        priorities.append(priority)
    if graph_mode != "per_class":
        return Selection.of(picks[0], gains=priorities[0])
    filled = _cut_or_filled(np.concatenate(picks), kept, budget, generator)
    return Selection.of(filled, gains=raw[filled])


def _cut_or_filled(picks: Rows, kept: Rows, budget: int, generator: np.random.Generator) -> Rows:
    """Classes kept whole may make too many picks, rounding too few: both are corrected at random."""
    if len(picks) > budget:
        return generator.permutation(picks)[:budget]
    if len(picks) == budget:
        return picks
    missing = budget - len(picks)
    return np.append(picks, generator.permutation(np.setdiff1d(kept, picks))[:missing])


def published_greedy(
    g: Floats, neighbours: Ints, weights: Floats, budget: int, *, indptr: Ints | None = None
) -> Picks:
    """As ``d2.greedy``, but a negative priority sends a negative message, which raises others.

    Repeat: i = argmax g among the samples not picked yet, the first of equal ones; g_j ← g_j − w_ij g_i for
    every neighbour j.

    Args:
        g: (N,) priorities before the first pick.
        neighbours: int (N, k), or (E,) with ``indptr``.
        weights: w, of the same shape; of any sign.
        budget: samples to pick.
        indptr: (N + 1,), where rows differ in length.

    Returns:
        int64 (budget,) picks in order, and float64 (budget,) their priorities when picked.

    References:
        Upstream: d2pruning@bf1ea46 core/data/sampling.py GraphDensitySampler.select_batch_,
        select_batch_from_precomputed_.

    >>> g, near = np.array([-1.0, -1.5, -2.0]), np.array([[2], [2], [0]])
    >>> published_greedy(g, near, np.full((3, 1), 0.9), 3)[0].tolist()
    [0, 2, 1]
    """
    values, edges = checked_priorities(g, neighbours, weights, budget, indptr)
    priority = values.tolist()
    heap = [(-value, row) for row, value in enumerate(priority)]
    heapq.heapify(heap)
    picked = [False] * len(priority)
    picks: list[int] = []
    priorities: list[float] = []
    while len(picks) < budget:
        negative, row = heapq.heappop(heap)
        if picked[row] or priority[row] != -negative:
            continue  # it waits elsewhere on the heap, with its present priority
        picked[row] = True
        picks.append(row)
        priorities.append(-negative)
        listed = edges.of_row(row)
        for target, weight in zip(edges.ids[listed].tolist(), edges.weights[listed].tolist(), strict=True):
            if not picked[target]:
                priority[target] += weight * negative
                heapq.heappush(heap, (-priority[target], target))
    return np.array(picks, np.int64), np.array(priorities)


def iterative_selection(
    g: Floats, neighbours: Ints, weights: Floats, budget: int, *, indptr: Ints | None = None
) -> Picks:
    """The DataComp script's loop, which is not greedy: samples come in the order of their initial priorities.

    The next sample in that order is put on standby if its priority has fallen below the current one of the
    sample after it; otherwise it is picked; the best sample on standby is picked as soon as its priority
    reaches that of the next in order. Where the published loop would run off its end (IndexError for a budget
    of N), this one picks what is on standby.

    Args:
        g: float (N,) priorities before the first pick; the arithmetic is done in its dtype.
        neighbours: int (N, k), or (E,) with ``indptr``.
        weights: w, of the same shape.
        budget: samples to pick.
        indptr: (N + 1,), where rows differ in length.

    Returns:
        int64 (budget,) picks in order, and float64 (budget,) their priorities when picked.

    References:
        Upstream: d2pruning@bf1ea46 select_d2_datacomp.py iterative_selection.

    >>> g = np.array([4.0, 3.0, 1.0])
    >>> iterative_selection(g, np.array([[1], [0], [0]]), np.full((3, 1), 0.7), 2)[0].tolist()
    [0, 2]
    """
    _, edges = checked_priorities(g, neighbours, weights, budget, indptr)
    n = len(edges)
    priority = np.array(g, np.result_type(g, np.float32))
    sequence = np.argsort(priority)[::-1].tolist()
    standby: list[tuple[float, int, int]] = []  # negative priority when put here, when, which
    since: dict[int, int] = {}
    picks: list[int] = []
    priorities: list[float] = []
    at = 0
    while len(picks) < budget:
        while standby and (
            since.get(standby[0][2]) != standby[0][1] or -standby[0][0] != priority[standby[0][2]]
        ):
            heapq.heappop(standby)
        if standby and (at == n or -standby[0][0] >= priority[sequence[at]]):
            row = heapq.heappop(standby)[2]
            del since[row]
        else:
            row = sequence[at]
            at += 1
            if at < n and priority[row] < priority[sequence[at]]:
                since[row] = at
                heapq.heappush(standby, (-float(priority[row]), at, row))
                continue
        picks.append(row)
        priorities.append(float(priority[row]))
        listed = edges.ids[edges.of_row(row)]
        priority[listed] -= priority[row] * edges.weights[edges.of_row(row)]
        for target in listed.tolist():
            if target in since:
                heapq.heappush(standby, (-float(priority[target]), since[target], target))
    return np.array(picks, np.int64), np.array(priorities)
