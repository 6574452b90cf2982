"""Neighbour graphs on plain arrays: checked, restricted to some samples, measured, made undirected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.embed.graph import Graph
from winnow.tasks.errors import BadInput
from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.signals import Signals

__all__ = [
    "Edges",
    "among",
    "checked_graph",
    "checked_values",
    "lengths",
    "median_length",
    "neighbourhoods",
    "rescaled",
    "symmetric",
]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

_ROWS = 1 << 18  # rows of a graph handled together, which bounds temporary memory
_NUMBERS = 1 << 18  # coordinates handled together, which fit a core's cache
_SIMILARITIES: dict[str, tuple[float, float, str, str]] = {  # range, what a value outside is, remedy
    "cosine": (
        -1.001,
        1.001,
        "no cosine",
        "give the cosine kNN graph (winnow.tasks.embed.knn.knn); to d2 features, or similarity='euclidean'",
    ),
    "euclidean": (
        -float(np.finfo(np.float32).max),
        0.0,
        "not minus a distance",
        "pass similarity='cosine', or give features",
    ),
}


def checked_graph(graph: Graph, k: int, *, similarity: str | None = None) -> Graph:
    """The first k neighbours of each sample, once checked.

    Args:
        graph: as the user gave it.
        k: neighbours needed.
        similarity: what its similarities must be, ``"cosine"`` or ``"euclidean"`` (minus a distance); None
            where they are not read.

    Raises:
        BadInput: fewer than k neighbours, the wrong shape or dtype, or a row that lists itself, a sample
            twice or a sample that does not exist, or has an impossible similarity.

    >>> checked_graph(Graph(np.array([[1], [2], [2]]), np.ones((3, 1))), 1)
    Traceback (most recent call last):
    winnow.BadInput: graph.neighbours: row 2 lists itself.
      next: leave the sample itself out of its neighbours
    """
    near, values = graph.neighbours, graph.similarity
    if near.ndim != 2 or near.dtype.kind not in "iu":
        raise BadInput(
            f"graph.neighbours must be whole numbers (N, k), got {near.dtype} of shape {near.shape}."
        )
    if values.shape != near.shape:
        raise BadInput(f"graph.similarity has shape {values.shape}, graph.neighbours {near.shape}.")
    if near.shape[1] < k:
        raise BadInput(
            f"graph: {near.shape[1]} neighbours a sample, neighbours = {k} asked for.",
            remedy=f"pass neighbours={near.shape[1]}, or a graph of at least {k}",
        )
    near, values = near[:, :k], values[:, :k]
    for rows in blocks(len(near), _ROWS):
        _check_neighbours(near[rows], rows.start, len(near))
        if similarity is not None:
            _check_similarity(values[rows], rows.start, similarity)
    return Graph(near, values)


def _check_neighbours(near: Ints, start: int, n: int) -> None:
    outside = (near < 0) | (near >= n)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise BadInput(
            f"graph.neighbours: row {start + row} lists {near[row, column]}, which is outside 0 to {n - 1}."
        )
    loops = (near == np.arange(start, start + len(near), dtype=near.dtype)[:, None]).any(axis=1)
    if loops.any():
        raise BadInput(
            f"graph.neighbours: row {start + int(loops.argmax())} lists itself.",
            remedy="leave the sample itself out of its neighbours",
        )
    by_id = np.sort(near, axis=1)
    twice = (by_id[:, 1:] == by_id[:, :-1]).any(axis=1)
    if twice.any():
        raise BadInput(f"graph.neighbours: row {start + int(twice.argmax())} lists a sample twice.")


def _check_similarity(values: Floats, start: int, kind: str) -> None:
    low, high, fault, remedy = _SIMILARITIES[kind]
    wrong = ~((values >= low) & (values <= high))  # also NaN
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise BadInput(
            f"graph.similarity: row {start + row} holds {values[row, column]}, which is {fault}.",
            remedy=remedy,
        )


def checked_values(name: str, values: Floats) -> NDArray[np.float64]:
    """Finite numbers as float64 (N,).

    Raises:
        BadInput: not a list of numbers, NaN or infinity; the message starts with ``name``.
    """
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        raise BadInput(f"{name} must be a list of numbers, got {values.dtype} of shape {values.shape}.")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise BadInput(f"{name}: row {row} is {values[row]}.")
    return values.astype(np.float64)


def among(graph: Graph, parts: Sequence[NDArray[np.int64]], k: int) -> Iterator[Graph]:
    """The graph within each part.

    Args:
        graph: of all samples, checked.
        parts: rows of each part, none of them twice.
        k: neighbours to keep per sample, the first k that lie in its part; fewer in a smaller part.

    Yields:
        The part's graph, neighbours as positions in the part; −1 where a sample has fewer.
    """
    n = len(graph)
    position = np.full(n, -1, np.int32)
    for rows in parts:
        near, similarity = graph.neighbours, graph.similarity
        if not _are_all(rows, n):
            position[rows] = np.arange(len(rows), dtype=np.int32)
            near, similarity = position[near[rows]], similarity[rows]
            position[rows] = -1
            outside = near < 0
            if outside.any():
                inside_first = np.argsort(outside, axis=1, kind="stable")[:, :k]
                near = np.take_along_axis(near, inside_first, axis=1)
                similarity = np.take_along_axis(similarity, inside_first, axis=1)
        width = min(k, len(rows) - 1)
        yield Graph(np.ascontiguousarray(near[:, :width]), np.ascontiguousarray(similarity[:, :width]))


def lengths(features: Floats, rows: NDArray[np.int64], near: Ints) -> NDArray[np.float32]:
    """Euclidean lengths of the edges, from differences: norms and products would cancel for near duplicates.

    Args:
        features: (N, D).
        rows: (M,) samples.
        near: (M, k), positions in ``rows``; what −1 yields is meaningless.
    """
    distances = np.empty(near.shape, np.float32)
    block = max(1, _NUMBERS // max(1, features.shape[1] * near.shape[1]))
    exact = np.promote_types(features.dtype, np.float32)
    for here in blocks(len(rows), block):
        ends, starts = features[rows[near[here]]], features[rows[here], None]
        apart = ends.astype(exact, copy=False) - starts.astype(exact, copy=False)
        distances[here] = np.sqrt(np.einsum("nkd,nkd->nk", apart, apart))
    return distances


def rescaled(features: Floats) -> tuple[Floats, int]:
    """Features of extreme magnitude brought near 1 by a power of two, which rounds nothing.

    In float32, squares of 10²⁰ overflow and those of 10⁻²⁰ vanish. Methods that do not depend on the scale of
    the features select the same from the rescaled ones.

    Returns:
        The features times 2⁻ᵉ, and e; the array itself and 0 for ordinary magnitudes.

    >>> rescaled(np.array([[3.0, -4.0]]))[1], rescaled(np.array([[3e20, -4e20]]))[1]
    (0, 69)
    """
    largest = max(float(features.max(initial=0.0)), -float(features.min(initial=0.0)))
    if largest == 0 or 2.0**-24 <= largest <= 2.0**20:
        return features, 0
    exponent = int(np.frexp(largest)[1])
    return np.ldexp(features, -exponent), exponent


def symmetric(neighbours: Ints, distances: Floats) -> tuple[NDArray[np.int32], Floats, NDArray[np.int64]]:
    """The undirected graph: two samples are neighbours if either lists the other.

    Args:
        neighbours: int (N, k); −1 where there is none. No row lists a sample twice.
        distances: (N, k); of two that list each other, each keeps its own.

    Returns:
        Ids and distances (E,), by row, then by id, and indptr (N + 1,).

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
    for rows in blocks(n, block):
        mine = np.arange(rows.start, rows.stop, dtype=np.int32)[:, None, None]
        one_way[rows] &= ~(neighbours[neighbours[rows]] == mine).any(axis=2)
    lister = np.repeat(np.arange(n, dtype=np.int32), k).reshape(n, k)
    source = np.concatenate([lister[present], neighbours[one_way]])
    target = np.concatenate([neighbours[present], lister[one_way]])
    values = np.concatenate([distances[present], distances[one_way]])
    matrix = sparse.coo_array((values, (source, target)), shape=(n, n)).tocsr()
    return matrix.indices, matrix.data, matrix.indptr.astype(np.int64)


