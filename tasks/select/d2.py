"""D2 Pruning: difficulty and diversity balanced by messages over the kNN graph, with an exact greedy made of vectorised rounds.

Beside the selector stand its parts, on plain arrays, for graphs from elsewhere: ``messages``, ``symmetric``,
``greedy``, and the published loops ``published_greedy`` and ``iterative_selection``. A graph is (N, k)
neighbours and weights, or rows of any length: ids and weights one after another, (E,), with ``indptr`` (N +
1,), where row i takes up indptr[i] : indptr[i + 1].
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.embed.graph import Graph, spans
from winnow.tasks.errors import BadInput, MissingSignal
from winnow.tasks.select.ccs import water_fill
from winnow.tasks.select.elfs import check_fits
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["d2", "greedy", "iterative_selection", "messages", "published_greedy", "symmetric"]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

_EPSILON = 1e-7  # the published code lets no message carry less
_DATACOMP_SHIFT = 0.115  # the published DataComp script adds it to CLIP scores, so that they are not negative
_ROUNDS = 32  # of a stage before its rest goes to a heap: a long chain settles one sample a round
_ROWS = 1 << 18  # rows of the graph looked at together, which bounds temporary memory


# -- graphs on plain arrays ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Edges:
    """A graph in rows of any length, checked."""

    indptr: NDArray[np.int64]
    ids: Ints
    weights: Floats

    @classmethod
    def of(cls, n: int, neighbours: Ints, weights: Floats, indptr: Ints | None) -> _Edges:
        ids, weights = np.asarray(neighbours), np.asarray(weights)
        if ids.dtype.kind not in "iu" or weights.dtype.kind not in "fiub":
            raise BadInput(
                f"neighbours must be whole numbers and weights numbers, got {ids.dtype} and {weights.dtype}."
            )
        if ids.shape != weights.shape:
            raise BadInput(f"neighbours of shape {ids.shape} and weights of shape {weights.shape} differ.")
        if indptr is None:
            if ids.ndim != 2 or len(ids) != n:
                raise BadInput(
                    f"neighbours: shape {ids.shape}, expected {n} rows of k (or a flat list and indptr)."
                )
            indptr = np.arange(n + 1) * ids.shape[1]
        elif (
            ids.ndim != 1
            or len(indptr) != n + 1
            or indptr[0] != 0
            or indptr[-1] != len(ids)
            or (np.diff(indptr) < 0).any()
        ):
            raise BadInput(
                f"indptr must be {n + 1} numbers that rise from 0 to the {ids.size} neighbours, which are a "
                "flat list."
            )
        edges = cls(np.asarray(indptr, np.int64), ids.ravel(), weights.ravel())
        if ids.size and not (ids.min() >= 0 and ids.max() < n):
            edge = int(np.flatnonzero((edges.ids < 0) | (edges.ids >= n))[0])
            raise BadInput(
                f"neighbours: row {edges.row_of(edge)} lists {edges.ids[edge]}, which is outside 0 to "
                f"{n - 1}."
            )
        return edges

    def chunks(self) -> list[slice]:
        """Rows that are looked at together."""
        n = len(self.indptr) - 1
        return [slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS)]

    def edges(self, rows: slice) -> slice:
        return slice(self.indptr[rows.start], self.indptr[rows.stop])

    def heaviest(self) -> float:
        heaviest = float(np.abs(self.weights).max(initial=0.0))
        if not np.isfinite(heaviest):
            edge = int(np.flatnonzero(~np.isfinite(self.weights))[0])
            raise BadInput(f"weights: row {self.row_of(edge)} holds {self.weights[edge]}.")
        return heaviest

    def row_of(self, edge: int) -> int:
        return int(np.searchsorted(self.indptr, edge, side="right")) - 1

    def times_listed(self) -> int:
        """How often the sample that is listed most is listed."""
        n = len(self.indptr) - 1
        counts = np.zeros(n, np.int64)
        for rows in self.chunks():
            counts += np.bincount(self.ids[self.edges(rows)], minlength=n)
        return int(counts.max(initial=0))


def _values(name: str, values: Floats) -> NDArray[np.float64]:
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        raise BadInput(f"{name} must be a list of numbers, got {values.dtype} of shape {values.shape}.")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise BadInput(f"{name}: row {row} is {values[row]}.")
    return values.astype(np.float64)


def _grid(largest: float) -> float:
    """The power of two δ such that float64 adds multiples of δ up to ``largest`` without rounding, hence in any order."""
    return 2.0 ** max(np.ceil(np.log2(largest)) - 52, -1000.0) if largest > 0 else 1.0


def messages(
    values: Floats, neighbours: Ints, weights: Floats, indptr: Ints | None = None
) -> NDArray[np.float64]:
    """What every sample receives from its neighbours: Σ_{j ∈ N(i)} w_ij v_j.

    With e the weights, the forward pass of D2 is g = s + messages(s, neighbours, e). The terms are rounded to
    a grid of 2⁻⁵² of the largest possible sum, on which float64 adds exactly: samples that are alike receive
    the very same, in whatever order their neighbours are stored.

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
    values = _values("values", values)
    edges = _Edges.of(len(values), neighbours, weights, indptr)
    longest = int(np.diff(edges.indptr).max(initial=0))
    grid = _grid(float(np.abs(values).max(initial=0.0)) * longest * edges.heaviest())
    received = np.zeros(len(values))
    for rows in edges.chunks():
        part = edges.edges(rows)
        terms = np.rint(edges.weights[part] * values[edges.ids[part]] / grid) * grid
        starts = edges.indptr[rows] - edges.indptr[rows.start]
        filled = np.flatnonzero(
            np.diff(starts, append=len(terms))
        )  # reduceat would give an empty row the next one's first term
        if len(filled):
            received[rows.start + filled] = np.add.reduceat(terms, starts[filled])
    return received


