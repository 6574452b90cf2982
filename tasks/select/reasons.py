"""Why each sample was kept or dropped, in words that a person who labels can check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.embed.knn import knn
from winnow.tasks.registry import selectors
from winnow.tasks.select.ccs import strata_of
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["Reasons", "reasons"]

# what a pick's gain means, by selector
GAINS = {
    "badge": "unlike all before it: gradient {gain:.3g} away",
    "contextual_diversity": "predicted unlike all before it, {gain:.3g}",
    "craig": "its gradient stands for others: {gain:.3g} off the bound",
    "d2": "hard and not yet represented: priority {gain:.3g}",
    "facility_location": "represents samples that nothing before it did: gain {gain:.3g}",
    "glister": "lowers the loss of the rest most: gain {gain:.3g}",
    "gradmatch": "completes the gradient of all: gain {gain:.3g}",
    "graph_cut": "like the rest, unlike those kept: gain {gain:.3g}",
    "herding": "keeps the mean in place: off by {gain:.3g}",
    "k_center": "farthest from all before it: {gain:.3g}",
    "log_determinant": "adds most volume: gain {gain:.3g}",
    "moderate": "at a moderate distance from its class's centre: {gain:.3g}",
    "prototypicality": "far from every cluster centre: {gain:.3g}",
    "random": "drawn at random",
    "full": "everything is kept",
    "semdedup": "no near copy of it was kept before",
    "uncertainty": "uncertain: {gain:.3g}",
    "zcore": "covers what few others do: {gain:.3g}",
}


@dataclass(frozen=True)
class Reasons:
    """Row by row, for N samples.

    Attributes:
        why: in words.
        nearest: int64 (N,), the kept sample that each one is most similar to; −1 without features, and for
            those kept.
        similarity: float32 (N,), to that one; NaN without.
    """

    why: list[str]
    nearest: NDArray[np.int64]
    similarity: NDArray[np.float32]


def reasons(
    method: str,
    signals: Signals,
    chosen: Selection,
    names: Sequence[str],
    params: Mapping[str, Any] | None = None,
    already: NDArray[np.int64] | None = None,
) -> Reasons:
    """Why each of N samples was kept or dropped.

    Args:
        method: the selector.
        signals: as it saw them.
        chosen: what it kept.
        names: of the samples.
        params: of the selector.
        already: int64 (m,), rows that were there before.

    >>> signals = Signals(n=3, features=np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]))
    >>> chosen = Selection.of(np.array([0, 2]), gains=np.array([0.0, 1.4]))
    >>> for line in reasons("k_center", signals, chosen, ["a", "b", "c"]).why:
    ...     print(line)
    kept: the first, drawn at random
    dropped: 1.00 similar to kept a
    kept: farthest from all before it: 1.4
    """
    entry, n = selectors.get(method), signals.n
    defaults = {name: parameter.default for name, parameter in entry.parameters().items()}
    settings = {**defaults, **entry.fixed, **(params or {})}
    kept = np.asarray(chosen.indices)
    before = np.empty(0, np.int64) if already is None else already
    standing = np.concatenate([before, kept])
    rest = np.setdiff1d(np.arange(n), standing)
    nearest, similarity = np.full(n, -1, np.int64), np.full(n, np.nan, np.float32)
    if signals.has("features") and len(rest):
        near = knn(signals.features[standing], 1, queries=signals.features[rest])
        nearest[rest], similarity[rest] = standing[near.neighbours[:, 0]], near.similarity[:, 0]
    why = [""] * n
    for row in before.tolist():
        why[row] = "there before"
    place = _Place.of(signals, settings)
    for rank, row in enumerate(kept.tolist()):
        gain = None if chosen.gains is None else float(chosen.gains[rank])
        if method == "k_center" and rank == 0 and not len(before):
            why[row] = "kept: the first, drawn at random"
        elif place is not None and method not in GAINS:
            why[row] = f"kept: {place.of_row(row)}"
        else:
            words = GAINS.get(method, "gain {gain:.3g}")
            why[row] = "kept: " + (words.format(gain=gain) if gain is not None else words.partition(":")[0])
    cut, there = _cut(method, signals, settings), set(before.tolist())
    for row in rest.tolist():
        if row in cut:
            why[row] = f"dropped: likely mislabelled, among the {len(cut):,} hardest"
        elif nearest[row] >= 0:
            what = "what was there before," if nearest[row] in there else "kept"
            why[row] = f"dropped: {similarity[row]:.2f} similar to {what} {names[nearest[row]]}"
        elif place is not None:
            why[row] = f"dropped: {place.of_row(row)}"
        else:
            why[row] = "dropped: not drawn"
    return Reasons(why, nearest, similarity)


@dataclass(frozen=True)
class _Place:
    """Where a sample stands in the score that a method selects by."""

    score: str
    values: NDArray[Any]
    harder_than: NDArray[np.float64]
    stratum: NDArray[np.int64] | None
    strata: int

    @classmethod
    def of(cls, signals: Signals, settings: Mapping[str, Any]) -> _Place | None:
        name = settings.get("score")
        if name is None or name not in signals.scores:
            return None
        hardness = signals.hardness(name, settings.get("higher_is")).astype(np.float64)
        harder = np.searchsorted(np.sort(hardness), hardness, side="left") / len(hardness)
        values, strata = signals.score(name), settings.get("strata") or 0
        return cls(name, values, harder, strata_of(values, strata) if strata else None, strata)

    def of_row(self, row: int) -> str:
        share = 100 * self.harder_than[row]
        side = f"harder than {share:.0f} %" if share >= 50 else f"easier than {100 - share:.0f} %"
        words = f"{side}, {self.score} {float(self.values[row]):.3g}"
        if self.stratum is not None:
            words += f", stratum {self.stratum[row] + 1} of {self.strata}"
        return words


def _cut(method: str, signals: Signals, settings: Mapping[str, Any]) -> set[int]:
    """Rows that ``mis_ratio`` drops first: ELFS's hardest by its score, the others' of lowest AUM."""
    share, score = settings.get("mis_ratio") or 0.0, str(settings["score"]) if method == "elfs" else "aum"
    if not share or score not in signals.scores:
        return set()
    easiness = -signals.hardness(score, settings.get("higher_is") if method == "elfs" else None)
    return set(order(easiness, np.arange(signals.n, dtype=np.float64))[: int(share * signals.n)].tolist())
