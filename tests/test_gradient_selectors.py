"""GradMatch, GLISTER, DeepFool, full GraNd: against formulas, autograd and published output; awkward data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import nn

from winnow.tasks.errors import BadInput, MissingSignal
from winnow.tasks.registry import scores, selectors
from winnow.tasks.score.deepfool import deepfool
from winnow.tasks.score.gradients import grand, grand_full, residuals_of, softmax
from winnow.tasks.select.signals import Signals
from winnow.tasks.train.networks.build import build


def rng(seed=0):
    return np.random.default_rng(seed)


def problem(n=150, d=5, classes=4, seed=0):
    """Features and residuals of a linear layer that has learned something."""
    generator = rng(seed)
    labels = generator.integers(0, classes, n)
    features = generator.normal(size=(n, d)) + 2 * np.eye(classes, d)[labels]
    logits = features @ generator.normal(size=(d, classes)) + 3 * np.eye(classes)[labels]
    residuals = residuals_of(softmax(logits), labels)
    return Signals(n=n, labels=labels, features=features.astype(np.float32), residuals=residuals)


def gradients_of(signals):
    """(N, C·(D + 1)) float64, written out."""
    u = np.c_[signals.features.astype(np.float64), np.ones(signals.n)]
    return np.einsum("nc,nd->ncd", signals.residuals.astype(np.float64), u).reshape(signals.n, -1)


def published(data):
    h, y = data["input.embeddings"], data["input.labels"]
    logits = h @ data["input.head_weight"].T + data["input.head_bias"]
    return Signals(n=len(y), labels=y, features=h, residuals=residuals_of(softmax(logits), y))


def one_class_at_a_time(name, signals, fraction, **params):
    """Picks and weights with DeepCore's budgets, sorted by row within each class as it returns them."""
    rows, weights = [], []
    for label in np.unique(signals.labels):
        members = np.flatnonzero(signals.labels == label)
        chosen = selectors.get(name)(signals.rows(members), round(fraction * len(members)), **params)
        by_row = np.argsort(chosen.indices)
        rows.append(members[chosen.indices[by_row]])
        weights.append(chosen.weights[by_row])
    return np.concatenate(rows), np.concatenate(weights)


# -- GradMatch -----------------------------------------------------------------------------------------------


def naive_gradmatch(g, target, k, lam):
    """Pursuit by SciPy's non-negative least squares on (√λ I; gᵀ); picks, weights, (row, E) entries."""
    support, after = [], []
    while len(support) < k:
        weights = _ridge(g[support], target, lam)
        products = g @ (target - weights @ g[support])
        products[support] = -np.inf
        if products.max() <= 1e-9:
            break
        support.append(int(products.argmax()))
        weights = _ridge(g[support], target, lam)
        after.append((support[-1], ((weights @ g[support] - target) ** 2).sum() + lam * (weights**2).sum()))
        support = [row for row, weight in zip(support, weights, strict=True) if weight > 1e-12]
    return support, _ridge(g[support], target, lam), after


def _ridge(rows, target, lam):
    if not len(rows):
        return np.zeros(0)
    return nnls(np.r_[rows.T, np.sqrt(lam) * np.eye(len(rows))], np.r_[target, np.zeros(len(rows))])[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("lam", "budget"), [(0.5, 40), (1e-3, 15), (0.0, 12), (5.0, 150)])
def test_gradmatch_is_the_naive_pursuit(seed, lam, budget):
    signals = problem(seed=seed)
    g = gradients_of(signals)
    picks, weights, after = naive_gradmatch(g, g.mean(0), budget, lam)
    chosen = selectors.get("gradmatch")(signals, budget, lam=lam)
    m = len(picks)
    assert chosen.indices[:m].tolist() == picks
    np.testing.assert_allclose(chosen.weights[:m], 150 * weights, rtol=1e-3, atol=1e-3 * 150 * weights.max())
    assert len(np.unique(chosen.indices)) == budget
    assert (chosen.weights > 0).all()
    assert (chosen.weights[m:] == 1).all()
    assert (chosen.gains[m:] == 0).all()
    energy = np.array([(g.mean(0) ** 2).sum(), *(energy for _, energy in after)])
    lowered = dict(
        zip([row for row, _ in after], energy[:-1] - energy[1:], strict=True)
    )  # at the last entry of those that came twice
    np.testing.assert_allclose(chosen.gains[:m], [lowered[row] for row in picks], rtol=1e-3, atol=1e-6)