def symmetric(neighbours: Ints, distances: Floats) -> tuple[NDArray[np.int32], Floats, NDArray[np.int64]]:
    """The undirected graph: two samples are neighbours if either lists the other.

    Args:
        neighbours: int (N, k); −1 where there is none. No row lists a sample twice.
        distances: (N, k); of a pair that list each other, each keeps its own.

    Returns:
        Ids and distances (E,), by row and in a row by id, and indptr (N + 1,).

    >>> ids, distances, indptr = symmetric(np.array([[1], [2], [1]]), np.array([[0.5], [0.25], [0.25]]))
    >>> ids.tolist(), distances.tolist(), indptr.tolist()
    ([1, 0, 2, 1], [0.5, 0.5, 0.25, 0.25], [0, 1, 3, 4])
    """
    from scipy import sparse

    n, k = neighbours.shape
    neighbours = neighbours.astype(np.int32, copy=False)
    present = neighbours >= 0
    one_way = present.copy()
    block = max(1, _ROWS // max(1, k))
    for start in range(0, n, block):
        rows = slice(start, start + block)
        mine = np.arange(start, min(start + block, n), dtype=np.int32)[:, None, None]
        one_way[rows] &= ~(neighbours[neighbours[rows]] == mine).any(axis=2)
    rows_of = np.repeat(np.arange(n, dtype=np.int32), k).reshape(n, k)
    here = np.concatenate([rows_of[present], neighbours[one_way]])
    there = np.concatenate([neighbours[present], rows_of[one_way]])
    matrix = sparse.coo_array(
        (np.concatenate([distances[present], distances[one_way]]), (here, there)), shape=(n, n)
    ).tocsr()
    return matrix.indices, matrix.data, matrix.indptr.astype(np.int64)


# -- the exact greedy ----------------------------------------------------------------------------------------


def greedy(
    g: Floats, neighbours: Ints, weights: Floats, budget: int, *, ties: Floats, indptr: Ints | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pick the sample of largest key, push its neighbours' keys down, again and again; exact, and vectorised.

    Repeat ``budget`` times: i = argmax g among the samples not picked yet; g_j ← g_j − w_ij · max(g_i, 0) for
    every neighbour j of i.

    Why rounds are enough: no message is negative, so keys only fall, and samples are picked in the order of
    their final keys, those that they are picked with. Let a outrank b if its key is larger, or the same and
    its ``ties`` lower; the sources of i are the samples that list i. (1) A sample that outranks every source
    whose message it has not had has its final key: these sources only fall, are picked after it, and their
    messages come too late. It is *settled*. (2) A settled source that outranks a sample not settled is picked
    before it, since that one only falls: its message is *due*. A round settles all samples by (1) and
    delivers all messages by (2), together, since nothing undoes either. (3) No round is idle: of the samples
    not settled, the highest is outranked by settled sources only; messages are due to it, or it settles.

    Samples too low to be picked are not looked at: with R picks to go, a stage takes the R highest samples
    and the edges among them. One that falls below what was the lowest of them drops out; one that settles is
    outranked by fewer than R to the end, so it is picked. Their messages then go out to all samples, and the
    next stage has fewer to find. A stage that takes many rounds, such as a long chain of samples that wait
    for one another, ends on a heap. One sort by final key, at the end, gives the order of picks.

    Keys and messages are rounded to a grid of 2⁻⁵² of the largest possible sum, on which float64 adds
    exactly: the result depends neither on the order of messages nor on the order of storage.

    Args:
        g: (N,) keys before the first pick.
        neighbours: int (N, k), or (E,) with ``indptr``; picking i sends messages to row i.
        weights: w ≥ 0, of the same shape.
        budget: samples to pick.
        ties: (N,), all different; of equal keys, the lowest is picked first.
        indptr: (N + 1,), where rows differ in length.

    Returns:
        int64 (budget,) picks in order, and float64 (budget,) their keys when picked.

    Raises:
        BadInput: NaN, shapes that differ, a negative weight, a neighbour or a budget out of range.

    Cost:
        O(budget · k) edge visits a round, some twenty rounds on kNN graphs; O(N + E) memory.

    >>> chain = np.array([[1], [2], [3], [0]])
    >>> picks, keys = greedy(np.array([4.0, 3.5, 3.0, 1.0]), chain, np.full((4, 1), 0.5), 3, ties=np.arange(4))
    >>> picks.tolist(), keys.tolist()
    ([0, 2, 1], [4.0, 3.0, 1.5])
    """
    keys = _values("g", g)
    n = len(keys)
    edges = _Edges.of(n, neighbours, weights, indptr)
    if np.shape(ties) != (n,):
        raise BadInput(f"ties: shape {np.shape(ties)}, g has {n} rows.")
    if not 0 <= budget <= n:
        raise BadInput(f"budget = {budget} samples of {n}.")
    heaviest = edges.heaviest()
    if edges.weights.min(initial=0.0) < 0:
        row = edges.row_of(int(np.argmax(edges.weights < 0)))
        raise BadInput(
            f"weights: row {row} has a negative one, whose message would raise a key.",
            remedy="use published_greedy",
        )
    grid = _grid(float(np.abs(keys).max(initial=0.0)) * (1 + edges.times_listed() * heaviest))
    keys = np.rint(keys / grid) * grid
    rank: NDArray[np.float64] = np.asarray(ties, np.float64)

    place = np.full(n, -1, np.int32)  # of a sample in its stage
    picks, picked_keys = [np.empty(0, np.int64)], [np.empty(0)]
    left = budget
    while left:
        stage = _highest(keys, rank, left)
        final, settled = _settle(stage, keys, rank, edges, place, grid)
        rows, final = stage[settled], final[settled]
        positions, counts = spans(edges.indptr, rows)
        np.subtract.at(
            keys, edges.ids[positions], _messages(edges.weights[positions], np.repeat(final, counts), grid)
        )
        keys[rows] = -np.inf
        picks.append(rows)
        picked_keys.append(final)
        left -= len(rows)
    chosen, values = np.concatenate(picks), np.concatenate(picked_keys)
    by_key = order(-values, rank[chosen])
    return chosen[by_key], values[by_key]


def _messages(weights: Floats, keys: NDArray[np.float64], grid: float) -> NDArray[np.float64]:
    return np.rint(weights * (np.maximum(keys, 0.0) / grid)) * grid


def _highest(keys: NDArray[np.float64], ties: Floats, count: int) -> NDArray[np.int64]:
    """The samples of largest key, ties by ``ties``."""
    least = np.partition(keys, len(keys) - count)[len(keys) - count]
    above, level = np.flatnonzero(keys > least), np.flatnonzero(keys == least)
    need = count - len(above)
    if need < len(level):
        level = level[np.argpartition(ties[level], need - 1)[:need]]
    return np.concatenate([above, level])


def _settle(
    stage: NDArray[np.int64],
    all_keys: NDArray[np.float64],
    all_ties: Floats,
    edges: _Edges,
    place: NDArray[np.int32],
    grid: float,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Final keys of the samples of a stage, and which of them have one; the others have fallen out of it."""
    keys, ties = all_keys[stage], all_ties[stage]
    least = keys.min()
    last = ties[keys == least].max()
    place[stage] = np.arange(len(stage), dtype=np.int32)
    positions, counts = spans(edges.indptr, stage)
    target = place[edges.ids[positions]]
    inside = np.flatnonzero(target >= 0)
    source = np.repeat(np.arange(len(stage), dtype=np.int32), counts)[inside]
    target, weights = target[inside], edges.weights[positions[inside]]
    place[stage] = -1

    settled = np.zeros(len(stage), bool)
    fallen = np.zeros(len(stage), bool)
    for _ in range(_ROUNDS):
        from_key, to_key = keys[source], keys[target]
        above = from_key > to_key
        equal = np.flatnonzero(from_key == to_key)
        above[equal] = ties[source[equal]] < ties[target[equal]]
        above &= from_key > 0  # others send nothing
        waits = np.zeros(len(stage), bool)
        waits[target[above]] = True
        settled |= ~waits & ~fallen
        due = np.flatnonzero(above & settled[source])
        hit = target[due]
        np.subtract.at(keys, hit, _messages(weights[due], from_key[due], grid))
        fallen[hit[(keys[hit] < least) | ((keys[hit] == least) & (ties[hit] > last))]] = True
        if np.count_nonzero(settled) + np.count_nonzero(fallen) == len(stage):
            return keys, settled
        remain = ~(settled[target] | fallen[target] | fallen[source]) & (from_key > 0)
        remain[due] = False
        left = np.flatnonzero(remain)
        source, target, weights = source[left], target[left], weights[left]
    _settle_on_heap(keys, ties, (-least, last), settled, fallen, (source, target, weights), grid)
    return keys, settled


def _settle_on_heap(
    keys: NDArray[np.float64],
    ties: Floats,
    floor: tuple[float, float],
    settled: NDArray[np.bool_],
    fallen: NDArray[np.bool_],
    edges: tuple[NDArray[np.int32], NDArray[np.int32], Floats],
    grid: float,
) -> None:
    """The rest of a stage, sample by sample: those not settled, and the settled ones that still have messages to send."""
    outgoing: dict[int, list[tuple[int, float]]] = {}
    for source, target, weight in zip(*(part.tolist() for part in edges), strict=True):
        outgoing.setdefault(source, []).append((target, weight))
    waiting = ~(settled | fallen)
    rows = np.union1d(np.flatnonzero(waiting), edges[0][settled[edges[0]]])
    key, tie, done = keys.tolist(), ties.tolist(), [False] * len(keys)
    heap = list(zip((-keys[rows]).tolist(), ties[rows].tolist(), rows.tolist(), strict=True))
    heapq.heapify(heap)
    while heap:
        negative, _, row = heapq.heappop(heap)
        if done[row] or key[row] != -negative:
            continue  # has been seen with a lower key, or has fallen
        done[row] = settled[row] = True
        units = max(-negative, 0.0) / grid
        for target, weight in outgoing.get(row, ()):
            if not done[target]:
                key[target] -= round(weight * units) * grid
                if (-key[target], tie[target]) > floor:
                    done[target] = fallen[target] = True
                else:
                    heapq.heappush(heap, (-key[target], tie[target], target))
    keys[:] = key


# -- the published loops -------------------------------------------------------------------------------------


def published_greedy(
    g: Floats, neighbours: Ints, weights: Floats, budget: int, *, indptr: Ints | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The published greedy: as ``greedy``, but a negative key sends a negative message, which raises the neighbours' keys.

    Repeat: i = argmax g among the samples not picked yet, the first of equal ones; g_j ← g_j − w_ij g_i for
    every neighbour j.

    Args:
        g: (N,) keys before the first pick.
        neighbours: int (N, k), or (E,) with ``indptr``.
        weights: w, of the same shape; of any sign.
        budget: samples to pick.
        indptr: (N + 1,), where rows differ in length.

    Returns:
        int64 (budget,) picks in order, and float64 (budget,) their keys when picked.

    References:
        Upstream: d2pruning@bf1ea46 core/data/sampling.py GraphDensitySampler.select_batch_,
        select_batch_from_precomputed_.

    >>> published_greedy(np.array([-1.0, -1.5, -2.0]), np.array([[2], [2], [0]]), np.full((3, 1), 0.9), 3)[0].tolist()
    [0, 2, 1]
    """
    key = _values("g", g).tolist()
    edges = _Edges.of(len(key), neighbours, weights, indptr)
    if not 0 <= budget <= len(key):
        raise BadInput(f"budget = {budget} samples of {len(key)}.")
    heap = [(-value, row) for row, value in enumerate(key)]
    heapq.heapify(heap)
    picked = [False] * len(key)
    picks: list[int] = []
    keys: list[float] = []
    while len(picks) < budget:
        negative, row = heapq.heappop(heap)
        if picked[row] or key[row] != -negative:
            continue  # has been seen with another key
        picked[row] = True
        picks.append(row)
        keys.append(-negative)
        listed = edges.edges(slice(row, row + 1))
        for target, weight in zip(edges.ids[listed].tolist(), edges.weights[listed].tolist(), strict=True):
            if not picked[target]:
                key[target] += weight * negative
                heapq.heappush(heap, (-key[target], target))
    return np.array(picks, np.int64), np.array(keys)


def iterative_selection(
    g: Floats, neighbours: Ints, weights: Floats, budget: int, *, indptr: Ints | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The loop of the published DataComp script, which is not greedy: samples come in the order of their first keys.

    The next sample in that order is put on standby if its key has fallen below the present key of the one
    after it, else it is picked; the best sample on standby is picked as soon as its key reaches that of the
    next in order. Where that loop would run off its end (it raises IndexError for a budget of N), this one
    picks what is on standby.

    Args:
        g: float (N,) keys before the first pick; the arithmetic is done in its dtype.
        neighbours: int (N, k), or (E,) with ``indptr``.
        weights: w, of the same shape.
        budget: samples to pick.
        indptr: (N + 1,), where rows differ in length.

    Returns:
        int64 (budget,) picks in order, and float64 (budget,) their keys when picked.

    References:
        Upstream: d2pruning@bf1ea46 select_d2_datacomp.py iterative_selection.

    >>> g = np.array([4.0, 3.0, 1.0])
    >>> iterative_selection(g, np.array([[1], [0], [0]]), np.full((3, 1), 0.7), 2)[0].tolist()
    [0, 2]
    """
    n = len(_values("g", g))
    edges = _Edges.of(n, neighbours, weights, indptr)
    if not 0 <= budget <= n:
        raise BadInput(f"budget = {budget} samples of {n}.")
    key = np.array(g, np.result_type(g, np.float32))
    sequence = np.argsort(key)[::-1].tolist()
    standby: list[tuple[float, int, int]] = []  # key when put here, when, which
    since: dict[int, int] = {}
    picks: list[int] = []
    keys: list[float] = []
    at = 0
    while len(picks) < budget:
        while standby and (since.get(standby[0][2]) != standby[0][1] or -standby[0][0] != key[standby[0][2]]):
            heapq.heappop(standby)
        if standby and (at == n or -standby[0][0] >= key[sequence[at]]):
            row = heapq.heappop(standby)[2]
            del since[row]
        else:
            row = sequence[at]
            at += 1
            if at < n and key[row] < key[sequence[at]]:
                since[row] = at
                heapq.heappush(standby, (-float(key[row]), at, row))
                continue
        picks.append(row)
        keys.append(float(key[row]))
        listed = edges.ids[edges.edges(slice(row, row + 1))]
        key[listed] -= key[row] * edges.weights[edges.edges(slice(row, row + 1))]
        for target in listed.tolist():
            if target in since:
                heapq.heappush(standby, (-float(key[target]), since[target], target))
    return np.array(picks, np.int64), np.array(keys)


# -- the selector --------------------------------------------------------------------------------------------


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
    higher_is: str | None = None,
    distance_scale: float | None = None,
    similarity: str = "cosine",
    upstream: bool = False,
) -> Selection:
    """Balance difficulty and diversity: samples gain from hard neighbours, and lose what a neighbour that is picked already covers.

    Forward: g_i = s_i + Σ_{j ∈ N(i)} exp(−γ_f d_ij / σ) s_j, with s the score from 0 (easiest) to 1 (hardest)
    and σ the median of the kNN distances. Reverse, k times: pick i = argmax g of those left; g_j ← g_j −
    exp(−γ_r d_ij / σ) · max(g_i, 0) for its neighbours j.

    The graph joins the samples that mis_ratio leaves. Without one in ``signals`` it is computed from the
    features: exact, Euclidean. A graph that is given is used as it is: edges to dropped samples (with
    "per_class": to other classes) vanish, and of what remains each row keeps its first ``neighbours``. Its
    distances are measured again in the features; without features they follow from its similarities.
    ``balanced=True`` needs features, since it selects in each class with no graph.

    Args:
        signals: the score, AUM where mis_ratio is not 0, features or a graph, and labels for "per_class".
        budget: k, samples to keep.
        generator: breaks ties.
        score: that is the difficulty.
        neighbours: of a sample in the kNN graph; fewer where there are not so many samples.
        gamma_forward: γ_f ≥ 0; large: far neighbours count less, small: they all count alike.
        gamma_reverse: γ_r ≥ 0; large: little repulsion, 0: a pick takes its whole key from each neighbour.
        mis_ratio: β in [0, 1), share of lowest-AUM samples to drop first, whatever the score.
        graph_mode: ``"symmetric"`` (samples are neighbours if either lists the other), ``"directed"``
            (messages go along a sample's own list) or ``"per_class"`` (each class apart: score, σ, symmetric
            graph and picks; the budget is water-filled over the classes). With ``upstream``, ``"datacomp"``
            as well.
        higher_is: ``"harder"`` or ``"easier"`` for a score of your own.
        distance_scale: σ instead of the median; 1 takes distances as they are.
        similarity: what a given graph's similarities are, where there are no features: ``"cosine"`` (d = √(2
            − 2·cos)) or ``"euclidean"`` (minus the distance).
        upstream: replay the published code.

    Returns:
        Selection in pick order ("per_class": class by class); gains are the keys g when picked.

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
        and brought to 0…1, and distances are divided by σ (upstream: raw, so that messages vanish on wide
        features). γ_f can be set (upstream: 1). A key below 0 sends no message (upstream: a negative one,
        which attracts). Ties go by the generator (upstream: the first), and a small class keeps its share
        only (upstream: all of it; then the whole is cut at random). ``upstream=True`` replays "per_class"
        (upstream's ``class``), "symmetric" (``graph`` on features), "directed" (``graph`` on precomputed
        neighbours) and "datacomp" (squared distances, score + 0.115, a loop that is not greedy) with raw
        scores; it ignores higher_is, and distance_scale is 1 if not given.

    >>> s = Signals(n=4, features=np.array([[0.0], [1.0], [5.0], [6.0]]), scores={"forgetting": np.array([3, 4, 1, 2])})
    >>> d2(s, 2, generator=np.random.default_rng(0), neighbours=1).indices.tolist()
    [1, 3]
    """
    _check(neighbours, gamma_forward, gamma_reverse, graph_mode, distance_scale, similarity, upstream)
    if not signals.has("features") and signals.graph is None:
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
    graphs = _Graphs.of(signals, neighbours, similarity)
    dropped = check_fits(signals.n, budget, mis_ratio)
    if upstream:
        return _published(
            signals,
            budget,
            graphs,
            dropped,
            generator,
            score,
            gamma_forward,
            gamma_reverse,
            graph_mode,
            distance_scale or 1.0,
        )

    keys = generator.random(signals.n)
    kept = np.sort(order(signals.score("aum"), keys)[dropped:]) if dropped else np.arange(signals.n)
    hardness = signals.hardness(score, higher_is).astype(np.float64)
    parts, shares = [kept], np.array([budget])
    if graph_mode == "per_class":
        parts = _classes(signals, kept)
        shares = water_fill(np.array([len(rows) for rows in parts]), budget)
    chosen, gains = [], []
    for rows, share in zip(parts, shares.tolist(), strict=True):
        if share:
            near, distances, indptr = graphs.among(rows, distance_scale, directed=graph_mode == "directed")
            values = _from_0_to_1(hardness[rows])
            g = values + messages(values, near, np.exp(-gamma_forward * distances), indptr)
            picks, picked_keys = greedy(
                g, near, np.exp(-gamma_reverse * distances), share, ties=keys[rows], indptr=indptr
            )
            chosen.append(rows[picks])
            gains.append(picked_keys)
    return Selection.of(np.concatenate(chosen), gains=np.concatenate(gains))


def _check(
    neighbours: int,
    gamma_forward: float,
    gamma_reverse: float,
    graph_mode: str,
    scale: float | None,
    similarity: str,
    upstream: bool,
) -> None:
    modes = ("symmetric", "directed", "per_class", *(("datacomp",) if upstream else ()))
    if graph_mode not in modes:
        remedy = (
            "pass upstream=True to replay the published DataComp script" if graph_mode == "datacomp" else ""
        )
        raise BadInput(f"graph_mode = {graph_mode!r} is none of {', '.join(modes)}.", remedy=remedy)
    if similarity not in ("cosine", "euclidean"):
        raise BadInput(f"similarity = {similarity!r} is neither 'cosine' nor 'euclidean'.")
    if isinstance(neighbours, bool) or not isinstance(neighbours, int | np.integer) or neighbours < 1:
        raise BadInput(f"neighbours = {neighbours!r}: give a whole number of at least 1.")
    for name, gamma in (("gamma_forward", gamma_forward), ("gamma_reverse", gamma_reverse)):
        if not np.isfinite(gamma) or (gamma < 0 and not upstream):
            raise BadInput(f"{name} = {gamma}: give a number of at least 0.")
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise BadInput(f"distance_scale = {scale}: give a number above 0.")


def _classes(signals: Signals, kept: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    labels = signals.labels[kept]
    by_class = kept[np.argsort(labels, kind="stable")]
    return np.split(by_class, np.unique(labels, return_counts=True)[1].cumsum()[:-1])


def _from_0_to_1(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A constant score says nothing, and becomes 0: no messages, all keys alike, picks at random."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _median(distances: Floats) -> float:
    """Of the distances above 0: duplicates do not make the scale 0."""
    apart = distances[distances > 0]
    middle = len(apart) // 2
    return float(np.partition(apart, middle)[middle]) if len(apart) else 1.0


@dataclass(frozen=True)
class _Graphs:
    """Where the neighbours of any part of the samples come from: a given graph, checked, or the features."""

    features: Floats | None
    graph: Graph | None
    neighbours: int
    similarity: str
    place: NDArray[np.int32]  # of a sample in its part; −1 outside

    @classmethod
    def of(cls, signals: Signals, neighbours: int, similarity: str) -> _Graphs:
        graph = signals.graph
        if graph is not None:
            _check_graph(graph, min(neighbours, signals.n - 1))
            if not signals.has("features"):
                _check_similarity(graph.similarity, similarity)
        features = signals.features if signals.has("features") else None
        return cls(features, graph, neighbours, similarity, np.full(signals.n, -1, np.int32))

    def among(
        self, rows: NDArray[np.int64], scale: float | None, *, directed: bool
    ) -> tuple[Ints, Floats, NDArray[np.int64] | None]:
        """The graph among some samples: ids (places in ``rows``), distances in units of the scale, and indptr (None: rows of k)."""
        near, distances = self._nearest(rows)
        present = near >= 0
        whole = bool(present.all())
        distances = distances / np.float32(scale or _median(distances if whole else distances[present]))
        if not directed:
            return symmetric(near, distances)
        if whole:
            return near, distances, None
        return near[present], distances[present], np.concatenate([[0], present.sum(axis=1).cumsum()])

    def _nearest(self, rows: NDArray[np.int64]) -> tuple[Ints, Floats]:
        k = min(self.neighbours, len(rows) - 1)
        whole = len(rows) == len(self.place) and bool((rows == np.arange(len(rows))).all())
        if k == 0:
            return np.empty((len(rows), 0), np.int32), np.empty((len(rows), 0), np.float32)
        if self.graph is None:
            from winnow.tasks.embed.knn import knn

            assert self.features is not None
            found = knn(self.features if whole else self.features[rows], k, metric="euclidean")
            return found.neighbours, -found.similarity
        near, similarity = self.graph.neighbours, self.graph.similarity
        if not whole:
            self.place[rows] = np.arange(len(rows), dtype=np.int32)
            near, similarity = self.place[near[rows]], similarity[rows]
            self.place[rows] = -1
            if (near < 0).any():
                first = np.argsort(near < 0, axis=1, kind="stable")[:, :k]
                near, similarity = (
                    np.take_along_axis(near, first, axis=1),
                    np.take_along_axis(similarity, first, axis=1),
                )
        near, similarity = np.ascontiguousarray(near[:, :k]), np.ascontiguousarray(similarity[:, :k])
        ordered = np.sort(near, axis=1)
        twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
        if twice.any():
            raise BadInput(f"graph.neighbours: row {rows[int(twice.argmax())]} lists a sample twice.")
        if self.features is not None:
            return near, _measured(self.features, rows, near)
        similarity = similarity.astype(np.float32, copy=False)
        return near, np.sqrt(
            np.maximum(2 - 2 * similarity, 0)
        ) if self.similarity == "cosine" else -similarity


def _measured(features: Floats, rows: NDArray[np.int64], near: Ints) -> NDArray[np.float32]:
    """Euclidean distances along the edges, from differences (norms and products would cancel for near duplicates)."""
    distances = np.empty(near.shape, np.float32)
    block = max(1, (1 << 18) // (features.shape[1] * near.shape[1]))  # in a core's cache
    exact = np.promote_types(features.dtype, np.float32)
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        apart = features[rows[near[part]]].astype(exact, copy=False) - features[rows[part], None].astype(
            exact, copy=False
        )
        distances[part] = np.sqrt(np.einsum("nkd,nkd->nk", apart, apart))
    return distances


def _check_graph(graph: Graph, k: int) -> None:
    near = graph.neighbours
    n = len(near)
    if near.ndim != 2 or near.dtype.kind not in "iu":
        raise BadInput(
            f"graph.neighbours must be whole numbers (N, k), got {near.dtype} of shape {near.shape}."
        )
    if graph.similarity.shape != near.shape:
        raise BadInput(f"graph.similarity has shape {graph.similarity.shape}, graph.neighbours {near.shape}.")
    if near.shape[1] < k:
        raise BadInput(
            f"graph: {near.shape[1]} neighbours a sample, d2 was asked for neighbours = {k}.",
            remedy=f"pass neighbours={near.shape[1]}, or a graph of at least {k}",
        )
    if near.min(initial=0) < 0 or near.max(initial=0) >= n:
        row, column = np.argwhere((near < 0) | (near >= n))[0]
        raise BadInput(
            f"graph.neighbours: row {row} lists {near[row, column]}, which is outside 0 to {n - 1}."
        )
    loops = (near == np.arange(n, dtype=near.dtype)[:, None]).any(axis=1)
    if loops.any():
        raise BadInput(
            f"graph.neighbours: row {int(loops.argmax())} lists itself.",
            remedy="leave the sample itself out of its neighbours",
        )


def _check_similarity(similarity: Floats, kind: str) -> None:
    low, high = (-1.001, 1.001) if kind == "cosine" else (-np.finfo(np.float32).max, 0.0)
    wrong = ~((similarity >= low) & (similarity <= high)).all(axis=1)  # NaN is wrong, too
    if wrong.any():
        row = int(wrong.argmax())
        value = similarity[row][~((similarity[row] >= low) & (similarity[row] <= high))][0]
        what = "no cosine" if kind == "cosine" else "not minus a distance"
        other = "euclidean" if kind == "cosine" else "cosine"
        raise BadInput(
            f"graph.similarity: row {row} holds {value}, which is {what}.",
            remedy=f"pass similarity={other!r}, or give features",
        )


def _published(
    signals: Signals,
    budget: int,
    graphs: _Graphs,
    dropped: int,
    generator: np.random.Generator,
    score: str,
    gamma_forward: float,
    gamma_reverse: float,
    graph_mode: str,
    scale: float,
) -> Selection:
    """The published modes: raw scores, raw distances, negative messages; samples in ascending order of AUM, where it is known."""
    known = dropped or "aum" in signals.scores
    kept = np.argsort(signals.score("aum"), kind="stable")[dropped:] if known else np.arange(signals.n)
    raw = signals.score(score).astype(np.float64)

    def select(rows: NDArray[np.int64], share: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        near, distances, indptr = graphs.among(rows, scale, directed=graph_mode in ("directed", "datacomp"))
        own = raw[rows]
        if graph_mode == "datacomp":
            distances = distances**2
            own = np.maximum(own + _DATACOMP_SHIFT, _EPSILON)
        sent = own if graph_mode == "directed" else np.maximum(own, _EPSILON)
        g = own + messages(sent, near, np.exp(-gamma_forward * distances), indptr)
        weights = np.exp(-gamma_reverse * distances)
        if graph_mode == "datacomp":
            picks, keys = iterative_selection(g.astype(np.float32), near, weights, share, indptr=indptr)
        else:
            picks, keys = published_greedy(g, near, weights, share, indptr=indptr)
        return rows[picks], keys

    if graph_mode != "per_class":
        chosen, gains = select(kept, budget)
        return Selection.of(chosen, gains=gains)
    if score == "aum":
        raw -= raw[kept].min()
    parts = _classes(signals, kept)
    found = []
    for rows, share in zip(
        parts,
        water_fill(np.array([len(rows) for rows in parts]), budget, upstream=True).tolist(),
        strict=True,
    ):
        found.append(rows if len(rows) <= graphs.neighbours else select(rows, share)[0])
    chosen = np.concatenate(found)
    if len(chosen) > budget:
        chosen = generator.permutation(chosen)[:budget]
    missing = budget - len(chosen)
    if missing:
        chosen = np.concatenate([chosen, generator.permutation(np.setdiff1d(kept, chosen))[:missing]])
    return Selection.of(chosen, gains=raw[chosen])
