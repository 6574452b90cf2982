"""Set functions as greedy selection sees them: what each sample would add to the picks so far.

Similarities are counted in whole numbers (``similarity.UNIT``), so that the gains of facility location and
graph cut are exact.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.embed.graph import spans
from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.similarity import UNIT, Kernel

__all__ = [
    "RIDGE",
    "FacilityLocation",
    "Function",
    "GraphCut",
    "LogDeterminant",
    "LogDeterminantOfFeatures",
    "SparseFacilityLocation",
    "SparseGraphCut",
]

RIDGE = 1e-4  # λ: float32 similarities make a singular kernel indefinite, but by less than that

_FITS = 2**32 // UNIT - 1  # similarities whose sum fits in 32 bits, where adding is several times as fast
_ELEMENTS = 1 << 18  # handled together, which bounds temporary memory
_GRAIN = 2.0**-40  # remaining variances are rounded to it, so that copies tie in spite of rounding errors
_COLUMNS = 64  # of the kernel, computed together

Numbers = NDArray[Any]
Rows = NDArray[np.int64]


class Function(ABC):
    """A set function as the optimisers see it: the gain of every sample, kept up to date by each pick.

    Attributes:
        value: (N,), what each sample would add to the picks.
        sweeping: whether a pick changes all gains anyway, so that naive greedy is as fast as lazy.
    """

    value: Numbers
    sweeping = True

    def __len__(self) -> int:
        return len(self.value)

    @abstractmethod
    def add(self, row: int) -> None:
        """Pick a sample."""

    def add_all(self, rows: Rows) -> None:
        """Pick some samples, in this order."""
        for row in rows.tolist():
            self.add(row)


class FacilityLocation(Function):
    """f(S) = Σ_i max_{j ∈ S} s_ij on a dense kernel.

    A pick changes the gains through the rows of the items that it represents better than earlier ones do. For
    the t-th that is about one item in t, so k picks take some N·ln k rows of the kernel.

    Args:
        kernel: int32 (items, candidates) in units, not negative.
        columns: int32 (candidates, items), its transpose; default the kernel, which is then symmetric.
    """

    def __init__(self, kernel: NDArray[np.int32], columns: NDArray[np.int32] | None = None) -> None:
        self.kernel, self.columns = kernel, kernel if columns is None else columns
        self.covered = np.zeros(len(kernel), np.int32)
        self.value = np.zeros(kernel.shape[1], np.int64)
        for items in blocks(len(kernel), _FITS):
            self.value += kernel[items].view(np.uint32).sum(0, dtype=np.uint32)

    def add_all(self, rows: Rows) -> None:
        if not len(rows):
            return
        for part in blocks(len(rows), max(1, _ELEMENTS // len(self.covered))):
            np.maximum(self.covered, self.columns[rows[part]].max(axis=0), out=self.covered)
        self.value = np.full(len(self), -self.covered.sum(dtype=np.int64))
        for items in blocks(len(self.kernel), min(_FITS, max(1, _ELEMENTS // len(self)))):
            block = np.maximum(self.kernel[items], self.covered[items, None])
            self.value += block.view(np.uint32).sum(0, dtype=np.uint32)

    def add(self, row: int) -> None:
        items = np.flatnonzero(self.columns[row] > self.covered)
        before, after = self.covered[items], self.columns[row, items]
        step = min(_FITS, max(1, _ELEMENTS // self.kernel.shape[1]))
        for part in blocks(len(items), step):
            block = self.kernel[items[part]]
            block.clip(before[part, None], after[part, None], out=block)
            self.value -= block.view(np.uint32).sum(0, dtype=np.uint32)
        self.value += int(before.sum(dtype=np.int64))
        self.covered[items] = after


class SparseFacilityLocation(Function):
    """f(S) = Σ_i max_{j ∈ S} s_ij where few s_ij are not 0; a pick changes those that share an item with it.

    Args:
        kernel: SciPy sparse (items, candidates), int32 in units; each candidate represents some item.
    """

    sweeping = False

    def __init__(self, kernel: Any) -> None:
        by_item, by_candidate = kernel.tocsr(), kernel.tocsc()
        self.item_starts, self.candidates = by_item.indptr, by_item.indices
        self.by_item = by_item.data
        self.candidate_starts, self.items = by_candidate.indptr, by_candidate.indices
        self.by_candidate = by_candidate.data
        self.covered = np.zeros(kernel.shape[0], np.int32)
        self.value = np.add.reduceat(self.by_candidate, self.candidate_starts[:-1], dtype=np.int64)

    def add(self, row: int) -> None:
        represented = slice(self.candidate_starts[row], self.candidate_starts[row + 1])
        items, after = self.items[represented], self.by_candidate[represented]
        rises = after > self.covered[items]
        self.cover(items[rises], after[rises])

    def add_all(self, rows: Rows) -> None:
        positions, _ = spans(self.candidate_starts, rows)
        after = self.covered.copy()
        np.maximum.at(after, self.items[positions], self.by_candidate[positions])
        rises = np.flatnonzero(after > self.covered)
        self.cover(rises, after[rises])

    def cover(self, items: NDArray[Any], after: NDArray[np.int32]) -> None:
        """Represent these distinct items this well, which is better than before."""
        for part in blocks(len(items), _ELEMENTS // 8):
            positions, counts = spans(self.item_starts, items[part])
            before = np.repeat(self.covered[items[part]], counts)
            lost = np.minimum(self.by_item[positions], np.repeat(after[part], counts))
            lost -= before
            np.maximum(lost, 0, out=lost)
            np.subtract.at(self.value, self.candidates[positions], lost)
        self.covered[items] = after

    def edges(self, rows: Rows) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int32]]:
        """Items that candidates would represent better than now: item, position in ``rows``, similarity."""
        positions, counts = spans(self.candidate_starts, rows)
        items, similarity = self.items[positions], self.by_candidate[positions]
        candidates = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
        better = similarity > self.covered[items]
        return items[better], candidates[better], similarity[better]


class SparseGraphCut(Function):
    """Graph cut on the undirected kNN graph; a pick changes the gains of its neighbours."""

    sweeping = False

    def __init__(self, listed: Any) -> None:
        both = listed.maximum(listed.T.tocsr()).tocsr()
        self.starts, self.ids, self.weights = both.indptr, both.indices, both.data.astype(np.int64)
        self.value = np.add.reduceat(self.weights, self.starts[:-1]) - UNIT

    def add(self, row: int) -> None:
        near = slice(self.starts[row], self.starts[row + 1])
        self.value[self.ids[near]] -= 2 * self.weights[near]

    def add_all(self, rows: Rows) -> None:
        near, _ = spans(self.starts, rows)
        np.subtract.at(self.value, self.ids[near], 2 * self.weights[near])


class _Columns:
    """Columns of the kernel, in units: one product gives the column asked for and those of the next best."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.picked = np.zeros(len(kernel), bool)
        self.position: dict[int, int] = {}
        self.block = np.empty((0, len(kernel)), np.int32)

    def get(self, row: int, value: Numbers) -> NDArray[np.int64]:
        if row not in self.position:
            count = min(_COLUMNS, len(value))
            likely = np.argpartition(np.where(self.picked, -np.inf, value), len(value) - count)[-count:]
            self.load(np.unique(np.append(likely[~self.picked[likely]], row)))
        self.picked[row] = True
        column = self.block[self.position[row]].astype(np.int64)
        column[row] = UNIT
        return column

    def load(self, rows: Rows) -> None:
        self.position = dict(zip(rows.tolist(), range(len(rows)), strict=True))
        self.block = self.kernel.tile(rows, slice(None))


