"""CCS: coverage-centric selection by stratified sampling over a score."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.elfs import check_fits
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["ccs", "strata_of", "water_fill"]


def strata_of(values: NDArray[Any], strata: int, *, upstream: bool = False) -> NDArray[np.int64]:
    """Stratum of each value: ``strata`` intervals of equal width over [min, max + 10⁻⁴·|max|), in float32.

    Args:
        values: (N,) scores.
        strata: number of strata.
        upstream: upper edge 1.0001·max as published: below a negative maximum, so that the top values (−1
            here) fall in no stratum.

    >>> strata_of(np.array([0.0, 0.5, 1.0]), 2).tolist()
    [0, 0, 1]
    """
    values = values.astype(np.float32)
    low, top = values.min(), values.max()
    high = top * np.float32(1.0001) if upstream else top + np.float32(1e-4) * np.abs(top)
    edges = low + np.arange(strata + 1, dtype=np.float32) * ((high - low) / np.float32(strata))
    if not upstream and edges[-1] <= edges[0]:
        return np.zeros(len(values), np.int64)
    found = np.searchsorted(edges, values, side="right") - 1
    return np.where(found >= strata, -1, found) if upstream else np.minimum(found, strata - 1)


def water_fill(populations: NDArray[np.int64], budget: int, *, upstream: bool = False) -> NDArray[np.int64]:
    """Share a budget evenly over strata, small strata first: what a small one cannot use goes to the larger ones.

    Args:
        populations: int64 (strata,).
        budget: to share.
        upstream: order strata of equal population as torch's unstable sort does, which decides who gets an
            odd sample.

    Returns:
        int64 (strata,) samples to take from each stratum; sums to min(budget, population).

    References:
        Zheng et al., ICLR 2023, algorithm 1.

    >>> water_fill(np.array([1, 10, 4]), 9).tolist()
    [1, 4, 4]
    """
    shares = np.zeros_like(populations)
    left = budget
    smallest_first = np.argsort(populations, kind="stable")
    if upstream:
        import torch

        smallest_first = torch.argsort(torch.from_numpy(populations)).numpy()
    for done, stratum in enumerate(smallest_first):
        shares[stratum] = min(populations[stratum], left // (len(populations) - done))
        left -= shares[stratum]
    return shares


def ccs(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    score: str = "aum",
    mis_ratio: float = 0.0,
    strata: int = 50,
    upstream: bool = False,
) -> Selection:
    """Cover the whole range of a score: drop the likely mislabelled, then sample evenly over strata of the score.

    The ⌊βN⌋ samples of lowest AUM are dropped, whatever the score; the rest is cut into strata of equal width
    in the score, the budget is water-filled over them from the smallest up, and each stratum is sampled
    uniformly.

    Args:
        signals: scores ``aum`` and the one asked for.
        budget: k, samples to keep.
        generator: breaks ties and draws inside the strata.
        score: that is stratified.
        mis_ratio: β in [0, 1), share of lowest-AUM samples to drop.
        strata: number of strata.
        upstream: replay the published code.

    Returns:
        Selection, stratum by stratum; gains are the scores.

    Raises:
        BadInput: ⌊βN⌋ + k > N.

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
    if strata < 1:
        raise BadInput(f"strata = {strata}: there must be at least 1.")
    dropped = int(mis_ratio * signals.n) if upstream else check_fits(signals.n, budget, mis_ratio)
    kept = order(signals.score("aum"), generator.random(signals.n))[dropped:]
    values = signals.score(score)[kept]
    stratum = strata_of(values, strata, upstream=upstream)
    counts = np.bincount(stratum + 1, minlength=strata + 1)  # the first: in no stratum
    # NumPy sorts 16-bit integers by radix
    by_stratum = np.argsort(stratum.astype(np.int16 if strata < 2**15 else np.int64), kind="stable")
    pools = np.split(by_stratum, counts.cumsum()[:-1])[1:]
    shares = water_fill(counts[1:], budget, upstream=upstream)
    chosen = np.concatenate(
        [pool[generator.permutation(len(pool))][:share] for pool, share in zip(pools, shares, strict=True)]
    )
    return Selection.of(kept[chosen], gains=values[chosen])
