"""Greedy maximisation of set functions: naive, lazy, in rounds, stochastic and approximate."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.ranking import order
from winnow.tasks.select.rounds import CoverStage, in_rounds
from winnow.tasks.select.set_functions import Function, SparseFacilityLocation
from winnow.tasks.select.signals import NO_ROWS

__all__ = ["OPTIMIZERS", "check", "greedy"]

OPTIMIZERS = ("lazy", "naive", "stochastic", "approximate_lazy")
EPSILON = 0.01  # stochastic greedy: the expected value is at least 1 − 1/e − ε of the best
BETA = 0.9  # approximate lazy greedy: a gain this close to the highest bound is accepted

Numbers = NDArray[Any]
Rows = NDArray[np.int64]
Picks = tuple[Rows, Numbers]  # in order, and their gains when picked


def check(optimizer: str, neighbours: int | None) -> None:
    """Refuse an unknown optimiser and an impossible number of neighbours.

    Raises:
        BadInput: naming it.
    """
    if optimizer not in OPTIMIZERS:
        raise BadInput(f"optimizer = {optimizer!r} is none of {', '.join(OPTIMIZERS)}.")
    if neighbours is None:
        return
    if isinstance(neighbours, bool) or not isinstance(neighbours, int | np.integer) or neighbours < 1:
        raise BadInput(
            f"neighbours = {neighbours!r}: give a whole number of at least 1, or None for the dense kernel."
        )


def greedy(
    function: Function,
    budget: int,
    optimizer: str,
    ties: NDArray[np.float64],
    generator: np.random.Generator,
    already: Rows = NO_ROWS,
) -> Picks:
    """Repeatedly pick the sample of largest gain.

    Args:
        function: of N samples, none picked; gains never rise.
        budget: k, samples to pick.
        optimizer: one of ``OPTIMIZERS``.
        ties: (N,), all different; of equal gains, the one with the lowest tie is picked first.
        generator: for the stochastic optimiser's draws.
        already: int64 (m,), rows that count as picked before the first pick, in this order.

    Returns:
        int64 (k,) picks in order, and their gains when picked.

    >>> from winnow.tasks.select.set_functions import FacilityLocation
    >>> kernel = np.array([[4, 3, 0], [3, 4, 0], [0, 0, 4]], np.int32)
    >>> ties, generator = np.array([0.1, 0.2, 0.3]), np.random.default_rng(0)
    >>> picks, gains = greedy(FacilityLocation(kernel), 2, "lazy", ties, generator)
    >>> picks.tolist(), gains.tolist()
    ([0, 2], [7, 4])
    """
    if optimizer == "stochastic":
        size = math.ceil(len(function) / (len(already) + budget) * math.log(1 / EPSILON))

        def draw(n: int) -> Rows:
            return generator.choice(n, min(size, n), replace=False, shuffle=False)

        return _sweep(function, budget, ties, already, draw)
    if optimizer == "naive" or (optimizer == "lazy" and function.sweeping):
        return _sweep(function, budget, ties, already)
    if optimizer == "lazy" and isinstance(function, SparseFacilityLocation):
        function.add_all(already)
        function.value[already] = -1  # below all others
        return in_rounds(function.value, ties, budget, lambda rows: CoverStage(rows, function, ties))
    return _lazy(function, budget, ties, 1.0 if optimizer == "lazy" else BETA, already)


def _sweep(
    function: Function,
    budget: int,
    ties: NDArray[np.float64],
    already: Rows,
    draw: Callable[[int], Rows] | None = None,
) -> Picks:
    """The best of all samples that are left, or of the positions among them that ``draw`` gives."""
    function.add_all(already)
    left = np.delete(np.arange(len(function)), already)
    if draw is not None and len(already):
        left = _left_after(len(function), already, draw)
    picks, gains = [], []
    for _ in range(budget):
        drawn = None if draw is None else draw(len(left))
        rows = left if drawn is None else left[drawn]
        values = function.value[rows]
        level = np.flatnonzero(values == values.max())
        best = int(level[ties[rows[level]].argmin()])
        picks.append(rows[best])
        gains.append(values[best])
        function.add(int(rows[best]))
        left[best if drawn is None else drawn[best]] = left[-1]  # the last takes its place
        left = left[:-1]
    return np.array(picks, np.int64), np.array(gains)


def _left_after(n: int, already: Rows, draw: Callable[[int], Rows]) -> Rows:
    """What ``_sweep`` has left of n samples, in its order, and as many draws later."""
    left, place = np.arange(n), np.arange(n)
    for taken, row in enumerate(already.tolist(), start=1):
        draw(n + 1 - taken)
        last = left[n - taken]
        left[place[row]], place[last] = last, place[row]
    return left[: n - len(already)]


def _lazy(function: Function, budget: int, ties: NDArray[np.float64], beta: float, already: Rows) -> Picks:
    """A gain computed earlier is an upper bound on the current one: only the highest bounds are recomputed.

    With β = 1 the picks are the naive ones. With less, a sample is taken if its gain g is not far below its
    bound b: g ≥ b − (1 − β)|b|; which bounds are recomputed then matters, so each row of ``already`` takes
    the place of a pick.
    """
    gone: set[int] = set()
    if beta == 1:
        function.add_all(already)
        gone, already = set(already.tolist()), NO_ROWS
    rows = order(-function.value, ties)
    columns = (-function.value[rows]).tolist(), ties[rows].tolist(), rows.tolist()
    heap = list(zip(*columns, strict=True))  # sorted, hence a heap
    seen = [0] * len(function)  # how many picks there were when the bound was computed
    picks: list[int] = []
    gains: list[float] = []
    while len(picks) < len(already) + budget:
        negative, tie, row = heapq.heappop(heap)
        if row in gone:
            continue
        if seen[row] != len(picks):
            seen[row] = len(picks)
            gain = function.value[row].item()
            if gain < -negative - (1 - beta) * abs(negative):
                heapq.heappush(heap, (-gain, tie, row))
                continue
            negative = -gain
        if len(picks) < len(already) and row != already[len(picks)]:
            heapq.heappush(heap, (negative, tie, row))
            row = int(already[len(picks)])
            gone.add(row)
        picks.append(row)
        gains.append(-negative)
        function.add(row)
    return np.array(picks[len(already) :], np.int64), np.array(gains[len(already) :])
