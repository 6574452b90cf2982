"""k-center, herding, contextual diversity, uncertainty, CAL, SemDeDup, ZCore; on bad data, too."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from winnow.tasks.embed.graph import Graph
from winnow.tasks.embed.knn import knn
from winnow.tasks.errors import BadInput, MissingSignal
from winnow.tasks.registry import selectors
from winnow.tasks.score.gradients import softmax
from winnow.tasks.select import (
    cal,
    contextual_diversity,
    farthest_first,
    herding,
    k_center,
    pool,
    semdedup,
    space,
)
from winnow.tasks.select.budget import per_class
from winnow.tasks.select.jeffreys import jeffreys
from winnow.tasks.select.signals import Signals
from winnow.tasks.select.space import Points
from winnow.tasks.select.upstream.k_center import first_pick

GEOMETRIC = ["k_center", "herding", "contextual_diversity", "uncertainty", "cal", "semdedup", "zcore"]
ON_FEATURES = ["k_center", "herding", "semdedup", "zcore"]
ON_PROBABILITIES = ["contextual_diversity", "uncertainty", "cal"]


def rng(seed=0):
    return np.random.default_rng(seed)


def problem(n=400, d=8, classes=5, seed=0, offset=0.0):
    """Features in classes, of which one direction is long; probabilities of a linear layer on them."""
    generator = rng(seed)
    labels = generator.integers(0, classes, n)
    features = generator.normal(size=(n, d)) + 2 * np.eye(classes, d)[labels]
    logits = 2 * features[:, :classes] + generator.normal(size=(n, classes))
    features[:, 0] *= 3
    return Signals(
        n=n, labels=labels, features=(features + offset).astype(np.float32), probabilities=softmax(logits)
    )


def choose(name, given, budget, *, seed=0, **params):
    if name == "zcore":
        params.setdefault("samples", 400)
    return selectors.get(name)(given, budget, generator=rng(seed), **params)


def unit(features):
    x = features.astype(np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def all_pairs(x):
    return np.linalg.norm(x[:, None] - x, axis=2)


# -- DeepCore's own results ----------------------------------------------------------------------------------


def deepcore(data):
    logits = data["input.embeddings"] @ data["input.head_weight"].T + data["input.head_bias"]
    return Signals(
        n=len(logits),
        labels=data["input.labels"],
        features=data["input.embeddings"],
        probabilities=softmax(logits),
        scores={"max_logit": logits.max(1)},
    )


PUBLISHED = {
    "kCenterGreedy": ("k_center", {}),
    "ContextualDiversity": ("contextual_diversity", {}),
    "Herding": ("herding", {}),
    "Uncertainty.LeastConfidence": ("uncertainty", {"kind": "least_confidence"}),
    "Uncertainty.Entropy": ("uncertainty", {"kind": "entropy"}),
    "Uncertainty.Margin": ("uncertainty", {"kind": "margin"}),
    "Cal": ("cal", {}),
}


@pytest.mark.parametrize("file", ["deepcore", "deepcore_small"])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("method", PUBLISHED)
def test_upstream_selects_what_deepcore_selected(golden, file, balanced, method):
    data = golden(file)
    signals = deepcore(data)
    name, params = PUBLISHED[method]
    expected = data[f"{method}.{'bal' if balanced else 'all'}.indices"]
    shares = per_class(signals.labels, len(expected))
    if balanced:
        assert shares == {
            int(c): int(k)
            for c, k in zip(*np.unique(signals.labels[expected], return_counts=True), strict=True)
        }
    chosen = choose(name, signals, len(expected), balanced=balanced, upstream=True, **params)
    assert set(chosen.indices.tolist()) == set(expected.tolist())
    ours = choose(name, signals, len(expected), balanced=balanced, **params)
    if method in ("Herding", "Cal") or (method.startswith("Uncertainty") and not balanced):
        assert len(set(ours.indices.tolist()) & set(expected.tolist())) < 0.5 * len(expected), (
            "upstream's is the wrong direction"
        )


@pytest.mark.parametrize("file", ["deepcore", "deepcore_small"])
def test_upstream_scores_are_deepcores(golden, file):
    data = golden(file)
    signals = deepcore(data)
    for method in ("Uncertainty.LeastConfidence", "Uncertainty.Entropy", "Uncertainty.Margin"):
        name, params = PUBLISHED[method]
        chosen = choose(name, signals, signals.n, upstream=True, **params)
        np.testing.assert_allclose(chosen.gains, data[f"{method}.all.scores"][chosen.indices], atol=1e-5)
    by_class = np.concatenate([np.flatnonzero(signals.labels == label) for label in range(10)])
    scores = np.empty(signals.n)
    scores[by_class] = data["Cal.bal.scores"]
    chosen = choose("cal", signals, signals.n, balanced=True)
    np.testing.assert_allclose(chosen.gains, scores[chosen.indices], atol=1e-4, rtol=1e-4)


# -- what all of them do -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("budgets", [(1, 2, 30), (30, 31, 200), (200, 399, 400)])
def test_a_smaller_coreset_is_a_prefix_of_a_larger_one(name, budgets):
    signals = problem()
    parts = [choose(name, signals, budget).indices.tolist() for budget in budgets]
    for small, large in itertools.pairwise(parts):
        assert large[: len(small)] == small
    assert sorted(choose(name, signals, 400).indices) == list(range(400))


@pytest.mark.parametrize("name", GEOMETRIC)
def test_picks_do_not_depend_on_storage_order(name):
    """Nor does their order: with ids, a shuffled copy gives the same sequence of ids."""
    signals = problem()
    shuffle = rng(5).permutation(400)
    moved = Signals(
        n=400, features=signals.features[shuffle], probabilities=signals.probabilities[shuffle], ids=shuffle
    )
    here = choose(name, signals, 120).indices
    there = choose(name, moved, 120).indices
    assert here.tolist() == shuffle[there].tolist()


@pytest.mark.parametrize("name", ON_FEATURES)
def test_copies_are_tied_by_their_ids(name):
    rows = np.repeat(np.arange(40), 5)
    x = rng(1).normal(size=(40, 6)).astype(np.float32)[rows] + 50
    shuffle = rng(5).permutation(200)
    here = choose(name, Signals(n=200, features=x), 60).indices
    there = choose(name, Signals(n=200, features=x[shuffle], ids=shuffle), 60).indices
    assert here.tolist() == shuffle[there].tolist()
    other = choose(name, Signals(n=200, features=x), 60, seed=1).indices
    assert set(here.tolist()) != set(other.tolist())


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("size", [3, 64, 10_000])
def test_blocks_and_tiles_decide_nothing(name, size, monkeypatch):
    signals = problem(n=700)
    before = choose(name, signals, 300)
    monkeypatch.setattr(farthest_first, "BLOCK", (min(size, 16), size))
    monkeypatch.setattr(farthest_first, "ROWS", size)
    monkeypatch.setattr(farthest_first, "TILE", 10 * size)
    monkeypatch.setattr(farthest_first, "PAIRS", size)
    monkeypatch.setattr(space, "ROWS", size)
    monkeypatch.setattr(pool, "ROWS", size)
    monkeypatch.setattr(cal, "PAIRS", size)
    monkeypatch.setattr(semdedup, "TILE", size)
    monkeypatch.setattr(pool, "SCAN_FROM", 100 * size)
    after = choose(name, signals, 300)
    assert before.indices.tolist() == after.indices.tolist()
    np.testing.assert_array_equal(before.gains, after.gains)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_threads_decide_nothing(name):
    from threadpoolctl import threadpool_limits

    signals = problem(n=700)
    with threadpool_limits(1):
        one = choose(name, signals, 100).indices.tolist()
    with threadpool_limits(2):
        assert choose(name, signals, 100).indices.tolist() == one


@pytest.mark.parametrize("name", ON_FEATURES)
@pytest.mark.parametrize("value", [0.0, 0.3, -7e5])
def test_constant_features(name, value):
    flat = Signals(n=90, features=np.full((90, 4), value, np.float32))
    chosen = choose(name, flat, 30)
    assert len(np.unique(chosen.indices)) == 30
    assert chosen.indices.max() > 45, "ties must not go to the first rows"
    assert not np.isnan(chosen.gains).any()
    assert set(chosen.indices.tolist()) != set(choose(name, flat, 30, seed=1).indices.tolist())


@pytest.mark.parametrize("name", ON_PROBABILITIES)
def test_constant_probabilities(name):
    flat = Signals(n=90, features=rng().normal(size=(90, 4)), probabilities=np.full((90, 4), 0.25))
    chosen = choose(name, flat, 30)
    assert len(np.unique(chosen.indices)) == 30
    assert not np.isnan(chosen.gains).any()
    assert set(chosen.indices.tolist()) != set(choose(name, flat, 30, seed=1).indices.tolist())


@pytest.mark.parametrize("name", ON_PROBABILITIES)
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.5, 0.6, 0.0], "row 3 sums to 1.1"),
        ([0.2, 0.2, 0.2], "row 3 sums to 0.6"),
        ([1.5, -0.5, 0.0], "row 3 holds -0.5"),
    ],
)
def test_what_is_no_probability_is_refused(name, row, message):
    probabilities = np.full((6, 3), 1 / 3)
    probabilities[3] = row
    with pytest.raises(BadInput, match=f"probabilities: {message}"):
        choose(name, Signals(n=6, features=np.eye(6), probabilities=probabilities), 2)


@pytest.mark.parametrize("name", ON_PROBABILITIES)
def test_probabilities_of_zero_and_one(name):
    certain = Signals(n=60, features=rng().normal(size=(60, 4)), probabilities=np.eye(3)[np.arange(60) % 3])
    chosen = choose(name, certain, 60)
    assert sorted(chosen.indices) == list(range(60))
    assert not np.isnan(chosen.gains).any()


@pytest.mark.parametrize("exponent", [-100, 100])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("k_center", {}),
        ("k_center", {"metric": "cosine"}),
        ("herding", {}),
        ("herding", {"metric": "cosine"}),
        ("cal", {}),
        ("semdedup", {}),
    ],
)
def test_scale_decides_nothing(name, params, exponent):
    signals = problem()
    scaled = signals.replace(features=np.ldexp(signals.features, exponent))
    picks = choose(name, signals, 50, **params).indices.tolist()
    assert choose(name, scaled, 50, **params).indices.tolist() == picks


@pytest.mark.parametrize("exponent", [-100, 100])
@pytest.mark.parametrize("name", ["contextual_diversity", "cal"])
def test_scaled_probabilities_are_refused(name, exponent):
    signals = problem()
    scaled = signals.replace(probabilities=np.ldexp(signals.probabilities, exponent))
    with pytest.raises(BadInput, match="probabilities: row 0 sums to"):
        choose(name, scaled, 50)


@pytest.mark.parametrize("name", ["k_center", "herding"])
def test_another_metric_is_refused(name):
    with pytest.raises(BadInput, match="metric = 'cossim': it is 'euclidean' or 'cosine'"):
        choose(name, problem(), 3, metric="cossim")


# -- k-center ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_k_center_is_the_greedy_farthest_point(seed, metric, offset):
    signals = problem(seed=seed, offset=offset)
    x = unit(signals.features) if metric == "cosine" else signals.features.astype(np.float64)
    distances = all_pairs(x)
    expected = k_center.definition(signals, 250, generator=rng(seed), metric=metric).tolist()
    chosen = choose("k_center", signals, 250, seed=seed, metric=metric)
    assert chosen.indices.tolist() == expected
    assert np.isinf(chosen.gains[0])
    near = [distances[row, expected[:i]].min() for i, row in enumerate(expected) if i]
    np.testing.assert_allclose(
        chosen.gains[1:], np.square(near) / 2 if metric == "cosine" else near, rtol=1e-5
    )
    assert (np.diff(chosen.gains[1:]) <= 0).all()


def test_k_center_on_exact_ties():
    """A grid of whole numbers, each twice: most distances are tied, and keys decide."""
    grid = Signals(n=288, features=np.array([(i, j) for i in range(12) for j in range(12)] * 2, float))
    for seed in range(3):
        expected = k_center.definition(grid, 288, generator=rng(seed)).tolist()
        assert choose("k_center", grid, 288, seed=seed).indices.tolist() == expected


def test_k_center_resolves_what_float32_does_not():
    """Points far closer to one another than the rounding of a float32 product of such length."""
    x = 1.0 + 1e-6 * rng(2).random((300, 3))
    x[0] = [-1, 0, 0]
    signals = Signals(n=300, features=x)
    expected = k_center.definition(signals, 120, generator=rng(4)).tolist()
    assert choose("k_center", signals, 120, seed=4).indices.tolist() == expected


def test_k_center_covers_every_cluster():
    centres = 20 * rng(0).normal(size=(30, 6))
    rows = np.repeat(np.arange(30), 20)
    x = centres[rows] + 0.1 * rng(1).normal(size=(600, 6))
    assert len(set(rows[choose("k_center", Signals(n=600, features=x), 30).indices].tolist())) == 30


def test_the_published_start_is_deepcores():
    np.random.seed(0)  # noqa: NPY002  # as DeepCore does
    assert first_pick(2000) == np.random.randint(0, 2000)  # noqa: NPY002


# -- herding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scan_from", [0, 1 << 40])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_herding_follows_the_running_target(scan_from, metric, offset, monkeypatch):
    monkeypatch.setattr(pool, "SCAN_FROM", scan_from)
    signals = problem(offset=offset)
    x = unit(signals.features) if metric == "cosine" else signals.features.astype(np.float64)
    expected = herding.definition(signals, 300, generator=rng(3), metric=metric).tolist()
    chosen = choose("herding", signals, 300, seed=3, metric=metric)
    assert chosen.indices.tolist() == expected
    means = np.cumsum(x[expected], 0) / np.arange(1, 301)[:, None]
    np.testing.assert_allclose(chosen.gains, np.linalg.norm(means - x.mean(0), axis=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["normal", "heavy", "few directions", "one sample far out"])
def test_herding_by_bytes_is_herding(kind, monkeypatch):
    generator = rng(7)
    x = generator.normal(size=(3000, 48))
    if kind == "heavy":
        x = generator.standard_t(2.5, size=(3000, 48))
    if kind == "few directions":
        x = np.maximum(generator.normal(size=(3000, 6)) @ generator.normal(size=(6, 48)) + 0.05 * x, 0)
    if kind == "one sample far out":
        x[17] *= 1e5
    signals = Signals(n=3000, features=x.astype(np.float32))
    by_products = choose("herding", signals, 500)
    monkeypatch.setattr(pool, "SCAN_FROM", 0)
    monkeypatch.setattr(pool, "LISTED", (2, 32))  # short lists must be noticed
    by_bytes = choose("herding", signals, 500)
    assert by_bytes.indices.tolist() == by_products.indices.tolist()


@pytest.mark.parametrize("scan_from", [0, 1 << 40])
def test_herding_takes_copies_in_turn(scan_from, monkeypatch):
    monkeypatch.setattr(pool, "SCAN_FROM", scan_from)
    x = rng(0).normal(size=(40, 6)).astype(np.float32)[rng(1).integers(0, 40, 300)]
    signals = Signals(n=300, features=x)
    for seed in range(3):
        expected = herding.definition(signals, 200, generator=rng(seed)).tolist()
        assert choose("herding", signals, 200, seed=seed).indices.tolist() == expected
    everything = choose("herding", signals, 300)
    assert sorted(everything.indices) == list(range(300))


def test_distinct_rows():
    x = rng(0).normal(size=(20, 3)).astype(np.float32)[rng(1).integers(0, 20, 100)]
    first, group = pool.distinct(x, x)
    assert len(first) == len(np.unique(x, axis=0))
    assert (x[first[group]] == x).all()
    first, group = pool.distinct(np.zeros_like(x), x)  # codes that say nothing
    assert (x[first[group]] == x).all()


@pytest.mark.parametrize("reach", [0.1, 1.0, 10.0, 100.0])
def test_a_scan_by_bytes_lists_the_nearest(reach):
    """Also for targets much farther out than any point."""
    points = Points.of(rng(0).normal(size=(2000, 32)).astype(np.float32), "euclidean")
    x = points.centred(points.mean())
    scan = pool.ByteScan(x)
    decided = 0
    for seed in range(20):
        target = reach * rng(seed).normal(size=32) * x.std()
        listed = scan.nearest(target, lambda part: x[part].astype(np.float64))
        if listed is not None:
            decided += 1
            assert np.linalg.norm(x - target, axis=1).argmin() in listed
    assert decided > 10


def test_herding_is_nearer_the_mean_than_random():
    signals = problem(n=2000)
    x = signals.features.astype(np.float64)

    def off(indices):
        return np.linalg.norm(x[indices].mean(0) - x.mean(0))

    for budget in (5, 50, 500):
        random = np.mean([off(choose("random", signals, budget, seed=seed).indices) for seed in range(10)])
        assert off(choose("herding", signals, budget).indices) < 0.3 * random
        assert off(choose("herding", signals, budget, upstream=True).indices) > random


# -- contextual diversity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_contextual_diversity_is_greedy_in_the_symmetric_kl(seed):
    signals = problem(seed=seed)
    p = signals.probabilities.astype(np.float64)
    divergence = np.array([[0.5 * ((a - b) * np.log(a / b)).sum() for b in p] for a in p])
    expected = contextual_diversity.definition(signals, 200, generator=rng(seed)).tolist()
    chosen = choose("contextual_diversity", signals, 200, seed=seed)
    assert chosen.indices.tolist() == expected
    near = [divergence[row, expected[:i]].min() for i, row in enumerate(expected) if i]
    np.testing.assert_allclose(chosen.gains[1:], near, rtol=1e-5)


def test_contextual_diversity_with_zeros():
    p = softmax(30 * rng(0).normal(size=(200, 4))).astype(np.float64)
    p[p < 1e-6] = 0
    p /= p.sum(1, keepdims=True)
    assert (p == 0).any()
    signals = Signals(n=200, probabilities=p)
    expected = contextual_diversity.definition(signals, 60, generator=rng()).tolist()
    assert choose("contextual_diversity", signals, 60).indices.tolist() == expected


def test_jeffreys_is_the_symmetric_kl():
    from scipy.stats import entropy

    p, q = softmax(rng(0).normal(size=(50, 7))), softmax(rng(1).normal(size=(50, 7)))
    p, q = (x.astype(np.float64) / x.astype(np.float64).sum(1, keepdims=True) for x in (p, q))
    np.testing.assert_allclose(
        jeffreys(p, q), [(entropy(a, b) + entropy(b, a)) / 2 for a, b in zip(p, q, strict=True)], rtol=1e-9
    )


# -- uncertainty ---------------------------------------------------------------------------------------------

UNCERTAIN = {
    "least_confidence": lambda p: 1 - max(p),
    "entropy": lambda p: -sum(v * np.log(v) for v in p if v > 0),
    "margin": lambda p: 1 - (sorted(p)[-1] - sorted(p)[-2]),
}


@pytest.mark.parametrize("kind", UNCERTAIN)
@pytest.mark.parametrize("balanced", [False, True])
def test_uncertainty_keeps_the_least_certain(kind, balanced):
    signals = problem()
    values = np.array([UNCERTAIN[kind](row) for row in signals.probabilities.astype(np.float64).tolist()])
    chosen = choose("uncertainty", signals, 80, kind=kind, balanced=balanced)
    np.testing.assert_allclose(chosen.gains, values[chosen.indices], rtol=1e-5, atol=1e-7)
    groups = [signals.labels == label for label in range(5)] if balanced else [np.ones(400, bool)]
    kept = np.isin(np.arange(400), chosen.indices)
    for group in groups:
        assert values[group & kept].min() >= values[group & ~kept].max()
    assert signals.probabilities.max(1)[kept].mean() < signals.probabilities.max(1).mean()


def test_uncertainty_by_hand():
    p = np.array([[0.4, 0.3, 0.3], [0.5, 0.5, 0.0], [0.45, 0.1, 0.45], [1.0, 0.0, 0.0]])
    signals = Signals(n=4, probabilities=p)
    assert choose("uncertainty", signals, 4, kind="least_confidence").indices.tolist() == [0, 2, 1, 3]
    assert choose("uncertainty", signals, 4, kind="entropy").indices.tolist() == [0, 2, 1, 3]
    margin = choose("uncertainty", signals, 4, kind="margin")
    assert set(margin.indices[:2].tolist()) == {1, 2}
    assert margin.indices[2:].tolist() == [0, 3]
    np.testing.assert_allclose(margin.gains, [1, 1, 0.9, 0], rtol=1e-6)
    one_class = Signals(n=3, probabilities=np.ones((3, 1)))
    assert choose("uncertainty", one_class, 3, kind="margin").gains.tolist() == [0, 0, 0]


def test_uncertainty_refuses():
    signals = problem()
    with pytest.raises(BadInput, match="kind = 'gini'"):
        choose("uncertainty", signals, 1, kind="gini")
    with pytest.raises(MissingSignal, match="largest logit"):
        choose("uncertainty", signals, 1, upstream=True)
    with pytest.raises(MissingSignal, match="uncertainty needs probabilities"):
        choose("uncertainty", Signals(n=2), 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rounded_probabilities_are_accepted(dtype):
    p = softmax(rng(0).normal(size=(300, 1000))).astype(dtype)
    assert len(choose("uncertainty", Signals(n=300, probabilities=p), 30, kind="entropy").indices) == 30


# -- CAL -----------------------------------------------------------------------------------------------------


def naive_cal(x, p, k):
    distances = all_pairs(x)
    np.fill_diagonal(distances, np.inf)
    near = np.argsort(distances, axis=1)[:, :k]
    return np.array(
        [np.mean([0.5 * ((p[i] - p[j]) * np.log(p[i] / p[j])).sum() for j in near[i]]) for i in range(len(x))]
    )


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("neighbours", [1, 10])
def test_cal_keeps_the_most_contrastive(balanced, neighbours):
    signals = problem()
    x, p = signals.features.astype(np.float64), signals.probabilities.astype(np.float64)
    groups = [np.flatnonzero(signals.labels == label) for label in range(5)] if balanced else [np.arange(400)]
    values = np.empty(400)
    for rows in groups:
        values[rows] = naive_cal(x[rows], p[rows], neighbours)
    chosen = choose("cal", signals, 100, neighbours=neighbours, balanced=balanced)
    np.testing.assert_allclose(chosen.gains, values[chosen.indices], rtol=1e-4)
    kept = np.isin(np.arange(400), chosen.indices)
    for rows in groups:
        assert values[rows][kept[rows]].min() >= values[rows][~kept[rows]].max() - 1e-6
    assert values[kept].mean() > 1.3 * values.mean()


def test_cal_takes_the_graph_that_is_given():
    signals = problem()
    graph = knn(signals.features, 12, metric="euclidean")
    given = Signals(n=400, features=np.zeros((400, 1)), probabilities=signals.probabilities, graph=graph)
    assert choose("cal", given, 50).indices.tolist() == choose("cal", signals, 50).indices.tolist()
    other = Graph(
        rng(0).integers(0, 1, (400, 12)) + (np.arange(400)[:, None] + 1 + np.arange(12)) % 400,
        graph.similarity,
    )
    elsewhere = Signals(n=400, features=signals.features, probabilities=signals.probabilities, graph=other)
    assert choose("cal", elsewhere, 50).indices.tolist() != choose("cal", signals, 50).indices.tolist()


def test_cal_refuses():
    signals = problem(n=30)
    with pytest.raises(BadInput, match="neighbours = 0"):
        choose("cal", signals, 3, neighbours=0)
    graph = knn(signals.features, 5)
    with pytest.raises(BadInput, match="graph: 5 neighbours a sample, neighbours = 10 asked for"):
        choose(
            "cal",
            Signals(n=30, features=signals.features, probabilities=signals.probabilities, graph=graph),
            3,
        )
    near = graph.neighbours.copy()
    near[4, 2] = 30
    wrong = Signals(
        n=30,
        features=signals.features,
        probabilities=signals.probabilities,
        graph=Graph(near, graph.similarity),
    )
    with pytest.raises(BadInput, match=r"graph\.neighbours: row 4 lists 30"):
        choose("cal", wrong, 3, neighbours=5)


def test_cal_in_small_classes():
    """Classes of one, two and eleven: all others of the class are neighbours."""
    labels = np.repeat([0, 1, 2], [1, 2, 11])
    signals = problem(n=14)
    small = Signals(n=14, labels=labels, features=signals.features, probabilities=signals.probabilities)
    chosen = choose("cal", small, 14, balanced=True)
    assert sorted(chosen.indices) == list(range(14))
    assert chosen.gains[chosen.indices == 0] == 0


# -- SemDeDup ------------------------------------------------------------------------------------------------


def test_semdedup_by_hand_in_one_cluster():
    signals = problem(n=120)
    x = unit(signals.features)
    centre = x.mean(0) / np.linalg.norm(x.mean(0))
    outermost = np.argsort(x @ centre)
    similar = np.full(120, -1.0)
    for place, i in enumerate(outermost[1:], 1):
        similar[i] = (x[outermost[:place]] @ x[i]).max()
    chosen = choose("semdedup", signals, 70, clusters=1)
    assert sorted(chosen.indices) == sorted(np.argsort(similar)[:70])
    np.testing.assert_allclose(chosen.gains, similar[chosen.indices], atol=1e-6)
    assert (np.diff(chosen.gains) >= 0).all()


def test_semdedup_drops_copies_first():
    x = rng(0).normal(size=(100, 16))
    rows = np.r_[np.arange(100), np.arange(50), np.arange(50)]
    near = (x[rows] + 1e-5 * rng(1).normal(size=(200, 16))) * rng(2).uniform(1, 5, (200, 1))
    chosen = choose("semdedup", Signals(n=200, features=near), 100, clusters=4)
    assert len(set(rows[chosen.indices].tolist())) == 100, "one of each, whatever its length"


def test_semdedup_only_compares_within_clusters():
    """Two far-apart groups: with two clusters, a sample's redundancy is that in its own group."""
    group = np.repeat([0, 1], 60)
    x = np.eye(2, 8)[group] * 5 + 0.5 * rng(0).normal(size=(120, 8))
    both = choose("semdedup", Signals(n=120, features=x), 120, clusters=2)
    for g in (0, 1):
        rows = np.flatnonzero(group == g)
        alone = choose("semdedup", Signals(n=60, features=x[rows]), 60, clusters=1)
        assert sorted(both.gains[group[both.indices] == g]) == pytest.approx(sorted(alone.gains), abs=1e-5)


