"""Laws that every registered selector obeys; a new one is picked up from the registry."""

from __future__ import annotations

import numpy as np
import pytest

from winnow.tasks.errors import BadInput
from winnow.tasks.registry import selectors
from winnow.tasks.select.signals import Signals

N, CLASSES = 240, 6
NAMES = selectors.names()


def signals(n: int = N, *, dtype=np.float32, ids=None) -> Signals:
    """Everything that a selector may ask for, with ties in the scores."""
    generator = np.random.default_rng(7)
    labels = generator.integers(0, CLASSES, n)
    features = (generator.normal(size=(n, 12)) + 2 * np.eye(CLASSES, 12)[labels]).astype(dtype)
    margins = generator.normal(size=n).round(1)  # rounding makes ties
    scores = {
        "aum": margins.astype(dtype),
        "el2n": generator.random(n).round(1).astype(dtype),
        "forgetting": generator.integers(0, 5, n),
    }
    logits = 2 * generator.normal(size=(n, CLASSES)) + 2 * np.eye(CLASSES)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    residuals = probabilities - np.eye(CLASSES)[labels]
    scores["grand"] = np.linalg.norm(residuals, axis=1).round(1).astype(dtype)
    scores["deepfool"] = np.square(margins).astype(dtype)
    return Signals(
        n=n,
        labels=labels,
        features=features,
        probabilities=probabilities.astype(dtype),
        residuals=residuals.astype(dtype),
        scores=scores,
        ids=np.arange(n) if ids is None else ids,
    )


def choose(name: str, given: Signals, budget: int | float, *, seed: int = 0, **params):
    if name == "full":
        budget = given.n
    return selectors.get(name)(given, budget, generator=np.random.default_rng(seed), **params)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [1, 0.1, 37, 0.5, 1.0])
def test_exact_budget_and_valid_rows(name, budget):
    chosen = choose(name, signals(), budget)
    k = N if name == "full" else int(budget * N) if isinstance(budget, float) else budget
    assert chosen.indices.dtype == np.int64
    assert len(chosen.indices) == len(np.unique(chosen.indices)) == k
    assert chosen.indices.min() >= 0
    assert chosen.indices.max() < N
    assert chosen.weights.shape == (k,)
    assert chosen.weights.dtype == np.float32
    assert chosen.gains is None or chosen.gains.shape == (k,)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "full"])
def test_balanced_budget(name):
    given = signals()
    chosen = choose(name, given, 0.25, balanced=True)
    assert len(np.unique(chosen.indices)) == 60
    share = np.bincount(given.labels[chosen.indices], minlength=CLASSES) / np.bincount(
        given.labels, minlength=CLASSES
    )
    assert np.all(np.abs(share * np.bincount(given.labels) - 0.25 * np.bincount(given.labels)) <= 1)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_result(name):
    first, second = choose(name, signals(), 0.3, seed=5), choose(name, signals(), 0.3, seed=5)
    assert first.indices.tolist() == second.indices.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_ids_do_not_depend_on_storage_order(name):
    given = signals()
    shuffle = np.random.default_rng(1).permutation(N)
    moved = Signals(
        n=N,
        labels=given.labels[shuffle],
        features=given.features[shuffle],
        probabilities=given.probabilities[shuffle],
        residuals=given.residuals[shuffle],
        scores={k: v[shuffle] for k, v in given.scores.items()},
        ids=given.ids[shuffle],
    )
    ours, theirs = choose(name, given, 0.3), choose(name, moved, 0.3)
    assert sorted(given.ids[ours.indices]) == sorted(moved.ids[theirs.indices])


@pytest.mark.parametrize("name", NAMES)
def test_string_ids(name):
    given = signals(ids=np.array([f"sample-{i:04d}" for i in range(N)]))
    assert choose(name, given, 0.3).indices.tolist() == choose(name, signals(), 0.3).indices.tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_dtypes(name, dtype):
    assert len(choose(name, signals(dtype=dtype), 0.2).indices) == (N if name == "full" else 48)


# d2 reads features or a graph besides, so that equal scores are no ties to it
@pytest.mark.parametrize(
    "name", [name for name in NAMES if selectors.get(name).needs == ("scores",) and name != "d2"]
)
def test_ties_are_broken_by_the_generator(name):
    flat = Signals(n=N, scores={score: np.zeros(N) for score in signals().scores})
    first, second = choose(name, flat, 0.2, seed=1), choose(name, flat, 0.2, seed=2)
    assert set(first.indices.tolist()) != set(second.indices.tolist())
    assert first.indices.max() > N // 2, "ties must not go to the first rows"


