"""D2 Pruning: difficulty and diversity balanced by messages over the kNN graph.

``messages`` and ``greedy`` also work on graphs from elsewhere, as plain arrays: (N, k) neighbours and
weights, or rows of any length, concatenated, (E,), with ``indptr`` (N + 1,), where row i spans indptr[i] to
indptr[i + 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput, MissingSignal
from winnow.tasks.select.allocation import beyond, check_fits, water_fill
from winnow.tasks.select.budget import check_room
from winnow.tasks.select.graphs import Edges, checked_values, median_length, neighbourhoods
from winnow.tasks.select.ranking import order
from winnow.tasks.select.rounds import MessageStage, exact_grid, in_rounds, lower
from winnow.tasks.select.signals import NO_ROWS, Selection, Signals

__all__ = ["check_arguments", "checked_priorities", "classes_among", "d2", "definition", "greedy", "messages"]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Rows = NDArray[np.int64]

MODES = ("symmetric", "directed", "per_class")


def definition(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: Rows = NO_ROWS,
    score: str = "forgetting",
    neighbours: int = 5,
    gamma_forward: float = 1.0,
    gamma_reverse: float = 0.1,
) -> Rows:
    """D2's picks in the paper's notation, on dense matrices: the reference that tests hold the engine to."""
    x, s = signals.features.astype(np.float64), _from_0_to_1(signals.hardness(score).astype(np.float64))
    ties = generator.random(signals.n)
    d = np.linalg.norm(x[:, None] - x, axis=2)
    nearest_first = np.where(np.eye(signals.n, dtype=bool), np.inf, d).argsort(axis=1, kind="stable")
    listed = nearest_first.argsort(axis=1) < neighbours
    near, sigma = listed | listed.T, median_length(d[listed])
    g = s + np.where(near, np.exp(-gamma_forward * d / sigma), 0.0) @ s
    picks: list[int] = []
    while len(picks) < len(already) + budget:
        # arg max, once what is there is picked; rounding makes equals tie
        i = int([*already, order(-g.round(12), ties)[0]][min(len(picks), len(already))])
        g -= np.where(near[i], np.exp(-gamma_reverse * d[i] / sigma), 0.0) * max(g[i], 0.0)
        g[i] = -np.inf
        picks.append(i)
    return np.array(picks[len(already) :])


def messages(
    values: Floats, neighbours: Ints, weights: Floats, indptr: Ints | None = None
) -> NDArray[np.float64]:
    """What every sample receives from its neighbours: Σ_{j ∈ N(i)} w_ij v_j.

    With e the weights, the forward pass of D2 is g = s + messages(s, neighbours, e). The terms are rounded to
    a grid of 2⁻⁵² of the largest possible sum, on which float64 adds exactly: copies of a sample receive
    exactly the same, even if their neighbours are listed in another order.

    Args:
        values: (N,) v.
        neighbours: int (N, k), or (E,) with ``indptr``.
        weights: w, of the same shape.
        indptr: (N + 1,), where rows differ in length.

    Returns:
        float64 (N,).

    Raises:
        BadInput: NaN, shapes that differ, or a neighbour out of range.

    >>> messages(np.array([1.0, 2.0, 4.0]), np.array([[1], [2], [0]]), np.full((3, 1), 0.5)).tolist()
    [1.0, 2.0, 0.5]
    """
    values = checked_values("values", values)
    edges = Edges.of(len(values), neighbours, weights, indptr)
    longest = int(np.diff(edges.indptr).max(initial=0))
    grid = exact_grid(float(np.abs(values).max(initial=0.0)) * longest * edges.largest_weight())
    received = np.zeros(len(values))
    for rows, block in edges.blocks():
        terms = np.rint(edges.weights[block] * values[edges.ids[block]] / grid) * grid
        starts = edges.indptr[rows] - block.start
        filled = np.flatnonzero(np.diff(starts, append=len(terms)))  # reduceat gives empty rows a term, too
        if len(filled):
            received[rows.start + filled] = np.add.reduceat(terms, starts[filled])
    return received


def greedy(
    g: Floats,
    neighbours: Ints,
    weights: Floats,
    budget: int,
    *,
    ties: Floats,
    indptr: Ints | None = None,
    already: Rows = NO_ROWS,
) -> tuple[Rows, NDArray[np.float64]]:
    """Pick the sample of highest priority, lower its neighbours' priorities, and so on; exact, vectorised.

    Repeat ``budget`` times: i = argmax g among the samples not picked yet; g_j ← g_j − w_ij · max(g_i, 0) for
    every neighbour j of i.

    The picks are made in rounds of many at a time (``winnow.tasks.select.rounds.in_rounds`` proves that they
    are the same). Priorities and messages are rounded to a grid of 2⁻⁵² of the largest possible sum, on which
    float64 adds exactly: the result does not depend on the order of the messages.

    Args:
        g: (N,) priorities before the first pick.
        neighbours: int (N, k), or (E,) with ``indptr``; picking i sends messages to row i.
        weights: w ≥ 0, of the same shape.
        budget: samples to pick.
        ties: (N,), all different; of equal priorities, the lowest is picked first.
        indptr: (N + 1,), where rows differ in length.
        already: int64 (m,), rows that count as picked before the first pick, in this order.

    Returns:
        int64 (budget,) picks in order, and float64 (budget,) their priorities when picked.

    Raises:
        BadInput: NaN, shapes that differ, a negative weight, a neighbour or a budget out of range.

    Cost:
        O(budget · k) edge visits per round, some twenty rounds on kNN graphs; O(N + E) memory.

    >>> chain = np.array([[1], [2], [3], [0]])
    >>> g = np.array([4.0, 3.5, 3.0, 1.0])
    >>> picks, priorities = greedy(g, chain, np.full((4, 1), 0.5), 3, ties=np.arange(4))
    >>> picks.tolist(), priorities.tolist()
    ([0, 2, 1], [4.0, 3.0, 1.5])
    """
    priority, edges = checked_priorities(g, neighbours, weights, budget, indptr)
    if np.shape(ties) != priority.shape:
        raise BadInput(f"ties: shape {np.shape(ties)}, g has {len(priority)} rows.")
    largest_weight = edges.largest_weight()
    if edges.weights.min(initial=0.0) < 0:
        row = edges.row_of(int(np.argmax(edges.weights < 0)))
        raise BadInput(
            f"weights: row {row} has a negative one, whose message would raise a priority.",
            remedy="use winnow.tasks.select.upstream.d2.published_greedy",
        )
    grid = exact_grid(
        float(np.abs(priority).max(initial=0.0)) * (1 + edges.largest_in_degree() * largest_weight)
    )
    priority = np.rint(priority / grid) * grid
    for row in already:
        lower(priority, edges, grid, row[None], priority[row[None]])
    keys = np.asarray(ties, np.float64)
    return in_rounds(priority, keys, budget, lambda rows: MessageStage(rows, priority, keys, edges, grid))


def checked_priorities(
    g: Floats, neighbours: Ints, weights: Floats, budget: int, indptr: Ints | None
) -> tuple[NDArray[np.float64], Edges]:
    """Priorities as float64, and the edges between them.

    Raises:
        BadInput: NaN, shapes that differ, a neighbour or a budget out of range.
    """
    priority = checked_values("g", g)
    edges = Edges.of(len(priority), neighbours, weights, indptr)
    if not 0 <= budget <= len(priority):
        raise BadInput(f"budget = {budget} samples of {len(priority)}.")
    return priority, edges


def d2(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: Rows = NO_ROWS,
    score: str = "forgetting",
    neighbours: int = 5,
    gamma_forward: float = 1.0,
    gamma_reverse: float = 0.1,
    mis_ratio: float = 0.0,
    graph_mode: str = "symmetric",
    higher_is: str | None = None,
    distance_scale: float | None = None,
    similarity: str = "cosine",
) -> Selection:
    """Balance difficulty and diversity: hard neighbours raise a sample, picked neighbours lower it.

    Forward: g_i = s_i + Σ_{j ∈ N(i)} exp(−γ_f d_ij / σ) s_j, with s the score from 0 (easiest) to 1 (hardest)
    and σ the median of the kNN distances. Reverse, k times: pick i = argmax g of those left; g_j ← g_j −
    exp(−γ_r d_ij / σ) · max(g_i, 0) for its neighbours j.

    The graph joins the samples that mis_ratio leaves. Without one in ``signals`` it is computed from the
    features: exact, Euclidean. A given graph is used as it is: edges to dropped samples (with "per_class": to
    other classes) vanish, and of what remains each row keeps its first ``neighbours``. Its distances are
    recomputed from the features; without features they follow from its similarities. ``balanced=True`` needs
    features, since it selects in each class without a graph.

    Args:
        signals: the score, AUM where mis_ratio is not 0, features or a graph, and labels for "per_class".
        budget: k, samples to keep.
        generator: breaks ties.
        already: int64 (m,), rows that count as picked before the first pick, in this order.
        score: the measure of difficulty.
        neighbours: of a sample in the kNN graph; fewer where there are not so many samples.
        gamma_forward: γ_f ≥ 0; large: far neighbours count less; small: they all count alike.
        gamma_reverse: γ_r ≥ 0; large: little repulsion; 0: a pick takes its whole priority off its
            neighbours.
        mis_ratio: β in [0, 1), share of lowest-AUM samples to drop first, whatever the score.
        graph_mode: ``"symmetric"`` (samples are neighbours if either lists the other), ``"directed"``
            (messages go along a sample's own list) or ``"per_class"`` (each class on its own: score, σ,
            symmetric graph and picks; the budget is water-filled over the classes).
        higher_is: ``"harder"`` or ``"easier"`` for a score of your own.
        distance_scale: σ instead of the median; 1 takes distances as they are.
        similarity: what a given graph's similarities are, where there are no features: ``"cosine"`` (d = √(2
            − 2·cos)) or ``"euclidean"`` (minus the distance).

    Returns:
        Selection in pick order ("per_class": class by class); gains are the priorities g when picked.

    Raises:
        MissingSignal: neither features nor a graph; no labels for "per_class".
        BadInput: a parameter out of range, ⌊βN⌋ + k > N, or a graph with a self-loop, a neighbour out of
            range or twice in a row, or fewer than ``neighbours`` columns.

    Cost:
        The kNN graph, O(N² D); then O(N · neighbours) time and memory: the greedy is a few dozen vectorised
        rounds, see ``greedy``.

    References:
        Maharana, Yadav and Bansal, D2 Pruning: Message Passing for Balancing Diversity and Difficulty in Data
        Pruning, ICLR 2024.
        Upstream: d2pruning@bf1ea46 core/data/sampling.py, core/data/Coreset.py, select_d2_datacomp.py.

    Differences from upstream:
        The score is turned so that higher is harder (upstream takes AUM as it is, hence prefers easy samples)
        and scaled to 0…1, and distances are divided by σ (upstream: raw, so that messages vanish on wide
        features). γ_f can be set (upstream: 1). A priority below 0 sends no message (upstream: a negative
        one, which attracts). The generator breaks ties (upstream: the first wins), and a small class keeps
        only its share (upstream: all of it; then the whole is cut at random). ``upstream=True`` replays
        "per_class" (upstream's ``class``), "symmetric" (``graph`` on features), "directed" (``graph`` on
        precomputed neighbours) and one more mode, "datacomp" (squared distances, score + 0.115, a loop that
        is not greedy), with raw scores; distance_scale is 1 if not given, and there is no higher_is.

    >>> scores = {"forgetting": np.array([3, 4, 1, 2])}
    >>> s = Signals(n=4, features=np.array([[0.0], [1.0], [5.0], [6.0]]), scores=scores)
    >>> d2(s, 2, generator=np.random.default_rng(0), neighbours=1).indices.tolist()
    [1, 3]
    """
    if graph_mode == "datacomp":
        raise BadInput(
            f"graph_mode = 'datacomp' is none of {', '.join(MODES)}.",
            remedy="pass upstream=True to replay the published DataComp script",
        )
    check_arguments(signals, MODES, graph_mode, neighbours, distance_scale, similarity)
    for name, gamma in (("gamma_forward", gamma_forward), ("gamma_reverse", gamma_reverse)):
        if not (np.isfinite(gamma) and gamma >= 0):
            raise BadInput(f"{name} = {gamma}: give a number of at least 0.")
    dropped = check_fits(signals.n, budget, mis_ratio)
    ties = generator.random(signals.n)
    kept = np.sort(order(signals.score("aum"), ties)[dropped:]) if dropped else np.arange(signals.n)
    hardness = signals.hardness(score, higher_is).astype(np.float64)
    before = already[np.isin(already, kept)]  # what mis_ratio drops has no place in the graph
    check_room(budget, len(kept), len(before))
    parts, shares = [kept], np.array([budget])
    if graph_mode == "per_class":
        parts = classes_among(signals.labels, kept)
        shares = water_fill(np.array([len(rows) for rows in parts]), len(before) + budget)
        have = np.array([np.isin(rows, before).sum() for rows in parts])
        shares = beyond(shares, have, budget)
        parts, shares = [rows for rows, share in zip(parts, shares, strict=True) if share], shares[shares > 0]
    graphs = neighbourhoods(
        signals,
        parts,
        neighbours,
        directed=graph_mode == "directed",
        distance_scale=distance_scale,
        similarity=similarity,
    )
    picks, priorities = [NO_ROWS], [np.empty(0)]
    for rows, share, (near, distances, indptr) in zip(parts, shares.tolist(), graphs, strict=True):
        s = _from_0_to_1(hardness[rows])
        g = s + messages(s, near, np.exp(-gamma_forward * distances), indptr)
        repulsion = np.exp(-gamma_reverse * distances)
        there = np.searchsorted(rows, before[np.isin(before, rows)])
        chosen, priority = greedy(g, near, repulsion, share, ties=ties[rows], indptr=indptr, already=there)
        picks.append(rows[chosen])
        priorities.append(priority)
    return Selection.of(np.concatenate(picks), gains=np.concatenate(priorities))


def check_arguments(
    signals: Signals,
    modes: Sequence[str],
    graph_mode: str,
    neighbours: int,
    distance_scale: float | None,
    similarity: str,
) -> None:
    """Refuse parameters out of range and insufficient signals; ``modes`` are the graph modes.

    Raises:
        BadInput: naming the parameter.
        MissingSignal: neither features nor a graph, or no labels for "per_class".
    """
    if graph_mode not in modes:
        raise BadInput(f"graph_mode = {graph_mode!r} is none of {', '.join(modes)}.")
    if similarity not in ("cosine", "euclidean"):
        raise BadInput(f"similarity = {similarity!r} is neither 'cosine' nor 'euclidean'.")
    if isinstance(neighbours, bool) or not isinstance(neighbours, int | np.integer) or neighbours < 1:
        raise BadInput(f"neighbours = {neighbours!r}: give a whole number of at least 1.")
    if distance_scale is not None and not (np.isfinite(distance_scale) and distance_scale > 0):
        raise BadInput(f"distance_scale = {distance_scale}: give a number above 0.")
    if not signals.has("features") and not signals.has("graph"):
        raise MissingSignal(
            "d2 needs features or graph; neither is given.",
            remedy="give embeddings as features, or their kNN graph (which balanced=True cannot use: try "
            "graph_mode='per_class')",
        )
    if graph_mode == "per_class" and not signals.has("labels"):
        raise MissingSignal(
            "d2 with graph_mode='per_class' needs labels; none are given.",
            remedy="give labels, or pseudo-labels",
        )


def classes_among(labels: NDArray[np.int64], rows: Rows) -> list[Rows]:
    """The rows of each class that occurs, by label; inside a class in the order given."""
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    return np.split(by_class, np.unique(labels[rows], return_counts=True)[1].cumsum()[:-1])


def _from_0_to_1(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A constant score says nothing and becomes 0: no messages, equal priorities, picks at random."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
