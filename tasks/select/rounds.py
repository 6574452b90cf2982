"""Greedy selection in rounds: many picks at a time, the same as one at a time would make.

The engine behind D2 and behind facility location on a sparse kernel.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.embed.graph import spans
from winnow.tasks.select.graphs import Edges
from winnow.tasks.select.ranking import best, order

if TYPE_CHECKING:
    from winnow.tasks.select.set_functions import SparseFacilityLocation

__all__ = ["CoverStage", "MessageStage", "Stage", "exact_grid", "in_rounds", "lower"]

Numbers = NDArray[Any]
Rows = NDArray[np.int64]


def in_rounds(
    values: Numbers, ties: NDArray[np.float64], budget: int, open_stage: Callable[[Rows], Stage]
) -> tuple[Rows, Numbers]:
    """Pick the sample of highest value, which lowers others, and so on: exact, and many at a time.

    Say that a outranks b if its value is higher, or equal and its tie lower. Greedy selection repeatedly
    picks the sample that outranks all others. A pick may lower other samples; nothing raises one.

    Why rounds are enough: values only fall, so samples are picked in the order of their final values, the
    ones they are picked with.

    (1) A sample that outranks every sample that may still lower it has its final value: those samples only
        fall, are picked after it, and come too late to lower it. It is *settled*.
    (2) A settled sample that outranks an unsettled one is picked before it, since the latter only falls: what
        the former takes off the latter is *due*.
    (3) No round is idle: the highest of the unsettled samples is outranked by settled ones only; either
        something is due to it, or it settles.

    A round settles all it can by (1) and delivers all that is due by (2), at once, since nothing undoes
    either.

    Samples too low to be picked can be left out: with R picks to go, a stage takes the R highest samples and
    what they do to one another. One that falls below the initially lowest of them drops out; one that settles
    stays outranked by fewer than R samples, so it is picked. Then all samples are lowered by these picks, and
    the next stage has fewer to find. A stage that takes many rounds, such as a long chain of samples waiting
    for one another, finishes on a heap, sample by sample. One sort by final value, at the end, gives the
    order of the picks.

    All this needs exact arithmetic: values are whole numbers, or lie on a grid (``exact_grid``), so that they
    do not depend on the order in which they are lowered.

    Args:
        values: (N,) before the first pick; stages lower them, and put those of picks below all others.
        ties: (N,), all different; of equal values, the lowest tie is picked first.
        budget: samples to pick.
        open_stage: makes a stage from some samples.

    Returns:
        int64 (budget,) picks in order, and (budget,) their values when picked.
    """
    picks, finals = [np.empty(0, np.int64)], [values[:0]]
    left = budget
    while left:
        stage = open_stage(best(values, ties, left))
        stage.run()
        picks.append(stage.rows[stage.settled])
        finals.append(stage.value[stage.settled])
        stage.close(picks[-1], finals[-1])
        left -= len(picks[-1])
    chosen, final = np.concatenate(picks), np.concatenate(finals)
    in_order = order(-final, ties[chosen])
    return chosen[in_order], final[in_order]


class Stage(ABC):
    """The R highest samples, and what they do to one another; arrays are indexed by position, 0 to R − 1.

    Args:
        rows: int64 (R,), the samples.
        values: of all samples.
        ties: of all samples.

    Attributes:
        value: (R,), final where settled.
        settled: bool (R,), whether the value is final: these are picked.
        fallen: bool (R,), below the initially lowest: left to later stages.
    """

    rounds = 32  # before the rest goes to a heap

    def __init__(self, rows: Rows, values: Numbers, ties: NDArray[np.float64]) -> None:
        self.rows, self.value, self.ties = rows, values[rows], ties[rows]
        self.settled, self.fallen = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        self.floor = self.value.min()
        self.floor_tie = self.ties[self.value == self.floor].max()

    def run(self) -> None:
        """Settle every sample that does not fall."""
        for _ in range(self.rounds):
            self.settled |= ~(self.outranked() | self.fallen)  # (1)
            self.deliver()  # (2)
            if not self.waiting.any():  # (3): it gets here
                return
        self.finish_on_heap()

    @abstractmethod
    def outranked(self) -> NDArray[np.bool_]:
        """(R,), whether some sample that may still lower it outranks it."""

    @abstractmethod
    def deliver(self) -> None:
        """Lower samples by what is due, mark those that fall, forget edges that no longer matter."""

    @abstractmethod
    def close(self, picks: Rows, values: Numbers) -> None:
        """Lower all samples by these picks, which are put below all others."""

    @property
    def waiting(self) -> NDArray[np.bool_]:
        return ~(self.settled | self.fallen)

    def mark_fallen(self) -> None:
        level = (self.value == self.floor) & (self.ties > self.floor_tie)
        self.fallen |= ~self.settled & ((self.value < self.floor) | level)

    # -- sample by sample ------------------------------------------------------------------------------------

    def finish_on_heap(self) -> None:
        """The rest of the stage, one by one; a value on the heap is an upper bound on the current one."""
        rest = np.flatnonzero(self.waiting | self.pending())
        columns = (-self.value[rest]).tolist(), self.ties[rest].tolist(), rest.tolist()
        heap = sorted(zip(*columns, strict=True))
        while heap:
            bound, tie, position = heapq.heappop(heap)
            value = self.current(position)
            if value == -bound:
                self.settled[position], self.value[position] = True, value
                self.send(position)
            elif (-value, tie) > (-self.floor, self.floor_tie):
                self.fallen[position] = True
            else:
                heapq.heappush(heap, (-value, tie, position))

    def pending(self) -> NDArray[np.bool_]:
        """(R,), settled samples that may still lower others."""
        return np.zeros(len(self.rows), bool)

    @abstractmethod
    def current(self, position: int) -> Any:
        """The value of one sample."""

    @abstractmethod
    def send(self, position: int) -> None:
        """Lower others by one pick."""


class MessageStage(Stage):
    """D2's: a pick of value g takes w · max(g, 0) off each sample that it has an edge to."""

    def __init__(
        self, rows: Rows, values: NDArray[np.float64], ties: NDArray[np.float64], edges: Edges, grid: float
    ) -> None:
        super().__init__(rows, values, ties)
        self.all_values, self.edges, self.grid = values, edges, grid
        position = np.full(len(values), -1, np.int32)
        position[rows] = np.arange(len(rows), dtype=np.int32)
        at, counts = spans(edges.indptr, rows)
        target = position[edges.ids[at]]
        inside = np.flatnonzero(target >= 0)
        self.source = np.repeat(np.arange(len(rows), dtype=np.int32), counts)[inside]
        self.target, self.weight = target[inside], edges.weights[at[inside]]

    def outranked(self) -> NDArray[np.bool_]:
        self.sent, received = self.value[self.source], self.value[self.target]
        self.above = self.sent > received
        equal = np.flatnonzero(self.sent == received)
        self.above[equal] = self.ties[self.source[equal]] < self.ties[self.target[equal]]
        self.above &= self.sent > 0  # others send nothing
        outranked = np.zeros(len(self.rows), bool)
        outranked[self.target[self.above]] = True
        return outranked

    def deliver(self) -> None:
        due = np.flatnonzero(self.above & self.settled[self.source])
        message = _message(self.weight[due], self.sent[due], self.grid)
        np.subtract.at(self.value, self.target[due], message)
        self.mark_fallen()
        matters = self.waiting[self.target] & ~self.fallen[self.source] & (self.sent > 0)
        matters[due] = False
        left = np.flatnonzero(matters)
        self.source, self.target, self.weight = self.source[left], self.target[left], self.weight[left]

    def close(self, picks: Rows, values: NDArray[np.float64]) -> None:
        lower(self.all_values, self.edges, self.grid, picks, values)

    def finish_on_heap(self) -> None:
        self.outgoing: dict[int, list[tuple[int, float]]] = {}
        edges = self.source.tolist(), self.target.tolist(), self.weight.tolist()
        for source, target, weight in zip(*edges, strict=True):
            self.outgoing.setdefault(source, []).append((target, weight))
        self.listed = self.value.tolist()  # faster than an array, one by one
        super().finish_on_heap()

    def pending(self) -> NDArray[np.bool_]:
        sends = np.zeros(len(self.rows), bool)
        sends[self.source] = True
        return sends & self.settled

    def current(self, position: int) -> float:
        return self.listed[position]

    def send(self, position: int) -> None:
        units = max(self.listed[position], 0.0) / self.grid
        for target, weight in self.outgoing.get(position, ()):
            if not self.settled[target]:
                self.listed[target] -= round(weight * units) * self.grid