@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_global_state_are_left_alone(name):
    import torch

    given = signals()
    copies = {k: v.copy() for k, v in given.scores.items()}
    arrays = {
        name: getattr(given, name).copy()
        for name in ("labels", "features", "probabilities", "residuals", "ids")
    }
    np.random.seed(3)  # noqa: NPY002  # the global state is what is watched
    torch.manual_seed(3)
    before, before_torch = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    choose(name, given, 0.3)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before_torch)
    assert all(np.array_equal(given.scores[k], v) for k, v in copies.items())
    assert all(np.array_equal(getattr(given, name), array) for name, array in arrays.items())


# ccs gives each stratum its share of the budget; gradmatch lets samples whose weight falls to 0 make room for
# others
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("full", "ccs", "gradmatch")])
def test_a_smaller_coreset_begins_a_larger_one(name):
    large = choose(name, signals(), 96).indices.tolist()
    for budget in (1, 7, 24, 60):
        assert choose(name, signals(), budget).indices.tolist() == large[:budget]


def degenerate(kind: str) -> Signals:
    """Data on which formulas break."""
    given = signals()
    if kind == "one class":
        return given.replace(labels=np.zeros(N, np.int64))
    if kind == "duplicate rows":
        source = np.arange(N) // 8 * 8  # eight copies of each
        copied = {
            name: getattr(given, name)[source]
            for name in ("labels", "features", "probabilities", "residuals")
        }
        return given.replace(**copied, scores={name: values[source] for name, values in given.scores.items()})
    same = {name: np.full_like(values, values[0]) for name, values in given.scores.items()}
    rows = {
        name: np.tile(getattr(given, name)[0], (N, 1)) for name in ("features", "probabilities", "residuals")
    }
    if kind == "zeros":
        rows["features"], rows["residuals"] = np.zeros_like(given.features), np.zeros_like(given.residuals)
    if kind == "certain":  # probabilities of 0 and 1, right every time
        rows["probabilities"] = np.eye(CLASSES, dtype=np.float32)[given.labels]
        rows["residuals"] = np.zeros_like(given.residuals)
    return given.replace(**rows, scores=same)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("kind", ["one class", "duplicate rows", "constant", "zeros", "certain"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "full"])
def test_degenerate_data(name, kind, balanced):
    given = degenerate(kind)
    for budget in (1, 5, 120, N):  # 1 and 5 are fewer than there are classes
        chosen = choose(name, given, budget, balanced=balanced)
        assert len(chosen.indices) == len(np.unique(chosen.indices)) == budget
        assert np.isfinite(chosen.weights).all()
        assert (chosen.weights >= 0).all()
        assert chosen.gains is None or not np.isnan(chosen.gains).any()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "full"])
@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, "budget = 0"),
        (N + 1, "budget = 241"),
        (0.0, "fraction = 0"),
        (1.5, "fraction = 1.5"),
        (0.001, "keeps none"),
    ],
)
def test_impossible_budgets_are_refused(name, budget, message):
    with pytest.raises(BadInput, match=message):
        choose(name, signals(), budget)


@pytest.mark.parametrize("name", [name for name in NAMES if "probabilities" in selectors.get(name).needs])
def test_probabilities_that_are_none_are_refused(name):
    given = signals()
    with pytest.raises(BadInput, match="probabilities: row 0 sums to"):
        choose(name, given.replace(probabilities=2 * given.probabilities), 0.2)


@pytest.mark.parametrize("name", NAMES)
def test_one_sample(name):
    one = signals(1).replace(ids=None)
    assert choose(name, one, 1.0).indices.tolist() == [0]


@pytest.mark.parametrize("name", NAMES)
def test_documented(name):
    entry = selectors.get(name)
    assert entry.summary.endswith("."), entry.doc
    assert ">>>" in entry.doc


# -- what is there already -----------------------------------------------------------------------------------

GOING_ON = [name for name in NAMES if selectors.get(name).accepts("already")]
OPTIMIZERS = ("lazy", "naive", "stochastic", "approximate_lazy")
VARIANTS = [
    # with its default λ, samples leave GradMatch's support again: smaller choices are no part of larger ones
    *((name, {}) for name in GOING_ON if name != "gradmatch"),
    *(
        (name, {"optimizer": optimizer, **kernel})
        for name in ("facility_location", "graph_cut", "log_determinant", "craig")
        for optimizer in OPTIMIZERS
        for kernel in ({}, {"neighbours": 8}, {"kernel": "gradients"})
        if not kernel.keys() & {"craig": {"kernel"}, "log_determinant": {"neighbours"}}.get(name, set())
    ),
    ("k_center", {"metric": "cosine"}),
    ("herding", {"metric": "cosine"}),
    ("d2", {"graph_mode": "directed", "gamma_reverse": 0.0}),
    ("d2", {"graph_mode": "per_class"}),
    ("d2", {"graph_mode": "per_class", "score": "aum", "mis_ratio": 0.3}),
    ("d2", {"score": "el2n", "mis_ratio": 0.2}),
    ("glister", {"refresh": 7}),
    ("gradmatch", {"lam": 20.0}),
    ("moderate", {"centre": "median"}),
    ("semdedup", {"clusters": 2}),
    ("zcore", {"samples": 100, "neighbours": 20}),
]
ROUNDED = {"glister": 1e-4, "log_determinant": 1e-6}  # gains that may differ by the rounding of sums


