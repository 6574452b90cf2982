"""D2 against the published code's output, its exact greedy against the naive one, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from winnow.tasks.embed.graph import Graph
from winnow.tasks.errors import BadInput, MissingSignal
from winnow.tasks.registry import selectors
from winnow.tasks.select.allocation import water_fill
from winnow.tasks.select.d2 import definition, greedy, messages
from winnow.tasks.select.graphs import Edges, median_length, symmetric
from winnow.tasks.select.rounds import MessageStage, exact_grid
from winnow.tasks.select.signals import Signals
from winnow.tasks.select.upstream.d2 import iterative_selection, published_greedy

d2 = selectors.get("d2")
NAMES = {"forgetting": "forgetting", "accumulated_margin": "aum"}
SELECTIONS = [f"sel{i:02d}" for i in range(27)]
DATACOMP = [f"dc_k{k}_g{g}_f{f}" for k in (1, 3) for g in (1, 10) for f in (10, 30)]


def recorded(data, kind: str, k: int):
    """Ids, distances and indptr of a graph of the fixtures."""
    if kind == "dense":
        return data[f"dense_k{k}_indices"], data[f"dense_k{k}_dist"], data[f"dense_k{k}_indptr"]
    return data[f"pre_k{k}_idx"][:, 1:], data[f"pre_k{k}_dist"][:, 1:], None


def case_of(data, case: str):
    k, gamma, ratio = data[f"{case}_args"]
    kind, key = str(data[f"{case}_kind"]), str(data[f"{case}_key"])
    mode, sampling = map(str, data[f"{case}_modes"])
    return int(k), float(gamma), int(ratio * 160), kind, key, mode, sampling


def agrees(found, expected, gap: float, least: float = 1e-4) -> bool:
    """The fixtures' rule: the same order where no pick was close, else the same set."""
    return (
        found.tolist() == expected.tolist() if gap > least else set(found.tolist()) == set(expected.tolist())
    )


# -- the published code --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, 5])
def test_golden_graphs_and_forward_scores(golden, k):
    data = golden("d2")
    from winnow.tasks.embed.knn import knn

    near = knn(data["features"], k, metric="euclidean")
    ids, distances, indptr = symmetric(near.neighbours, -near.similarity)
    expected_ids, expected_distances, expected_indptr = recorded(data, "dense", k)
    assert indptr.tolist() == expected_indptr.tolist()
    assert ids.tolist() == expected_ids.tolist()
    np.testing.assert_allclose(distances, expected_distances, atol=1e-5)
    for kind in ("dense", "pre"):
        near, apart, indptr = recorded(data, kind, k)
        for key in NAMES:
            own = data[key].astype(np.float64)
            received = messages(
                np.maximum(own, 1e-7) if kind == "dense" else own, near, np.exp(-apart), indptr
            )
            np.testing.assert_allclose(
                own + received, data[f"{kind}_k{k}_{key}_sum_forward"], rtol=1e-5, atol=1e-3
            )
            np.testing.assert_allclose(
                own * received, data[f"{kind}_k{k}_{key}_product_forward"], rtol=1e-5, atol=1e-3
            )


@pytest.mark.parametrize("case", SELECTIONS)
def test_golden_greedy(golden, case):
    data = golden("d2")
    k, gamma, budget, kind, key, mode, sampling = case_of(data, case)
    near, distances, indptr = recorded(data, kind, k)
    g = data[f"{kind}_k{k}_{key}_{mode}_forward"]
    weights = np.exp(-(0.0 if sampling == "absolute" else gamma) * distances)
    picks, keys = published_greedy(g, near, weights, budget, indptr=indptr)
    assert agrees(picks, data[f"{case}_order"], data[f"{case}_min_gap"])
    assert (keys < 0).sum() == data[f"{case}_negative_picks"]
    # with no message below 0; the two agree where there was none
    assert (f"corrected_{case}_order" in data) == (data[f"{case}_negative_picks"] > 0)
    ours, _ = greedy(g, near, weights, budget, ties=np.arange(160), indptr=indptr)
    assert ours.tolist() == data.get(f"corrected_{case}_order", data[f"{case}_order"]).tolist()