def test_gradmatch_lets_a_sample_go_whose_weight_falls_to_0():
    left = 0
    for seed in range(40):
        other = problem(n=40, d=2, classes=3, seed=seed)
        g = gradients_of(other)
        picks, _, after = naive_gradmatch(g, g.mean(0), 6, 0.01)
        left += len(after) > len(picks)
        assert selectors.get("gradmatch")(other, 6, lam=0.01).indices[: len(picks)].tolist() == picks
    assert left > 3, "the case must occur"


@pytest.mark.parametrize("balanced", [False, True])
def test_gradmatch_comes_closer_to_the_full_gradient_than_random_and_upstream(golden, balanced):
    signals = published(golden("deepcore"))
    g = gradients_of(signals)
    full = g.sum(0)

    def left(rows, weights):
        return np.linalg.norm(weights @ g[rows] - full) / np.linalg.norm(full)

    ours = selectors.get("gradmatch")(signals, 0.1, balanced=balanced)
    random = min(left(rng(seed).permutation(2000)[:200], np.full(200, 10.0)) for seed in range(20))
    assert left(ours.indices, ours.weights) < 0.5 * random
    theirs = selectors.get("gradmatch")(signals, 0.1, balanced=balanced, upstream=True)
    scale = (
        (theirs.weights @ g[theirs.indices]) @ full / ((theirs.weights @ g[theirs.indices]) ** 2).sum()
    )  # the best of all factors
    assert left(ours.indices, ours.weights) < 0.5 * left(theirs.indices, scale * theirs.weights)
    loose = selectors.get("gradmatch")(signals, 0.1, balanced=balanced, lam=0.0)
    assert left(loose.indices, loose.weights) <= left(ours.indices, ours.weights)


@pytest.mark.parametrize("file", ["deepcore", "deepcore_small"])
def test_gradmatch_of_the_published_code(golden, file):
    data = golden(file)
    signals, gradmatch = published(data), selectors.get("gradmatch")
    chosen = gradmatch(signals, len(data["GradMatch.all.indices"]), upstream=True)
    by_row = np.argsort(chosen.indices)
    assert chosen.indices[by_row].tolist() == data["GradMatch.all.indices"].tolist()
    expected = data["GradMatch.all.weights"]
    np.testing.assert_allclose(chosen.weights[by_row], expected, atol=1e-4 * expected.max())
    rows, weights = one_class_at_a_time("gradmatch", signals, float(data["fraction"]), upstream=True)
    assert rows.tolist() == data["GradMatch.bal.indices"].tolist()
    expected = data["GradMatch.bal.weights"]
    np.testing.assert_allclose(weights, expected, atol=1e-4 * expected.max())
    # its λ swamps the gradients, so that it is no pursuit: it keeps what GLISTER's code keeps
    glister = selectors.get("glister")(signals, len(chosen.indices), upstream=True).indices
    assert len(set(glister.tolist()) & set(chosen.indices.tolist())) > 0.98 * len(glister)
    ours = set(gradmatch(signals, len(chosen.indices)).indices.tolist())
    assert len(ours & set(glister.tolist())) < 0.8 * len(glister)


def test_upstream_drops_samples_of_weight_0_and_keeps_one_with_weight_1():
    signals = problem(seed=1)
    gradmatch = selectors.get("gradmatch")
    assert gradmatch(signals, 1, upstream=True).weights.tolist() == [1.0]
    everything = gradmatch(signals, 150, upstream=True, batch=1)
    assert len(everything.indices) < 150
    assert (everything.weights > 0).all()
    assert len(gradmatch(signals, 150).indices) == 150