def with_copies(given: Signals) -> Signals:
    """The same with every third sample a copy of the one before it."""
    rows = np.arange(given.n)
    rows[2::3] -= 1
    copies = given.rows(rows)
    return copies.replace(ids=np.arange(given.n))


def test_the_methods_that_pick_one_after_another_go_on():
    assert set(GOING_ON) == {
        "badge", "contextual_diversity", "craig", "d2", "facility_location", "glister", "gradmatch",
        "graph_cut", "herding", "k_center", "log_determinant", "moderate", "semdedup", "zcore",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["different", "copies", "permuted", "balanced"])
@pytest.mark.parametrize(
    ("name", "params"), VARIANTS, ids=["-".join([name, *map(str, of.values())]) for name, of in VARIANTS]
)
def test_twice_k_is_k_and_then_k_more(name, params, kind):
    given = signals()
    if kind == "copies":
        given = with_copies(given)
    if kind == "permuted":
        given = given.replace(ids=np.random.default_rng(3).permutation(N))
    if kind == "balanced":  # the first class is complete after k, and draws for the next must not shift
        labels = np.maximum(given.labels, 1)
        labels[[7, 100]] = 0
        given = given.replace(labels=labels)
    how = {**params, "balanced": kind == "balanced"}
    one, both = choose(name, given, 40, **how), choose(name, given, 80, **how)
    begins = np.arange(80) < 40
    if kind == "balanced" or params.get("graph_mode") == "per_class":  # class by class
        label, share = given.labels[both.indices], np.bincount(given.labels[one.indices])
        begins = np.arange(80) - np.searchsorted(label, label) < share[label]
    there = both.indices[begins]
    # the size of stochastic samples depends on k, and BADGE's draws run on from class to class
    if params.get("optimizer") != "stochastic" and not (name == "badge" and kind == "balanced"):
        assert one.indices.tolist() == there.tolist()
    two = choose(name, given, 40, already=there, **how)
    assert two.indices.tolist() == both.indices[~begins].tolist()
    rtol = ROUNDED.get(name, 0.0)
    np.testing.assert_allclose(two.gains, both.gains[~begins], rtol=rtol, atol=rtol)
    if name == "craig":
        assert two.weights.tolist() == both.weights[~begins].tolist()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "full"])
@pytest.mark.parametrize("balanced", [False, True])
def test_what_is_there_is_never_picked(name, balanced):
    given, generator = signals(), np.random.default_rng(1)
    for there in (np.array([5]), generator.permutation(N)[:100], generator.permutation(N)[: N - 12]):
        chosen = choose(name, given, 12, already=there, balanced=balanced)
        assert len(np.unique(chosen.indices)) == 12
        assert not set(chosen.indices.tolist()) & set(there.tolist())
    nothing = choose(name, given, 12, already=np.empty(0, np.int64), balanced=balanced)
    assert nothing.indices.tolist() == choose(name, given, 12, balanced=balanced).indices.tolist()


@pytest.mark.parametrize("name", GOING_ON)
def test_balanced_rounds_fill_the_shares_of_all(name):
    given = signals()
    one = choose(name, given, 30, balanced=True)
    two = choose(name, given, 30, balanced=True, already=one.indices)
    both = choose(name, given, 60, balanced=True)
    picked = np.concatenate([one.indices, two.indices])
    if name != "badge":  # its draws run on from class to class
        assert set(picked.tolist()) == set(both.indices.tolist())
    assert np.bincount(given.labels[picked]).tolist() == np.bincount(given.labels[both.indices]).tolist()


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (np.array([0, N]), r"already\[1\] = 240: there are 240 samples"),
        (np.array([-1]), r"already\[0\] = -1"),
        (np.array([3, 3]), "already names row 3 twice"),
        (np.array([0.5]), "already is float64"),
        (np.arange(N), "budget = 20 samples, but 240 of 240 are there already"),
    ],
)
def test_what_cannot_be_there_is_refused(there, message):
    with pytest.raises(BadInput, match=message):
        choose("k_center", signals(), 20, already=there)