@pytest.mark.parametrize("case", SELECTIONS[:24])
def test_golden_modes_from_features_and_from_a_graph(golden, case):
    data = golden("d2")
    k, gamma, budget, kind, key, _, _ = case_of(data, case)
    near, distances, _ = recorded(data, kind, k)
    given = {"features": data["features"]} if kind == "dense" else {"graph": Graph(near, -distances)}
    signals = Signals(n=160, scores={NAMES[key]: data[key]}, **given)
    chosen = d2(
        signals,
        budget,
        score=NAMES[key],
        neighbours=k,
        gamma_reverse=gamma,
        graph_mode="symmetric" if kind == "dense" else "directed",
        similarity="euclidean",
        upstream=True,
    )
    assert agrees(chosen.indices, data[f"{case}_order"], data[f"{case}_min_gap"])


@pytest.mark.parametrize("case", [f"pipe{i:02d}" for i in range(16)])
def test_golden_pipelines(golden, case):
    data = golden("d2")
    k, gamma, ratio, beta = data[f"{case}_args"]
    signals = Signals(
        n=160,
        labels=data["labels"],
        features=data["features"],
        scores={name: data[key] for key, name in NAMES.items()},
    )
    chosen = d2(
        signals,
        float(ratio),
        score=NAMES[str(data[f"{case}_key"])],
        neighbours=int(k),
        gamma_reverse=float(gamma),
        mis_ratio=float(beta),
        graph_mode={"class": "per_class", "graph": "symmetric"}[str(data[f"{case}_mode"])],
        upstream=True,
    )
    assert not data[f"{case}_overfull"].any()
    assert (
        np.bincount(data["labels"][chosen.indices], minlength=4).tolist()
        == data[f"{case}_class_counts"].tolist()
    )
    assert sorted(chosen.indices.tolist()) == data[f"{case}_set"].tolist()


@pytest.mark.parametrize("case", DATACOMP)
def test_golden_datacomp(golden, case):
    data = golden("d2")
    k, gamma, fraction = data[f"{case}_args"]
    k, budget = int(k), int(fraction * 200)
    g, near, squared = data[f"dc_k{k}_forward"], data[f"dc_k{k}_idx"], data[f"dc_k{k}_sqdist"]
    own = np.maximum(data["dc_clip"].astype(np.float64) + 0.115, 1e-7)
    np.testing.assert_allclose(own + messages(own, near, np.exp(-squared)), g, atol=1e-5)
    weights = np.exp(-gamma * squared)
    assert iterative_selection(g, near, weights, budget)[0].tolist() == data[f"{case}_order"].tolist()
    ours, _ = greedy(g, near, weights, budget, ties=np.arange(200))
    assert agrees(ours, data[f"corrected_{case}_order"], data[f"corrected_{case}_min_gap"], 1e-5)
    signals = Signals(n=200, features=data["dc_features"], scores={"clip": data["dc_clip"]})
    chosen = d2(
        signals,
        budget,
        score="clip",
        neighbours=k,
        gamma_reverse=float(gamma),
        graph_mode="datacomp",
        upstream=True,
    )
    assert set(chosen.indices.tolist()) == set(data[f"{case}_order"].tolist())


def test_golden_datacomp_of_everything(golden):
    data = golden("d2")
    assert str(data["dc_full_reference_error"]) == "IndexError"
    arguments = data["dc_k1_forward"], data["dc_k1_idx"], np.exp(-data["dc_k1_sqdist"]), 200
    assert greedy(*arguments, ties=np.arange(200))[0].tolist() == data["corrected_dc_full_order"].tolist()
    assert sorted(iterative_selection(*arguments)[0].tolist()) == list(range(200))


