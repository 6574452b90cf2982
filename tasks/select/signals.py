"""What a selector is given and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.embed.graph import Graph
from tasks.errors import BadInput, MissingSignal
from tasks.registry import scores
from tasks.score import higher_is as polarity

__all__ = ["Selection", "Signals", "residuals_of", "softmax"]


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Probabilities of logits (N, C); float32.

    >>> softmax(np.array([[0.0, 0.0]]))
    array([[0.5, 0.5]], dtype=float32)
    """
    shifted = np.exp(logits.astype(np.float32) - logits.max(axis=1, keepdims=True).astype(np.float32))
    return shifted / shifted.sum(axis=1, keepdims=True)


def residuals_of(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Softmax minus one-hot: the gradient of each sample's cross-entropy by its logits; float32 (N, C).

    >>> residuals_of(np.array([[0.5, 0.5]]), np.array([0]))
    array([[-0.5,  0.5]], dtype=float32)
    """
    residuals = probabilities.astype(np.float32, copy=True)
    residuals[np.arange(len(labels)), labels] -= 1
    return residuals


@dataclass(frozen=True)
class Signals:
    """What is known of N samples; what is not known is absent.

    Args:
        n: number of samples.
        labels: int64 (N,), given or pseudo.
        features: float (N, D), embeddings or penultimate features.
        probabilities: float (N, C), rows sum to one.
        residuals: float (N, C), softmax − one-hot, per sample.
        scores: name to float (N,).
        graph: kNN graph of the features.
        ids: int64 or str (N,), stable names of the samples; default 0..N−1.

    Raises:
        BadInput: an array of another length, or NaN or infinity in it, with the first such row.

    >>> Signals(n=3, scores={"aum": np.array([0.5, np.nan, 0.1])})
    Traceback (most recent call last):
    tasks.errors.BadInput: scores['aum']: row 1 is nan.
    """

    n: int
    labels: NDArray[np.int64] | None = None
    features: NDArray[np.floating[Any]] | None = None
    probabilities: NDArray[np.floating[Any]] | None = None
    residuals: NDArray[np.floating[Any]] | None = None
    scores: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    graph: Graph | None = None
    ids: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise BadInput(f"n = {self.n}: there are no samples to select from.")
        given = {name: getattr(self, name) for name in ("labels", "features", "probabilities", "residuals", "ids")}
        given |= {f"scores[{name!r}]": values for name, values in self.scores.items()}
        for name, values in given.items():
            if values is None:
                continue
            dimensions = 2 if name in ("features", "probabilities", "residuals") else 1
            if values.ndim != dimensions or len(values) != self.n:
                raise BadInput(f"{name}: shape {values.shape}, expected {self.n} rows and {dimensions} dimension{'s' * (dimensions > 1)}.")
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                row = int(np.argwhere(~np.isfinite(values))[0][0])
                value = values[row] if dimensions == 1 else values[row][~np.isfinite(values[row])][0]
                raise BadInput(f"{name}: row {row} is {value}.")
        if self.ids is not None and len(np.unique(self.ids)) != self.n:
            raise BadInput("ids: some appear twice.")
        if self.graph is not None and len(self.graph.neighbours) != self.n:
            raise BadInput(f"graph: {len(self.graph.neighbours)} rows, expected {self.n}.")

    def has(self, need: str) -> bool:
        value = getattr(self, need)
        return bool(value) if need == "scores" else value is not None

    def keys(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """One random number per sample, tied to its id: what breaks ties, whatever order the samples are stored in."""
        drawn = generator.random(self.n)
        if self.ids is None:
            return drawn
        keys = np.empty(self.n)
        keys[np.argsort(self.ids, kind="stable")] = drawn
        return keys

    def score(self, name: str) -> NDArray[Any]:
        """The score of that name.

        Raises:
            MissingSignal: it is not among the scores.
        """
        if name not in self.scores:
            have = ", ".join(sorted(self.scores)) or "none"
            raise MissingSignal(f"score {name!r} is not among the scores given: {have}.", remedy="choose one of these, or compute it first")
        return self.scores[name]

    def hardness(self, name: str, higher_is: str | None = None) -> NDArray[Any]:
        """The score of that name, turned so that higher is harder.

        Args:
            name: of the score.
            higher_is: ``"harder"`` or ``"easier"``; default what is known of the score.
        """
        values = self.score(name)
        direction = higher_is or polarity(name)
        if direction not in ("harder", "easier"):
            known = ", ".join(scores.names())
            raise BadInput(
                f"score {name!r}: is a higher value harder or easier? ({direction!r} given; known scores: {known})",
                remedy="pass higher_is='harder' or higher_is='easier'",
            )
        if direction == "harder":
            return values
        return -values.astype(np.int64) if values.dtype.kind in "iub" else -values

    def rows(self, rows: NDArray[np.int64]) -> Signals:
        """The same of some samples only (without the graph, whose ids would dangle)."""

        def part(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[rows]

        return Signals(
            n=len(rows),
            labels=part(self.labels),
            features=part(self.features),
            probabilities=part(self.probabilities),
            residuals=part(self.residuals),
            scores={name: values[rows] for name, values in self.scores.items()},
            ids=rows if self.ids is None else self.ids[rows],
        )


@dataclass(frozen=True)
class Selection:
    """The samples that a selector keeps.

    Args:
        indices: int64 (k,), unique rows, in pick order where the method has one.
        weights: float32 (k,), 1 where the method gives none.
        gains: float32 (k,), greedy gain or score of each pick, or None.
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