def test_semdedup_refuses():
    for clusters in (0, 31):
        with pytest.raises(BadInput, match=f"clusters = {clusters} of 30"):
            choose("semdedup", problem(n=30), 3, clusters=clusters)


# -- ZCore ---------------------------------------------------------------------------------------------------


def naive_zcore(x, samples, neighbours, exponent, generator):
    """The docstring's steps one by one, rows in the order of the keys."""
    keys = generator.random(len(x))
    x = x[np.argsort(keys)].astype(np.float32)
    least, middle, most = x.min(0), np.median(x, axis=0), x.max(0)
    scores = generator.random(len(x))
    for _ in range(samples):
        dims = generator.choice(x.shape[1], 2, replace=False)
        point = []
        for d, u in zip(dims, generator.random(2), strict=True):
            a, c, b = float(least[d]), float(middle[d]), float(most[d])
            below = (c - a) / (b - a)
            point.append(
                a + np.sqrt(u * (b - a) * (c - a)) if u < below else b - np.sqrt((1 - u) * (b - a) * (b - c))
            )
        covered = int(np.abs(x[:, dims] - point).sum(1).argmin())
        scores[covered] += 1
        apart = np.abs(x[:, dims] - x[covered, dims]).sum(1).astype(np.float64)
        near = [j for j in np.argsort(apart, kind="stable") if j != covered][:neighbours]
        weight = apart[near] ** -exponent
        scores[near] -= weight / weight.sum()
    found = np.empty(len(x))
    found[np.argsort(keys)] = scores
    return found


