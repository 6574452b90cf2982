"""What a selector is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.embed.graph import Graph
from winnow.tasks.errors import BadInput, MissingSignal
from winnow.tasks.registry import scores as registered_scores
from winnow.tasks.score import higher_is as polarity
from winnow.tasks.score.gradients import residuals_of
from winnow.tasks.select.blocks import blocks

__all__ = ["NO_ROWS", "Selection", "Signals"]

NO_ROWS = np.empty(0, np.int64)

DIMENSIONS = {"labels": 1, "features": 2, "probabilities": 2, "residuals": 2}
BLOCK = 1 << 22  # numbers that are checked at a time


class Signals:
    """What is known of N samples; what is not known is absent.

    Lazy: lengths are checked at once; a signal is loaded, and searched for NaN and infinity, when it is first
    read. So what a selector does not read costs nothing, and an artifact's column can stand in for an array.

    Args:
        n: number of samples.
        labels: int64 (N,), given or pseudo.
        features: float (N, D), embeddings or penultimate features.
        probabilities: float (N, C), rows sum to one.
        residuals: float (N, C), softmax − one-hot, per sample; made from probabilities and labels where these
            are given.
        scores: name to float (N,).
        graph: kNN graph of the features.
        ids: int64, str or bytes (N,), stable names of the samples; default 0..N−1.

    Raises:
        BadInput: an array of the wrong length, at once; NaN or infinity, when it is read, naming the first
            row.
        MissingSignal: an unknown signal is read.

    >>> signals = Signals(n=3, scores={"aum": np.array([0.5, np.nan, 0.1])})
    >>> signals.score("aum")
    Traceback (most recent call last):
    winnow.BadInput: scores['aum']: row 1 is nan.
    """

    def __init__(
        self,
        n: int,
        *,
        labels: Any = None,
        features: Any = None,
        probabilities: Any = None,
        residuals: Any = None,
        scores: Mapping[str, Any] | None = None,
        graph: Graph | None = None,
        ids: NDArray[Any] | None = None,
    ) -> None:
        if n < 1:
            raise BadInput(f"n = {n}: there are no samples to select from.")
        self.n, self.graph, self.ids = n, graph, ids
        columns = zip(DIMENSIONS, (labels, features, probabilities, residuals), strict=True)
        self._columns = {name: values for name, values in columns if values is not None}
        self._scores = dict(scores or {})
        self._read: dict[str, NDArray[Any]] = {}  # loaded, and found to be finite
        for name, values in self._columns.items():
            _check_shape(name, values, n, DIMENSIONS[name])
        for name, values in self._scores.items():
            _check_shape(f"scores[{name!r}]", values, n, 1)
        if ids is not None:
            _check_shape("ids", ids, n, 1)
        if graph is not None and len(graph.neighbours) != n:
            raise BadInput(f"graph: {len(graph.neighbours)} rows, expected {n}.")

    def __repr__(self) -> str:
        names = [
            *self._columns,
            *(f"scores[{name!r}]" for name in self._scores),
            *(["graph"] * self.has("graph")),
        ]
        return f"Signals(n={self.n}: {', '.join(names) or 'none'})"

    # -- what is known ---------------------------------------------------------------------------------------

    def has(self, need: str) -> bool:
        if need == "scores":
            return bool(self._scores)
        if need == "graph":
            return self.graph is not None
        return need in self._columns or (
            need == "residuals" and {"labels", "probabilities"} <= self._columns.keys()
        )

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._values("labels")

    @property
    def features(self) -> NDArray[np.floating[Any]]:
        return self._values("features")

    @property
    def probabilities(self) -> NDArray[np.floating[Any]]:
        return self._values("probabilities")

    @property
    def residuals(self) -> NDArray[np.floating[Any]]:
        if "residuals" not in self._columns and self.has("residuals"):
            self._columns["residuals"] = residuals_of(self.probabilities, self.labels)
        return self._values("residuals")

    @property
    def scores(self) -> Mapping[str, NDArray[Any]]:
        return _Scores(self)

    def score(self, name: str) -> NDArray[Any]:
        """The score of that name.

        Raises:
            MissingSignal: it is not among the scores.
        """
        if name not in self._scores:
            raise MissingSignal(
                f"score {name!r} is not among the scores given: {', '.join(sorted(self._scores)) or 'none'}.",
                remedy="choose one of these, or compute it first",
            )
        return self._checked(f"scores[{name!r}]", self._scores[name])

    def hardness(self, name: str, higher_is: str | None = None) -> NDArray[Any]:
        """The score of that name, turned so that higher is harder.

        Args:
            name: of the score.
            higher_is: ``"harder"`` or ``"easier"``; default as registered.
        """
        values = self.score(name)
        direction = higher_is or polarity(name)
        if direction not in ("harder", "easier"):
            raise BadInput(
                f"score {name!r}: is a higher value harder or easier? ({direction!r} given; known scores: "
                f"{', '.join(registered_scores.names())})",
                remedy="pass higher_is='harder' or higher_is='easier'",
            )
        if direction == "harder":
            return values
        return -values.astype(np.int64) if values.dtype.kind in "iub" else -values

    def _values(self, name: str) -> NDArray[Any]:
        if name not in self._columns:
            raise MissingSignal(f"{name} are not among the signals given.")
        return self._checked(name, self._columns[name])

    def _checked(self, name: str, values: Any) -> NDArray[Any]:
        if name not in self._read:
            loaded = values.read() if isinstance(values, _Rows) else _finite(name, np.asarray(values))
            self._read[name] = loaded
        return self._read[name]

    # -- derived signals -------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Signals:
        """The same with other values; None removes a signal.

        >>> Signals(n=2, labels=np.array([0, 1])).replace(labels=None).has("labels")
        False
        """
        common: dict[str, Any] = {"n": self.n, "ids": self.ids, "graph": self.graph, "scores": self._scores}
        return Signals(**{**common, **self._columns, **changes})

    def rows(self, rows: NDArray[np.int64]) -> Signals:
        """The same for some samples only (without the graph, whose neighbours would dangle)."""
        part = Signals(len(rows), ids=rows if self.ids is None else self.ids[rows])
        for name in self._columns:
            shape = (len(rows), *np.shape(self._columns[name])[1:])
            part._columns[name] = _Rows(partial(self._values, name), rows, shape)
        for name in self._scores:
            part._scores[name] = _Rows(partial(self.score, name), rows, (len(rows),))
        return part

    def order(self) -> NDArray[np.int64] | None:
        """Rows in the order of their ids; None where they already are.

        Raises:
            BadInput: an id appears twice.
        """
        if self.ids is None or bool((self.ids[1:] > self.ids[:-1]).all()):
            return None
        order = np.argsort(self.ids, kind="stable")
        same = np.flatnonzero(self.ids[order[1:]] == self.ids[order[:-1]])
        if len(same):
            first, second = sorted(order[same[0] : same[0] + 2].tolist())
            raise BadInput(f"ids: {self.ids[first]!s} appears twice, in rows {first} and {second}.")
        return order

    def reordered(self, order: NDArray[np.int64]) -> Signals:
        """All samples, graph included, in another order."""
        moved = self.rows(order)
        if self.graph is not None:
            inverse = np.empty(self.n, self.graph.neighbours.dtype)
            inverse[order] = np.arange(self.n, dtype=inverse.dtype)
            moved.graph = Graph(inverse[self.graph.neighbours[order]], self.graph.similarity[order])
        return moved


class _Scores(Mapping[str, NDArray[Any]]):
    """Signals' scores by name, each searched for NaN when it is read."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._signals._scores:
            raise KeyError(name)
        return self._signals.score(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._signals._scores)

    def __len__(self) -> int:
        return len(self._signals._scores)


