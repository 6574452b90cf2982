"""ZCore: coverage less redundancy of an embedding, in thousands of random subspaces of two dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import NO_ROWS, Selection, Signals

__all__ = ["definition", "zcore"]

MOST = 1_000_000  # draws by default, …
EACH = 10  # … or this many per sample where that is less
ROWS = 4096
SPARSE = 16  # one value in this many shows about how large the smallest are


def definition(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    samples: int | None = None,
    dimensions: int = 2,
    neighbours: int = 1000,
    exponent: float = 4.0,
) -> NDArray[np.int64]:
    """ZCore's picks, one draw after another: the reference that tests hold the engine to.

    Where only some of several equally distant neighbours are needed, the engine may take others.
    """
    ties = generator.random(signals.n)
    rows = ties.argsort()
    x = (signals.features / np.abs(signals.features).max()).astype(np.float32)[rows]
    least, median, most = x.min(axis=0), np.median(x, axis=0), x.max(axis=0)
    score = generator.random(signals.n)
    for _ in range(samples or 10 * signals.n):
        dims = generator.choice(x.shape[1], dimensions, replace=False)
        u, a, m, b = generator.random(dimensions), *np.array([least, median, most], np.float64)[:, dims]
        below, above = a + np.sqrt(u * (b - a) * (m - a)), b - np.sqrt((1 - u) * (b - a) * (b - m))
        point = np.where(u * (b - a) < m - a, below, above).astype(np.float32)
        i = np.abs(x[:, dims] - point).sum(axis=1).argmin()
        apart = np.abs(x[:, dims] - x[i, dims]).sum(axis=1).astype(np.float64)
        apart[i] = np.inf
        copies = np.flatnonzero(apart == 0)
        near = copies if len(copies) else apart.argsort()[:neighbours]
        w = np.ones(len(copies)) if len(copies) else apart[near] ** -exponent
        score[i] += 1
        score[near] -= w / w.sum()
    score[rows] = score.copy()
    score[already] = -np.inf
    return order(-score, ties)[:budget]


def zcore(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    samples: int | None = None,
    dimensions: int = 2,
    neighbours: int = 1000,
    exponent: float = 4.0,
) -> Selection:
    """Keep the samples that cover the embedding and have few others close by, without labels or training.

    Scores start as uniform draws in [0, 1). Then, repeatedly, a few dimensions of the embedding are drawn,
    and a point in them, each coordinate from the triangular distribution between that dimension's minimum and
    maximum with its mode at the median. With ‖·‖₁ in these dimensions,

        covered      the sample i nearest to the point scores +1
        redundant    each of the nearest neighbours j of i scores −w_j,
                     w_j ∝ 1 / ‖x_j − x_i‖₁^exponent,   Σ w = 1

    (samples that coincide with i in these dimensions share the whole −1), and the k samples of highest score
    are kept.

    Args:
        signals: features of one or more pre-trained networks, side by side.
        budget: k, samples to keep.
        generator: of all draws.
        already: int64 (m,), rows that are kept already: they take part in the scores.
        samples: points drawn; default 10 per sample, at most a million.
        dimensions: of a subspace; all where the features have fewer.
        neighbours: that a covered sample makes redundant; all others where there are fewer.
        exponent: how fast redundancy falls with distance.

    Returns:
        Selection, highest score first, so that a smaller one is a prefix of a larger one; gains are the
        scores.

    Raises:
        BadInput: a parameter that is not positive.

    Cost:
        O(samples·N·dimensions) time, O(N·D) memory.

    References:
        Griffin, Marks and Corso, Zero-Shot Coreset Selection: Efficient Pruning for Unlabeled Data, 2024
        (arXiv 2411.15349); as Zero-Shot Coreset Selection via Iterative Subspace Sampling, WACV 2026.
        Upstream: voxel51/zcore@5fe8048, voxel51/zero-shot-coreset-selection@02811d3 zcore_brent.py.

    What was verified:
        Of the paper, only the abstract could be read. The steps are those of upstream's second repository,
        whose function carries the first author's name, and of a copy of the first
        (nishloadmaster/zcore_score@629859d core/coreset/zcore.py, with the command line's defaults: 10⁶
        draws, 2 dimensions, 1,000 neighbours, exponent 4; the runs named in upstream's README have the same).
        Nothing was compared with upstream's output.

    Differences from upstream:
        Upstream draws a million points whatever N, charges only the first of several samples at distance 0,
        and scales the scores to [0, 1], which changes no rank.

    >>> features = np.r_[np.zeros((8, 2)), [[1.0, 1.0], [-1.0, 1.0]]]  # eight copies and two others
    >>> s = Signals(n=10, features=features)
    >>> kept = zcore(s, 3, generator=np.random.default_rng(0), samples=200).indices
    >>> {8, 9} < set(kept.tolist())
    True
    """
    if samples is None:
        samples = min(MOST, EACH * signals.n)
    positive = {"samples": samples, "dimensions": dimensions, "neighbours": neighbours, "exponent": exponent}
    for name, value in positive.items():
        if not value > 0:
            raise BadInput(f"{name} = {value}: it must be positive.")
    ties = generator.random(signals.n)
    rows = np.argsort(ties)  # so that chance decides between equally near ones
    scores = np.empty(signals.n)
    columns = _columns(signals.features, rows)
    scores[rows] = _scores(columns, samples, dimensions, neighbours, exponent, generator)
    scores[already] = -np.inf
    kept = order(-scores, ties)[:budget]
    return Selection.of(kept, gains=scores[kept])


def _columns(features: NDArray[np.floating], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The features by dimension, float32 (D, N), scaled to at most 1: only ratios of distances count."""
    largest = max(float(np.abs(features[block]).max(initial=0)) for block in blocks(len(rows), ROWS)) or 1.0
    columns = np.empty((features.shape[1], len(rows)), np.float32)
    for block in blocks(len(rows), ROWS):
        columns[:, block] = features[rows[block]].T.astype(np.float64) / largest
    return columns


def _scores(
    columns: NDArray[np.float32],
    samples: int,
    dimensions: int,
    neighbours: int,
    exponent: float,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    dim, n = columns.shape
    least, middle, most = columns.min(1), np.median(columns, axis=1), columns.max(1)
    dimensions, neighbours = min(dimensions, dim), min(neighbours, n - 1)
    scores = generator.random((n,))
    room = np.empty((2, n), np.float32)  # fresh memory at each draw would cost more than the arithmetic
    for _ in range(samples):
        chosen = generator.choice(dim, dimensions, replace=False)
        uniform = generator.random(dimensions)
        if neighbours == 0:
            continue
        point = [
            _triangular(u, float(least[d]), float(middle[d]), float(most[d]))
            for u, d in zip(uniform, chosen, strict=True)
        ]
        covered = int(np.argmin(_measure(columns, chosen, point, room)))
        scores[covered] += 1
        apart = _measure(columns, chosen, columns[chosen, covered], room)
        apart[covered] = np.inf
        near = _smallest(apart, neighbours)
        closest = apart[near].min()
        if closest == 0:
            copies = np.flatnonzero(apart == 0)
            scores[copies] -= 1 / len(copies)
        else:
            weights = (closest / apart[near].astype(np.float64)) ** exponent
            scores[near] -= weights / weights.sum()
    return scores


def _smallest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Positions of the ``count`` smallest.

    Some of the values show about how large these are, which leaves few to be partitioned.
    """
    part = values[::SPARSE]
    rank = 2 * count // SPARSE
    if rank < len(part):
        few = np.flatnonzero(values <= np.partition(part, rank)[rank])
        if len(few) >= count:
            return few[np.argpartition(values[few], count - 1)[:count]]
    return np.argpartition(values, count - 1)[:count]


def _triangular(u: float, least: float, mode: float, most: float) -> float:
    """The u-quantile of the triangular distribution."""
    width = most - least
    if width <= 0:
        return least
    if u * width < mode - least:
        return least + (u * width * (mode - least)) ** 0.5
    return most - ((1 - u) * width * (most - mode)) ** 0.5


def _measure(
    columns: NDArray[np.float32], chosen: NDArray[np.int64], point: Any, out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """L1 distance of all samples to a point, in the chosen dimensions: the first row of ``out`` (2, N)."""
    total, part = out
    for i, (d, value) in enumerate(zip(chosen, np.asarray(point, np.float32), strict=True)):
        along = part if i else total
        np.subtract(columns[d], value, out=along)
        np.abs(along, out=along)
        if i:
            total += part
    return total
