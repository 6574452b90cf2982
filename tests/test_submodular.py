"""Facility location, graph cut, log determinant, CRAIG: published output, exact greedy, what is refused."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from winnow.tasks.embed.graph import Graph
from winnow.tasks.embed.knn import knn
from winnow.tasks.errors import BadInput, MissingSignal
from winnow.tasks.registry import selectors
from winnow.tasks.score.gradients import residuals_of, softmax
from winnow.tasks.select import craig as craig_module
from winnow.tasks.select import greedy, set_functions, similarity, submodular
from winnow.tasks.select.budget import check_size
from winnow.tasks.select.rounds import CoverStage
from winnow.tasks.select.signals import Signals
from winnow.tasks.select.upstream import craig as published_craig

FUNCTIONS = ("facility_location", "graph_cut", "log_determinant")
EVERY = (*FUNCTIONS, "craig")
SPARSE = ("facility_location", "graph_cut")
CASES = [*((name, None) for name in EVERY), *((name, 5) for name in (*SPARSE, "craig"))]


def choose(name: str, signals: Signals, budget: int | float, *, seed: int = 0, **params):
    return selectors.get(name)(signals, budget, generator=np.random.default_rng(seed), **params)


def problem(n: int = 120, dim: int = 6, classes: int = 4, seed: int = 0) -> Signals:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    features = (generator.normal(size=(n, dim)) + 2 * np.eye(classes, dim)[labels]).astype(np.float32)
    logits = generator.normal(size=(n, classes)) + 2 * np.eye(classes)[labels]
    return Signals(n=n, labels=labels, features=features, residuals=residuals_of(softmax(logits), labels))


def gradients(signals: Signals) -> np.ndarray:
    """Written out, bias first."""
    with_bias = np.column_stack([np.ones(signals.n), signals.features]).astype(np.float64)
    return np.einsum("nc,nd->ncd", signals.residuals.astype(np.float64), with_bias).reshape(signals.n, -1)


def similarities(vectors: np.ndarray) -> np.ndarray:
    unit = vectors.astype(np.float64) / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    found = 0.5 + 0.5 * unit @ unit.T
    np.fill_diagonal(found, 1)
    return found


def kernel_of(
    signals: Signals, kernel: str = "features", neighbours: int | None = None, *, mutual: bool = False
) -> np.ndarray:
    """Row i: by whom item i can be represented, and how well."""
    found = similarities(signals.features if kernel == "features" else gradients(signals))
    if neighbours is None:
        return found
    others = found - 3 * np.eye(signals.n)
    near = np.argsort(-others, axis=1)[:, :neighbours]
    kept = np.eye(signals.n, dtype=bool)
    np.put_along_axis(kept, near, True, axis=1)
    if mutual:
        kept |= kept.T
    return np.where(kept, found, 0)


def value(name: str, s: np.ndarray, picks) -> float:
    """f(S)."""
    return submodular.SET_FUNCTIONS[name](s, np.asarray(picks)) if len(picks) else 0.0


def increments(name: str, s: np.ndarray, picks) -> np.ndarray:
    return np.diff([value(name, s, picks[:size]) for size in range(len(picks) + 1)])


def is_greedy(name: str, s: np.ndarray, picks, slack: float) -> bool:
    """No other sample would have added more than the one that was picked, at any step."""
    for size, pick in enumerate(picks):
        added = [
            value(name, s, [*picks[:size], other]) for other in range(len(s)) if other not in picks[:size]
        ]
        if max(added) > value(name, s, [*picks[:size], pick]) + slack:
            return False
    return True


# -- the published code --------------------------------------------------------------------------------------


def published(golden, fixture: str) -> tuple[dict, Signals]:
    data = golden(fixture)
    features, labels = data["input.embeddings"], data["input.labels"]
    logits = features @ data["input.head_weight"].T + data["input.head_bias"]
    return data, Signals(
        n=len(labels), labels=labels, features=features, residuals=residuals_of(softmax(logits), labels)
    )


def by_class(name: str, signals: Signals, **params):
    """The published code's class shares, which round each class's fraction."""
    indices, weights = [], []
    for label in np.unique(signals.labels):
        rows = np.flatnonzero(signals.labels == label)
        found = choose(name, signals.rows(rows), round(0.1 * len(rows)), upstream=True, **params)
        indices.append(rows[found.indices])
        weights.append(found.weights)
    return np.concatenate(indices), np.concatenate(weights)


@pytest.mark.parametrize("fixture", ["deepcore_small", "deepcore"])
@pytest.mark.parametrize("optimizer", ["lazy", "naive"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_golden(golden, fixture, name, optimizer):
    data, signals = published(golden, fixture)
    title = "".join(part.capitalize() for part in name.split("_"))
    stem = f"Submodular.{title}.{optimizer.capitalize()}Greedy"
    balanced, _ = by_class(name, signals, optimizer=optimizer)
    unbalanced = choose(name, signals, 0.1, optimizer=optimizer, upstream=True).indices
    for found, expected in (
        (balanced, data[f"{stem}.bal.indices"]),
        (unbalanced, data[f"{stem}.all.indices"]),
    ):
        assert len(found) == len(expected)
        if name == "facility_location" and fixture == "deepcore":
            # the published float32 loop took the second best where two gains differ by 2e-6; ours is the
            # exact greedy
            assert len(np.intersect1d(found, expected)) >= len(expected) - 2
        else:
            assert set(found.tolist()) == set(expected.tolist())
    if name == "facility_location":
        s = similarities(gradients(signals))
        expected = data[f"{stem}.all.indices"]
        assert value(name, s, unbalanced) == pytest.approx(value(name, s, expected), abs=2e-4)


@pytest.mark.parametrize("fixture", ["deepcore_small", "deepcore"])
def test_golden_craig(golden, fixture):
    data, signals = published(golden, fixture)
    unbalanced = choose("craig", signals, 0.1, upstream=True)
    balanced, weights = by_class("craig", signals)
    cases = (("bal", balanced, weights), ("all", unbalanced.indices, unbalanced.weights))
    for kind, found, ours in cases:
        expected = dict(
            zip(data[f"Craig.{kind}.indices"].tolist(), data[f"Craig.{kind}.weights"].tolist(), strict=True)
        )
        mine = dict(zip(found.tolist(), ours.tolist(), strict=True))
        same = mine.keys() & expected.keys()
        assert len(same) >= len(expected) - 2  # gains that tie but for rounding, as in test_golden
        assert sum(mine[row] != pytest.approx(expected[row]) for row in same) <= 2
        assert sum(mine.values()) == pytest.approx(sum(expected.values()))


def test_published_gradients_are_divided_by_their_batch():
    signals = problem(50)
    found = published_craig.gradients_of(signals, np.arange(50), 32)
    np.testing.assert_allclose(found.b[:32] * 32, signals.residuals[:32], rtol=1e-6)
    np.testing.assert_allclose(found.b[32:] * 18, signals.residuals[32:], rtol=1e-6)


def test_published_log_determinant_prefers_copies():
    features = np.repeat(np.eye(4), 5, axis=0)
    signals = Signals(n=20, features=features, residuals=np.tile([0.5, -0.5], (20, 1)))
    theirs = choose("log_determinant", signals, 4, upstream=True, optimizer="naive").indices
    ours = choose("log_determinant", signals, 4, kernel="gradients").indices
    assert set(theirs // 5) == {0}
    assert set(ours // 5) == {0, 1, 2, 3}
    assert choose("log_determinant", signals, 4, upstream=True).indices.tolist() == [0, 1, 2, 3]


# -- definitions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", submodular.KERNELS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_dense_picks_and_gains_by_definition(name, kernel):
    signals = problem(60)
    found = choose(name, signals, 20, kernel=kernel)
    s = kernel_of(signals, kernel)
    # beyond the rank of the features λ = 1e-4 decides, of which the rounding of similarities is a hundredth
    tolerance = 2e-2 if name == "log_determinant" else 1e-3
    assert is_greedy(name, s, found.indices.tolist(), tolerance)
    np.testing.assert_allclose(found.gains, increments(name, s, found.indices), atol=tolerance)


@pytest.mark.parametrize("kernel", submodular.KERNELS)
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_picks_and_gains_by_definition(name, kernel):
    signals = problem(60)
    found = choose(name, signals, 25, kernel=kernel, neighbours=5)
    s = kernel_of(signals, kernel, 5, mutual=name == "graph_cut")
    assert is_greedy(name, s, found.indices.tolist(), 1e-4)
    np.testing.assert_allclose(found.gains, increments(name, s, found.indices), atol=1e-4)


@pytest.mark.parametrize("name", SPARSE)
def test_all_neighbours_are_the_dense_kernel(name):
    signals = problem(50)
    dense, sparse = choose(name, signals, 20), choose(name, signals, 20, neighbours=49)
    assert dense.indices.tolist() == sparse.indices.tolist()
    np.testing.assert_allclose(dense.gains, sparse.gains, atol=1e-3)
    assert choose(name, signals, 20, neighbours=500).indices.tolist() == sparse.indices.tolist()


def test_gradients_stay_factored_and_exact():
    signals = problem(80)
    found = similarity.Kernel.of(signals, "gradients").tile(slice(None), slice(None)) / similarity.UNIT
    np.testing.assert_allclose(found, similarities(gradients(signals)), atol=3e-6)
    sums = similarity.Kernel.of(signals, "gradients").sums() / similarity.UNIT
    np.testing.assert_allclose(sums, similarities(gradients(signals)).sum(1) - 1, atol=1e-4)
    apart = craig_module.Gradients.of(signals.residuals, signals.features).distances(slice(None), slice(None))
    g = gradients(signals)
    expected = np.linalg.norm(g[:, None] - g[None], axis=2)
    np.testing.assert_allclose(apart, expected, atol=2e-3 * np.linalg.norm(g, axis=1).max())


def test_tiles_make_the_whole_kernel(monkeypatch):
    signals = problem(70)
    whole = similarity.Kernel.of(signals, "features")
    monkeypatch.setattr(similarity, "_TILE", 16)
    found = similarity.dense(whole)
    assert (found == found.T).all()
    np.testing.assert_allclose(found / similarity.UNIT, kernel_of(signals), atol=3e-6)


def test_sums_beyond_32_bits_are_exact(monkeypatch):
    unit = 2**26
    monkeypatch.setattr(set_functions, "_FITS", 2**32 // unit - 1)
    kernel = np.rint(kernel_of(problem()) * unit).astype(np.int32)
    function = set_functions.FacilityLocation(kernel)
    assert function.value.tolist() == kernel.sum(1, dtype=np.int64).tolist()
    function.add(3)
    assert kernel[3].sum(dtype=np.int64) > 2**32
    expected = np.maximum(kernel, kernel[3]).sum(1, dtype=np.int64) - kernel[3].sum(dtype=np.int64)
    assert function.value.tolist() == expected.tolist()


@pytest.mark.parametrize("elements", [1, 400, 2**18])
def test_dense_gains_are_kept_up_to_date(monkeypatch, elements):
    monkeypatch.setattr(set_functions, "_ELEMENTS", elements)
    columns = np.random.default_rng(0).integers(
        0, similarity.UNIT, (80, 120), dtype=np.int32, endpoint=True
    )  # of 80 candidates
    function = set_functions.FacilityLocation(np.ascontiguousarray(columns.T), columns)
    covered = np.zeros(120, np.int32)
    for row in (5, 70, 5, 0, *range(20, 60)):
        function.add(row)
        covered = np.maximum(covered, columns[row])
        assert function.value.tolist() == np.maximum(columns - covered, 0).sum(1, dtype=np.int64).tolist()


def test_craig_by_definition():
    signals = problem(60)
    found = choose("craig", signals, 12)
    g = gradients(signals)
    apart = np.linalg.norm(g[:, None] - g[None], axis=2)
    reach = 2 * np.linalg.norm(g, axis=1).max()
    assert is_greedy("facility_location", reach - apart, found.indices.tolist(), 1e-2)
    bounds = [60 * reach] + [apart[:, found.indices[:size]].min(1).sum() for size in range(1, 13)]
    np.testing.assert_allclose(found.gains, -np.diff(bounds), atol=1e-2)
    nearest = apart[:, found.indices].argmin(1)
    assert found.weights.tolist() == np.bincount(nearest, minlength=12).tolist()
    error = np.linalg.norm(g.sum(0) - found.weights @ g[found.indices])
    assert error <= apart[:, found.indices].min(1).sum() + 1e-3  # what CRAIG promises


@pytest.mark.parametrize("neighbours", [1, 5, 59, 500])
def test_sparse_craig_by_definition(neighbours):
    signals = problem(60)
    found = choose("craig", signals, 12, neighbours=neighbours)
    g = gradients(signals)
    apart = np.linalg.norm(g[:, None] - g[None], axis=2)
    reach = 2 * np.linalg.norm(g, axis=1).max()
    listed = np.zeros((60, 60), bool)
    np.put_along_axis(listed, np.argsort(apart, axis=1)[:, : neighbours + 1], True, axis=1)
    assert is_greedy("facility_location", np.where(listed, reach - apart, 0), found.indices.tolist(), 1e-2)
    # whatever the picks were made by, each sample counts for the nearest of them
    assert found.weights.tolist() == np.bincount(apart[:, found.indices].argmin(1), minlength=12).tolist()
    if neighbours >= 59:
        assert found.indices.tolist() == choose("craig", signals, 12).indices.tolist()


def test_craig_copies_each_count_for_themselves():
    signals = Signals(n=4, residuals=np.tile([0.5, -0.5], (4, 1)), features=np.ones((4, 1)))
    assert choose("craig", signals, 3).weights.tolist() == [2, 1, 1]


def test_craig_weights_sum_to_the_class_sizes():
    signals = problem(100)
    found = choose("craig", signals, 0.2, balanced=True)
    sums = np.bincount(signals.labels[found.indices], weights=found.weights)
    assert sums.tolist() == np.bincount(signals.labels).tolist()


# -- greedy --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("neighbours", [None, 1, 4, 15])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_lazy_is_naive(name, neighbours, rounded):
    if name == "log_determinant" and neighbours is not None:
        return
    features = np.random.default_rng(3).normal(size=(150, 3))
    signals = Signals(
        n=150, features=np.round(features) if rounded else features
    )  # rounding makes copies, hence ties
    for budget in (1, 17, 75, 150):
        lazy = choose(name, signals, budget, seed=budget, neighbours=neighbours)
        naive = choose(name, signals, budget, seed=budget, neighbours=neighbours, optimizer="naive")
        assert lazy.indices.tolist() == naive.indices.tolist()
        assert lazy.gains.tolist() == naive.gains.tolist()


def test_lazy_craig_is_naive():
    signals = problem(100)
    lazy, naive = choose("craig", signals, 30), choose("craig", signals, 30, optimizer="naive")
    assert lazy.indices.tolist() == naive.indices.tolist()
    assert lazy.weights.tolist() == naive.weights.tolist()


@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_end_on_the_heap(monkeypatch, rounds):
    signals = Signals(n=200, features=np.random.default_rng(0).normal(size=(200, 2)))
    naive = choose("facility_location", signals, 120, neighbours=6, optimizer="naive")
    monkeypatch.setattr(CoverStage, "rounds", rounds)
    found = choose("facility_location", signals, 120, neighbours=6)
    assert found.indices.tolist() == naive.indices.tolist()
    assert found.gains.tolist() == naive.gains.tolist()


def test_rounds_on_random_graphs():
    for seed in range(12):
        generator = np.random.default_rng(seed)
        n, k = 60, int(generator.integers(1, 6))
        near = np.array(
            [generator.choice(np.delete(np.arange(n), row), k, replace=False) for row in range(n)]
        )
        graph = Graph(
            near, -np.sort(-generator.choice([-0.5, 0.0, 0.5, 0.9], (n, k)), axis=1).astype(np.float32)
        )
        signals = Signals(n=n, features=np.zeros((n, 1)), graph=graph)
        for budget in (5, 30, 60):
            lazy = choose("facility_location", signals, budget, seed=seed, neighbours=k)
            naive = choose("facility_location", signals, budget, seed=seed, neighbours=k, optimizer="naive")
            assert lazy.indices.tolist() == naive.indices.tolist()


@pytest.mark.parametrize("name", ["facility_location", "log_determinant"])
def test_value_is_near_the_best(name):
    for seed in range(3):
        signals = problem(11, dim=3, classes=2, seed=seed)
        s = kernel_of(signals)
        found = value(name, s, choose(name, signals, 4).indices)
        best = max(value(name, s, subset) for subset in combinations(range(11), 4))
        if name == "facility_location":
            assert found >= (1 - 1 / np.e) * best
        else:  # not monotone from 0: compared with the spread of all subsets
            everything = sorted(value(name, s, subset) for subset in combinations(range(11), 4))
            assert found >= everything[int(0.9 * len(everything))]
        assert found <= best + 1e-3


@pytest.mark.parametrize("optimizer", ["lazy", "naive"])
@pytest.mark.parametrize(("name", "neighbours"), CASES)
def test_gains_never_rise(name, neighbours, optimizer):
    params = {} if neighbours is None else {"neighbours": neighbours}
    gains = choose(name, problem(), 120, optimizer=optimizer, **params).gains
    assert (np.diff(gains) <= 0).all()
    assert (gains[-1] < 0) == (name in ("graph_cut", "log_determinant"))


@pytest.mark.parametrize("optimizer", ["lazy", "naive", "approximate_lazy"])
@pytest.mark.parametrize(("name", "neighbours"), CASES)
def test_a_smaller_coreset_begins_a_larger_one(name, neighbours, optimizer):
    params = {"optimizer": optimizer} | ({} if neighbours is None else {"neighbours": neighbours})
    large = choose(name, problem(), 60, **params).indices.tolist()
    for budget in (1, 7, 30):
        assert choose(name, problem(), budget, **params).indices.tolist() == large[:budget]


@pytest.mark.parametrize("optimizer", greedy.OPTIMIZERS)
@pytest.mark.parametrize(("name", "neighbours"), CASES)
@pytest.mark.parametrize("budget", [1, 119, 120])
def test_every_optimizer_at_the_ends(name, neighbours, optimizer, budget):
    params = {"optimizer": optimizer} | ({} if neighbours is None else {"neighbours": neighbours})
    found = choose(
        name, problem(), budget, **params
    )  # approximate lazy greedy of graph cut never ends upstream
    assert len(np.unique(found.indices)) == budget
    assert np.isfinite(found.gains).all()


@pytest.mark.parametrize("optimizer", ["stochastic", "approximate_lazy"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_shortcuts_come_close(name, optimizer):
    signals = problem(200)
    s = kernel_of(signals)
    exact = value(name, s, choose(name, signals, 20).indices)
    found = value(name, s, choose(name, signals, 20, optimizer=optimizer).indices)
    random = np.mean(
        [value(name, s, np.random.default_rng(seed).permutation(200)[:20]) for seed in range(20)]
    )
    assert found > random + 0.5 * (exact - random)


def test_stochastic_draws_follow_the_ids():
    signals = problem()
    shuffle = np.random.default_rng(1).permutation(120)
    given = Signals(n=120, features=signals.features, ids=np.arange(120))
    moved = Signals(n=120, features=signals.features[shuffle], ids=shuffle)
    for params in ({}, {"neighbours": 5}):
        ours = choose("facility_location", given, 20, optimizer="stochastic", **params)
        theirs = choose("facility_location", moved, 20, optimizer="stochastic", **params)
        assert ours.indices.tolist() == moved.ids[theirs.indices].tolist()


# -- what they are for ---------------------------------------------------------------------------------------


def test_each_beats_random():
    signals = problem(300)
    s = kernel_of(signals)
    for name in FUNCTIONS:
        random = [value(name, s, np.random.default_rng(seed).permutation(300)[:20]) for seed in range(30)]
        assert value(name, s, choose(name, signals, 20).indices) > max(random)


@pytest.mark.parametrize(("name", "neighbours"), CASES)
def test_constant_features_are_all_ties(name, neighbours):
    n = 40
    signals = Signals(n=n, features=np.full((n, 5), 3.0), residuals=np.tile([0.5, -0.5], (n, 1)))
    params = {} if neighbours is None else {"neighbours": neighbours}
    picks = [choose(name, signals, 10, seed=seed, **params) for seed in (1, 2)]
    assert all(len(np.unique(found.indices)) == 10 and np.isfinite(found.gains).all() for found in picks)
    if neighbours is None:
        assert set(picks[0].indices.tolist()) != set(picks[1].indices.tolist())


@pytest.mark.parametrize(
    ("name", "neighbours"),
    [("facility_location", None), ("facility_location", 5), ("log_determinant", None), ("craig", None)],
)
def test_copies_add_nothing(name, neighbours):
    directions = np.random.default_rng(0).normal(size=(6, 6))
    signals = Signals(
        n=30, features=np.repeat(directions, 5, axis=0), residuals=np.tile([0.5, -0.5], (30, 1))
    )
    params = {} if neighbours is None else {"neighbours": neighbours}
    found = choose(name, signals, 12, **params)
    assert set(found.indices[:6] // 5) == set(range(6))
    nothing = np.log(2 * set_functions.RIDGE) if name == "log_determinant" else 0.0
    np.testing.assert_allclose(found.gains[6:8], nothing, atol=0.02)


def test_zero_and_extreme_vectors():
    features = np.random.default_rng(0).normal(size=(20, 4))
    features[3] = 0
    features[4:8] *= 1e30
    features[8:12] *= 1e-30
    for name in FUNCTIONS:
        found = choose(name, Signals(n=20, features=features), 20)
        assert np.isfinite(found.gains).all()
    plain = np.where(
        np.arange(20)[:, None] == 3,
        0,
        features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-200),
    )
    np.testing.assert_allclose(
        similarity.Kernel.of(Signals(n=20, features=features), "features").tile(slice(None), slice(None))
        / similarity.UNIT,
        0.5 + 0.5 * plain @ plain.T,
        atol=3e-6,
    )


@pytest.mark.parametrize("power", [-100, 100])
@pytest.mark.parametrize(("name", "neighbours"), CASES)
def test_magnitude_does_not_matter(name, neighbours, power):
    signals = problem()
    params = {} if neighbours is None else {"neighbours": neighbours}
    what = "residuals" if name == "craig" else "features"
    scaled = signals.replace(**{what: np.ldexp(getattr(signals, what), power)})
    ours, theirs = choose(name, signals, 30, **params), choose(name, scaled, 30, **params)
    assert ours.indices.tolist() == theirs.indices.tolist()
    assert ours.weights.tolist() == theirs.weights.tolist()
    assert np.array_equal(np.ldexp(ours.gains, power) if name == "craig" else ours.gains, theirs.gains)


@pytest.mark.parametrize("neighbours", [None, 5])
def test_craig_on_features_beside_which_the_bias_vanishes(neighbours):
    signals = problem()
    large, larger = (signals.replace(features=np.ldexp(signals.features, power)) for power in (40, 100))
    ours, theirs = (choose("craig", scaled, 30, neighbours=neighbours) for scaled in (large, larger))
    assert ours.indices.tolist() == theirs.indices.tolist()
    with pytest.raises(BadInput, match="features and residuals: gradients of length"):
        choose("craig", larger.replace(residuals=np.ldexp(signals.residuals, 40)), 30)


def test_residuals_of_zero():
    signals = problem(20)
    perfect = Signals(n=20, labels=signals.labels, features=signals.features, residuals=np.zeros((20, 4)))
    assert len(choose("craig", perfect, 5).indices) == 5
    assert len(choose("facility_location", perfect, 5, kernel="gradients").indices) == 5


def test_the_given_graph_is_used():
    signals = problem()
    near = knn(signals.features, 9)
    given = Signals(n=120, features=np.zeros((120, 1)), graph=near)
    for name in SPARSE:
        expected = choose(name, signals, 30, neighbours=6)
        found = choose(name, given, 30, neighbours=6)
        assert found.indices.tolist() == expected.indices.tolist()
        assert (
            choose(name, given, 30).indices.tolist() != expected.indices.tolist()
        )  # dense: it is not asked for


def test_a_shuffled_graph():
    signals = problem()
    near = knn(signals.features, 6)
    shuffle = np.random.default_rng(1).permutation(120)
    place = np.argsort(shuffle)
    given = Signals(n=120, features=signals.features, ids=np.arange(120), graph=near)
    moved = Signals(
        n=120,
        features=signals.features[shuffle],
        ids=shuffle,
        graph=Graph(place[near.neighbours[shuffle]], near.similarity[shuffle]),
    )
    for name in SPARSE:
        ours, theirs = choose(name, given, 30, neighbours=6), choose(name, moved, 30, neighbours=6)
        assert ours.indices.tolist() == moved.ids[theirs.indices].tolist()


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kernel": "pixels"}, "kernel = 'pixels' is none of features, gradients"),
        ({"optimizer": "eager"}, "optimizer = 'eager' is none of lazy"),
        ({"neighbours": 0}, "neighbours = 0"),
        ({"neighbours": 2.5}, "neighbours = 2.5"),
        ({"neighbours": True}, "neighbours = True"),
        ({"neighbours": 5, "upstream": True}, "has no parameter 'neighbours'"),
        ({"optimizer": "stochastic", "upstream": True}, "at random or may never end"),
        ({"kernel": "features", "upstream": True}, "the published one is of gradients"),
        ({"neighbors": 5}, "neighbors"),
    ],
)
def test_bad_parameters(name, params, message):
    with pytest.raises(BadInput, match=message):
        choose(name, problem(), 10, **params)


def test_log_determinant_refuses_neighbours():
    with pytest.raises(BadInput, match="not positive definite"):
        choose("log_determinant", problem(), 10, neighbours=5)


@pytest.mark.parametrize(
    "params", [{"kernel": "gradients"}, {"upstream": True}, {"kernel": "gradients", "neighbours": 5}]
)
def test_gradients_need_residuals(params):
    signals = Signals(n=10, features=np.eye(10))
    with pytest.raises(MissingSignal, match="needs residuals"):
        choose("facility_location", signals, 2, **params)


def test_craig_refuses():
    with pytest.raises(BadInput, match="optimizer = 'eager'"):
        choose("craig", problem(), 10, optimizer="eager")
    with pytest.raises(MissingSignal, match="residuals"):
        choose("craig", Signals(n=3, features=np.eye(3)), 1)


def test_what_does_not_fit_is_refused_with_its_size():
    n = 40_000
    signals = Signals(n=n, features=np.zeros((n, 2), np.float32), residuals=np.zeros((n, 2), np.float32))
    for name in ("facility_location", "craig"):
        with pytest.raises(
            BadInput,
            match=r"dense kernel of 40,000 samples takes 6.0 GiB, more than 4 GiB(.|\n)*neighbours=100",
        ):
            choose(name, signals, 10)
    with pytest.raises(
        BadInput,
        match=r"20,000 picks of 40,000 samples takes 6.0 GiB(.|\n)*kernel='features'(.|\n)*balanced=True",
    ):
        choose("log_determinant", signals, 20_000, kernel="gradients")


@pytest.mark.parametrize(
    ("name", "params", "refused"),
    [
        ("facility_location", {}, True),
        ("facility_location", {"neighbours": 5}, False),
        ("facility_location", {"upstream": True}, True),
        ("graph_cut", {}, False),
        ("log_determinant", {}, False),
        ("log_determinant", {"kernel": "gradients"}, True),
        ("log_determinant", {"upstream": True}, True),
        ("craig", {}, True),
        ("craig", {"neighbours": 5, "optimizer": "naive"}, False),
        ("craig", {"upstream": True, "batch": 128}, False),  # the published unbalanced matrix has few columns
    ],
)
def test_flows_can_ask_for_what_is_too_large(name, params, refused):
    if refused:
        with pytest.raises(BadInput, match="more than 4 GiB"):
            check_size(selectors.get(name), 60_000, 20_000, params)
    else:
        check_size(selectors.get(name), 60_000, 20_000, params)


@pytest.mark.parametrize(
    ("near", "similarity", "message"),
    [
        ([[1], [2], [3]], 0.5, "row 2 lists 3, which is outside 0 to 2"),
        ([[1], [1], [0]], 0.5, "row 1 lists itself"),
        ([[1, 2], [0, 2], [0, 0]], 0.5, "row 2 lists a sample twice"),
        ([[1], [0], [0]], -4.0, "row 0 holds -4.0, which is no cosine"),
        ([[1], [0], [0]], np.nan, "row 0 holds nan, which is no cosine"),
    ],
)
def test_bad_graphs(near, similarity, message):
    near = np.array(near)
    signals = Signals(n=3, features=np.eye(3), graph=Graph(near, np.full(near.shape, similarity, np.float32)))
    with pytest.raises(BadInput, match=message):
        choose("facility_location", signals, 1, neighbours=near.shape[1])


def test_a_graph_with_too_few_neighbours():
    signals = Signals(
        n=4, features=np.eye(4), graph=Graph(np.array([[1], [0], [0], [0]]), np.zeros((4, 1), np.float32))
    )
    with pytest.raises(BadInput, match="1 neighbours a sample, neighbours = 2 asked for"):
        choose("graph_cut", signals, 1, neighbours=2)


@pytest.mark.parametrize("rows", [[], [7], [*range(40, 110, 2), 3, 3 + 60]])
@pytest.mark.parametrize("name", ["dense", "sparse", "cut", "sparse cut", "gradients", "features"])
def test_many_picks_at_once_are_one_after_another(name, rows):
    signals = problem()
    kernel, near = similarity.Kernel.of(signals, "features"), similarity.nearest_of(signals, "features", 5)
    make = {
        "dense": lambda: set_functions.FacilityLocation(similarity.dense(kernel)),
        "sparse": lambda: set_functions.SparseFacilityLocation(near),
        "cut": lambda: set_functions.GraphCut(kernel),
        "sparse cut": lambda: set_functions.SparseGraphCut(near),
        "gradients": lambda: set_functions.LogDeterminant(similarity.Kernel.of(signals, "gradients"), 60),
        "features": lambda: set_functions.LogDeterminantOfFeatures(kernel.vectors),
    }[name]
    at_once, one_by_one = make(), make()
    at_once.add_all(np.array(rows, np.int64))
    for row in rows:
        one_by_one.add(row)
    for function in (at_once, one_by_one):
        function.add(11)
    if name in ("gradients", "features"):
        np.testing.assert_allclose(at_once.value, one_by_one.value, rtol=1e-8)
    else:
        assert at_once.value.tolist() == one_by_one.value.tolist()
