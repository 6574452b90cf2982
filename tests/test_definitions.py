"""Engines against definitions: the registered selectors pick what their formulas, written out, pick."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from winnow.tasks.registry import SelectorEntry, loaded, selectors
from winnow.tasks.select.signals import Signals

# selector, parameters of it and of its module's definition
DEFINITIONS: list[tuple[str, dict[str, Any]]] = [
    ("d2", {"score": "el2n", "neighbours": 3, "gamma_forward": 0.7, "gamma_reverse": 0.3}),
    ("d2", {"score": "forgetting", "neighbours": 5, "gamma_reverse": 2.0}),
    ("facility_location", {}),
    ("graph_cut", {}),
    ("log_determinant", {}),
    ("craig", {}),
    ("ccs", {}),
    ("ccs", {"score": "forgetting", "mis_ratio": 0.3, "strata": 7}),
    ("ccs", {"score": "el2n", "mis_ratio": 0.1, "strata": 1}),
    ("elfs", {}),
    ("elfs", {"score": "forgetting", "mis_ratio": 0.2}),
    ("glister", {}),
    ("glister", {"eta": 0.3, "refresh": 5}),
    ("gradmatch", {}),
    ("gradmatch", {"lam": 0.0}),
    ("gradmatch", {"lam": 20.0}),
    ("top", {}),
    ("top", {"score": "aum", "hardest": False}),
    ("aum", {}),
    ("el2n", {}),
    ("forgetting", {"hardest": False}),
    ("random", {}),
    ("k_center", {}),
    ("k_center", {"metric": "cosine"}),
    ("herding", {}),
    ("herding", {"metric": "cosine"}),
    ("contextual_diversity", {}),
    ("cal", {}),
    ("cal", {"neighbours": 3}),
    ("semdedup", {}),
    ("semdedup", {"clusters": 2}),
    ("badge", {}),
    ("moderate", {}),
    ("moderate", {"centre": "median"}),
    ("prototypicality", {}),
    ("prototypicality", {"clusters": 5, "metric": "euclidean"}),
    ("prototypicality", {"clusters": 3, "hardest": False}),
    ("uncertainty", {}),
    ("uncertainty", {"kind": "entropy"}),
    ("uncertainty", {"kind": "margin"}),
    ("zcore", {}),
    ("zcore", {"samples": 200, "dimensions": 3, "exponent": 1.5}),
    ("deepfool", {}),
    ("grand", {}),
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
        "grand": generator.random(N)[rows],
        "deepfool": generator.random(N)[rows],
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


def definition_of(entry: SelectorEntry) -> Callable[..., np.ndarray]:
    """The module's definition, for the entry's name and fixed arguments where it is of several."""
    definition = loaded(f"{entry.target.partition(':')[0]}:definition")
    names = inspect.signature(definition).parameters
    fixed = {name: value for name, value in {"name": entry.name, **entry.fixed}.items() if name in names}
    return partial(definition, **fixed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["different", "copies", "equal scores"])
@pytest.mark.parametrize(("name", "params"), DEFINITIONS, ids=[name for name, _ in DEFINITIONS])
def test_engine_picks_as_defined(name, params, kind, seed):
    signals, entry = random_signals(kind, seed), selectors.get(name)
    expected = definition_of(entry)(
        signals=signals, budget=BUDGET, generator=np.random.default_rng(seed), **params
    )
    selection = entry(signals, BUDGET, generator=np.random.default_rng(seed), **params)
    assert selection.indices.tolist() == expected.tolist()


def test_every_selector_has_a_definition():
    assert {name for name, _ in DEFINITIONS} == set(selectors.names()) - {"full"}


# BADGE draws in blocks after some picks; few rows leave nothing over for GradMatch, and span all dimensions
FEW_BEFORE = ("badge", "gradmatch", "log_determinant")
GOING_ON = [
    (name, params, before)
    for name, params in DEFINITIONS
    if selectors.get(name).accepts("already")
    for before in ((3,) if name in FEW_BEFORE else (3, 20, N - BUDGET))
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["different", "copies", "equal scores"])
@pytest.mark.parametrize(("name", "params", "before"), GOING_ON)
def test_engine_goes_on_as_defined(name, params, before, kind, seed):
    """From rows that it would not have picked, in any order."""
    signals, entry = random_signals(kind, seed), selectors.get(name)
    there = np.random.default_rng(seed + 9).permutation(N)[:before]
    how = {"budget": BUDGET, "already": there, **params}
    expected = definition_of(entry)(signals=signals, generator=np.random.default_rng(seed), **how)
    chosen = entry(signals, generator=np.random.default_rng(seed), **how)
    assert chosen.indices.tolist() == expected.tolist()