def test_the_batch_decides_in_upstream_alone():
    signals = problem(n=256 + 4)
    for name in ("gradmatch", "glister"):
        kept = [selectors.get(name)(signals, 8, upstream=True, batch=batch).indices for batch in (256, 260)]
        assert (kept[0] >= 256).sum() > (kept[1] >= 256).sum(), "64 times the gradient in the last batch"
        with pytest.raises(BadInput, match=f"{name} has no parameter 'batch'"):
            selectors.get(name)(signals, 8, batch=256)


def test_gradmatch_weights_of_all_classes_stand_for_all_samples():
    signals = problem(n=600, d=12)
    keep = np.sort(
        np.r_[np.flatnonzero(signals.labels != 0), np.flatnonzero(signals.labels == 0)[:30]]
    )  # classes of unequal size
    signals = signals.rows(keep)
    g = gradients_of(signals)
    chosen = selectors.get("gradmatch")(signals, 0.1, balanced=True)
    assert (chosen.gains > 0).all()
    off = np.linalg.norm(chosen.weights @ g[chosen.indices] - g.sum(0))
    assert off < 0.2 * np.linalg.norm(g.sum(0))
    sizes = np.bincount(signals.labels)[signals.labels[chosen.indices]]
    means = chosen.weights / sizes  # what stands for the mean of each class does not fit together
    scaled = means * len(keep) / means.sum()
    assert np.linalg.norm(scaled @ g[chosen.indices] - g.sum(0)) > 2 * off


def test_gradmatch_to_validation_samples():
    signals, other = problem(seed=0), problem(n=70, seed=9)
    g, target = gradients_of(signals), gradients_of(other)
    picks, weights, _ = naive_gradmatch(g, target.mean(0), 20, 0.5)
    unlabelled = Signals(n=70, residuals=other.residuals, features=other.features)
    chosen = selectors.get("gradmatch")(signals, 20, validation=unlabelled)
    assert chosen.indices[: len(picks)].tolist() == picks
    np.testing.assert_allclose(chosen.weights[: len(picks)], 150 * weights, rtol=1e-3)
    kept = selectors.get("gradmatch")(signals, 20, validation=other, balanced=True).indices
    for label in range(4):
        members, theirs = np.flatnonzero(signals.labels == label), other.labels == label
        mine = kept[signals.labels[kept] == label]
        picks, _, _ = naive_gradmatch(g[members], target[theirs].mean(0), len(mine), 0.5)
        assert mine[: len(picks)].tolist() == members[picks].tolist()


def test_gradmatch_when_nothing_helps():
    signals = problem()
    opposite = Signals(n=150, residuals=-signals.residuals, features=signals.features)
    g = gradients_of(signals)
    own = signals.rows(np.flatnonzero(g @ g.mean(0) > 0))  # all of these point away from the opposite target
    chosen = selectors.get("gradmatch")(own, 12, validation=opposite)
    assert chosen.gains.tolist() == [0] * 12
    assert chosen.weights.tolist() == [1] * 12
    products = -gradients_of(own) @ g.mean(0)
    assert chosen.indices.tolist() == np.argsort(-products)[:12].tolist()
    zero = Signals(n=40, residuals=np.zeros((40, 3)), features=rng().normal(size=(40, 2)))
    first, second = (selectors.get("gradmatch")(zero, 10, generator=rng(seed)).indices for seed in (1, 2))
    assert set(first.tolist()) != set(second.tolist()), "all products are 0: the generator decides"


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_gradmatch_on_copies(lam):
    base = problem(n=12, seed=4)
    rows = np.repeat(np.arange(12), 10)
    copies = Signals(n=120, residuals=base.residuals[rows], features=base.features[rows])
    first, second = (selectors.get("gradmatch")(copies, 8, lam=lam, generator=rng(seed)) for seed in (1, 2))
    assert first.indices.tolist() != second.indices.tolist()
    assert rows[first.indices].tolist() == rows[second.indices].tolist(), (
        "which copy is chance, of what is not"
    )
    np.testing.assert_allclose(first.weights, second.weights, rtol=1e-3)
    if lam == 0:
        support = first.gains > 0
        assert len(set(rows[first.indices[support]])) == support.sum(), "a copy of a pick adds nothing"
    assert len(np.unique(selectors.get("gradmatch")(copies, 120, lam=lam).indices)) == 120