def test_published_class_mode_keeps_small_classes_whole_then_cuts_or_fills_at_random():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [4, 4, 40])
    signals = Signals(
        n=48,
        labels=labels,
        features=generator.normal(size=(48, 3)),
        scores={"forgetting": generator.integers(0, 9, 48)},
    )
    kept = d2(signals, 12, graph_mode="per_class", upstream=True).indices
    assert np.bincount(labels[kept]).tolist() == [4, 4, 4]
    cut = d2(signals, 6, graph_mode="per_class", upstream=True).indices  # 4 + 4 + 2 are collected
    assert len(set(cut.tolist())) == 6


# -- the exact greedy ----------------------------------------------------------------------------------------


def naive(g, near, weights, budget, ties, indptr):
    """Masked argmax after every pick, on the grid that greedy works on."""
    edges = Edges.of(len(g), near, weights, indptr)
    largest = float(np.abs(g).max(initial=0)) * (1 + edges.largest_in_degree() * edges.largest_weight())
    grid = exact_grid(largest)
    key = np.rint(np.asarray(g, np.float64) / grid) * grid
    left = np.ones(len(g), bool)
    picks, keys = [], []
    for _ in range(budget):
        best = np.flatnonzero(left & (key == key[left].max()))
        row = best[np.argmin(ties[best])]
        left[row] = False
        picks.append(int(row))
        keys.append(float(key[row]))
        for edge in range(edges.indptr[row], edges.indptr[row + 1]):
            key[edges.ids[edge]] -= np.rint(edges.weights[edge] * (max(keys[-1], 0.0) / grid)) * grid
    return picks, keys


def random_graph(generator: np.random.Generator, kind: str, n: int):
    rows = np.arange(n)
    if kind == "path":
        near = [[i + 1] if i + 1 < n else [] for i in rows]
    elif kind == "hubs":  # the first few are listed by nearly all, and list nearly all
        popular = (rows + 1.0) ** -2.0
        near = [
            sorted({int(j) for j in generator.choice(n, 6, p=popular / popular.sum())} - {i})
            if i > 2
            else [j for j in rows if j != i and generator.random() < 0.8]
            for i in rows
        ]
    elif kind == "knn":
        x = generator.normal(size=(n, 2))
        near = [[int(j) for j in np.argsort(((x - x[i]) ** 2).sum(1))[1 : 1 + min(5, n - 1)]] for i in rows]
    else:
        near = [
            sorted({int(j) for j in generator.integers(0, n, generator.integers(0, 7))} - {i}) for i in rows
        ]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in near])])
    return np.array([j for row in near for j in row], np.int64), indptr


@pytest.mark.parametrize("rounds", [1, 2, 32])
@pytest.mark.parametrize("scores", ["random", "tied", "signed", "nearly_equal", "zero"])
@pytest.mark.parametrize("kind", ["random", "hubs", "knn", "path"])
def test_greedy_equals_masked_argmax(kind, scores, rounds, monkeypatch):
    monkeypatch.setattr(MessageStage, "rounds", rounds)  # few: the heap that ends a stage takes its turn
    for seed in range(12):
        generator = np.random.default_rng(seed)
        n = int(generator.integers(1, 90))
        near, indptr = random_graph(generator, kind, n)
        edges = len(near)
        weights = [
            generator.random(edges),
            np.ones(edges),
            generator.integers(0, 3, edges) / 2,
            3 * generator.random(edges),
        ][seed % 4]
        g = {
            "random": generator.random(n),
            "tied": generator.integers(0, 4, n).astype(float),
            "signed": generator.normal(size=n),
            "nearly_equal": 1 + 1e-3 * np.sort(generator.random(n))[::-1],
            "zero": np.zeros(n),
        }[scores]
        ties, budget = generator.permutation(n), int(generator.integers(0, n + 1))
        picks, keys = greedy(g, near, weights.astype(np.float32), budget, ties=ties, indptr=indptr)
        assert (picks.tolist(), keys.tolist()) == naive(
            g, near, weights.astype(np.float32), budget, ties, indptr
        )


