"""Greedy maximisation of a set function, and facility location, for which it has ways of its own.

Gains of facility location are sums of whole numbers, hence exact, and ties go by keys: every way that is not
stochastic picks the same.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.embed.graph import spans
from winnow.tasks.errors import BadInput
from winnow.tasks.select.ranking import order
from winnow.tasks.select.similarity import UNIT

__all__ = ["OPTIMIZERS", "FacilityLocation", "Function", "SparseFacilityLocation", "check", "greedy"]

OPTIMIZERS = ("lazy", "naive", "stochastic", "approximate_lazy")
EPSILON = 0.01  # stochastic greedy: the expected value is within 1 − 1/e − ε of the best
BETA = 0.9  # approximate lazy greedy: a gain this close to the highest bound is accepted

_FITS = 2**32 // UNIT - 1  # similarities whose sum fits in 32 bits, where it is several times as fast
_ROUNDS = 200  # of a stage before the rest goes to a heap
_ELEMENTS = 1 << 18  # looked at together, which bounds temporary memory

Numbers = NDArray[Any]


def check(optimizer: str, neighbours: int | None, *, upstream: bool = False) -> None:
    """Refuse an optimiser that there is not, and a number of neighbours that is none.

    Raises:
        BadInput: naming it; with ``upstream``, also what has no published output worth replaying.
    """
    if optimizer not in OPTIMIZERS:
        raise BadInput(f"optimizer = {optimizer!r} is none of {', '.join(OPTIMIZERS)}.")
    if upstream and optimizer not in ("lazy", "naive"):
        raise BadInput(
            f"optimizer = {optimizer!r} with upstream=True: the published one picks at random or may never "
            "end.",
            remedy="pass optimizer='lazy' or 'naive', or leave upstream out",
        )
    if neighbours is None:
        return
    if isinstance(neighbours, bool) or not isinstance(neighbours, int | np.integer) or neighbours < 1:
        raise BadInput(
            f"neighbours = {neighbours!r}: give a whole number of at least 1, or None for the dense kernel."
        )
    if upstream:
        raise BadInput(
            f"neighbours = {neighbours} with upstream=True: the published kernel is dense.",
            remedy="leave neighbours out",
        )


# -- functions: the gain of each sample, given the picks so far ----------------------------------------------


class Function(ABC):
    """A set function as the greedy optimisers see it: every sample's gain, kept up to date by each pick.

    Attributes:
        value: (N,), what each sample would add to the picks.
        sweeping: whether a pick changes the gains of all anyway, so that naive greedy is as fast as lazy.
    """

    value: Numbers
    sweeping = True

    def __len__(self) -> int:
        return len(self.value)

    @abstractmethod
    def add(self, row: int) -> None:
        """Pick a sample."""


class FacilityLocation(Function):
    """f(S) = Σ_i max_{j ∈ S} s_ij on a dense kernel; a pick changes the gains by the rows of the items that it represents better.

    The t-th pick does so for about one item in t, so that k picks take some N·ln k rows of the kernel.

    Args:
        kernel: int32 (items, candidates) in units, not negative.
        columns: int32 (candidates, items), its transpose; default the kernel, which is then symmetric.
    """

    def __init__(self, kernel: NDArray[np.int32], columns: NDArray[np.int32] | None = None) -> None:
        self.kernel, self.columns = kernel, kernel if columns is None else columns
        self.covered = np.zeros(len(kernel), np.int32)
        self.value = np.zeros(kernel.shape[1], np.int64)
        for start in range(0, len(kernel), _FITS):
            self.value += kernel[start : start + _FITS].view(np.uint32).sum(0, dtype=np.uint32)

    def add(self, row: int) -> None:
        items = np.flatnonzero(self.columns[row] > self.covered)
        before, after = self.covered[items], self.columns[row, items]
        step = min(_FITS, max(1, _ELEMENTS // self.kernel.shape[1]))
        for start in range(0, len(items), step):
            part = slice(start, start + step)
            block = self.kernel[items[part]]
            block.clip(before[part, None], after[part, None], out=block)
            self.value -= block.view(np.uint32).sum(0, dtype=np.uint32)
        self.value += int(before.sum(dtype=np.int64))
        self.covered[items] = after


class SparseFacilityLocation(Function):
    """f(S) = Σ_i max_{j ∈ S} s_ij where few s_ij are not 0; a pick changes the gains of what shares an item with it.

    Args:
        kernel: SciPy sparse (items, candidates), int32 in units; each candidate represents some item.
    """

    sweeping = False

    def __init__(self, kernel: Any) -> None:
        by_item, by_candidate = kernel.tocsr(), kernel.tocsc()
        self.candidate_starts, self.candidates, self.similarity = (
            by_item.indptr,
            by_item.indices,
            by_item.data,
        )
        self.starts, self.items, self.weights = by_candidate.indptr, by_candidate.indices, by_candidate.data
        self.covered = np.zeros(kernel.shape[0], np.int32)
        self.value = np.add.reduceat(self.weights, self.starts[:-1], dtype=np.int64)

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


# -- optimisers ----------------------------------------------------------------------------------------------


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
    if optimizer == "lazy" and isinstance(function, SparseFacilityLocation):
        return _in_rounds(function, budget, keys)
    return _lazy(function, budget, keys, 1.0 if optimizer == "lazy" else BETA, np.arange(len(function)))


def _best(function: Function, rows: NDArray[np.int64], keys: NDArray[np.float64]) -> tuple[int, Any]:
    """Which of these rows has the largest gain, and the gain."""
    gains = function.value[rows]
    level = np.flatnonzero(gains == gains.max())
    place = int(level[keys[rows[level]].argmin()])
    return place, gains[place]


def _naive(function: Function, budget: int, keys: NDArray[np.float64]) -> tuple[NDArray[np.int64], Numbers]:
    left = np.arange(len(function))
    picks, gains = [], []
    for _ in range(budget):
        place, gain = _best(function, left, keys)
        picks.append(left[place])
        gains.append(gain)
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
        place, gain = _best(function, left[drawn], keys)
        picks.append(left[drawn[place]])
        gains.append(gain)
        function.add(int(left[drawn[place]]))
        left[drawn[place]] = left[n - step - 1]  # the last takes its place
    return np.array(picks), np.array(gains)


def _lazy(
    function: Function, budget: int, keys: NDArray[np.float64], beta: float, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Numbers]:
    """A gain computed earlier bounds the present one from above: only the highest bounds are computed again.

    With β = 1 the picks are the naive ones. Below, a sample is taken if its gain g is not far under its bound
    b: g ≥ b − (1 − β)|b|.
    """
    bounds = function.value[rows]
    ordered = order(-bounds, keys[rows])
    rows, bounds = rows[ordered], bounds[ordered]
    heap = list(
        zip((-bounds).tolist(), keys[rows].tolist(), rows.tolist(), strict=True)
    )  # sorted, hence a heap
    seen = [0] * len(function)  # how many picks there were when the bound was computed
    picks: list[int] = []
    gains: list[float] = []
    while len(picks) < budget:
        negative, key, row = heapq.heappop(heap)
        if seen[row] != len(picks):
            seen[row] = len(picks)
            gain = function.value[row].item()
            if gain < -negative - (1 - beta) * abs(negative):
                heapq.heappush(heap, (-gain, key, row))
                continue
            negative = -gain
        picks.append(row)
        gains.append(-negative)
        function.add(row)
    return np.array(picks), np.array(gains)


def _in_rounds(
    function: SparseFacilityLocation, budget: int, keys: NDArray[np.float64]
) -> tuple[NDArray[np.int64], Numbers]:
    """The greedy picks of sparse facility location, many at a time.

    Gains only fall, so that samples are picked in the order of the gains that they are picked with. Let a
    outrank b if its gain is larger, or the same and its key lower. A sample that outranks all others that
    share an item with it keeps its gain until it is picked: the others fall further, and come later. A round
    takes all such samples together; no two of them share an item. As in ``d2.greedy``, a stage looks at the R
    highest samples only, with R picks to go: who is taken there is outranked by fewer than R to the end, and
    who falls below the lowest of them is left to the next stage. One sort by gain, at the end, gives the
    order of picks. A stage of many rounds, such as a long chain of samples that wait for one another, leaves
    the rest to the heap.
    """
    n = len(function)
    value = function.value
    best, lowest = (
        np.full(n, -1, np.int64),
        np.full(n, np.inf),
    )  # of an item: the largest gain, and the lowest key that has it
    marked = np.zeros(n, bool)
    taken = np.zeros(n, bool)
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