class CoverStage(Stage):
    """Facility location's: a pick covers items, and so lowers the samples that would have covered them.

    Samples that share an item lower one another. No two that settle in a round share one, so all that a
    settled sample takes off others is due at once.
    """

    rounds = 200

    def __init__(self, rows: Rows, function: SparseFacilityLocation, ties: NDArray[np.float64]) -> None:
        super().__init__(rows, function.value, ties)
        self.function = function
        self.item, self.candidate, self.similarity = function.edges(rows)
        n = len(function.covered)
        self.highest, self.lowest_tie = np.full(n, -1, np.int64), np.full(n, np.inf)  # of each item

    def outranked(self) -> NDArray[np.bool_]:
        value = self.value[self.candidate]
        np.maximum.at(self.highest, self.item, value)
        top = np.flatnonzero(value == self.highest[self.item])
        tie = self.ties[self.candidate[top]]
        np.minimum.at(self.lowest_tie, self.item[top], tie)
        loses = np.ones(len(self.item), bool)
        loses[top] = tie != self.lowest_tie[self.item[top]]
        self.highest[self.item], self.lowest_tie[self.item] = -1, np.inf
        outranked = np.zeros(len(self.rows), bool)
        outranked[self.candidate[loses]] = True
        return outranked

    def deliver(self) -> None:
        taken = self.settled[self.candidate]
        self.function.cover(self.item[taken], self.similarity[taken])
        waiting = self.waiting
        self.value[waiting] = self.function.value[self.rows[waiting]]
        self.mark_fallen()
        matters = self.waiting[self.candidate] & (self.similarity > self.function.covered[self.item])
        left = np.flatnonzero(matters)
        self.item, self.candidate = self.item[left], self.candidate[left]
        self.similarity = self.similarity[left]

    def close(self, picks: Rows, values: NDArray[np.int64]) -> None:
        self.function.value[picks] = -1  # all are lowered already

    def current(self, position: int) -> int:
        return int(self.function.value[self.rows[position]])

    def send(self, position: int) -> None:
        self.function.add(int(self.rows[position]))


def lower(
    priorities: NDArray[np.float64], edges: Edges, grid: float, picks: Rows, values: NDArray[np.float64]
) -> None:
    """Lower all priorities by the messages of picks of these values, which are put below all others."""
    at, counts = spans(edges.indptr, picks)
    np.subtract.at(priorities, edges.ids[at], _message(edges.weights[at], np.repeat(values, counts), grid))
    priorities[picks] = -np.inf


def exact_grid(largest: float) -> float:
    """The power of two whose multiples up to ``largest`` float64 adds exactly, hence in any order."""
    return 2.0 ** max(np.ceil(np.log2(largest)) - 52, -1000.0) if largest > 0 else 1.0


def _message(weight: Numbers, value: NDArray[np.float64], grid: float) -> NDArray[np.float64]:
    """w · max(g, 0), rounded to the grid."""
    return np.rint(weight * (np.maximum(value, 0.0) / grid)) * grid
