"""Engines against definitions: the registered selectors pick what their formulas, written out, pick."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from winnow.tasks.registry import selectors
from winnow.tasks.select import badge, craig, d2, moderate, prototypicality, submodular, uncertainty, zcore
from winnow.tasks.select.signals import Signals

# selector, its definition, parameters of both
DEFINITIONS: list[tuple[str, Callable[..., np.ndarray], dict[str, Any]]] = [
    ("d2", d2.definition, {"score": "el2n", "neighbours": 3, "gamma_forward": 0.7, "gamma_reverse": 0.3}),
    ("d2", d2.definition, {"score": "forgetting", "neighbours": 5, "gamma_reverse": 2.0}),
    ("facility_location", partial(submodular.definition, "facility_location"), {}),
    ("graph_cut", partial(submodular.definition, "graph_cut"), {}),
    ("log_determinant", partial(submodular.definition, "log_determinant"), {}),
    ("craig", craig.definition, {}),
    ("badge", badge.definition, {}),
    ("moderate", moderate.definition, {}),
    ("moderate", moderate.definition, {"centre": "median"}),
    ("prototypicality", prototypicality.definition, {}),
    ("prototypicality", prototypicality.definition, {"clusters": 5, "metric": "euclidean"}),
    ("prototypicality", prototypicality.definition, {"clusters": 3, "hardest": False}),
    ("uncertainty", uncertainty.definition, {}),
    ("uncertainty", uncertainty.definition, {"kind": "entropy"}),
    ("uncertainty", uncertainty.definition, {"kind": "margin"}),
    ("zcore", partial(zcore.definition, samples=480), {}),
    ("zcore", zcore.definition, {"samples": 200, "dimensions": 3, "exponent": 1.5}),
]
BUDGET = 12
N, DIM, CLASSES = 48, 16, 4


def random_signals(kind: str, seed: int) -> Signals:
    """All that a selector may ask for: all different, with copies, or with nothing but equal scores."""
    generator = np.random.default_rng(seed)
    rows = np.arange(N)
    if kind == "copies":
        rows = generator.integers(0, N // 2, N)
    labels = generator.integers(0, CLASSES, N)[rows]
    features = (generator.normal(size=(N, DIM))[rows] + 2 * np.eye(CLASSES, DIM)[labels]).astype(np.float32)
    logits = 2 * generator.normal(size=(N, CLASSES))[rows] + 2 * np.eye(CLASSES)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = {
        "aum": generator.normal(size=N)[rows].round(1),
        "el2n": generator.random(N)[rows],
        "forgetting": generator.integers(0, 5, N)[rows],
    }
    if kind == "equal scores":
        scores = {name: np.full_like(values, values[0]) for name, values in scores.items()}
    return Signals(
        n=N,
        labels=labels,
        features=features,
        probabilities=probabilities.astype(np.float32),
        residuals=(probabilities - np.eye(CLASSES)[labels]).astype(np.float32),
        scores=scores,
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["different", "copies", "equal scores"])
@pytest.mark.parametrize(
    ("name", "definition", "params"), DEFINITIONS, ids=[name for name, _, _ in DEFINITIONS]
)
def test_engine_picks_as_defined(name, definition, params, kind, seed):
    signals = random_signals(kind, seed)
    expected = definition(signals, BUDGET, generator=np.random.default_rng(seed), **params)
    selection = selectors.get(name)(signals, BUDGET, generator=np.random.default_rng(seed), **params)
    assert selection.indices.tolist() == expected.tolist()