class GraphCut(Function):
    """Graph cut on the dense kernel, of which only the picks' columns are computed."""

    def __init__(self, kernel: Kernel) -> None:
        self.columns = _Columns(kernel)
        self.value = kernel.sums()

    def add(self, row: int) -> None:
        self.value -= 2 * self.columns.get(row, self.value)

    def add_all(self, rows: Rows) -> None:
        for part in blocks(len(rows), _COLUMNS):
            tile = self.columns.kernel.tile(rows[part], slice(None))
            tile[np.arange(len(tile)), rows[part]] = UNIT
            self.value -= 2 * tile.sum(axis=0, dtype=np.int64)
        self.columns.picked[rows] = True


class LogDeterminant(Function):
    """log det of the kernel among the picks, by a Cholesky factor that grows with each pick."""

    def __init__(self, kernel: Kernel, budget: int) -> None:
        self.columns = _Columns(kernel)
        self.factor = np.empty((budget, len(kernel)))
        self.left = np.full(len(kernel), 1 + RIDGE)  # variance that the picks do not explain
        self.value = np.log(self.left)
        self.count = 0

    def add(self, row: int) -> None:
        column = self.columns.get(row, self.value) / UNIT
        column[row] += RIDGE
        rows = self.factor[: self.count]
        new = (column - rows[:, row] @ rows) / math.sqrt(self.left[row])
        self.factor[self.count] = new
        self.count += 1
        self.left = np.maximum(self.left - new * new, RIDGE)  # it is at least that, but for rounding
        self.value = np.log(self.left)

    def add_all(self, rows: Rows) -> None:
        for part in blocks(len(rows), _COLUMNS):
            self.columns.load(rows[part])
            super().add_all(rows[part])


class LogDeterminantOfFeatures(Function):
    """The same for S = ΦΦᵀ with few columns, φ = [1, x] / √2, in memory that does not grow with the picks.

    A gain is the logarithm of λ + s_xx − s_xA (S_A + λI)⁻¹ s_Ax = σ_x² + φ_xᵀ P φ_x with σ² = λ + s_xx − φᵀφ
    and

        P = (I + Σ_{a ∈ A} φ_a φ_aᵀ / σ_a²)⁻¹

    so that a pick subtracts (Pφ)(Pφ)ᵀ / (σ² + φᵀPφ) from P, and the square of φ_xᵀPφ over the same from what
    is left of x.
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
        self._leave(self.left - np.square(self.phi @ seen) / explained)

    def add_all(self, rows: Rows) -> None:
        if not len(rows):
            return
        gram: NDArray[Any] = np.eye(self.phi.shape[1])
        step = max(1, _ELEMENTS // len(gram))
        for part in blocks(len(rows), step):
            phi = self.phi[rows[part]]
            gram += phi.T @ (phi / self.own[rows[part], None])
        self.inverse = np.linalg.inv(gram)
        explained = np.eye(len(gram)) - self.inverse
        for part in blocks(len(self), step):
            self.left[part] -= np.einsum("nd,nd->n", self.phi[part] @ explained, self.phi[part])
        self._leave(self.left)

    def _leave(self, left: NDArray[np.float64]) -> None:
        self.left = np.maximum(left, RIDGE)
        self.value = np.log(np.rint(self.left / _GRAIN) * _GRAIN)