def neighbourhoods(
    signals: Signals,
    parts: Sequence[NDArray[np.int64]],
    k: int,
    *,
    directed: bool,
    distance_scale: float | None,
    similarity: str,
) -> Iterator[tuple[Ints, Floats, NDArray[np.int64] | None]]:
    """The kNN graph among the samples of each part, part by part: from the given graph, or computed.

    Args:
        signals: features, a graph or both.
        parts: rows of each part.
        k: neighbours of a sample.
        directed: as the samples list one another; else undirected.
        distance_scale: σ; None takes the part's median.
        similarity: of a given graph without features, ``"cosine"`` or ``"euclidean"``.

    Yields:
        Neighbours as positions in the part, distances in units of σ, and indptr (None: rows of k).
    """
    features, exponent = rescaled(signals.features) if signals.has("features") else (None, 0)
    scale = None if distance_scale is None else float(np.ldexp(distance_scale, -exponent))
    for near, distances in _nearest(signals, features, parts, k, similarity):
        present = near >= 0
        whole = bool(present.all())
        sigma = scale or median_length(distances if whole else distances[present])
        distances = distances / np.float32(sigma)
        if not directed:
            yield symmetric(near, distances)
        elif whole:
            yield near, distances, None
        else:
            yield near[present], distances[present], np.append(0, present.sum(axis=1).cumsum())