def test_greedy_on_a_larger_graph_equals_plain_floats():
    """Without the grid, too: float64 as a textbook would write it."""
    generator = np.random.default_rng(3)
    n = 3000
    x = generator.normal(size=(n, 3))
    near = np.argsort(((x[:, None] - x[None]) ** 2).sum(-1), axis=1)[:, 1:6]
    g, weights = generator.random(n), generator.random((n, 5))
    key, order = g.copy(), []
    for _ in range(1200):
        row = int(key.argmax())
        order.append(row)
        key[near[row]] -= weights[row] * max(key[row], 0.0)
        key[order] = -np.inf
    assert greedy(g, near, weights, 1200, ties=generator.random(n))[0].tolist() == order


def test_greedy_takes_few_rounds_on_graphs_with_hubs(monkeypatch):
    from winnow.tasks.embed.knn import knn

    generator = np.random.default_rng(0)
    graph = knn(generator.normal(size=(4000, 100)).astype(np.float32), 5, metric="euclidean")
    assert np.bincount(graph.neighbours.ravel()).max() > 100
    monkeypatch.setattr(MessageStage, "finish_on_heap", lambda _: pytest.fail("many rounds"))
    for scores in (generator.random(4000), generator.poisson(1.0, 4000), generator.integers(0, 2, 4000)):
        for ids, weights, indptr in (
            (graph.neighbours, np.full((4000, 5), 0.9), None),
            (lambda near, _, indptr: (near, np.full(len(near), 0.9), indptr))(
                *symmetric(graph.neighbours, graph.similarity)
            ),
        ):
            g = scores + messages(scores, ids, weights, indptr)
            assert len(greedy(g, ids, weights, 2000, ties=generator.random(4000), indptr=indptr)[0]) == 2000


def test_greedy_does_not_depend_on_the_order_of_storage():
    generator = np.random.default_rng(0)
    n = 200
    near, indptr = random_graph(generator, "random", n)
    rows = np.repeat(np.arange(n), np.diff(indptr))
    weights, g, ties = (
        generator.random(len(near)),
        generator.integers(0, 3, n).astype(float),
        generator.random(n),
    )
    move = generator.permutation(n)  # sample i is stored as move[i]
    by_row = np.lexsort((generator.random(len(near)), move[rows]))
    moved_indptr = np.concatenate([[0], np.bincount(move[rows], minlength=n).cumsum()])
    moved_g, moved_ties = np.empty(n), np.empty(n)
    moved_g[move], moved_ties[move] = g, ties
    arguments = move[near][by_row], weights[by_row]
    assert (
        messages(moved_g, *arguments, moved_indptr)[move].tolist()
        == messages(g, near, weights, indptr).tolist()
    )
    picks, keys = greedy(g, near, weights, 120, ties=ties, indptr=indptr)
    moved_picks, moved_keys = greedy(moved_g, *arguments, 120, ties=moved_ties, indptr=moved_indptr)
    assert move[picks].tolist() == moved_picks.tolist()
    assert keys.tolist() == moved_keys.tolist()


def test_symmetric_joins_both_directions_and_skips_what_is_absent():
    near = np.array([[1, 2], [0, -1], [3, -1], [-1, -1]])
    apart = np.array([[0.0, 2.0], [0.0, 9.0], [3.0, 9.0], [9.0, 9.0]])
    ids, distances, indptr = symmetric(near, apart)
    assert indptr.tolist() == [0, 2, 3, 5, 6]
    assert ids.tolist() == [1, 2, 0, 0, 3, 2]
    assert distances.tolist() == [0.0, 2.0, 0.0, 2.0, 3.0, 3.0]