@dataclass(frozen=True)
class _Rows:
    """Some rows of a signal, taken when they are read."""

    whole: Callable[[], NDArray[Any]]
    rows: NDArray[np.int64]
    shape: tuple[int, ...]

    def read(self) -> NDArray[Any]:
        return self.whole()[self.rows]


def _check_shape(name: str, values: Any, n: int, dimensions: int) -> None:
    shape = np.shape(values)
    if len(shape) != dimensions or shape[0] != n:
        raise BadInput(
            f"{name}: shape {shape}, expected {n} rows and {dimensions} dimension{'s' * (dimensions > 1)}."
        )


def _finite(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """The values, once checked block by block for NaN and infinity."""
    if values.dtype.kind == "f":
        for rows in blocks(len(values), max(1, BLOCK // max(1, values[:1].size))):
            block = values[rows]
            if not np.isfinite(block).all():
                at = tuple(np.argwhere(~np.isfinite(block))[0])
                raise BadInput(f"{name}: row {rows.start + at[0]} is {block[at]}.")
    return values


@dataclass(frozen=True)
class Selection:
    """The samples that a selector keeps.

    Args:
        indices: int64 (k,), unique rows, in pick order where the method has one.
        weights: float32 (k,), 1 where the method gives none.
        gains: float32 (k,), greedy gain or score of each pick, or None.

    >>> Selection.of([4, 1]).weights.tolist()
    [1.0, 1.0]
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float32]
    gains: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, indices: Any, *, weights: Any = None, gains: Any = None) -> Selection:
        """A selection from anything array-like; weights default to 1."""
        rows = np.asarray(indices, dtype=np.int64)
        return cls(
            rows,
            np.ones(len(rows), np.float32) if weights is None else np.asarray(weights, np.float32),
            None if gains is None else np.asarray(gains, np.float32),
        )