@pytest.mark.parametrize(("neighbours", "exponent"), [(1000, 4.0), (7, 2.0), (1, 1.0)])
def test_zcore_by_its_steps(neighbours, exponent):
    x = rng(0).uniform(-1, 1, size=(80, 5)).astype(np.float32)
    x /= np.abs(x).max()  # so that scaling to at most 1 rounds nothing
    expected = naive_zcore(x, 300, neighbours, exponent, rng(6))
    chosen = choose(
        "zcore", Signals(n=80, features=x), 30, seed=6, samples=300, neighbours=neighbours, exponent=exponent
    )
    assert chosen.indices.tolist() == np.argsort(-expected)[:30].tolist()
    np.testing.assert_allclose(chosen.gains, expected[chosen.indices], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 30, 399, 1999])
def test_zcore_finds_the_smallest(count):
    from winnow.tasks.select.zcore import _smallest

    for seed in range(5):
        values = rng(seed).random(2000).astype(np.float32) ** 4
        assert set(_smallest(values, count).tolist()) == set(np.argsort(values)[:count].tolist())
        values = np.sort(values)[::-1].copy()
        assert sorted(_smallest(values, count)) == list(range(2000 - count, 2000))


def test_zcore_triangular_draws():
    from winnow.tasks.select.zcore import _triangular

    drawn = np.array([_triangular(u, -1.0, 0.5, 3.0) for u in (np.arange(20_000) + 0.5) / 20_000])
    assert drawn.mean() == pytest.approx((-1 + 0.5 + 3) / 3, abs=1e-3)
    assert drawn.var() == pytest.approx((1 + 0.25 + 9 - (-0.5 - 3 + 1.5)) / 18, abs=1e-2)
    assert _triangular(0.3, 2.0, 2.0, 2.0) == 2.0
    assert _triangular(0.0, 0.0, 0.0, 1.0) == 0.0


@pytest.mark.parametrize("power", [-100, -40, 40, 100])
def test_zcore_does_not_depend_on_the_features_magnitude(power):
    signals = problem()
    scaled = signals.replace(features=np.ldexp(signals.features, power))
    ours, theirs = (choose("zcore", given, 50, neighbours=20) for given in (signals, scaled))
    assert ours.indices.tolist() == theirs.indices.tolist()
    assert ours.gains.tolist() == theirs.gains.tolist()


def test_zcore_prefers_sparse_regions_to_crowds():
    generator = rng(0)
    x = np.r_[0.02 * generator.normal(size=(900, 4)), generator.uniform(-1, 1, (100, 4))]
    kept = choose("zcore", Signals(n=1000, features=x), 100, neighbours=50, samples=4000).indices
    assert (kept >= 900).mean() > 0.5, "a random coreset would hold a tenth"


@pytest.mark.parametrize("name", ["samples", "dimensions", "neighbours", "exponent"])
def test_zcore_refuses(name):
    with pytest.raises(BadInput, match=f"{name} = 0"):
        choose("zcore", problem(n=30), 3, **{name: 0})
