"""Submodular selection: facility location, graph cut and log determinant, greedily, dense or on the kNN graph.

Similarities are whole multiples of 1 / ``UNIT``, so that the gains of facility location and graph cut are sums of whole numbers: exact,
the same in any order, equal where samples are alike. Hence lazy and naive greedy pick the same, ties included.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.embed.graph import spans
from tasks.errors import BadInput, MissingSignal
from tasks.select.budget import order
from tasks.select.signals import Selection, Signals

__all__ = [
    "DENSE_BYTES",
    "KERNELS",
    "OPTIMIZERS",
    "UNIT",
    "FacilityLocation",
    "Kernel",
    "check",
    "facility_location",
    "graph_cut",
    "greedy",
    "log_determinant",
    "refuse_above",
    "scaled",
    "whole",
]

KERNELS = ("features", "gradients")
OPTIMIZERS = ("lazy", "naive", "stochastic", "approximate_lazy")
UNIT = 2**20  # 1 in the units that similarities are counted in: about as fine as a float32 product of 512 terms
DENSE_BYTES = 4 << 30  # the most that a dense method may keep
RIDGE = 1e-4  # added to log determinant's diagonal: float32 similarities make a singular kernel indefinite by less than that
EPSILON = 0.01  # stochastic greedy: the expected value is within 1 − 1/e − ε of the best
BETA = 0.9  # approximate lazy greedy: a gain this close to the highest bound is accepted

_TILE = 256  # rows and columns of a tile, which a core's cache holds
_SWEEP = 8  # bounds that a sweep computes again together; an eighth of those it has computed where that is more
_THIN = 64  # similarities a sample that still count, on average, from where on a list of them is faster than the dense kernel
_GRAIN = 2.0**-40  # what is left of a variance is rounded to it, so that copies are tied
_ROUNDS = 200  # of a stage before the rest goes to a heap
_COLUMNS = 64  # of the kernel, computed together
_ELEMENTS = 1 << 18  # looked at together, which bounds temporary memory

Numbers = NDArray[Any]


# -- similarities ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """s_ij = 0.5 + 0.5 cos(x_i, x_j), or of last-layer gradients g_i = r_i ⊗ [h_i, 1], kept as their factors.

    cos(g_i, g_j) = cos(r_i, r_j) · cos([h_i, 1], [h_j, 1]). A vector of zeros has cosine 0 with all others; s_ii = 1.

    Args:
        vectors: float32 (N, D), unit length or zero: features, or [h, 1].
        residuals: float32 (N, C), unit length or zero; None for the kernel of features.
    """

    vectors: NDArray[np.float32]
    residuals: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, signals: Signals, kernel: str) -> Kernel:
        """The kernel of that name.

        Raises:
            MissingSignal: gradients without residuals.
        """
        assert signals.features is not None
        if kernel == "features":
            return cls(_unit(signals.features))
        if signals.residuals is None:
            raise MissingSignal(
                "kernel='gradients' needs residuals; none are given.",
                remedy="give softmax outputs minus one-hot labels of a trained network, or pass kernel='features'",
            )
        with_bias = np.ones((signals.n, signals.features.shape[1] + 1), np.result_type(signals.features, np.float32))
        with_bias[:, :-1] = signals.features
        return cls(_unit(with_bias), _unit(signals.residuals))

    def __len__(self) -> int:
        return len(self.vectors)

    def tile(self, rows: Any, columns: Any) -> NDArray[np.int32]:
        """Similarities of some rows with some columns, in units; the diagonal is not yet 1."""
        tile = self.vectors[rows] @ self.vectors[columns].T
        if self.residuals is not None:
            tile *= self.residuals[rows] @ self.residuals[columns].T
        return scaled(tile)

    def sums(self) -> NDArray[np.int64]:
        """Σ_{j ≠ i} s_ij in units, from the sum of all vectors: the kernel itself is not needed."""
        n = len(self)
        chunks = [slice(start, start + 4096) for start in range(0, n, 4096)]
        if self.residuals is None:
            total = np.sum([self.vectors[rows].sum(0, dtype=np.float64) for rows in chunks], axis=0)
        else:
            total = np.sum([self.residuals[rows].T.astype(np.float64) @ self.vectors[rows] for rows in chunks], axis=0)
        cosines = np.empty(n)
        for rows in chunks:
            vectors = self.vectors[rows].astype(np.float64)
            cosines[rows] = vectors @ total if self.residuals is None else ((self.residuals[rows] @ total) * vectors).sum(1)
            own = np.einsum("nd,nd->n", vectors, vectors)
            cosines[rows] -= own if self.residuals is None else own * (self.residuals[rows] != 0).any(1)
        return np.rint((0.5 * (n - 1) + 0.5 * cosines) * UNIT).astype(np.int64)


def scaled(cosines: NDArray[np.float32]) -> NDArray[np.int32]:
    """0.5 + 0.5 cos in units; overwrites its argument.

    >>> (scaled(np.array([-1.0, 0.0, 1.0], np.float32)) / UNIT).tolist()
    [0.0, 0.5, 1.0]
    """
    cosines *= UNIT // 2
    cosines += UNIT // 2
    return whole(cosines)


def whole(similarities: NDArray[np.float32]) -> NDArray[np.int32]:
    """Similarities in units, rounded and within 0 … 1; overwrites its argument."""
    np.clip(similarities, 0, UNIT, out=similarities)
    similarities += 0.5
    return similarities.astype(np.int32)


def _unit(vectors: Numbers) -> NDArray[np.float32]:
    """Rows of length 1, or 0; divided by their largest entry first, so that no square is too large or too small."""
    largest = np.abs(vectors).max(axis=1, keepdims=True).astype(np.float64)
    unit = (vectors / np.where(largest > 0, largest, 1).astype(np.promote_types(vectors.dtype, np.float32))).astype(np.float32)
    length = np.sqrt(np.einsum("nd,nd->n", unit, unit))[:, None]
    return np.divide(unit, length, out=unit, where=length > 0)


class Tiles(Protocol):
    """Whatever has symmetric similarities."""

    def __len__(self) -> int: ...

    def tile(self, rows: Any, columns: Any) -> NDArray[np.int32]: ...


def dense(kernel: Tiles) -> NDArray[np.int32]:
    """All similarities in units, int32 (N, N): each tile is computed once and stored twice."""
    n = len(kernel)
    matrix = np.empty((n, n), np.int32)
    for start in range(0, n, _TILE):
        rows = slice(start, start + _TILE)
        for other in range(start, n, _TILE):
            columns = slice(other, other + _TILE)
            tile = kernel.tile(rows, columns)
            matrix[rows, columns] = tile if other > start else np.maximum(tile, tile.T)
            if other > start:
                matrix[columns, rows] = tile.T
    np.fill_diagonal(matrix, UNIT)
    return matrix


def refuse_above(needed: int, what: str, remedy: str) -> None:
    """Refuse what would take more than ``DENSE_BYTES``.

    Raises:
        BadInput: it would.
    """
    if needed > DENSE_BYTES:
        raise BadInput(f"{what} takes {needed / 2**30:.1f} GiB, more than {DENSE_BYTES / 2**30:.3g} GiB.", remedy=remedy)


def check_dense(n: int, budget: int, *, neighbours: int | None = None, upstream: bool = False, **_: Any) -> None:
    """Refuse a dense kernel that is too large, before anything is computed.

    Raises:
        BadInput: with its size, and what to do instead.
    """
    if neighbours is None:
        instead = "pass balanced=True" if upstream else "pass neighbours=100 for the kNN-sparse kernel, or balanced=True"
        refuse_above(4 * n * n, f"the dense kernel of {n:,} samples", instead)


def check_factor(n: int, budget: int, *, kernel: str = "features", upstream: bool = False, **_: Any) -> None:
    """Refuse a Cholesky factor of gradients that is too large, before anything is computed.

    Raises:
        BadInput: with its size, and what to do instead.
    """
    if kernel == "gradients" or upstream:
        what = f"the Cholesky factor of {budget:,} picks of {n:,} samples"
        refuse_above(8 * n * budget, what, "pass kernel='features', select fewer, or per class: balanced=True")


def sparse_kernel(ids: Numbers, similarity: NDArray[np.int32]) -> Any:
    """The kNN-sparse kernel as SciPy CSR, int32 in units: row i has the sample itself and its nearest neighbours.

    Args:
        ids: int (N, k).
        similarity: int32 (N, k), in units.
    """
    from scipy import sparse

    n, width = len(ids), ids.shape[1] + 1
    columns, values = np.empty((n, width), np.int32), np.empty((n, width), np.int32)
    columns[:, 0], values[:, 0] = np.arange(n), UNIT
    columns[:, 1:], values[:, 1:] = ids, similarity
    starts = np.arange(0, n * width + 1, width, dtype=np.int64 if n * width > np.iinfo(np.int32).max else np.int32)
    return sparse.csr_array((values.ravel(), columns.ravel(), starts), shape=(n, n))


def nearest(kernel: Tiles, k: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The k most similar others of each sample, int (N, k), and the similarities in units; a few rows of the kernel at a time."""
    import torch

    n = len(kernel)
    ids, similarity = np.empty((n, k), np.int64), np.empty((n, k), np.int32)
    block = max(1, (_ELEMENTS << 6) // n)
    for start in range(0, n, block):
        rows = np.arange(start, min(start + block, n))
        tile = kernel.tile(rows, slice(None))
        tile[np.arange(len(rows)), rows] = -1
        found = torch.topk(torch.from_numpy(tile), k)
        ids[rows], similarity[rows] = found.indices.numpy(), found.values.numpy()
    return ids, similarity


def _nearest_of(signals: Signals, kernel: str, neighbours: int) -> Any:
    """The kNN-sparse kernel of that name; the given graph's, where there is one of features."""
    k = min(neighbours, signals.n - 1)
    if kernel == "gradients" or k == 0:
        return sparse_kernel(*nearest(Kernel.of(signals, kernel), k))
    if signals.graph is None:
        from tasks.embed.knn import knn

        assert signals.features is not None
        graph = knn(signals.features, k)
    else:
        graph = signals.graph
        _check_graph(graph.neighbours, graph.similarity, k)
    return sparse_kernel(graph.neighbours[:, :k], scaled(graph.similarity[:, :k].astype(np.float32)))


def _check_graph(near: Numbers, similarity: Numbers, k: int) -> None:
    n = len(near)
    if near.ndim != 2 or near.dtype.kind not in "iu" or similarity.shape != near.shape:
        raise BadInput(f"graph: neighbours {near.dtype} of shape {near.shape} with similarity of shape {similarity.shape}.")
    if near.shape[1] < k:
        raise BadInput(
            f"graph: {near.shape[1]} neighbours a sample, {k} were asked for.",
            remedy=f"pass neighbours={near.shape[1]}, or a graph of at least {k}",
        )
    near, similarity = near[:, :k], similarity[:, :k]
    ordered = np.sort(near, axis=1)
    faults = {
        f"lists a sample outside 0 to {n - 1}": (ordered[:, 0] < 0) | (ordered[:, -1] >= n),
        "lists itself": (near == np.arange(n)[:, None]).any(1),
        "lists a sample twice": (ordered[:, 1:] == ordered[:, :-1]).any(1),
        "has a similarity that is no cosine": ~((similarity >= -1.001) & (similarity <= 1.001)).all(1),
    }
    for fault, rows in faults.items():
        if rows.any():
            raise BadInput(f"graph: row {int(rows.argmax())} {fault}.", remedy="give the cosine kNN graph: tasks.embed.knn.knn")


# -- functions: the gain of each sample, given the picks so far -------------------------------------------------------------


class Function(Protocol):
    """A set function as the greedy optimisers see it.

    Attributes:
        sweeping: whether a pick visits every sample anyway, so that all gains are known and naive greedy is as fast as lazy.
        thin: whether it is time to go on with its ``rest``.
    """

    sweeping: bool
    thin: bool

    def __len__(self) -> int: ...

    def gains(self, rows: NDArray[np.int64]) -> Numbers:
        """What each of these samples would add."""
        ...

    def add(self, row: int) -> None:
        """Pick a sample."""
        ...


class FacilityLocation:
    """f(S) = Σ_i max_{j ∈ S} s_ij on a dense kernel; a gain is computed when it is asked for.

    Once there are t picks, about one similarity in t is above max_{j ∈ S} s_ij, and no other counts from then on. ``thin`` says that they
    have become so few that a list of them, ``rest``, is the faster way to go on.

    Args:
        kernel: int32 (candidates, items) in units, not negative.
    """

    sweeping = False

    def __init__(self, kernel: NDArray[np.int32]) -> None:
        self.kernel = kernel
        self.covered = np.zeros(kernel.shape[1], np.int32)
        self.total = self.picks = 0
        self.thin = False
        self._first = np.zeros(len(kernel), np.int64)
        width = 2**32 // UNIT - 1  # what fits in 32 bits is summed several times as fast
        for start in range(0, kernel.shape[1], width):
            self._first += kernel[:, start : start + width].view(np.uint32).sum(1, dtype=np.uint32)
        self._block = np.empty((max(1, _ELEMENTS // 2 // kernel.shape[1]), kernel.shape[1]), np.int32)

    def __len__(self) -> int:
        return len(self.kernel)

    def gains(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.total:
            return self._first[rows]
        found = np.empty(len(rows), np.int64)
        small = len(self.covered) * UNIT - self.total < 2**32  # no gain is larger: sums modulo 2³² tell it, and are faster
        for start in range(0, len(rows), len(self._block)):
            part = rows[start : start + len(self._block)]
            block = self._block[: len(part)]
            for place, row in enumerate(part):  # np.take would copy each row first
                np.maximum(self.kernel[row], self.covered, out=block[place])
            if small:
                found[start : start + len(part)] = block.view(np.uint32).sum(1, dtype=np.uint32) - np.uint32(self.total % 2**32)
            else:
                found[start : start + len(part)] = block.sum(1, dtype=np.int64) - self.total
        return found

    def add(self, row: int) -> None:
        np.maximum(self.covered, self.kernel[row], out=self.covered)
        self.total = int(self.covered.sum(dtype=np.int64))
        self.picks += 1
        if self.picks >= 8 and self.picks & (self.picks - 1) == 0:  # a power of two
            some = self.kernel[:: max(1, len(self.kernel) // 256)]
            self.thin = bool(np.count_nonzero(some > self.covered) <= _THIN * len(some))

    def rest(self) -> SparseFacilityLocation:
        """The same function from here on, of what still counts."""
        from scipy import sparse

        n, width = self.kernel.shape
        counts, items, weights = np.zeros(n + 1, np.int64), [], []
        step = max(1, _ELEMENTS // width)
        for start in range(0, n, step):
            block = self.kernel[start : start + step]
            places = np.flatnonzero(block > self.covered)  # several times as fast as in two dimensions
            candidate, item = np.divmod(places, width)
            counts[start + 1 : start + 1 + len(block)] = np.bincount(candidate, minlength=len(block))
            items.append(item.astype(np.int32))
            weights.append(block[candidate, item])
        starts = counts.cumsum()
        better = sparse.csr_array((np.concatenate(weights), np.concatenate(items), starts), shape=self.kernel.shape)
        return SparseFacilityLocation(better.T, self.covered)


class _Kept:
    """Gains that are kept up to date by each pick."""

    sweeping = True
    thin = False
    value: Numbers

    def __len__(self) -> int:
        return len(self.value)

    def gains(self, rows: NDArray[np.int64]) -> Numbers:
        return self.value[rows]


class SparseFacilityLocation(_Kept):
    """f(S) = Σ_i max(c_i, max_{j ∈ S} s_ij) where few s_ij are above c_i; a pick changes the gains of what shares an item with it.

    Args:
        better: SciPy sparse (items, candidates), int32 in units: the s_ij above c_i.
        covered: c, int32 (items,) in units, which is overwritten; default 0.
    """

    sweeping = False

    def __init__(self, better: Any, covered: NDArray[np.int32] | None = None) -> None:
        if covered is None:
            covered = np.zeros(better.shape[0], np.int32)
        by_item, by_candidate = better.tocsr(), better.tocsc()
        self.candidate_starts, self.candidates, self.similarity = by_item.indptr, by_item.indices, by_item.data
        self.starts, self.items, self.weights = by_candidate.indptr, by_candidate.indices, by_candidate.data
        self.covered = covered
        self.value = np.zeros(better.shape[1], np.int64)
        filled = np.flatnonzero(np.diff(self.starts))  # reduceat would give an empty list the next one's first number
        if len(filled):
            self.value[filled] = np.add.reduceat(self.weights - covered[self.items], self.starts[filled], dtype=np.int64)

    def add(self, row: int) -> None:
        own = slice(self.starts[row], self.starts[row + 1])
        items, after = self.items[own], self.weights[own]
        rises = after > self.covered[items]
        self.cover(items[rises], after[rises])

    def cover(self, items: NDArray[Any], after: NDArray[np.int32]) -> None:
        """Represent these items, each of which is there once, this well, which is better than before."""
        for start in range(0, len(items), _ELEMENTS // 8):
            part = slice(start, start + _ELEMENTS // 8)
            positions, counts = spans(self.candidate_starts, items[part])
            before = np.repeat(self.covered[items[part]], counts)
            lost = np.minimum(self.similarity[positions], np.repeat(after[part], counts))
            lost -= before
            np.maximum(lost, 0, out=lost)
            np.subtract.at(self.value, self.candidates[positions], lost)
        self.covered[items] = after

    def edges(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int32]]:
        """Items that some candidates would represent better than they are now: item, candidate, similarity."""
        positions, counts = spans(self.starts, rows)
        items, weights, candidates = self.items[positions], self.weights[positions], np.repeat(rows, counts)
        better = weights > self.covered[items]
        return items[better], candidates[better], weights[better]


class _SparseGraphCut(_Kept):
    """Graph cut on the undirected kNN graph; a pick changes the gains of its neighbours."""

    sweeping = False

    def __init__(self, listed: Any) -> None:
        both = listed.maximum(listed.T.tocsr()).tocsr()
        self.starts, self.ids, self.weights = both.indptr, both.indices, both.data.astype(np.int64)
        self.value = np.add.reduceat(self.weights, self.starts[:-1]) - UNIT

    def add(self, row: int) -> None:
        own = slice(self.starts[row], self.starts[row + 1])
        self.value[self.ids[own]] -= 2 * self.weights[own]


class _Columns:
    """Columns of the kernel, in units: with the one that is asked for come those of the next best samples, in one product."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.place: dict[int, int] = {}
        self.block = np.empty((0, len(kernel)), np.int32)

    def get(self, row: int, value: Numbers, picked: NDArray[np.bool_]) -> NDArray[np.int64]:
        if row not in self.place:
            count = min(_COLUMNS, len(value))
            likely = np.argpartition(np.where(picked, -np.inf, value), len(value) - count)[-count:]
            rows = np.unique(np.append(likely[~picked[likely]], row))
            self.place = {int(each): place for place, each in enumerate(rows)}
            self.block = self.kernel.tile(rows, slice(None))
        column = self.block[self.place[row]].astype(np.int64)
        column[row] = UNIT
        return column


class _GraphCut(_Kept):
    """Graph cut on the dense kernel, of which only the picks' columns are computed."""

    def __init__(self, kernel: Kernel) -> None:
        self.columns = _Columns(kernel)
        self.value = kernel.sums()
        self.picked = np.zeros(len(kernel), bool)

    def add(self, row: int) -> None:
        self.value -= 2 * self.columns.get(row, self.value, self.picked)
        self.picked[row] = True


class _LogDeterminant(_Kept):
    """log det of the kernel among the picks, by a Cholesky factor that grows with each pick; gains in natural units."""

    def __init__(self, kernel: Kernel, budget: int) -> None:
        self.columns = _Columns(kernel)
        self.factor = np.empty((budget, len(kernel)))
        self.left = np.full(len(kernel), 1 + RIDGE)  # variance that the picks do not explain
        self.value = np.log(self.left)
        self.picked = np.zeros(len(kernel), bool)
        self.count = 0

    def add(self, row: int) -> None:
        column = self.columns.get(row, self.value, self.picked) / UNIT
        column[row] += RIDGE
        done = self.factor[: self.count]
        new = (column - done[:, row] @ done) / math.sqrt(self.left[row])
        self.factor[self.count] = new
        self.count += 1
        self.left = np.maximum(self.left - new * new, RIDGE)  # what is left is at least that, but for rounding
        self.value = np.log(self.left)
        self.picked[row] = True


class _LogDeterminantOfFeatures(_Kept):
    """The same of S = ΦΦᵀ with few columns, φ = [1, x] / √2, in memory that does not grow with the picks.

    A gain is the logarithm of λ + s_xx − s_xA (S_A + λI)⁻¹ s_Ax = σ_x² + φ_xᵀ P φ_x with σ² = λ + s_xx − φᵀφ and

        P = (I + Σ_{a ∈ A} φ_a φ_aᵀ / σ_a²)⁻¹

    so that a pick takes (Pφ)(Pφ)ᵀ / (σ² + φᵀPφ) off P, and the square of φ_xᵀPφ over the same off what is left of x.
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        n, dim = vectors.shape
        self.phi = np.empty((n, dim + 1))
        self.phi[:, 0], self.phi[:, 1:] = math.sqrt(0.5), math.sqrt(0.5) * vectors
        self.own = np.maximum(1 + RIDGE - np.einsum("nd,nd->n", self.phi, self.phi), RIDGE)  # σ²
        self.inverse = np.eye(dim + 1)
        self.left = np.full(n, 1 + RIDGE)
        self.value = np.log(self.left)

    def add(self, row: int) -> None:
        seen = self.inverse @ self.phi[row]
        explained = float(self.own[row] + self.phi[row] @ seen)
        self.inverse -= np.outer(seen / explained, seen)
        self.left = np.maximum(self.left - np.square(self.phi @ seen) / explained, RIDGE)
        self.value = np.log(np.rint(self.left / _GRAIN) * _GRAIN)


# -- greedy ---------------------------------------------------------------------------------------------------------------


def greedy(
    function: Function, budget: int, optimizer: str, keys: NDArray[np.float64], generator: np.random.Generator
) -> tuple[NDArray[np.int64], Numbers]:
    """Pick the sample of largest gain, again and again.

    Args:
        function: of N samples, none picked; gains never rise.
        budget: k, samples to pick.
        optimizer: one of ``OPTIMIZERS``.
        keys: (N,), all different; of equal gains, the lowest is picked first.
        generator: of the stochastic optimiser's draws.

    Returns:
        int64 (k,) picks in order, and their gains when picked.

    >>> kernel = np.array([[4, 3, 0], [3, 4, 0], [0, 0, 4]], np.int32)
    >>> picks, gains = greedy(FacilityLocation(kernel), 2, "lazy", np.array([0.1, 0.2, 0.3]), np.random.default_rng(0))
    >>> picks.tolist(), gains.tolist()
    ([0, 2], [7, 4])
    """
    if optimizer == "stochastic":
        return _stochastic(function, budget, keys, generator)
    if optimizer == "naive" or (optimizer == "lazy" and function.sweeping):
        return _naive(function, budget, keys)
    untaken = np.arange(len(function))
    beta = 1.0 if optimizer == "lazy" else BETA
    if isinstance(function, FacilityLocation):
        picks, gains = _in_sweeps(function, budget, keys) if beta == 1 else _lazy(function, budget, keys, beta, untaken)
        if len(picks) == budget:
            return picks, gains
        more, their_gains = _go_on(function.rest(), budget - len(picks), keys, beta, np.setdiff1d(untaken, picks))
        return np.concatenate([picks, more]), np.concatenate([gains, their_gains])
    return _go_on(function, budget, keys, beta, untaken)


def _go_on(
    function: Function, budget: int, keys: NDArray[np.float64], beta: float, untaken: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Numbers]:
    if beta == 1 and isinstance(function, SparseFacilityLocation):
        return _in_rounds(function, budget, keys, untaken)
    return _lazy(function, budget, keys, beta, untaken)


def _naive(function: Function, budget: int, keys: NDArray[np.float64]) -> tuple[NDArray[np.int64], Numbers]:
    left = np.arange(len(function))
    picks, gains = [], []
    for _ in range(budget):
        found = function.gains(left)
        level = np.flatnonzero(found == found.max())
        place = level[keys[left[level]].argmin()]
        picks.append(left[place])
        gains.append(found[place])
        function.add(int(left[place]))
        left[place] = left[-1]
        left = left[:-1]
    return np.array(picks), np.array(gains)


def _stochastic(
    function: Function, budget: int, keys: NDArray[np.float64], generator: np.random.Generator
) -> tuple[NDArray[np.int64], Numbers]:
    """Looks at ⌈N/k · ln(1/ε)⌉ random samples for each pick."""
    n = len(function)
    size = math.ceil(n / budget * math.log(1 / EPSILON))
    left = np.arange(n)
    picks, gains = [], []
    for step in range(budget):
        drawn = generator.choice(n - step, min(size, n - step), replace=False, shuffle=False)
        rows = left[drawn]
        found = function.gains(rows)
        level = np.flatnonzero(found == found.max())
        place = level[keys[rows[level]].argmin()]
        picks.append(rows[place])
        gains.append(found[place])
        function.add(int(rows[place]))
        left[drawn[place]] = left[n - step - 1]  # the last takes its place
    return np.array(picks), np.array(gains)


def _lazy(
    function: Function, budget: int, keys: NDArray[np.float64], beta: float, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Numbers]:
    """A gain computed earlier bounds the present one from above: only the highest bounds are computed again.

    With β = 1 the picks are the naive ones. Below, a sample is taken if its gain g is not far under its bound b: g ≥ b − (1 − β)|b|.
    Ends early when the function has become thin.
    """
    bounds = function.gains(rows)
    ordered = order(-bounds, keys[rows])
    rows, bounds = rows[ordered], bounds[ordered]
    heap = list(zip((-bounds).tolist(), keys[rows].tolist(), rows.tolist(), strict=True))  # sorted, hence a heap
    seen = [0] * len(function)  # how many picks there were when the bound was computed
    picks: list[int] = []
    gains: list[float] = []
    while len(picks) < budget and not function.thin:
        negative, key, row = heapq.heappop(heap)
        if seen[row] != len(picks):
            seen[row] = len(picks)
            gain = function.gains(np.array([row]))[0].item()
            if gain < -negative - (1 - beta) * abs(negative):
                heapq.heappush(heap, (-gain, key, row))
                continue
            negative = -gain
        picks.append(row)
        gains.append(-negative)
        function.add(row)
    return np.array(picks), np.array(gains)


def _in_sweeps(function: FacilityLocation, budget: int, keys: NDArray[np.float64]) -> tuple[NDArray[np.int64], Numbers]:
    """Lazy greedy where gains cost much and are computed by the thousand: for each pick, bounds from the highest down are computed again,
    many together, until the largest gain found is ahead of the next bound. Ends early when the function has become thin.
    """
    rows = np.arange(len(function))
    bounds = function.gains(rows)
    picks: list[np.int64] = []
    gains: list[np.int64] = []
    while len(picks) < budget and not function.thin:
        rows = rows[order(-bounds[rows], keys[rows])]
        best, done = rows[0], 0
        while done < len(rows) and (done == 0 or (-bounds[rows[done]], keys[rows[done]]) < (-bounds[best], keys[best])):
            part = rows[done : done + max(_SWEEP, done // 8)]
            if picks:  # before the first, bounds are gains
                bounds[part] = function.gains(part)
            leader = part[order(-bounds[part], keys[part])[0]]
            if done == 0 or (-bounds[leader], keys[leader]) < (-bounds[best], keys[best]):
                best = leader
            done += len(part)
        picks.append(best)
        gains.append(bounds[best])
        function.add(int(best))
        rows = rows[rows != best]
    return np.array(picks), np.array(gains)


def _in_rounds(
    function: SparseFacilityLocation, budget: int, keys: NDArray[np.float64], untaken: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Numbers]:
    """The greedy picks of sparse facility location, many at a time.

    Gains only fall, so that samples are picked in the order of the gains that they are picked with. Let a outrank b if its gain is larger,
    or the same and its key lower. A sample that outranks all others that share an item with it keeps its gain until it is picked: the
    others fall further, and come later. A round takes all such samples together; no two of them share an item. As in ``d2.greedy``, a stage
    looks at the R highest samples only, with R picks to go: who is taken there is outranked by fewer than R to the end, and who falls below
    the lowest of them is left to the next stage. One sort by gain, at the end, gives the order of picks. A stage of many rounds, such as
    a long chain of samples that wait for one another, leaves the rest to the heap.
    """
    n = len(function)
    value = function.value
    best, lowest = np.full(n, -1, np.int64), np.full(n, np.inf)  # of an item: the largest gain, and the lowest key that has it
    marked = np.zeros(n, bool)
    taken = np.ones(n, bool)
    taken[untaken] = False
    picks, gains = [], []
    left = budget
    while left:
        waiting = _highest(np.where(taken, -1, value), keys, left)
        floor = value[waiting].min()
        last = keys[waiting[value[waiting] == floor]].max()
        items, candidates, weights = function.edges(waiting)
        for _ in range(_ROUNDS):
            gain = value[candidates]
            np.maximum.at(best, items, gain)
            top = np.flatnonzero(gain == best[items])
            np.minimum.at(lowest, items[top], keys[candidates[top]])
            wins = np.zeros(len(items), bool)
            wins[top] = keys[candidates[top]] == lowest[items[top]]
            best[items], lowest[items] = -1, np.inf
            marked[candidates[~wins]] = True  # outranked
            winners = waiting[~marked[waiting]]
            marked[waiting] = False

            picks.append(winners)
            gains.append(value[winners])
            taken[winners] = True
            left -= len(winners)
            ours = taken[candidates]
            function.cover(items[ours], weights[ours])
            waiting = waiting[~taken[waiting]]
            now = value[waiting]
            waiting = waiting[(now > floor) | ((now == floor) & (keys[waiting] <= last))]
            if not len(waiting):
                break
            marked[waiting] = True
            remain = marked[candidates] & (weights > function.covered[items])
            marked[waiting] = False
            items, candidates, weights = items[remain], candidates[remain], weights[remain]
        else:
            rest, their_gains = _lazy(function, left, keys, 1.0, np.flatnonzero(~taken))
            picks.append(rest)
            gains.append(their_gains)
            break
    chosen, values = np.concatenate(picks), np.concatenate(gains)
    by_gain = order(-values, keys[chosen])
    return chosen[by_gain], values[by_gain]


def _highest(value: NDArray[np.int64], keys: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The samples of largest value, ties by lowest key."""
    least = np.partition(value, len(value) - count)[len(value) - count]
    above, level = np.flatnonzero(value > least), np.flatnonzero(value == least)
    return np.concatenate([above, level[np.argsort(keys[level])[: count - len(above)]]])


# -- the selectors --------------------------------------------------------------------------------------------------------


def check(optimizer: str, neighbours: int | None, *, upstream: bool = False) -> None:
    """Refuse an optimiser that there is not, and a number of neighbours that is none.

    Raises:
        BadInput: naming it; with ``upstream``, also what has no published output worth replaying.
    """
    if optimizer not in OPTIMIZERS:
        raise BadInput(f"optimizer = {optimizer!r} is none of {', '.join(OPTIMIZERS)}.")
    if upstream and optimizer not in ("lazy", "naive"):
        raise BadInput(
            f"optimizer = {optimizer!r} with upstream=True: the published one picks at random or may never end.",
            remedy="pass optimizer='lazy' or 'naive', or leave upstream out",
        )
    if neighbours is None:
        return
    if isinstance(neighbours, bool) or not isinstance(neighbours, int | np.integer) or neighbours < 1:
        raise BadInput(f"neighbours = {neighbours!r}: give a whole number of at least 1, or None for the dense kernel.")
    if upstream:
        raise BadInput(f"neighbours = {neighbours} with upstream=True: the published kernel is dense.", remedy="leave neighbours out")


def _check(kernel: str, neighbours: int | None, optimizer: str, upstream: bool) -> None:
    check(optimizer, neighbours, upstream=upstream)
    if kernel not in KERNELS:
        raise BadInput(f"kernel = {kernel!r} is none of {', '.join(KERNELS)}.")


def in_order(signals: Signals, keys: NDArray[np.float64], *, graph: bool = False) -> tuple[Signals, NDArray[np.int64], NDArray[np.float64]]:
    """The samples in the order of their ids, so that neither rounding nor draws depend on how they are stored.

    Args:
        signals: of N samples.
        keys: (N,), as the rows are stored.
        graph: keep the graph.

    Returns:
        The signals, the rows that they were, and their keys.
    """
    rows = np.arange(signals.n) if signals.ids is None else np.argsort(signals.ids, kind="stable")
    if (rows[1:] > rows[:-1]).all():
        return signals, rows, keys
    moved = signals.rows(rows)
    if graph and signals.graph is not None:
        from dataclasses import replace

        from tasks.embed.graph import Graph

        near, similarity = signals.graph.neighbours, signals.graph.similarity
        _check_graph(near, similarity, max(1, near.shape[-1]))
        place = np.empty(signals.n, np.int32)
        place[rows] = np.arange(signals.n, dtype=np.int32)
        moved = replace(moved, graph=Graph(place[near[rows]], similarity[rows]))
    return moved, rows, keys[rows]


def facility_location(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    kernel: str = "features",
    neighbours: int | None = None,
    optimizer: str = "lazy",
    upstream: bool = False,
) -> Selection:
    """Keep samples such that each sample has a similar one among them: greedy facility location.

    With s_ij = 0.5 + 0.5 cos(x_i, x_j), the picks maximise greedily

        f(S) = Σ_i max_{j ∈ S} s_ij,    gain of x = Σ_i max(0, s_ix − max_{j ∈ S} s_ij)

    which is monotone and submodular: the greedy value is at least 1 − 1/e of the best. With ``neighbours`` a sample can be represented by
    itself and its nearest neighbours only; other similarities count as 0. Similarities are rounded to 2⁻²⁰, and gains are then exact.

    Args:
        signals: features; residuals for the kernel of gradients; the cosine kNN graph is taken if given and ``neighbours`` is asked for.
        budget: k, samples to keep.
        generator: breaks ties, and draws for the stochastic optimiser.
        kernel: ``"features"``, or ``"gradients"`` for x = r ⊗ [h, 1], the last layer's gradients, with residuals r and features h.
        neighbours: of a sample in the kNN-sparse kernel; None for the dense one.
        optimizer: ``"lazy"`` and ``"naive"`` pick the same; ``"stochastic"`` looks at ⌈N/k · ln 100⌉ random samples for each pick;
            ``"approximate_lazy"`` accepts a gain of 0.9 of the highest bound.
        upstream: replay the published code, which has the kernel of gradients only.

    Returns:
        Selection in pick order: a smaller coreset is the beginning of a larger one (but with ``"stochastic"``); gains are those of f.

    Raises:
        BadInput: a parameter or graph that cannot be used, or a dense kernel of more than 4 GiB (N > 32,768).
        MissingSignal: gradients without residuals.

    Cost:
        Dense: N²·D/2 multiplications, 4·N² bytes, and some five sweeps over the kernel. kNN-sparse: the graph, then O(k)
        visits of a pick's surroundings; O(N · neighbours) memory.

    References:
        Mirzasoleiman, Karbasi, Sarkar and Krause, Distributed Submodular Maximization, NeurIPS 2013; Minoux, Accelerated Greedy Algorithms,
        1978; Mirzasoleiman et al., Lazier Than Lazy Greedy, AAAI 2015; Lindgren, Wu and Dimakis, Leveraging Sparsity for Efficient
        Submodular Data Summarization, NeurIPS 2016. Guo, Zhao and Bai, DeepCore, DEXA 2022.
        Upstream: DeepCore@74ec709 deepcore/methods/submodular.py, methods_utils/submodular_function.py, submodular_optimizer.py.

    Differences from upstream:
        Features by default (upstream: gradients, written out). Picks keep their order, ties go by the generator (upstream: the first).
        The stochastic optimiser looks at 46 samples a pick at 10 % (upstream: at one, which is random selection).

    >>> s = Signals(n=4, features=np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]]))
    >>> facility_location(s, 2, generator=np.random.default_rng(0)).indices.tolist()
    [2, 3]
    """
    _check(kernel, neighbours, optimizer, upstream)
    given, rows, keys = _prepared(signals, generator, neighbours, upstream)
    function: Function
    if neighbours is not None:
        function = SparseFacilityLocation(_nearest_of(given, kernel, neighbours))
    else:
        check_dense(signals.n, budget, upstream=upstream)
        function = FacilityLocation(dense(Kernel.of(given, "gradients" if upstream else kernel)))
    return _selection(*greedy(function, budget, optimizer, keys, generator), rows, UNIT)


def graph_cut(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    kernel: str = "features",
    neighbours: int | None = None,
    optimizer: str = "lazy",
    upstream: bool = False,
) -> Selection:
    """Keep samples that are similar to the rest and not to one another: greedy graph cut.

    With s_ij = 0.5 + 0.5 cos(x_i, x_j), the picks maximise greedily

        f(S) = Σ_{i ∈ V} Σ_{j ∈ S} s_ij − Σ_{i, j ∈ S} s_ij,    gain of x = Σ_{i ≠ x} s_ix − 2 Σ_{j ∈ S} s_jx

    that is, the weight of the edges between S and the rest. It is submodular but not monotone: from about half of the samples on, gains are
    negative, and the budget is filled all the same. With ``neighbours``, two samples have an edge if either lists the other.

    Args:
        signals: features; residuals for the kernel of gradients; the cosine kNN graph is taken if given and ``neighbours`` is asked for.
        budget: k, samples to keep.
        generator: breaks ties, and draws for the stochastic optimiser.
        kernel: ``"features"``, or ``"gradients"`` for x = r ⊗ [h, 1], the last layer's gradients, with residuals r and features h.
        neighbours: of a sample in the kNN-sparse kernel; None for the dense one.
        optimizer: ``"lazy"`` and ``"naive"`` pick the same; ``"stochastic"`` looks at ⌈N/k · ln 100⌉ random samples for each pick;
            ``"approximate_lazy"`` accepts a gain g of g ≥ b − 0.1·|b|, with b the highest bound.
        upstream: replay the published code, which has the kernel of gradients only.

    Returns:
        Selection in pick order: a smaller coreset is the beginning of a larger one (but with ``"stochastic"``); gains are those of f.

    Raises:
        BadInput: a parameter or graph that cannot be used.
        MissingSignal: gradients without residuals.

    Cost:
        Dense: N·k·D multiplications, in products of 64 columns, or fewer; O(N·D) memory, the kernel is never written out. kNN-sparse: the
        graph, then O(k · neighbours); O(N · neighbours) memory.

    References:
        Iyer, Khargoankar, Bilmes and Asanani, Submodular Combinatorial Information Measures with Applications in Machine Learning, ALT
        2021. Guo, Zhao and Bai, DeepCore, DEXA 2022.
        Upstream: DeepCore@74ec709 deepcore/methods/submodular.py, methods_utils/submodular_function.py, submodular_optimizer.py.

    Differences from upstream:
        As facility_location. Approximate lazy greedy ends (upstream: a negative gain is never within 0.9 of its bound, an endless loop),
        and gains leave out s_xx, the same for all.

    >>> s = Signals(n=6, features=np.array([[1.0, 0.0], [1.0, 0.2], [1.0, -0.2], [0.0, 1.0], [0.2, 1.0], [-0.2, 1.0]]))
    >>> sorted(graph_cut(s, 2, generator=np.random.default_rng(0)).indices.tolist())
    [1, 4]
    """
    _check(kernel, neighbours, optimizer, upstream)
    given, rows, keys = _prepared(signals, generator, neighbours, upstream)
    function: Function
    if neighbours is not None:
        function = _SparseGraphCut(_nearest_of(given, kernel, neighbours))
    else:
        function = _GraphCut(Kernel.of(given, "gradients" if upstream else kernel))
    return _selection(*greedy(function, budget, optimizer, keys, generator), rows, UNIT)


def log_determinant(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    kernel: str = "features",
    neighbours: int | None = None,
    optimizer: str = "lazy",
    upstream: bool = False,
) -> Selection:
    """Keep samples that span the largest volume: greedy log determinant, the mode of a determinantal point process.

    With s_ij = 0.5 + 0.5 cos(x_i, x_j) and S the kernel among the picks A, the picks maximise greedily

        f(A) = log det(S_A + λI),    gain of x = log(λ + s_xx − s_xA (S_A + λI)⁻¹ s_Ax),    λ = 10⁻⁴

    A copy of a pick gains almost nothing: log 2λ.

    Args:
        signals: features; residuals for the kernel of gradients.
        budget: k, samples to keep.
        generator: breaks ties, and draws for the stochastic optimiser.
        kernel: ``"features"``, or ``"gradients"`` for x = r ⊗ [h, 1], the last layer's gradients, with residuals r and features h.
        neighbours: must be None: a kNN-sparse kernel is not positive definite, hence has no log determinant.
        optimizer: ``"lazy"`` and ``"naive"`` pick the same; ``"stochastic"`` looks at ⌈N/k · ln 100⌉ random samples for each pick;
            ``"approximate_lazy"`` accepts a gain g of g ≥ b − 0.1·|b|, with b the highest bound.
        upstream: replay the published code, which has the kernel of gradients only.

    Returns:
        Selection in pick order: a smaller coreset is the beginning of a larger one (but with ``"stochastic"``); gains are those of f, with
        ``upstream`` s_xA S_A⁺ s_Ax.

    Raises:
        BadInput: a parameter that cannot be used; gradients with 8·N·k bytes of more than 4 GiB.
        MissingSignal: gradients without residuals.

    Cost:
        Features: N·k·D multiplications, 8·N·D bytes. Gradients: N·k²/2 multiplications and at most 64·N·k·(C + D) more for columns of the
        kernel (N·k·(C + D) where the guess of the next picks is right); 8·N·k bytes. The kernel is never written out.

    References:
        Chen, Zhang and Zhou, Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation Diversity, NeurIPS 2018,
        algorithm 1. Guo, Zhao and Bai, DeepCore, DEXA 2022.
        Upstream: DeepCore@74ec709 deepcore/methods/submodular.py, methods_utils/submodular_function.py, submodular_optimizer.py.

    Differences from upstream:
        Upstream's gain is s_xA S_A⁺ s_Ax, without "s_xx −" and the logarithm: it prefers copies of what it has, and its lazy greedy returns
        the first k samples.

    >>> s = Signals(n=4, features=np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    >>> 3 in log_determinant(s, 2, generator=np.random.default_rng(0)).indices
    True
    """
    _check(kernel, neighbours, optimizer, upstream)
    if neighbours is not None:
        raise BadInput(
            f"neighbours = {neighbours}: log_determinant needs the dense kernel; a kNN-sparse one is not positive definite.",
            remedy="leave neighbours out, or use facility_location or graph_cut",
        )
    check_factor(signals.n, budget, kernel=kernel, upstream=upstream)
    if upstream:
        picks, gains = _published_log_determinant(Kernel.of(signals, "gradients"), budget, optimizer)
        return Selection.of(picks, gains=gains)
    given, rows, keys = _prepared(signals, generator, None, upstream)
    tiles = Kernel.of(given, kernel)
    function = _LogDeterminantOfFeatures(tiles.vectors) if kernel == "features" else _LogDeterminant(tiles, budget)
    return _selection(*greedy(function, budget, optimizer, keys, generator), rows, 1)


def _prepared(
    signals: Signals, generator: np.random.Generator, neighbours: int | None, upstream: bool
) -> tuple[Signals, NDArray[np.int64], NDArray[np.float64]]:
    if upstream:  # as stored, ties to the first
        return signals, np.arange(signals.n), np.arange(signals.n, dtype=np.float64)
    return in_order(signals, signals.keys(generator), graph=neighbours is not None)


def _selection(picks: NDArray[np.int64], gains: Numbers, rows: NDArray[np.int64], unit: int) -> Selection:
    return Selection.of(rows[picks], gains=gains / unit)


def _published_log_determinant(kernel: Kernel, budget: int, optimizer: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Upstream's gain s_xA S_A⁺ s_Ax. It rises from 0, so that lazy greedy stops at the first sample it looks at, in order."""
    n = len(kernel)
    picks: list[int] = []
    gains = np.zeros(budget)
    columns = np.empty((budget, n))
    for step in range(budget):
        looked_at = np.array([step]) if optimizer == "lazy" else np.setdiff1d(np.arange(n), picks)
        to_picks = columns[:step, looked_at]
        value = np.einsum("an,an->n", np.linalg.pinv(columns[:step, picks]) @ to_picks, to_picks) if picks else np.zeros(len(looked_at))
        row = int(looked_at[value.argmax()])
        gains[step] = value.max()
        picks.append(row)
        columns[step] = kernel.tile(np.array([row]), slice(None))[0] / UNIT
        columns[step, row] = 1
    return np.array(picks), gains