def scaled(signals, what, power):
    return signals.replace(**{what: np.ldexp(getattr(signals, what), power)})


@pytest.mark.parametrize(("power", "lam"), [(-100, 0.0), (-60, 0.5), (60, 0.5)])
def test_gradmatch_of_residuals_of_any_magnitude(power, lam):
    signals, gradmatch = problem(), selectors.get("gradmatch")
    ours = gradmatch(signals, 40, lam=lam)
    theirs = gradmatch(scaled(signals, "residuals", power), 40, lam=float(np.ldexp(lam, 2 * power)))
    assert ours.indices.tolist() == theirs.indices.tolist()
    assert ours.weights.tolist() == theirs.weights.tolist()
    assert np.array_equal(np.ldexp(ours.gains, 2 * power), theirs.gains)
    validation = scaled(signals, "residuals", power)
    theirs = gradmatch(signals, 40, lam=lam, validation=validation)
    assert ours.indices.tolist() == theirs.indices.tolist()
    helping = ours.gains > 0
    assert np.array_equal(np.ldexp(ours.weights, power)[helping], theirs.weights[helping])


def test_gradmatch_of_features_beside_which_the_bias_vanishes():
    signals, gradmatch = problem(), selectors.get("gradmatch")
    ours, theirs = (
        gradmatch(scaled(signals, "features", power), 40, lam=2.0 ** (2 * power)) for power in (40, 60)
    )
    assert ours.indices.tolist() == theirs.indices.tolist()
    assert ours.weights.tolist() == theirs.weights.tolist()


def test_gradmatch_refuses_magnitudes():
    signals, gradmatch = problem(), selectors.get("gradmatch")
    for what in ("features", "residuals"):
        with pytest.raises(BadInput, match="features and residuals: the mean gradient's length squared"):
            gradmatch(scaled(signals, what, 100), 40)
    with pytest.raises(BadInput, match=r"lam = 0\.5, in units of ‖g‖², leaves no weight"):
        gradmatch(scaled(signals, "residuals", -100), 40)


# -- GLISTER -------------------------------------------------------------------------------------------------


def head(seed=0, n=150, d=5, classes=4):
    """A linear layer, what it makes of some samples, and these."""
    generator = rng(seed)
    labels = generator.integers(0, classes, n)
    features = (generator.normal(size=(n, d)) + 2 * np.eye(classes, d)[labels]).astype(np.float32)
    weight, bias = (
        torch.from_numpy(generator.normal(size=(classes, d))),
        torch.from_numpy(generator.normal(size=classes)),
    )
    return seen(features, labels, weight, bias), weight, bias


def seen(features, labels, weight, bias):
    probabilities = softmax(features @ weight.numpy().T + bias.numpy())
    residuals = residuals_of(probabilities, labels)
    return Signals(
        n=len(labels), labels=labels, features=features, probabilities=probabilities, residuals=residuals
    )


def validation_loss(signals, weight, bias):
    h, y = torch.from_numpy(signals.features).double(), torch.from_numpy(signals.labels)
    return torch.nn.functional.cross_entropy(h @ weight.T + bias, y)


def stepped(weight, bias, g, rows, eta):
    """The layer after a gradient step on the sum over these samples."""
    step = eta * torch.from_numpy(g[rows].sum(0)).reshape(len(bias), -1)
    return (weight - step[:, :-1]).requires_grad_(), (bias - step[:, -1]).requires_grad_()