def _nearest(
    signals: Signals, features: Floats | None, parts: Sequence[NDArray[np.int64]], k: int, similarity: str
) -> Iterator[tuple[Ints, Floats]]:
    """Neighbours and distances in each part; −1 where a sample has fewer."""
    if signals.graph is None:
        from winnow.tasks.embed.knn import knn

        assert features is not None
        for rows in parts:
            if len(rows) == 1:
                yield np.empty((1, 0), np.int32), np.empty((1, 0), np.float32)
                continue
            points = features if _are_all(rows, signals.n) else features[rows]
            graph = knn(points, min(k, len(rows) - 1), metric="euclidean")
            yield graph.neighbours, -graph.similarity
        return
    # the last column may be needed in a part
    columns = max(min(k, signals.n - 1), signals.graph.neighbours.shape[-1])
    graph = checked_graph(signals.graph, columns, similarity=similarity if features is None else None)
    for rows, part in zip(parts, among(graph, parts, k), strict=True):
        if features is not None:
            yield part.neighbours, lengths(features, rows, part.neighbours)
            continue
        values = part.similarity.astype(np.float32, copy=False)
        yield part.neighbours, np.sqrt(np.maximum(2 - 2 * values, 0)) if similarity == "cosine" else -values


def _are_all(rows: NDArray[np.int64], n: int) -> bool:
    """Whether these are all n rows, in order."""
    return len(rows) == n and bool((rows == np.arange(n)).all())


def median_length(distances: Floats) -> float:
    """Median of the distances above 0, so that duplicates do not make it 0; 1 where there are none."""
    apart = distances[distances > 0]
    middle = len(apart) // 2
    return float(np.partition(apart, middle)[middle]) if len(apart) else 1.0


@dataclass(frozen=True)
class Edges:
    """A weighted directed graph as compressed sparse rows (CSR), whose rows may differ in length.

    Args:
        indptr: int64 (N + 1,); the edges of row i are indptr[i] to indptr[i + 1].
        ids: int (E,), the samples that they lead to.
        weights: (E,).
    """

    indptr: NDArray[np.int64]
    ids: Ints
    weights: Floats

    @classmethod
    def of(cls, n: int, neighbours: Ints, weights: Floats, indptr: Ints | None) -> Edges:
        """The edges of a graph from the user, checked: (N, k) neighbours, or (E,) with ``indptr``.

        Raises:
            BadInput: shapes or dtypes that do not fit, or a neighbour out of range.
        """
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

    def __len__(self) -> int:
        """Rows, not edges."""
        return len(self.indptr) - 1

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Rows handled together, and their edges."""
        for rows in blocks(len(self), _ROWS):
            yield rows, slice(self.indptr[rows.start], self.indptr[rows.stop])

    def of_row(self, row: int) -> slice:
        """The edges of one row."""
        return slice(self.indptr[row], self.indptr[row + 1])

    def row_of(self, edge: int) -> int:
        return int(np.searchsorted(self.indptr, edge, side="right")) - 1

    def largest_weight(self) -> float:
        """max |w|.

        Raises:
            BadInput: NaN or infinity, naming the row.
        """
        largest = float(np.abs(self.weights).max(initial=0.0))
        if not np.isfinite(largest):
            edge = int(np.flatnonzero(~np.isfinite(self.weights))[0])
            raise BadInput(f"weights: row {self.row_of(edge)} holds {self.weights[edge]}.")
        return largest

    def largest_in_degree(self) -> int:
        """The largest number of edges that lead to one sample."""
        counts = np.zeros(len(self), np.int64)
        for _, edges in self.blocks():
            counts += np.bincount(self.ids[edges], minlength=len(self))
        return int(counts.max(initial=0))