def test_parts_refuse_bad_arrays():
    g, near, weights, ties = np.ones(3), np.array([[1], [2], [0]]), np.ones((3, 1)), np.arange(3)
    with pytest.raises(BadInput, match=r"g: row 1 is nan"):
        greedy(np.array([0.0, np.nan, 1.0]), near, weights, 1, ties=ties)
    with pytest.raises(BadInput, match=r"neighbours: row 2 lists 3, which is outside 0 to 2"):
        greedy(g, np.array([[1], [2], [3]]), weights, 1, ties=ties)
    with pytest.raises(BadInput, match=r"weights: row 1 has a negative one"):
        greedy(g, near, np.array([[1.0], [-1.0], [0.0]]), 1, ties=ties)
    with pytest.raises(BadInput, match=r"weights: row 0 holds inf"):
        messages(g, near, np.array([[np.inf], [1.0], [0.0]]))
    with pytest.raises(BadInput, match=r"budget = 4 samples of 3"):
        greedy(g, near, weights, 4, ties=ties)
    with pytest.raises(BadInput, match=r"ties: shape \(2,\)"):
        greedy(g, near, weights, 1, ties=ties[:2])
    with pytest.raises(BadInput, match=r"shape \(3, 1\) and weights of shape \(3,\)"):
        messages(g, near, np.ones(3))
    with pytest.raises(BadInput, match=r"expected 2 rows of k"):
        messages(g[:2], near, weights)
    with pytest.raises(BadInput, match=r"indptr must be 4 numbers"):
        messages(g, near.ravel(), np.ones(3), np.array([0, 1, 2]))
    with pytest.raises(BadInput, match=r"neighbours must be whole numbers"):
        messages(g, near.astype(float), weights)


# -- the selector --------------------------------------------------------------------------------------------


def made(n=240, classes=4, seed=0, **extra) -> Signals:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    features = (generator.normal(size=(n, 8)) + 2 * np.eye(classes, 8)[labels]).astype(np.float32)
    scores = {"forgetting": generator.integers(0, 6, n), "aum": generator.normal(size=n).astype(np.float32)}
    return Signals(**{"n": n, "labels": labels, "features": features, "scores": scores} | extra)


def graph_of(features, k=5, metric="cosine") -> Graph:
    from winnow.tasks.embed.knn import knn

    return knn(features, k, metric=metric)


def test_default_is_the_equation():
    given = made(60)
    params = {"neighbours": 3, "gamma_forward": 0.7, "gamma_reverse": 0.3}
    chosen = d2(given, 30, **params)
    assert (
        chosen.indices.tolist()
        == definition(given, 30, generator=np.random.default_rng(0), **params).tolist()
    )
    assert chosen.gains.dtype == np.float32
    assert np.all(np.diff(chosen.gains) <= 0)


@pytest.mark.parametrize("graph_mode", ["symmetric", "directed", "per_class"])
@pytest.mark.parametrize("factor", [2.0**-100, 2.0**-20, 0.1, 1000.0, 2.0**100])
def test_feature_scale_does_not_matter(graph_mode, factor):
    given = made()
    scaled = made(features=(given.features * np.float32(factor)))
    for budget in (24, 120):
        ours, theirs = d2(given, budget, graph_mode=graph_mode), d2(scaled, budget, graph_mode=graph_mode)
        assert ours.indices.tolist() == theirs.indices.tolist()
    raw = [
        d2(signals, 24, graph_mode=graph_mode, distance_scale=1.0).indices.tolist()
        for signals in (given, scaled)
    ]
    assert raw[0] != raw[1]


@pytest.mark.parametrize("power", [-100, 100])
def test_feature_scale_does_not_matter_on_a_given_graph(power):
    given = made(graph=graph_of(made().features))
    scaled = given.replace(features=np.ldexp(given.features, power))
    assert d2(given, 60).indices.tolist() == d2(scaled, 60).indices.tolist()