def naive_gains(signals, watched, weight, bias, picks, eta):
    """The validation loss's gradient by autograd after the steps of these picks, times each sample's step."""
    g = gradients_of(signals)
    moved = stepped(weight, bias, g, picks, eta)
    slope = torch.autograd.grad(validation_loss(watched, *moved), moved)
    found = eta * g @ torch.cat([slope[0], slope[1][:, None]], dim=1).flatten().numpy()
    found[picks] = -np.inf
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("refresh", [1, 7])
def test_glister_takes_the_steps(seed, refresh):
    signals, weight, bias = head(seed)
    other = head(seed + 50, n=60)[0]
    other = seen(other.features, other.labels, weight, bias)
    for validation in (None, other):
        chosen = selectors.get("glister")(signals, 50, eta=0.05, refresh=refresh, validation=validation)
        for start in range(0, 50, refresh):
            block = slice(start, min(start + refresh, 50))
            gains = naive_gains(signals, validation or signals, weight, bias, chosen.indices[:start], 0.05)
            np.testing.assert_allclose(
                chosen.gains[block], gains[chosen.indices[block]], rtol=1e-3, atol=1e-5
            )
            best = -np.sort(-gains)[: len(chosen.gains[block])]
            np.testing.assert_allclose(gains[chosen.indices[block]], best, rtol=1e-3, atol=1e-5)
        assert start > 0


def test_glister_without_probabilities():
    signals, _, _ = head(2)
    bare = signals.replace(probabilities=None)
    full, less = (selectors.get("glister")(given, 50, eta=0.05) for given in (signals, bare))
    np.testing.assert_allclose(less.gains, full.gains, rtol=0.02)
    assert len(set(less.indices.tolist()) & set(full.indices.tolist())) > 45


