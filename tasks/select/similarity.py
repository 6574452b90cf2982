"""Similarities in whole numbers: dense, of some rows and columns, or of the nearest neighbours only.

They are whole multiples of 1 / ``UNIT``, so that their sums are exact: the same for copies of a sample, for
any tiles and any number of threads, and for every optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import MissingSignal, TooLarge
from winnow.tasks.score.gradients import LastLayer
from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.graphs import checked_graph
from winnow.tasks.select.signals import Signals

__all__ = [
    "DENSE_BYTES",
    "UNIT",
    "Kernel",
    "check_dense",
    "dense",
    "nearest",
    "nearest_of",
    "refuse_above",
    "scaled",
    "sparse_kernel",
    "whole",
]

UNIT = 2**20  # units in a similarity of 1; one is about the rounding error of a float32 product of 512 terms
DENSE_BYTES = 4 << 30  # the most that a dense method may keep

_TILE = 256  # rows and columns of a tile, which a core's cache holds
_ELEMENTS = 1 << 24  # similarities computed together, which bounds temporary memory

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Kernel:
    """s_ij = 0.5 + 0.5 cos(x_i, x_j), or of last-layer gradients g_i = r_i ⊗ [h_i, 1], kept as their factors.

    cos(g_i, g_j) = cos(r_i, r_j) · cos([h_i, 1], [h_j, 1]). A vector of zeros has cosine 0 with all others;
    s_ii = 1.

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
        if kernel == "features":
            return cls(_unit(signals.features))
        if not signals.has("residuals"):
            raise MissingSignal(
                "kernel='gradients' needs residuals; none are given.",
                remedy="give softmax outputs minus one-hot labels of a trained network, or pass "
                "kernel='features'",
            )
        gradients = LastLayer.of(signals.residuals, signals.features)
        return cls(_unit(gradients.u), _unit(gradients.b))

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
        chunks = list(blocks(n, 4096))
        if self.residuals is None:
            total = np.sum([self.vectors[rows].sum(0, dtype=np.float64) for rows in chunks], axis=0)
        else:
            total = np.sum(
                [self.residuals[rows].T.astype(np.float64) @ self.vectors[rows] for rows in chunks], axis=0
            )
        cosines = np.empty(n)
        for rows in chunks:
            vectors = self.vectors[rows].astype(np.float64)
            squares = np.einsum("nd,nd->n", vectors, vectors)
            if self.residuals is None:
                cosines[rows] = vectors @ total - squares
            else:
                b = self.residuals[rows]
                cosines[rows] = ((b @ total) * vectors).sum(1) - squares * (b != 0).any(1)
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
    """Rows of length 1, or 0; divided by their largest entry first, lest squares overflow or vanish."""
    largest = np.abs(vectors).max(axis=1, keepdims=True).astype(np.float64)
    scale = np.where(largest > 0, largest, 1).astype(np.promote_types(vectors.dtype, np.float32))
    unit = (vectors / scale).astype(np.float32)
    length = np.sqrt(np.einsum("nd,nd->n", unit, unit))[:, None]
    return np.divide(unit, length, out=unit, where=length > 0)


class Tiles(Protocol):
    """Anything with symmetric similarities."""

    def __len__(self) -> int: ...

    def tile(self, rows: Any, columns: Any) -> NDArray[np.int32]: ...


def dense(kernel: Tiles) -> NDArray[np.int32]:
    """All similarities in units, int32 (N, N): each tile is computed once and stored twice."""
    n = len(kernel)
    matrix = np.empty((n, n), np.int32)
    bands = list(blocks(n, _TILE))
    for i, rows in enumerate(bands):
        for columns in bands[i:]:
            tile = kernel.tile(rows, columns)
            matrix[rows, columns] = tile if columns != rows else np.maximum(tile, tile.T)
            if columns != rows:
                matrix[columns, rows] = tile.T
    np.fill_diagonal(matrix, UNIT)
    return matrix


def refuse_above(needed: int, what: str, remedy: str) -> None:
    """Refuse what would take more than ``DENSE_BYTES``.

    Raises:
        TooLarge: it would.
    """
    if needed > DENSE_BYTES:
        raise TooLarge(
            f"{what} takes {needed / 2**30:.1f} GiB, more than {DENSE_BYTES / 2**30:.3g} GiB.", remedy=remedy
        )


def check_dense(
    n: int, budget: int, *, neighbours: int | None = None, upstream: bool = False, **_: Any
) -> None:
    """Refuse a dense kernel that is too large, before anything is computed.

    Raises:
        BadInput: with its size, and what to do instead.
    """
    if neighbours is None:
        instead = "" if upstream else "neighbours=100 for the kNN-sparse kernel, or "
        refuse_above(4 * n * n, f"the dense kernel of {n:,} samples", f"pass {instead}balanced=True")


def sparse_kernel(ids: Numbers, similarity: NDArray[np.int32]) -> Any:
    """The kNN-sparse kernel as SciPy CSR, int32 in units: row i has sample i itself and its neighbours.

    Args:
        ids: int (N, k).
        similarity: int32 (N, k), in units.
    """
    from scipy import sparse

    n, width = len(ids), ids.shape[1] + 1
    columns, values = np.empty((n, width), np.int32), np.empty((n, width), np.int32)
    columns[:, 0], values[:, 0] = np.arange(n), UNIT
    columns[:, 1:], values[:, 1:] = ids, similarity
    starts = np.arange(
        0, n * width + 1, width, dtype=np.int64 if n * width > np.iinfo(np.int32).max else np.int32
    )
    return sparse.csr_array((values.ravel(), columns.ravel(), starts), shape=(n, n))


def nearest(kernel: Tiles, k: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The k most similar others of each sample, int (N, k), and the similarities in units, block by block."""
    import torch

    n = len(kernel)
    ids, similarity = np.empty((n, k), np.int64), np.empty((n, k), np.int32)
    block = max(1, _ELEMENTS // n)
    for rows in blocks(n, block):
        tile = kernel.tile(rows, slice(None))
        np.fill_diagonal(tile[:, rows], -1)
        top = torch.topk(torch.from_numpy(tile), k)
        ids[rows], similarity[rows] = top.indices.numpy(), top.values.numpy()
    return ids, similarity


def nearest_of(signals: Signals, kernel: str, neighbours: int) -> Any:
    """The kNN-sparse kernel of that name; that of features from the given graph, where there is one."""
    k = min(neighbours, signals.n - 1)
    if kernel == "gradients" or k == 0:
        return sparse_kernel(*nearest(Kernel.of(signals, kernel), k))
    if signals.graph is None:
        from winnow.tasks.embed.knn import knn

        graph = knn(_ordinary(signals.features), k)
    else:
        graph = checked_graph(signals.graph, k, similarity="cosine")
    return sparse_kernel(graph.neighbours, scaled(graph.similarity.astype(np.float32)))


def _ordinary(features: Numbers) -> Numbers:
    """Rows of extreme magnitude times a power of two each, which rounds nothing and changes no cosine."""
    largest = np.maximum(features.max(axis=1), -features.min(axis=1))
    if not ((largest > 2.0**20) | ((largest < 2.0**-24) & (largest > 0))).any():
        return features
    return np.ldexp(features, -np.frexp(largest)[1][:, None])