def test_messages_neither_vanish_nor_saturate_on_wide_features():
    generator = np.random.default_rng(0)
    given = made(300, features=20 * generator.normal(size=(300, 700)).astype(np.float32))
    near = graph_of(given.features, metric="euclidean")
    scaled = -near.similarity / median_length(-near.similarity)
    assert 0.3 < np.exp(-scaled).mean() < 0.45  # e^−1 = 0.37 for γ_f = 1
    assert np.exp(near.similarity.astype(np.float64)).max() < 1e-200
    ranked = np.argsort(-given.scores["forgetting"], kind="stable")[:60]
    assert set(d2(given, 60).indices.tolist()) != set(ranked.tolist())


def test_score_is_normalised_and_turned():
    given = made()
    forgetting = given.scores["forgetting"]
    expected = d2(given, 60).indices.tolist()
    for name, values, higher_is in (
        ("mine", 3.5 * forgetting + 2, "harder"),
        ("mine", -forgetting, "easier"),
        ("correctness", 7 - forgetting, None),
        ("mine", forgetting.astype(np.float16), "harder"),
    ):
        assert (
            d2(made(scores={name: values}), 60, score=name, higher_is=higher_is).indices.tolist() == expected
        )
    with pytest.raises(BadInput, match="is a higher value harder or easier"):
        d2(made(scores={"mine": forgetting}), 60, score="mine")
    # AUM: low is hard, where upstream takes high as important
    hard = d2(given, 24, score="aum", gamma_reverse=20.0).indices
    easy = d2(given, 24, score="aum", gamma_reverse=20.0, upstream=True).indices
    assert given.scores["aum"][hard].mean() < given.scores["aum"].mean() < given.scores["aum"][easy].mean()


def test_per_class_is_each_class_on_its_own():
    given = made()
    counts = np.bincount(given.labels)
    shares = water_fill(counts, 61)
    chosen = d2(given, 61, graph_mode="per_class").indices
    expected = []
    for label, share in enumerate(shares):
        rows = np.flatnonzero(given.labels == label)
        expected += rows[d2(given.rows(rows), int(share)).indices].tolist()
    assert chosen.tolist() == expected


@pytest.mark.parametrize("graph_mode", ["symmetric", "directed", "per_class"])
@pytest.mark.parametrize("with_graph", [False, True])
def test_permutation_equivariance(graph_mode, with_graph):
    given = made(ids=np.arange(240))
    move = np.random.default_rng(1).permutation(240)
    features, labels, scores = (
        given.features[move],
        given.labels[move],
        {k: v[move] for k, v in given.scores.items()},
    )
    moved = Signals(n=240, features=features, labels=labels, scores=scores, ids=move)
    if with_graph:
        given = made(ids=np.arange(240), features=None, graph=graph_of(given.features))
        moved = Signals(n=240, graph=graph_of(features), labels=labels, scores=scores, ids=move)
    for budget in (30, 150):
        ours = d2(
            given, budget, graph_mode=graph_mode, mis_ratio=0.2, generator=np.random.default_rng(4)
        ).indices
        theirs = d2(
            moved, budget, graph_mode=graph_mode, mis_ratio=0.2, generator=np.random.default_rng(4)
        ).indices
        assert ours.tolist() == move[theirs].tolist()


def test_ties_go_by_the_generator():
    flat = made(scores={"forgetting": np.full(240, 3)})
    picks = [
        frozenset(d2(flat, 40, generator=np.random.default_rng(seed)).indices.tolist()) for seed in range(3)
    ]
    assert len(set(picks)) == 3