def test_glister_gains_are_what_the_loss_falls_by():
    signals, weight, bias = head(3)
    g = gradients_of(signals)
    chosen = selectors.get("glister")(signals, 30, eta=1e-4)
    after = validation_loss(signals, *stepped(weight, bias, g, chosen.indices, 1e-4)).detach()
    fell = float(validation_loss(signals, weight, bias) - after)
    assert chosen.gains.sum() == pytest.approx(fell, rel=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_glister_lowers_the_validation_loss_more_than_random_and_upstream(seed):
    signals, weight, bias = head(seed, n=600)
    g = gradients_of(signals)
    eta = 0.2 / (1 + (signals.features**2).sum(1).mean())  # the default
    before = float(validation_loss(signals, weight, bias))

    def gain(rows):
        return before - float(validation_loss(signals, *stepped(weight, bias, g, rows, eta)).detach())

    for k in (20, 60, 200):
        ours = selectors.get("glister")(signals, k).indices
        random = [gain(rng(s).permutation(600)[:k]) for s in range(20)]
        assert gain(ours) > max(random)
        assert gain(ours) > gain(selectors.get("glister")(signals, k, upstream=True, batch=600).indices)
        assert ours.tolist() == selectors.get("glister")(signals, 200).indices[:k].tolist(), (
            "smaller is a prefix of larger"
        )
    one_shot = selectors.get("glister")(signals, 200, refresh=200).indices
    assert (
        one_shot.tolist() == selectors.get("glister")(signals, 200, upstream=True, batch=600).indices.tolist()
    )


def test_glister_of_features_beside_which_the_bias_vanishes():
    signals, _, _ = head(1)
    glister = selectors.get("glister")
    ours, *others = (glister(scaled(signals, "features", power), 50) for power in (40, 67, 100))
    for theirs in others:
        assert ours.indices.tolist() == theirs.indices.tolist()
        assert ours.gains.tolist() == theirs.gains.tolist()
    watching = glister(
        scaled(signals, "features", 60), 50, validation=scaled(signals, "features", 40), eta=2.0**-101
    )
    alone = glister(scaled(signals, "features", 40), 50, eta=2.0**-81)
    assert watching.indices.tolist() == alone.indices.tolist()
    for what, eta in (("features", 0.05), ("residuals", None)):
        with pytest.raises(
            BadInput, match="steps may move logits by" if eta else "not a softmax minus one-hot"
        ):
            glister(scaled(signals, what, 100), 50, eta=eta)
    assert len(glister(scaled(signals, "residuals", -100), 50).indices) == 50


@pytest.mark.parametrize("refresh", [1, 5])
def test_glister_on_copies(refresh):
    base, _, _ = head(3, n=15)
    rows = np.repeat(np.arange(15), 8)
    copies = base.rows(rows).replace(ids=np.arange(120))
    first, second = (
        selectors.get("glister")(copies, 30, refresh=refresh, generator=rng(seed)) for seed in (1, 2)
    )
    assert first.indices.tolist() != second.indices.tolist()
    assert rows[first.indices].tolist() == rows[second.indices].tolist(), (
        "which copy is chance, of what is not"
    )


@pytest.mark.parametrize("file", ["deepcore", "deepcore_small"])
def test_glister_of_the_published_code(golden, file):
    data = golden(file)
    signals = published(data)
    chosen = selectors.get("glister")(signals, len(data["Glister.all.indices"]), upstream=True)
    assert sorted(chosen.indices) == data["Glister.all.indices"].tolist()
    assert (np.diff(chosen.gains) <= 0).all()
    rows, _ = one_class_at_a_time("glister", signals, float(data["fraction"]), upstream=True)
    assert rows.tolist() == data["Glister.bal.indices"].tolist()
    last = signals.n // 256 * 256
    ours = selectors.get("glister")(signals, len(chosen.indices)).indices
    assert (chosen.indices >= last).sum() > (ours >= last).sum(), "the last, smaller batch looked better"


def test_glister_balanced_watches_the_class():
    signals, _, _ = head(1)
    other = problem(n=80, seed=5)
    for validation in (None, other):
        kept = selectors.get("glister")(signals, 40, balanced=True, validation=validation).indices
        for label in range(4):
            members = np.flatnonzero(signals.labels == label)
            mine = kept[signals.labels[kept] == label]
            theirs = (
                None if validation is None else validation.rows(np.flatnonzero(validation.labels == label))
            )
            alone = selectors.get("glister")(signals.rows(members), len(mine), validation=theirs)
            assert mine.tolist() == members[alone.indices].tolist()


def test_gradient_selectors_refuse():
    signals = problem()
    glister, gradmatch = selectors.get("glister"), selectors.get("gradmatch")
    for params in ({"eta": 0.0}, {"eta": float("nan")}, {"refresh": 0}):
        with pytest.raises(BadInput, match="must be positive"):
            glister(signals, 5, **params)
    for lam in (-1.0, float("nan")):
        with pytest.raises(BadInput, match="lam = "):
            gradmatch(signals, 5, lam=lam)
    for wrong in ([1.5, -0.5, -0.5, -0.5], [1.0, 1.0, 1.0, 1.0]):
        odd = signals.residuals.copy()
        odd[7] = wrong
        with pytest.raises(BadInput, match="row 7 is not a softmax minus one-hot"):
            glister(Signals(n=150, features=signals.features, residuals=odd), 5)
    for name in ("gradmatch", "glister"):
        selector = selectors.get(name)
        with pytest.raises(BadInput, match="validation has no residuals"):
            selector(signals, 5, validation=Signals(n=1, features=np.zeros((1, 5))))
        with pytest.raises(BadInput, match="validation has 9 features"):
            selector(
                signals, 5, validation=Signals(n=1, features=np.zeros((1, 9)), residuals=np.zeros((1, 4)))
            )
        strange = Signals(n=1, labels=np.array([77]), features=np.zeros((1, 5)), residuals=np.zeros((1, 4)))
        with pytest.raises(BadInput, match="no sample of the labels"):
            selector(signals, 5, validation=strange)
        with pytest.raises(BadInput, match="batch = 0"):
            selector(signals, 5, upstream=True, batch=0)
        with pytest.raises(MissingSignal, match=f"{name} needs residuals"):
            selector(Signals(n=2, features=np.eye(2)), 1)


# -- DeepFool ------------------------------------------------------------------------------------------------


def mlp(seed=0, inputs=6, classes=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, classes)).double()


