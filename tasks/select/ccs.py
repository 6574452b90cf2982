"""CCS: coverage-centric selection by stratified sampling over a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.allocation import check_fits, water_fill
from winnow.tasks.select.graphs import rescaled
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["ccs", "definition", "draw", "edges_of", "pools_of", "strata_of"]


def definition(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    score: str = "aum",
    mis_ratio: float = 0.0,
    strata: int = 50,
) -> NDArray[np.int64]:
    """CCS's picks in the paper's notation: the reference that tests hold the engine to."""
    ties = generator.random(signals.n)
    kept = np.lexsort((ties, signals.score("aum")))[int(mis_ratio * signals.n) :]  # drop β of lowest AUM
    s = signals.score(score)[kept].astype(np.float64)
    width = s.max() + 1e-4 * abs(s.max()) - s.min()
    stratum = np.floor((s - s.min()) * strata / (width or 1.0))
    B = [kept[stratum == i] for i in range(strata)]
    share, left = [0] * strata, budget
    for done, i in enumerate(sorted(range(strata), key=lambda i: len(B[i]))):
        share[i] = min(len(B[i]), left // (strata - done))
        left -= share[i]
    return np.concatenate([B[i][generator.permutation(len(B[i]))][: share[i]] for i in range(strata)])


def ccs(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    score: str = "aum",
    mis_ratio: float = 0.0,
    strata: int = 50,
) -> Selection:
    """Cover the range of a score: drop the likely mislabelled, then sample evenly over strata of the score.

    The ⌊βN⌋ samples of lowest AUM are dropped, whatever the score; the rest is cut into strata of equal width
    in the score, the budget is water-filled over them from the smallest up, and each stratum is sampled
    uniformly.

    Args:
        signals: scores ``aum`` and the one asked for.
        budget: k, samples to keep.
        generator: breaks ties and draws inside the strata.
        score: the one stratified.
        mis_ratio: β in [0, 1), share of lowest-AUM samples to drop.
        strata: number of strata.

    Returns:
        Selection, stratum by stratum; gains are the scores.

    Raises:
        BadInput: ⌊βN⌋ + k > N, or no strata.

    References:
        Zheng, Liu, Lai and Prakash, Coverage-centric Coreset Selection for High Pruning Rates, ICLR 2023,
        algorithm 1.
        Upstream: Coverage-centric-coreset-selection@b37f166 core/data/Coreset.py mislabel_mask,
        stratified_sampling.

    Differences from upstream:
        The upper edge lies above the maximum even when that is negative (upstream loses the top samples), a
        constant score is one stratum (upstream selects nothing when it is 0), and a budget that does not fit
        is an error (upstream returns fewer samples).

    >>> s = Signals(n=100, scores={"aum": np.linspace(-1, 1, 100)})
    >>> len(ccs(s, 30, generator=np.random.default_rng(0), mis_ratio=0.1).indices)
    30
    """
    dropped = check_fits(signals.n, budget, mis_ratio)
    kept = order(signals.score("aum"), generator.random(signals.n))[dropped:]
    pools = pools_of(strata_of(signals.score(score)[kept], strata), strata)
    rows = kept[draw(pools, water_fill(np.array([len(pool) for pool in pools]), budget), generator)]
    return Selection.of(rows, gains=signals.score(score)[rows])


def strata_of(values: NDArray[Any], strata: int) -> NDArray[np.int64]:
    """Stratum of each value: ``strata`` intervals of equal width over [min, max + 10⁻⁴·|max|), in float32.

    Args:
        values: (N,) scores, of any magnitude.
        strata: number of strata.

    Raises:
        BadInput: no strata.

    >>> strata_of(np.array([0.0, 0.5, 1.0]), 2).tolist()
    [0, 0, 1]
    """
    values = rescaled(values)[0].astype(np.float32)
    top = values.max()
    edges = edges_of(values.min(), top + np.float32(1e-4) * np.abs(top), strata)
    if edges[-1] <= edges[0]:
        return np.zeros(len(values), np.int64)
    return np.minimum(np.searchsorted(edges, values, side="right") - 1, strata - 1)


def edges_of(low: np.float32, high: np.float32, strata: int) -> NDArray[np.float32]:
    """Edges of intervals of equal width, float32 (strata + 1,).

    Raises:
        BadInput: no strata.
    """
    if strata < 1:
        raise BadInput(f"strata = {strata}: there must be at least 1.")
    return low + np.arange(strata + 1, dtype=np.float32) * ((high - low) / np.float32(strata))


def pools_of(stratum: NDArray[np.int64], strata: int) -> list[NDArray[np.int64]]:
    """Rows of each stratum, ascending.

    >>> [pool.tolist() for pool in pools_of(np.array([1, 0, 1]), 3)]
    [[1], [0, 2], []]
    """
    # NumPy sorts 16-bit integers by radix
    rows = np.argsort(stratum.astype(np.int16 if strata < 2**15 else np.int64), kind="stable")
    return np.split(rows, np.bincount(stratum, minlength=strata).cumsum()[:-1])


def draw(
    pools: Sequence[NDArray[np.int64]], shares: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """As many rows of each pool as its share, drawn uniformly without replacement."""
    return np.concatenate(
        [pool[generator.permutation(len(pool))][:share] for pool, share in zip(pools, shares, strict=True)]
    )