def test_hardest_are_dropped_by_aum_and_the_graph_joins_the_rest():
    given = made()
    kept = np.sort(np.argsort(given.scores["aum"], kind="stable")[72:])
    chosen = d2(given, 60, mis_ratio=0.3).indices
    assert chosen.tolist() == kept[d2(given.rows(kept), 60).indices].tolist()
    with pytest.raises(MissingSignal, match="'aum'"):
        d2(made(scores={"forgetting": given.scores["forgetting"]}), 60, mis_ratio=0.3)


def test_a_given_graph_is_used():
    given = made()
    near = graph_of(given.features, metric="euclidean")
    for graph_mode in ("symmetric", "directed"):
        expected = d2(given, 60, graph_mode=graph_mode).indices.tolist()
        wider = graph_of(given.features, 9, metric="euclidean")
        assert d2(made(graph=near), 60, graph_mode=graph_mode).indices.tolist() == expected
        assert d2(made(graph=wider), 60, graph_mode=graph_mode).indices.tolist() == expected
        alone = made(features=None, graph=wider)
        assert d2(alone, 60, graph_mode=graph_mode, similarity="euclidean").indices.tolist() == expected
    unit = given.features / np.linalg.norm(given.features, axis=1, keepdims=True)
    cosine = made(features=None, graph=graph_of(given.features))
    assert d2(cosine, 60).indices.tolist() == d2(made(features=unit), 60).indices.tolist()


def test_edges_to_dropped_samples_and_other_classes_vanish():
    given = made()
    graph = graph_of(given.features, 12)
    kept = np.sort(np.argsort(given.scores["aum"], kind="stable")[72:])
    inside = Signals(n=240, labels=given.labels, scores=given.scores, graph=graph)
    place = np.full(240, -1)
    place[kept] = np.arange(len(kept))
    rows = [[j for j in place[row].tolist() if j >= 0][:5] for row in graph.neighbours[kept]]
    apart = [
        [np.sqrt(max(2 - 2 * s, 0)) for j, s in zip(place[row].tolist(), values, strict=True) if j >= 0][:5]
        for row, values in zip(graph.neighbours[kept], graph.similarity[kept], strict=True)
    ]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    distances = np.concatenate(apart) / median_length(np.concatenate(apart))
    s = given.scores["forgetting"][kept] / 5
    flat = np.concatenate([np.array(row, int) for row in rows])
    g = s + messages(s, flat, np.exp(-distances), indptr)
    keys = np.random.default_rng(0).random(240)[kept]
    expected, _ = greedy(g, flat, np.exp(-0.1 * distances), 60, ties=keys, indptr=indptr)
    chosen = d2(inside, 60, mis_ratio=0.3, graph_mode="directed", generator=np.random.default_rng(0)).indices
    assert chosen.tolist() == kept[expected].tolist()
    # to other classes: the classes do not feel each other
    first = given.labels == 0
    easier = given.scores["forgetting"].copy()
    easier[~first] = 0
    both = d2(inside, 60, graph_mode="per_class").indices
    other = d2(
        made(features=None, graph=graph, scores={"forgetting": easier}), 60, graph_mode="per_class"
    ).indices
    assert both[first[both]].tolist() == other[first[other]].tolist()
    assert both[~first[both]].tolist() != other[~first[other]].tolist()


def test_duplicates_and_tiny_sets():
    same = made(12, features=np.ones((12, 3)))
    assert len(set(d2(same, 7).indices.tolist())) == 7
    for n in (1, 2, 3):
        for graph_mode in ("symmetric", "directed", "per_class"):
            few = made(n, classes=2)
            assert sorted(d2(few, n, graph_mode=graph_mode).indices.tolist()) == list(range(n))


# -- what is refused -----------------------------------------------------------------------------------------


def bad_graph(change) -> Graph:
    graph = graph_of(made().features)
    near, similarity = graph.neighbours.copy(), graph.similarity.copy()
    return change(near, similarity) or Graph(near, similarity)


