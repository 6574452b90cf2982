"""CRAIG: medoids of the last-layer gradients, each weighted by the samples that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.score.gradients import batch_sizes
from winnow.tasks.select.greedy import FacilityLocation, SparseFacilityLocation, check, greedy
from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.similarity import (
    UNIT,
    check_dense,
    dense,
    in_order,
    nearest,
    refuse_above,
    sparse_kernel,
    whole,
)

__all__ = ["check_size", "craig"]

_OFFSET = 1e-3  # the published code adds this to every similarity
_CANCELS = 2.0**-18  # squared distances below this share of ‖g_i‖² + ‖g_j‖² are rounding of float32, hence 0
_TILE = 1 << 22  # similarities of samples with picks that are looked at together


@dataclass(frozen=True)
class _Gradients:
    """g_i = r_i ⊗ [h_i, 1], kept as its factors, with similarity 1 − ‖g_i − g_j‖ / reach.

    Args:
        residuals: float32 (N, C).
        vectors: float32 (N, D + 1).
        squared: float32 (N,), ‖g_i‖².
        reach: 2·max ‖g_i‖, no distance is longer.
    """

    residuals: NDArray[np.float32]
    vectors: NDArray[np.float32]
    squared: NDArray[np.float32]
    reach: float

    @classmethod
    def of(cls, residuals: NDArray[Any], features: NDArray[Any]) -> _Gradients:
        r = np.ascontiguousarray(residuals, np.float32)
        vectors = np.ones((len(features), features.shape[1] + 1), np.float32)
        vectors[:, :-1] = features
        squared = np.einsum("nc,nc->n", r, r, dtype=np.float64) * np.einsum(
            "nd,nd->n", vectors, vectors, dtype=np.float64
        )
        return cls(r, vectors, squared.astype(np.float32), 2 * float(np.sqrt(squared.max())))

    def __len__(self) -> int:
        return len(self.squared)

    def distances(self, rows: Any, columns: Any) -> NDArray[np.float32]:
        """‖g_i − g_j‖² = ‖g_i‖² + ‖g_j‖² − 2⟨r_i, r_j⟩(1 + ⟨h_i, h_j⟩)."""
        tile = self.vectors[rows] @ self.vectors[columns].T
        tile *= self.residuals[rows] @ (-2 * self.residuals[columns]).T
        both = self.squared[rows][:, None] + self.squared[columns]
        tile += both
        both *= np.float32(_CANCELS)
        tile[tile < both] = 0
        return np.sqrt(tile, out=tile)

    def tile(self, rows: Any, columns: Any) -> NDArray[np.int32]:
        """Similarities in units."""
        tile = self.distances(rows, columns)
        tile *= np.float32(-UNIT / self.reach if self.reach else 0)
        tile += UNIT
        return whole(tile)


def check_size(n: int, budget: int, *, upstream: bool = False, **params: Any) -> None:
    """Refuse a dense kernel that is too large, before anything is computed; the published unbalanced one is not dense.

    Raises:
        BadInput: with its size, and what to do instead.
    """
    if not upstream:
        check_dense(n, budget, **params)


def craig(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    neighbours: int | None = None,
    optimizer: str = "lazy",
    upstream: bool = False,
    batch: int = 256,
) -> Selection:
    """Keep samples whose weighted gradients add up to nearly the gradient of all: medoids in the space of last-layer gradients.

    With g_i = r_i ⊗ [h_i, 1] the gradient of the loss in the last layer, the error of the weighted sum is at
    most

        Σ_i min_{j ∈ S} ‖g_i − g_j‖

    The picks reduce that bound greedily, as facility location with s_ij = d − ‖g_i − g_j‖ and d = 2·max ‖g‖
    (which only decides the first gain), and weight γ_j is the number of samples whose nearest pick is j.
    ``balanced=True`` does so in each class, as the paper does.

    Args:
        signals: residuals r = softmax − one-hot and features h, the last layer's input.
        budget: k, samples to keep.
        generator: breaks ties, and draws for the stochastic optimiser.
        neighbours: that a sample can stand for while picks are made, those of nearest gradients, as in
            facility_location; None for all.
        optimizer: ``"lazy"`` and ``"naive"`` pick the same; ``"stochastic"`` looks at ⌈N/k · ln 100⌉ random
            samples for each pick; ``"approximate_lazy"`` accepts a gain of 0.9 of the highest bound.
        upstream: replay the published code: the balanced one where all labels are the same or there are none
            (so with ``balanced=True``), else the unbalanced one.
        batch: size of the batches by which upstream divides gradients, and of which its unbalanced gains
            count one in so many.

    Returns:
        Selection in pick order; weights are cluster sizes, which add up to N; gains are what each pick takes
        off the bound (upstream: in its own scale).

    Raises:
        BadInput: an optimiser that there is not, or distances of more than 4 GiB (N > 32,768).

    Cost:
        N²·(C + D)/2 multiplications and 4·N² bytes; a gain costs N, and hundreds are computed for each of the
        first picks. With ``neighbours``, N²·(C + D) multiplications, O(N·neighbours) memory, and N·k·(C + D)
        for the weights.

    References:
        Mirzasoleiman, Bilmes and Leskovec, Coresets for Data-efficient Training of Machine Learning Models,
        ICML 2020, equations 11 to 15, algorithm 1. Guo, Zhao and Bai, DeepCore, DEXA 2022.
        Upstream: DeepCore@74ec709 deepcore/methods/craig.py.

    Differences from upstream:
        Weights are the cluster sizes (upstream: plus 1). Gradients are per sample (upstream: divided by the
        size of their batch, so those of a class's last batch are larger). Gains count all samples (upstream
        unbalanced: the first 256 rows, hardly more, and similarities across classes are 0). Gradients are not
        written out.

    >>> s = Signals(n=3, residuals=np.array([[0.9, -0.9], [0.9, -0.9], [-0.2, 0.2]]), features=np.ones((3, 2)))
    >>> chosen = craig(s, 2, generator=np.random.default_rng(0))
    >>> sorted(chosen.indices.tolist()) in ([0, 2], [1, 2]), chosen.weights.tolist()
    (True, [2.0, 1.0])
    """
    check(optimizer, neighbours, upstream=upstream)
    if upstream:
        if signals.has("labels") and (signals.labels != signals.labels[0]).any():
            return _published_unbalanced(signals, budget, optimizer, generator, batch)
        given, rows, keys = signals, np.arange(signals.n), np.arange(signals.n, dtype=np.float64)
        gradients = _published_gradients(signals, rows, batch)
    else:
        given, rows, keys = in_order(signals, generator.random(signals.n))
        assert given.residuals is not None
        assert given.features is not None
        gradients = _Gradients.of(given.residuals, given.features)
    function: FacilityLocation | SparseFacilityLocation
    if neighbours is None:
        check_dense(given.n, budget, upstream=upstream)
        function = FacilityLocation(dense(gradients))
    else:
        function = SparseFacilityLocation(sparse_kernel(*nearest(gradients, min(neighbours, given.n - 1))))
    picks, gains = greedy(function, budget, optimizer, keys, generator)
    weights = np.bincount(_nearest_pick(gradients, picks), minlength=budget) + upstream
    return Selection.of(rows[picks], weights=weights, gains=gains / UNIT * gradients.reach)


def _nearest_pick(gradients: _Gradients, picks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the picks each sample is nearest to: itself for a pick, of equals the first."""
    found = np.empty(len(gradients), np.int64)
    step = max(1, _TILE // len(picks))
    for start in range(0, len(found), step):
        found[start : start + step] = gradients.tile(slice(start, start + step), picks).argmax(1)
    found[picks] = np.arange(len(picks))
    return found


def _published_gradients(signals: Signals, rows: NDArray[np.int64], batch: int) -> _Gradients:
    """Of the rows of one class, each divided by the size of its batch."""
    sizes = batch_sizes(len(rows), batch)
    return _Gradients.of(signals.residuals[rows] / sizes[:, None].astype(np.float32), signals.features[rows])


def _published_unbalanced(
    signals: Signals, budget: int, optimizer: str, generator: np.random.Generator, batch: int
) -> Selection:
    """Similarities within classes only, and gains that count one batch in every ``batch``: the others are skipped by mistake."""
    n = signals.n
    rows = np.arange(n)
    items = rows[rows // batch % batch == 0]
    refuse_above(
        8 * n * len(items),
        f"craig: the published matrix of {len(items):,} × {n:,} samples",
        "pass balanced=True",
    )
    classes = [np.flatnonzero(signals.labels == label) for label in np.unique(signals.labels)]
    parts = []
    matrix = np.zeros((n, len(items)), np.float32)
    for members in classes:
        gradients = _published_gradients(signals, members, batch)
        longest = max(
            float(gradients.distances(block, slice(None)).max())
            for block in np.array_split(np.arange(len(members)), len(members) // 512 + 1)
        )
        parts.append((gradients, longest))
        counted = np.flatnonzero(np.isin(members, items))
        matrix[np.ix_(members, np.searchsorted(items, members[counted]))] = (
            longest + _OFFSET - gradients.distances(slice(None), counted)
        )
    scale = UNIT / float(matrix.max())
    columns = np.rint(matrix * np.float32(scale)).astype(np.int32)
    function = FacilityLocation(np.ascontiguousarray(columns.T), columns)
    picks, gains = greedy(function, budget, optimizer, np.arange(n, dtype=np.float64), generator)

    weights = np.ones(budget)
    lowest = int(np.argmin(picks))  # where the samples of a class without picks go
    for members, (gradients, _) in zip(classes, parts, strict=True):
        mine = np.flatnonzero(np.isin(picks, members))
        if not len(mine):
            weights[lowest] += len(members)
            continue
        mine = mine[np.argsort(picks[mine])]  # ties to the first row
        nearest = gradients.distances(np.searchsorted(members, picks[mine]), slice(None)).argmin(0)
        np.add.at(weights, mine[nearest], 1)
    return Selection.of(picks, weights=weights, gains=gains / scale)