def naive_deepfool(network, x, max_iterations, overshoot):
    """One sample, its full Jacobian, the equations as they are written."""
    total = torch.zeros_like(x)
    y = int(network(x[None]).argmax())
    for _ in range(max_iterations):
        at = x + (1 + overshoot) * total
        f = network(at[None])[0].detach()
        jacobian = torch.autograd.functional.jacobian(lambda z: network(z[None])[0], at)
        options = []
        for c in range(len(f)):
            if c != y:
                w = jacobian[c] - jacobian[y]
                options.append((float((f[c] - f[y]).abs() / w.norm()), w / w.norm()))
        distance, direction = min(options, key=lambda option: option[0])
        total = total + distance * direction
        if int(network((x + (1 + overshoot) * total)[None]).argmax()) != y:
            break
    return float(total.square().sum())


@pytest.fixture
def keep_torch_seed():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.mark.usefixtures("keep_torch_seed")
@pytest.mark.parametrize(("overshoot", "max_iterations"), [(0.02, 50), (0.0, 50), (0.02, 1), (0.5, 3)])
def test_deepfool_is_the_naive_loop(overshoot, max_iterations):
    network = mlp()
    x = torch.from_numpy(3 * rng().normal(size=(40, 2, 3)))
    found = deepfool(network, x, overshoot=overshoot, max_iterations=max_iterations)
    assert found.dtype == np.float32
    expected = [naive_deepfool(network, one, max_iterations, overshoot) for one in x]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.usefixtures("keep_torch_seed")
def test_deepfool_of_a_linear_network_is_the_distance_to_the_boundary():
    generator = rng(1)
    torch.manual_seed(1)
    layer = nn.Linear(5, 4).double()
    x = generator.normal(size=(60, 5))
    w, f = layer.weight.detach().numpy(), layer(torch.from_numpy(x)).detach().numpy()
    y = f.argmax(1)
    normals = np.linalg.norm(w - w[y][:, None], axis=2)
    with np.errstate(invalid="ignore"):
        distances = (f[np.arange(60), y][:, None] - f) / normals
    distances[np.arange(60), y] = np.inf
    found = deepfool(layer, torch.from_numpy(x))
    np.testing.assert_allclose(found, distances.min(1) ** 2, rtol=1e-5)
    kept = selectors.get("deepfool")(Signals(n=60, scores={"deepfool": found}), 6).indices
    assert kept.tolist() == np.argsort(distances.min(1))[:6].tolist(), "closest to the boundary first"
    # two classes alone are compared: the runner-up is not always the nearest boundary
    second = np.argsort(-f, axis=1)[:, 1]
    np.testing.assert_allclose(
        deepfool(layer, torch.from_numpy(x), classes=2, max_iterations=1),
        distances[np.arange(60), second] ** 2,
        rtol=1e-5,
    )
    assert (second != distances.argmin(1)).any()


def test_deepfool_leaves_the_network_as_it_was_and_does_not_depend_on_batches():
    network = build("convnet", classes=5, channels=1, size=8, seed=0).train()
    network.head.eval()
    network.head.bias.requires_grad_(False)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    x = torch.from_numpy(rng().normal(size=(30, 1, 8, 8)).astype(np.float32))
    copy = x.clone()
    whole = deepfool(network, x)
    np.testing.assert_allclose(deepfool(network, x, batch_size=7), whole, rtol=1e-4)
    np.testing.assert_allclose(deepfool(network, iter([x[:4], x[4:4], x[4:]])), whole, rtol=1e-4)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [name for name, parameter in network.named_parameters() if not parameter.requires_grad] == [
        "head.bias"
    ]
    assert torch.equal(x, copy)
    assert not x.requires_grad
    network.eval()
    with torch.no_grad():
        margin = network(x).topk(2, dim=1).values
    assert (
        np.corrcoef(
            np.argsort(np.argsort(whole)), np.argsort(np.argsort((margin[:, 0] - margin[:, 1]).numpy()))
        )[0, 1]
        > 0.5
    )


