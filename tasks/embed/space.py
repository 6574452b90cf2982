"""The points of a kNN search, prepared so that a larger product means nearer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from winnow.tasks.hardware import by_device

__all__ = ["Space", "error_bound", "prepare"]

TILE = {"cpu": 1024, "cuda": 8192}  # rows and columns of a tile: it fits a core's cache, or fills a GPU
_UNIT = 2.0**-24  # unit roundoff of float32


@dataclass(frozen=True)
class Space:
    """The points searched, shuffled and prepared.

    The score of a pair is the cosine, or −‖x − y‖²/2 = ⟨x, y⟩ − ‖x‖²/2 − ‖y‖²/2.

    Attributes:
        metric: "cosine" or "euclidean".
        points: (N, D) float32 on the device; from row ``size`` on, duplicates that no row can list.
        bias: (N,) float32, −‖x‖²/2; None for cosines.
        order: (N,) int64, row of each point in the features; ``device_order`` on the device.
        device_order: see ``order``.
        size: number of points searched.
        scale: power of two that brings Euclidean norms below 1.
        tile: rows and columns of a tile of scores.
    """

    metric: str
    points: torch.Tensor
    bias: torch.Tensor | None
    order: np.ndarray
    device_order: torch.Tensor
    size: int
    scale: float
    tile: int

    @classmethod
    def build(cls, features: np.ndarray, k: int, metric: str, device: torch.device) -> Space:
        """The space of features (N, D) in which up to ``k`` neighbours are looked for."""
        n, dim = features.shape
        # shuffled, a prefix of the points is a fair sample, whatever order (by class, say) the data is in
        order = np.random.default_rng(0).permutation(n)
        position = np.argsort(order)
        scale = _scale(features) if metric == "euclidean" else 1.0
        points = np.empty((n, dim), np.float32)
        words = np.random.default_rng(1).integers(-(2**63), 2**63, dim, dtype=np.int64) | 1
        keys = np.empty(n, np.int64)
        for start in range(0, n, 4096):
            rows = prepare(features[start : start + 4096], metric, scale)
            keys[start : start + 4096] = (rows.view(np.int32).astype(np.int64) * words).sum(1)
            points[position[start : start + 4096]] = rows
        extra = _surplus(keys, points, position, k)
        if extra.any():
            last = np.argsort(extra[order], kind="stable")
            order, points = order[last], points[last]
        there = torch.from_numpy(points).to(device)
        return cls(
            metric,
            there,
            None if metric == "cosine" else torch.cat([half_squares(part) for part in there.split(4096)]),
            order,
            torch.from_numpy(order).to(device),
            n - int(extra.sum()),
            scale,
            by_device(TILE, device),
        )

    @property
    def tiles(self) -> list[slice]:
        """The points searched, tile by tile."""
        return [slice(start, min(start + self.tile, self.size)) for start in range(0, self.size, self.tile)]

    def scores(
        self, left: torch.Tensor, left_bias: torch.Tensor | None, columns: slice, out: torch.Tensor
    ) -> torch.Tensor:
        """Scores of rows with a range of points, (rows, columns), written into ``out``."""
        right = self.points[columns]
        tile = out[: len(left) * len(right)].view(len(left), len(right))
        if self.bias is None or left_bias is None:
            return torch.mm(left, right.T, out=tile)
        torch.add(left_bias[:, None], self.bias[columns], out=tile)
        return tile.addmm_(left, right.T)

    def slack(self, rows: torch.Tensor) -> torch.Tensor | float:
        """How far a tile's score and a pair's own score can differ."""
        bound = 2 * error_bound(rows.shape[1])
        if self.bias is None:
            return bound
        longest = (-2.0 * self.bias.min()).sqrt()
        return bound * (rows.norm(dim=1) + longest).square()

    def measure(self, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Similarities of chosen pairs, each by one sum in a fixed order, as they are ranked and returned.

        Args:
            rows: (n, D) float32.
            ids: (n, m) int64, points.

        Returns:
            (n, m) float32; −inf where an id is negative.
        """
        if rows.device.type == "cpu":
            similarity = self._measure_by_faiss(rows.contiguous(), ids.contiguous())
        else:
            pairs = zip(rows.split(1024), ids.split(1024), strict=True)
            similarity = torch.cat([self._measure_by_torch(left, right) for left, right in pairs])
        similarity = similarity.clamp_(-1.0, 1.0) if self.metric == "cosine" else similarity.sqrt_().neg_()
        return similarity.masked_fill_(ids < 0, -torch.inf)

    def _measure_by_faiss(self, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        import faiss

        name = "fvec_inner_products_by_idx" if self.metric == "cosine" else "fvec_L2sqr_by_idx"
        function = getattr(faiss, name)
        products = torch.empty(ids.shape, dtype=torch.float32)
        pointers = (faiss.swig_ptr(array.numpy()) for array in (products, rows, self.points, ids))
        function(*pointers, rows.shape[1], len(rows), ids.shape[1])
        return products

    def _measure_by_torch(self, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        columns = []
        for chosen in ids.clamp_min(0).split(64, dim=1):
            others = self.points[chosen]
            pair = others * rows[:, None] if self.metric == "cosine" else (others - rows[:, None]).square()
            columns.append(pair.sum(-1))
        return torch.cat(columns, dim=1)

    def score_of(self, similarity: torch.Tensor) -> torch.Tensor:
        """The scores that correspond to similarities."""
        return similarity if self.metric == "cosine" else -0.5 * similarity.square()


def error_bound(dim: int) -> float:
    """Rounding error of a float32 dot product of unit vectors.

    In units of roundoff at most D, and at most 8·√D except with probability below 1e-10.
    """
    return (min(dim, 8.0 * dim**0.5) + 4.0) * _UNIT


def half_squares(rows: torch.Tensor) -> torch.Tensor:
    """−‖x‖²/2 of each row, float32 (n,)."""
    return (-0.5 * rows.double().square().sum(1)).float()


def prepare(rows: np.ndarray, metric: str, scale: float) -> np.ndarray:
    """Rows as they are multiplied, float32: normalised for cosines, else scaled; −0 becomes 0.

    In float64, so that neither huge rows overflow nor copies of a row differ.
    """
    wide = rows.astype(np.float64)
    if metric == "euclidean":
        wide *= scale
    else:
        largest = np.abs(wide).max(axis=1, keepdims=True)
        wide /= np.where(largest > 1e100, largest, 1.0)
        wide /= np.maximum(np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None], 1e-12)
    return wide.astype(np.float32) + np.float32(0.0)


def _scale(features: np.ndarray) -> float:
    """A power of two that brings all norms below 1; scaling by it rounds nothing."""
    largest = max(
        float(np.abs(features[i : i + 4096].astype(np.float64)).max()) for i in range(0, len(features), 4096)
    )
    if largest == 0.0:
        return 1.0
    return 2.0 ** -np.ceil(np.log2(largest) + 0.5 * np.log2(features.shape[1]) + 1e-6)


def _surplus(keys: np.ndarray, points: np.ndarray, position: np.ndarray, k: int) -> np.ndarray:
    """Marks rows that come after more than k equal ones: ties go to the lower index, so no row lists them."""
    extra = np.zeros(len(keys), bool)
    _, group, count = np.unique(keys, return_inverse=True, return_counts=True)
    for large in np.flatnonzero(count > k + 1):
        members = np.flatnonzero(group == large)
        same = members[(points[position[members]] == points[position[members[0]]]).all(axis=1)]
        extra[same[k + 1 :]] = True
    return extra