def put(row: int, column: int, value: int):
    def change(near, similarity) -> None:
        near[row, column] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(17, 2, 17), r"graph\.neighbours: row 17 lists itself"),
        (put(4, 1, 240), r"graph\.neighbours: row 4 lists 240, which is outside 0 to 239"),
        (put(9, 0, -1), r"graph\.neighbours: row 9 lists -1, which is outside"),
        (
            lambda near, s: near.__setitem__((3, 1), near[3, 0]),
            r"graph\.neighbours: row 3 lists a sample twice",
        ),
        (
            lambda near, s: Graph(near[:, :4], s[:, :4]),
            r"graph: 4 neighbours a sample, neighbours = 5 asked for",
        ),
        (lambda near, s: Graph(near, s[:, :4]), r"graph\.similarity has shape \(240, 4\)"),
        (lambda near, s: Graph(near.astype(float), s), r"graph\.neighbours must be whole numbers"),
        (
            lambda near, s: s.__setitem__((6, 2), np.nan),
            r"graph\.similarity: row 6 holds nan, which is no cosine",
        ),
        (
            lambda near, s: s.__setitem__((6, 4), -7.5),
            r"graph\.similarity: row 6 holds -7\.5, which is no cosine",
        ),
    ],
)
@pytest.mark.parametrize("upstream", [False, True])
def test_bad_graphs_are_refused(change, message, upstream):
    with pytest.raises(BadInput, match=message):
        d2(made(features=None, graph=bad_graph(change)), 24, graph_mode="directed", upstream=upstream)


def test_similarities_that_are_no_distances_are_refused():
    with pytest.raises(
        BadInput, match=r"graph\.similarity: row 0 holds 0\.\d+, which is not minus a distance"
    ):
        d2(made(features=None, graph=graph_of(made().features)), 24, similarity="euclidean")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"mis_ratio": 0.95}, r"mis_ratio = 0\.95 drops 228 of 240 samples; 24 of the remaining 12"),
        ({"mis_ratio": -0.1}, r"mis_ratio = -0\.1 is outside"),
        ({"neighbours": 0}, r"neighbours = 0"),
        ({"neighbours": 2.5}, r"neighbours = 2\.5"),
        ({"gamma_forward": -1.0}, r"gamma_forward = -1\.0"),
        ({"gamma_reverse": float("nan")}, r"gamma_reverse = nan"),
        ({"graph_mode": "dense"}, r"graph_mode = 'dense' is none of symmetric, directed, per_class"),
        ({"graph_mode": "datacomp"}, r"(?s)graph_mode = 'datacomp'.*upstream=True"),
        ({"similarity": "dot"}, r"similarity = 'dot'"),
        ({"distance_scale": 0.0}, r"distance_scale = 0\.0"),
        ({"score": "el2n"}, r"score 'el2n' is not among the scores given"),
        ({"higher_is": "better"}, r"is a higher value harder or easier"),
        ({"gamma": 1.0}, r"d2 has no parameter 'gamma'. Did you mean 'gamma_reverse' or 'gamma_forward'"),
    ],
)
def test_bad_parameters_are_refused(params, message):
    with pytest.raises(BadInput, match=message):
        d2(made(), 24, **params)


def test_missing_signals_and_bad_arrays_are_refused():
    with pytest.raises(MissingSignal, match="d2 needs features or graph"):
        d2(made(features=None), 24)
    with pytest.raises(MissingSignal, match="needs labels"):
        d2(made(labels=None), 24, graph_mode="per_class")
    with pytest.raises(MissingSignal, match="needs scores"):
        d2(made(scores={}), 24)
    score = made().scores["aum"].copy()
    score[5] = np.nan
    with pytest.raises(BadInput, match=r"scores\['aum'\]: row 5 is nan"):
        d2(made(scores={"aum": score}), 24, score="aum")
    with pytest.raises(BadInput, match=r"scores\['forgetting'\]: shape \(239,\), expected 240 rows"):
        made(scores={"forgetting": np.arange(239)})
