"""Moderate, prototypicality, BADGE, GraNd: against naive formulas and published output; awkward data."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from winnow.tasks.errors import BadInput, MissingSignal
from winnow.tasks.registry import scores, selectors
from winnow.tasks.score.gradients import grand
from winnow.tasks.score.prototypicality import prototypicality
from winnow.tasks.select import badge as badge_module
from winnow.tasks.select.signals import Signals


def rng(seed=0):
    return np.random.default_rng(seed)


def problem(n=150, d=5, classes=4, seed=0):
    """Features and residuals of a network that has learned something."""
    generator = rng(seed)
    labels = generator.integers(0, classes, n)
    features = generator.normal(size=(n, d)) + 2 * np.eye(classes, d)[labels]
    logits = features[:, :classes] + generator.normal(size=(n, classes))
    residuals = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(classes)[labels]
    return Signals(
        n=n, labels=labels, features=features.astype(np.float32), residuals=residuals.astype(np.float32)
    )


def gradients_of(signals):
    """(N, C·(D + 1)) float64, written out."""
    u = np.c_[signals.features.astype(np.float64), np.ones(signals.n)]
    return np.einsum("nc,nd->ncd", signals.residuals.astype(np.float64), u).reshape(signals.n, -1)


# -- Moderate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 2, 37, 74, 149, 150])
@pytest.mark.parametrize("centre", ["mean", "median"])
def test_moderate_keeps_the_middle_of_the_distances(budget, centre):
    signals = problem()
    chosen = selectors.get("moderate")(signals, budget, generator=rng(), centre=centre)
    middle = {
        y: getattr(np, centre)(signals.features[signals.labels == y].astype(np.float64), axis=0)
        for y in range(4)
    }
    distances = np.array(
        [np.linalg.norm(x - middle[y]) for x, y in zip(signals.features, signals.labels, strict=True)]
    )
    start = (150 - budget) // 2
    assert sorted(chosen.indices) == sorted(np.argsort(distances)[start : start + budget])
    np.testing.assert_allclose(chosen.gains, distances[chosen.indices], rtol=1e-6)
    ranks = np.argsort(np.argsort(distances))[chosen.indices]
    assert (np.diff(np.abs(ranks - 74.5)) >= 0).all(), "from the median outwards"


def test_moderate_by_hand():
    features = np.array(
        [[0.0, 0.0], [4.0, 0.0], [2.0, 3.0], [2.0, -3.0], [9.0, 9.0], [9.0, 11.0], [9.0, 13.0]]
    )
    signals = Signals(n=7, features=features, labels=np.array([1, 1, 1, 1, 5, 5, 5]))
    chosen = selectors.get("moderate")(signals, 7)  # distances to (2, 0) and (9, 11): 2 2 3 3 2 0 2
    assert chosen.gains.tolist() == [2, 2, 2, 2, 3, 0, 3]
    assert chosen.indices[5] == 5
    assert set(selectors.get("moderate")(signals, 3).indices.tolist()) < {0, 1, 4, 6}


def test_moderate_in_each_class():
    signals = problem()
    chosen = selectors.get("moderate")(signals, 0.2, balanced=True)
    assert len(chosen.indices) == 30
    for label in range(4):
        rows = np.flatnonzero(signals.labels == label)
        kept = chosen.indices[signals.labels[chosen.indices] == label]
        alone = selectors.get("moderate")(signals.rows(rows), len(kept))
        assert sorted(kept) == sorted(rows[alone.indices])


# what CoresetSelection.moderate_selection of d2pruning@bf1ea46 returned for the inputs of the golden file d2,
# ratios 0.1 and 25/160
D2_16 = [18, 0, 102, 27, 116, 89, 144, 149, 25, 67, 82, 132, 68, 79, 124, 35]
D2_25 = [
    18,
    0,
    102,
    27,
    116,
    89,
    144,
    149,
    33,
    103,
    41,
    107,
    119,
    126,
    55,
    42,
    25,
    67,
    82,
    132,
    68,
    79,
    124,
    35,
]
# what get_prune_idx of 2023_ICLR_Moderate-DS@7f64d31 left of them at rate 0.1
MODERATE_DS_16 = [14, 16, 70, 81, 100, 109, 111, 121, 135, 138, 141, 142, 145, 151, 152, 155]


def test_moderate_against_the_published_code(golden):
    data = golden("d2")
    signals = Signals(n=160, features=data["features"], labels=data["labels"].astype(np.int64))
    moderate = selectors.get("moderate")
    assert sorted(moderate(signals, 16, centre="median").indices) == MODERATE_DS_16
    assert moderate(signals, 16, upstream=True).indices.tolist() == D2_16
    assert moderate(signals, 25, upstream=True).indices.tolist() == D2_25, "24: two roundings"
    assert not set(moderate(signals, 16).indices.tolist()) & set(D2_16), (
        "the tails are what the method leaves out"
    )


@pytest.mark.parametrize("centre", ["mean", "median"])
@pytest.mark.parametrize("power", [-100, -40, 40, 100])
def test_moderate_does_not_depend_on_the_features_magnitude(power, centre):
    signals = problem()
    scaled = signals.replace(features=np.ldexp(signals.features, power))
    moderate = selectors.get("moderate")
    ours, theirs = (moderate(given, 60, generator=rng(), centre=centre) for given in (signals, scaled))
    assert ours.indices.tolist() == theirs.indices.tolist()
    assert np.array_equal(np.ldexp(ours.gains, power), theirs.gains)


def test_moderate_on_degenerate_data():
    moderate = selectors.get("moderate")
    flat = Signals(n=60, features=np.full((60, 3), 0.1), labels=np.arange(60) % 3)
    first, second = (moderate(flat, 20, generator=rng(seed)).indices for seed in (1, 2))
    assert set(first.tolist()) != set(second.tolist()), "all distances are 0: the generator decides"
    alone = Signals(n=3, features=np.eye(3), labels=np.array([7, -2, 9]))
    assert moderate(alone, 3).gains.tolist() == [0, 0, 0]
    with pytest.raises(BadInput, match="centre = 'mode'"):
        moderate(alone, 1, centre="mode")
    with pytest.raises(MissingSignal, match="moderate needs labels"):
        moderate(Signals(n=3, features=np.eye(3)), 1)


# -- Prototypicality -----------------------------------------------------------------------------------------


def blobs(n=300, seed=0):
    """Three directions far apart, at lengths that a cosine does not see."""
    generator = rng(seed)
    group = generator.integers(0, 3, n)
    features = np.eye(3, 6)[group] + 0.2 * generator.normal(size=(n, 6))
    return (features * generator.uniform(1, 9, (n, 1))).astype(np.float32), group


def test_prototypicality_is_the_distance_to_the_nearest_centre():
    features, group = blobs()
    x = features / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    # the clusters are known: iterate spherical k-means from their centres, and it must not move away from
    # faiss's answer
    centres = np.stack([x[group == g].mean(0) for g in range(3)])
    for _ in range(50):
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        nearest = (x @ centres.T).argmax(1)
        centres = np.stack([x[nearest == g].mean(0) for g in range(3)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    found = prototypicality(features, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 1 - (x @ centres.T).max(1), atol=1e-6)
    for scale in (1000, np.float32(1e-30)):
        np.testing.assert_allclose(prototypicality(scale * features, 3), found, atol=1e-6)
    np.testing.assert_allclose(prototypicality(features.astype(np.float16), 3), found, atol=1e-2)


def test_prototypicality_euclidean():
    features, _ = blobs()
    mean = features.astype(np.float64).mean(0)
    np.testing.assert_allclose(
        prototypicality(features, 1, metric="euclidean"), np.linalg.norm(features - mean, axis=1), rtol=1e-5
    )  # one cluster: its centre is the mean


def test_prototypicality_is_the_published_baseline(golden):
    """find_centroid_kmeans and calculate_distances of elfs@089444b on these features, 4 clusters."""
    found = prototypicality(golden("d2")["features"], 4, metric="euclidean", seed=0)
    assert np.argsort(-found)[:8].tolist() == [35, 124, 79, 132, 68, 82, 67, 42]
    published = [2.244, 2.1381, 2.0092, 1.984, 1.9588, 1.9007, 1.891, 1.85]
    np.testing.assert_allclose(np.sort(found)[::-1][:8], published, atol=1e-4)
    assert found.sum() == pytest.approx(197.62622, rel=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_prototypicality_selects_by_its_score(metric):
    features, group = blobs()
    given = Signals(n=300, features=features, labels=group)
    method = selectors.get("prototypicality")
    hard = method(given, 50, generator=rng(), metric=metric)
    easy = method(given, 50, generator=rng(), metric=metric, hardest=False)
    everything = method(given, 300, generator=rng(), metric=metric)
    assert hard.indices.tolist() == everything.indices[:50].tolist()
    assert (np.diff(everything.gains) <= 0).all()
    assert set(easy.indices.tolist()) == set(everything.indices[-50:].tolist())
    assert (
        method(given, 50, generator=rng(), metric=metric, clusters=3).indices.tolist()
        == hard.indices.tolist()
    ), "3 classes"
    # its score is registered: `top` on it is the same selection
    seed = rng()
    seed.random(300)
    score = scores.get("prototypicality")(features, 3, metric=metric, seed=int(seed.integers(2**31)))
    by_score = selectors.get("top")(
        Signals(n=300, scores={"prototypicality": score}), 50, score="prototypicality", generator=rng()
    )
    assert by_score.indices.tolist() == hard.indices.tolist()


def test_prototypicality_without_labels():
    features, group = blobs()
    method = selectors.get("prototypicality")
    unlabelled = method(Signals(n=300, features=features), 50, generator=rng())
    assert (
        unlabelled.indices.tolist()
        == method(
            Signals(n=300, features=features, labels=group), 50, generator=rng(), clusters=17
        ).indices.tolist()
    )
    within = method(Signals(n=300, features=features, labels=group), 0.1, balanced=True)
    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    for label in range(3):
        mean = x[group == label].mean(0)
        distance = 1 - x @ (mean / np.linalg.norm(mean))
        kept = within.indices[group[within.indices] == label]
        assert distance[kept].min() >= np.sort(distance[group == label])[-len(kept)] - 1e-6


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("clusters", [1, 5, 7, 50])
def test_prototypicality_on_degenerate_data(metric, clusters):
    constant = prototypicality(np.full((50, 3), 0.3), clusters, metric=metric)
    assert len(np.unique(constant)) == 1
    assert constant[0] < 1e-6
    copies = np.repeat(rng(3).normal(size=(5, 3)), 10, 0)
    found = prototypicality(copies, clusters, metric=metric)
    assert np.isfinite(found).all()
    if clusters == 50:
        np.testing.assert_allclose(found, 0, atol=1e-6)
    assert np.isfinite(prototypicality(np.zeros((50, 3)), clusters, metric=metric)).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("power", [-100, -40, 40, 100])
def test_prototypicality_does_not_depend_on_the_features_magnitude(power, metric):
    features, _ = blobs()
    method = selectors.get("prototypicality")
    ours, theirs = (
        method(Signals(n=300, features=x), 50, generator=rng(), clusters=4, metric=metric)
        for x in (features, np.ldexp(features, power))
    )
    assert ours.indices.tolist() == theirs.indices.tolist()
    assert np.array_equal(np.ldexp(ours.gains, power * (metric == "euclidean")), theirs.gains)


def test_prototypicality_ties_go_to_the_generator():
    flat = Signals(n=60, features=np.full((60, 3), 0.3))
    method = selectors.get("prototypicality")
    first, second = (
        set(method(flat, 20, generator=rng(seed), clusters=2).indices.tolist()) for seed in (1, 2)
    )
    assert first != second


def test_prototypicality_refuses():
    features = np.eye(3)
    for wrong, message in ((0, "clusters = 0 of 3"), (4, "clusters = 4 of 3")):
        with pytest.raises(BadInput, match=message):
            prototypicality(features, wrong)
    with pytest.raises(BadInput, match="metric = 'l1'"):
        prototypicality(features, 1, metric="l1")
    with pytest.raises(BadInput, match="row 1 is not finite"):
        prototypicality(np.array([[0.0], [np.nan]]), 1)
    with pytest.raises(BadInput, match="shape"):
        prototypicality(np.zeros(3), 1)


# -- BADGE ---------------------------------------------------------------------------------------------------


def naive_badge(signals, budget, generator):
    """The documented scheme on gradients written out, a distance at a time, rows in the order of the ids."""
    g = gradients_of(signals)
    keys = generator.random(signals.n)
    picks, stale, waiting = [int(keys.argmin())], np.full(signals.n, np.inf), []
    waiting = picks.copy()
    while len(picks) < budget:
        for pick in waiting:
            stale = np.minimum(stale, ((g - g[pick]) ** 2).sum(1))
        if stale.sum() == 0:
            rest = [row for row in np.argsort(keys) if row not in picks]
            return picks + rest[: budget - len(picks)]
        waiting, refused = [], 0
        while len(waiting) < min(
            128, max(1, (len(picks) - len(waiting)) // 8), budget - len(picks) + len(waiting)
        ) and refused <= len(waiting):
            row = int(
                np.searchsorted(np.cumsum(stale), generator.random() * np.cumsum(stale)[-1], side="right")
            )
            new = min([stale[row], *(((g[row] - g[pick]) ** 2).sum() for pick in waiting)])
            if waiting and generator.random() * stale[row] >= new:
                refused += 1
            else:
                waiting.append(row)
                picks.append(row)
    return picks


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1, 2, 20, 60, 149, 150])
def test_badge_picks_as_on_written_out_gradients(seed, budget):
    signals = problem(seed=seed)
    chosen = selectors.get("badge")(signals, budget, generator=rng(seed))
    assert chosen.indices.tolist() == naive_badge(signals, budget, rng(seed))
    g = gradients_of(signals)
    squared = [
        min([((g[row] - g[before]) ** 2).sum() for before in chosen.indices[:i]])
        for i, row in enumerate(chosen.indices)
        if i
    ]
    np.testing.assert_allclose(chosen.gains, [(g[chosen.indices[0]] ** 2).sum(), *squared], rtol=2e-3)


def test_badge_draws_from_the_distribution_of_kmeans_plus_plus(monkeypatch):
    monkeypatch.setattr(
        badge_module, "STALE", 1
    )  # picks 3 and 4 are one block, so that the fourth may be refused
    generator = rng(3)
    signals = Signals(n=5, residuals=generator.normal(size=(5, 3)), features=generator.normal(size=(5, 2)))
    g = gradients_of(signals)
    squared = ((g[:, None] - g) ** 2).sum(-1)
    draws, expected = 6000, {}
    for picks in itertools.permutations(range(5), 4):
        expected[picks] = draws / 5
        for i in range(1, 4):
            nearest = squared[:, list(picks[:i])].min(1)
            expected[picks] *= nearest[picks[i]] / nearest.sum()
    drawn = rng(0)
    counts = Counter(
        tuple(selectors.get("badge")(signals, 4, generator=drawn).indices.tolist()) for _ in range(draws)
    )
    chi = sum((counts[picks] - e) ** 2 / e for picks, e in expected.items() if e > 5)
    cells = sum(e > 5 for e in expected.values())
    assert cells > 60
    assert chi < cells + 4 * np.sqrt(2 * cells)


def test_badge_large_budget_equals_small_blocks_in_spread(monkeypatch):
    """Whole blocks of picks: the sum of the distances left is that of one pick at a time, within chance."""
    signals = problem(n=3000, seed=1)
    g = gradients_of(signals)

    def left(budget):
        picks = selectors.get("badge")(signals, budget, generator=rng(2)).indices
        assert len(np.unique(picks)) == budget
        gram = (g**2).sum(1)[:, None] + (g[picks] ** 2).sum(1) - 2 * g @ g[picks].T
        return np.maximum(gram.min(1), 0).sum()

    blocks = left(1500)
    monkeypatch.setattr(badge_module, "BLOCK", 1)
    assert blocks == pytest.approx(left(1500), rel=0.1)


def test_badge_covers_every_gradient_before_a_copy():
    base = problem(n=12, seed=4)
    rows = np.repeat(np.arange(12), 10)
    copies = Signals(n=120, residuals=base.residuals[rows], features=100 + base.features[rows])
    for seed in range(5):
        chosen = selectors.get("badge")(copies, 50, generator=rng(seed))
        assert len(set(rows[chosen.indices[:12]].tolist())) == 12, "copies of a pick are at distance 0"
        assert (chosen.gains[1:12] > 0).all()
        assert (chosen.gains[12:] == 0).all()
        assert len(np.unique(chosen.indices)) == 50
    first, second = (
        set(selectors.get("badge")(copies, 50, generator=rng(seed)).indices[12:].tolist()) for seed in (1, 2)
    )
    assert first != second


def test_badge_on_zero_gradients():
    zero = Signals(n=40, residuals=np.zeros((40, 3)), features=rng().normal(size=(40, 2)))
    first, second = (selectors.get("badge")(zero, 10, generator=rng(seed)).indices for seed in (1, 2))
    assert set(first.tolist()) != set(second.tolist())
    assert first.tolist() == selectors.get("random")(zero, 10, generator=rng(1)).indices.tolist()
    residuals = np.zeros((40, 3))
    residuals[7] = [0.5, -0.5, 0]
    one = Signals(n=40, residuals=residuals, features=zero.features)
    for seed in range(5):
        assert 7 in selectors.get("badge")(one, 2, generator=rng(seed)).indices
    everything = selectors.get("badge")(one, 40)
    assert sorted(everything.indices) == list(range(40))


@pytest.mark.parametrize("power", [-100, -40, 40])
def test_badge_does_not_depend_on_the_residuals_magnitude(power):
    signals = problem()
    scaled = signals.replace(residuals=np.ldexp(signals.residuals, power))
    ours, theirs = (selectors.get("badge")(given, 60, generator=rng()) for given in (signals, scaled))
    assert ours.indices.tolist() == theirs.indices.tolist()
    assert np.array_equal(np.ldexp(ours.gains, 2 * power), theirs.gains)


def test_badge_on_features_beside_which_the_bias_vanishes():
    signals = problem()
    large, larger = (signals.replace(features=np.ldexp(signals.features, power)) for power in (40, 55))
    ours, theirs = (selectors.get("badge")(given, 60, generator=rng()) for given in (large, larger))
    assert ours.indices.tolist() == theirs.indices.tolist()
    for features in (np.ldexp(signals.features, 100), 1e20 * signals.features):
        with pytest.raises(BadInput, match="features and residuals: squared distances of gradients"):
            selectors.get("badge")(signals.replace(features=features), 60)


def test_badge_needs_both_factors():
    with pytest.raises(MissingSignal, match="badge needs residuals"):
        selectors.get("badge")(Signals(n=2, features=np.eye(2)), 1)


# -- GraNd ---------------------------------------------------------------------------------------------------


def test_grand_is_the_length_of_the_written_out_gradient():
    signals = problem()
    found = grand(signals.residuals, signals.features)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.linalg.norm(gradients_of(signals), axis=1), rtol=1e-6)
    half = grand(signals.residuals.astype(np.float16), signals.features.astype(np.float16))
    np.testing.assert_allclose(half, found, atol=1e-2)


def test_grand_is_the_gradient_of_the_loss():
    import torch

    signals = problem(n=20, d=5, classes=3)
    layer = torch.nn.Linear(5, 3)
    h, y = torch.from_numpy(signals.features), torch.from_numpy(signals.labels)
    lengths, residuals = [], torch.softmax(layer(h), 1).detach() - torch.nn.functional.one_hot(y, 3)
    for row in range(20):
        loss = torch.nn.functional.cross_entropy(layer(h[row : row + 1]), y[row : row + 1])
        weight, bias = torch.autograd.grad(loss, [layer.weight, layer.bias])
        lengths.append(float((weight.square().sum() + bias.square().sum()).sqrt()))
    np.testing.assert_allclose(grand(residuals.numpy(), signals.features), lengths, rtol=1e-5)


def test_grand_is_the_mean_over_trainings():
    runs = [problem(seed=seed) for seed in range(3)]
    residuals, features = [r.residuals for r in runs], [r.features for r in runs]
    expected = np.mean([grand(b, h) for b, h in zip(residuals, features, strict=True)], axis=0)
    np.testing.assert_allclose(grand(residuals, features), expected, rtol=1e-6)
    np.testing.assert_allclose(grand(np.stack(residuals), np.stack(features)), expected, rtol=1e-6)
    np.testing.assert_allclose(grand(residuals[:1], features[:1]), grand(residuals[0], features[0]))


@pytest.mark.parametrize("file", ["deepcore", "deepcore_small"])
def test_grand_of_the_published_code_is_divided_by_the_batch(golden, file):
    data = golden(file)
    h, y = data["input.embeddings"], data["input.labels"]
    logits = h.astype(np.float64) @ data["input.head_weight"].T + data["input.head_bias"]
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    residuals = probabilities / probabilities.sum(1, keepdims=True) - np.eye(logits.shape[1])[y]
    found = scores.get("grand")(residuals, h)
    n, batch = len(y), int(data["batch"])
    published = data["GraNd.1.all.scores"]
    replayed = scores.get("grand")(residuals, h, upstream=True, batch=batch)
    np.testing.assert_allclose(replayed, published, atol=1e-5)
    kept = data["GraNd.1.all.indices"]
    divided = Signals(n=n, scores={"grand": published})
    assert set(selectors.get("grand")(divided, len(kept)).indices.tolist()) == set(kept.tolist())
    ours = selectors.get("grand")(Signals(n=n, scores={"grand": found}), len(kept))
    last = n // batch * batch
    assert (kept >= last).sum() > (ours.indices >= last).sum(), (
        "samples of the last, smaller batch looked harder"
    )


def test_grand_refuses():
    b, h = np.ones((3, 2)), np.ones((3, 4))
    for wrong in ((b[:2], h), ([b, b], [h]), ([], []), (b[0], h), ([b, b], [h, h[:2]])):
        with pytest.raises(BadInput):
            grand(*wrong)
    with pytest.raises(BadInput, match="row 1 of residuals or features is not finite"):
        grand(b, np.array([[1.0], [np.inf], [1.0]]))


# -- scores with a name of their own -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "low_is_hard"), [("aum", True), ("el2n", False), ("forgetting", False), ("grand", False)]
)
def test_named_scores_are_top(name, low_is_hard):
    values = rng().permutation(100).astype(np.float32)
    signals = Signals(n=100, scores={name: values})
    hard = selectors.get(name)(signals, 10, generator=rng())
    easy = selectors.get(name)(signals, 10, generator=rng(), hardest=False)
    assert sorted(values[hard.indices]) == list(range(10) if low_is_hard else range(90, 100))
    assert sorted(values[easy.indices]) == list(range(90, 100) if low_is_hard else range(10))
    for chosen, hardest in ((hard, True), (easy, False)):
        same = selectors.get("top")(signals, 10, generator=rng(), score=name, hardest=hardest)
        assert chosen.indices.tolist() == same.indices.tolist()
        assert (np.diff(chosen.gains) > 0).all() == (low_is_hard == hardest)
    with pytest.raises(MissingSignal, match=f"score '{name}' is not among"):
        selectors.get(name)(Signals(n=1, scores={"other": np.zeros(1)}), 1)