def test_deepfool_where_there_is_no_boundary():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([1.0, 0.0]))
    found = deepfool(layer, torch.zeros(2, 3))
    assert found.tolist() == [np.finfo(np.float32).max] * 2
    assert selectors.get("deepfool")(Signals(n=2, scores={"deepfool": found}), 1).indices.size == 1
    with torch.no_grad():
        layer.weight[0, 0] = 1.0
        layer.bias.zero_()
    assert deepfool(layer, torch.zeros(1, 3)).tolist() == [0.0], "a tie of logits is the boundary"


def test_deepfool_refuses():
    layer = nn.Linear(2, 3)
    with pytest.raises(BadInput, match="there are none"):
        deepfool(layer, torch.zeros(0, 2))
    with pytest.raises(BadInput, match="one output"):
        deepfool(nn.Linear(2, 1), torch.zeros(1, 2))
    x = torch.zeros(6, 2)
    x[5, 1] = torch.nan
    with pytest.raises(BadInput, match="row 5 are not finite"):
        deepfool(layer, x, batch_size=4)
    for params in ({"max_iterations": 0}, {"overshoot": -0.1}, {"classes": 1}, {"batch_size": 0}):
        with pytest.raises(BadInput, match="are needed"):
            deepfool(layer, torch.zeros(1, 2), **params)
    with pytest.raises(MissingSignal, match="score 'deepfool' is not among"):
        selectors.get("deepfool")(Signals(n=1, scores={"other": np.zeros(1)}), 1)


# -- GraNd in all parameters ---------------------------------------------------------------------------------


def looped(network, x, y):
    lengths = []
    network.eval()
    for row in range(len(x)):
        loss = torch.nn.functional.cross_entropy(network(x[row : row + 1]), y[row : row + 1])
        gradients = torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad])
        lengths.append(float(sum(g.square().sum() for g in gradients).sqrt()))
    return lengths


@pytest.mark.parametrize("name", ["convnet", "mlp", "resnet8"])
def test_full_grand_is_the_loop_over_samples(name):
    network = build(name, classes=5, channels=1, size=8, seed=0).train()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    x, y = (
        torch.from_numpy(rng().normal(size=(11, 1, 8, 8)).astype(np.float32)),
        torch.from_numpy(rng().integers(0, 5, 11)),
    )
    found = [grand_full(network, x, y, chunk=chunk) for chunk in (None, 1, 4)]
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items()), (
        "batch norm's statistics too"
    )
    assert all(parameter.grad is None for parameter in network.parameters())
    for one in found:
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, looped(network, x, y), rtol=1e-4)


def test_full_grand_of_the_last_layer_alone_is_grand():
    network = build("mlp", classes=5, channels=1, size=8, seed=0).eval()
    x, y = torch.from_numpy(rng().normal(size=(20, 1, 8, 8)).astype(np.float32)), rng().integers(0, 5, 20)
    everything = grand_full(network, x, torch.from_numpy(y))
    with torch.no_grad():
        h = network.features(x)
        probabilities = torch.softmax(network.head(h), 1)
    last = grand(residuals_of(probabilities.numpy(), y), h.numpy())
    assert (everything > last).all()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(BadInput, match="requires a gradient"):
        grand_full(network, x, torch.from_numpy(y))
    network.head.requires_grad_()
    np.testing.assert_allclose(grand_full(network, x, torch.from_numpy(y)), last, rtol=1e-4)
    assert scores.get("grand_full").higher_is == "harder"


def test_full_grand_refuses():
    layer = nn.Linear(2, 3)
    for wrong in (torch.zeros(2, dtype=torch.int64), torch.zeros(3)):
        with pytest.raises(BadInput, match="labels: shape"):
            grand_full(layer, torch.zeros(3, 2), wrong)
    with pytest.raises(BadInput, match="chunk = 0"):
        grand_full(layer, torch.zeros(1, 2), torch.tensor([0]), chunk=0)
    with pytest.raises(BadInput, match="gradient of row 1 is not finite"):
        grand_full(layer, torch.tensor([[0.0, 0.0], [torch.inf, 0.0]]), torch.tensor([0, 1]))
