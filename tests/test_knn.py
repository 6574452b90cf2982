"""The kNN graph against golden fixtures, brute force, ties, duplicates, zero vectors and bad input."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from winnow.tasks.embed import space
from winnow.tasks.embed.candidates import Candidates, _true_positions
from winnow.tasks.embed.knn import Graph, knn
from winnow.tasks.embed.upstream import knn as upstream
from winnow.tasks.errors import BadInput

GOLDEN = np.load(Path(__file__).parent / "golden" / "knn.npz", allow_pickle=False)
CPU = torch.device("cpu")


def cosines(features, queries=None):
    def unit(x):
        x = np.asarray(x, np.float64)
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    return unit(features if queries is None else queries) @ unit(features).T


def minus_distances(features, queries=None):
    x = np.asarray(features, np.float64)
    y = x if queries is None else np.asarray(queries, np.float64)
    return -np.sqrt(((y[:, None] - x[None]) ** 2).sum(-1))


def ranked(similarity, k, without_self=True):
    similarity = similarity.copy()
    if without_self:
        np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarity, order, axis=1)


def agrees(graph: Graph, ids, similarity, atol=1e-6):
    """The fixtures' rule: similarities close, ids equal as sets among those clearly above the k-th."""
    np.testing.assert_allclose(graph.similarity, similarity, atol=atol)
    for got, expected, value in zip(graph.neighbours, ids, similarity, strict=True):
        clear = value > value[-1] + 1e-6
        assert set(expected[clear]) <= set(got)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setitem(space.TILE, "cpu", 24)


@pytest.mark.parametrize("case", ["plain", "dup", "full"])
def test_golden(case):
    graph = knn(GOLDEN[f"{case}_x"], int(GOLDEN[f"{case}_k"]), device=CPU)
    agrees(graph, GOLDEN[f"{case}_idx"], GOLDEN[f"{case}_dist"])
    certain = ~GOLDEN[f"{case}_boundary_tie"]
    assert certain.any()
    for row in np.flatnonzero(certain):
        assert set(graph.neighbours[row]) == set(GOLDEN[f"{case}_idx"][row])


def test_golden_chunk(monkeypatch):
    features, k = GOLDEN["chunk_x"], int(GOLDEN["chunk_k"])
    agrees(knn(features, k, device=CPU), GOLDEN["chunk_idx"], GOLDEN["chunk_dist"])
    correct = upstream.knn(features, k, device=CPU)  # below the threshold the published code is right
    agrees(correct, GOLDEN["corrected_chunk_idx"], GOLDEN["chunk_dist"])
    monkeypatch.setattr(upstream, "CHUNK_ABOVE", 0)
    replayed = upstream.knn(features, k, device=CPU)
    agrees(replayed, GOLDEN["chunk_reference_bug_idx"], GOLDEN["chunk_reference_bug_dist"])
    assert (replayed.neighbours[64:, 0] == np.arange(64, len(features))).all()


def test_golden_zero_vector():
    features = GOLDEN["zero_x"]
    graph = knn(features, int(GOLDEN["zero_k"]), device=CPU)
    np.testing.assert_allclose(graph.similarity, GOLDEN["corrected_zero_dist"], atol=1e-6)
    zero = int(np.flatnonzero(~features.any(axis=1))[0])
    for row in set(range(len(features))) - {zero}:
        assert set(graph.neighbours[row]) == set(GOLDEN["corrected_zero_idx"][row])
    assert (graph.similarity[zero] == 0).all()
    assert graph.neighbours[zero].tolist() == [i for i in range(5) if i != zero][:4]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    ("n", "dim", "k"), [(700, 12, 9), (333, 40, 50), (60, 3, 59), (2, 1, 1), (3000, 6, 30)]
)
def test_brute_force(metric, n, dim, k, small_tiles, monkeypatch):
    if n > 1000:
        monkeypatch.setitem(space.TILE, "cpu", 256)
    features = np.random.default_rng(n).normal(size=(n, dim)).astype(np.float32)
    graph = knn(features, k, metric=metric, device=CPU)
    order, similarity = ranked(cosines(features) if metric == "cosine" else minus_distances(features), k)
    np.testing.assert_allclose(graph.similarity, similarity, atol=2e-6)
    assert graph.neighbours.dtype == np.int32
    assert graph.similarity.dtype == np.float32
    assert (np.diff(graph.similarity, axis=1) <= 0).all()
    assert (graph.neighbours != np.arange(n)[:, None]).all()
    assert all(len(set(row)) == k for row in graph.neighbours)
    assert (graph.neighbours == order).mean() > 0.999


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_queries(metric, small_tiles):
    rng = np.random.default_rng(3)
    features, queries = rng.normal(size=(400, 10)), rng.normal(size=(55, 10))
    queries[7] = features[123]
    graph = knn(features, 400 if metric == "cosine" else 11, metric=metric, queries=queries, device=CPU)
    similarity = cosines(features, queries) if metric == "cosine" else minus_distances(features, queries)
    order, similarity = ranked(similarity, graph.neighbours.shape[1], without_self=False)
    np.testing.assert_allclose(graph.similarity, similarity, atol=2e-6)
    assert (graph.neighbours == order).mean() > 0.999
    assert graph.neighbours[7, 0] == 123


@pytest.mark.parametrize("k", [1, 5, 40])
def test_ties_go_to_the_lower_index(k, small_tiles):
    """Small whole numbers: distances tie by the hundred and are exact, so brute force decides every place."""
    features = np.random.default_rng(1).integers(0, 3, size=(500, 4)).astype(np.float32)
    graph = knn(features, k, metric="euclidean", device=CPU)
    order, similarity = ranked(minus_distances(features), k)
    assert (graph.neighbours == order).all()
    np.testing.assert_allclose(graph.similarity, similarity, atol=1e-6)


def test_many_duplicates(small_tiles):
    """Far more copies of a row than k, shuffled among others, and self left out by its index."""
    rng = np.random.default_rng(5)
    distinct = rng.normal(size=(6, 5)).astype(np.float32)
    which = rng.integers(0, 6, size=300)
    graph = knn(distinct[which], 7, device=CPU)
    for row in range(300):
        copies = [i for i in np.flatnonzero(which == which[row]) if i != row]
        assert graph.neighbours[row].tolist() == copies[:7]
    equal = knn(np.ones((100, 3)), 4, device=CPU)
    assert equal.neighbours[0].tolist() == [1, 2, 3, 4]
    assert equal.neighbours[2].tolist() == [0, 1, 3, 4]
    assert equal.neighbours[99].tolist() == [0, 1, 2, 3]


def test_one_hot(small_tiles):
    """Cosine is 1 or 0: beyond a class's size the list goes on with the lowest indices of the others."""
    which = np.random.default_rng(2).integers(0, 40, size=400)
    graph = knn(np.eye(40)[which], 30, device=CPU)
    for row in range(400):
        same = [i for i in np.flatnonzero(which == which[row]) if i != row]
        others = [i for i in range(400) if which[i] != which[row]]
        assert graph.neighbours[row].tolist() == (same + others)[:30]


def test_the_result_depends_neither_on_tiles_nor_on_threads(monkeypatch):
    features = np.random.default_rng(8).normal(size=(1500, 24)).astype(np.float32)
    features[::7] = features[0]
    threads = torch.get_num_threads()
    graphs = []
    try:
        for tile, count in ((1024, 1), (64, 2), (200, 1), (40, 5), (4096, 2)):
            torch.set_num_threads(count)
            monkeypatch.setitem(space.TILE, "cpu", tile)
            graphs.append(knn(features, 20, device=CPU))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for graph in graphs[1:]:
        assert (graph.neighbours == graphs[0].neighbours).all()
        assert (graph.similarity == graphs[0].similarity).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_dtypes_and_inputs_untouched(metric):
    features = np.random.default_rng(4).normal(size=(90, 8)).astype(np.float16)
    copy = features.copy()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    graphs = [
        knn(features.astype(dtype), 6, metric=metric, device=CPU)
        for dtype in (np.float16, np.float32, np.float64)
    ]
    assert (features == copy).all()
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    for graph in graphs[1:]:
        assert (graph.neighbours == graphs[0].neighbours).all()
        assert (graph.similarity == graphs[0].similarity).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("factor", [1e-9, 1e18, 1e30])
def test_magnitudes(metric, factor):
    features = np.random.default_rng(6).normal(size=(80, 5))
    graph = knn(features * factor, 6, metric=metric, device=CPU)
    plain = knn(features, 6, metric=metric, device=CPU)
    assert (graph.neighbours == plain.neighbours).mean() > 0.99
    np.testing.assert_allclose(
        graph.similarity, plain.similarity * (1 if metric == "cosine" else factor), rtol=1e-5
    )


def test_an_outlier_does_not_spoil_the_rest():
    """One huge row takes all the bits of a float32 product; rows where that matters are searched again."""
    features = np.random.default_rng(6).normal(size=(300, 5)).astype(np.float32)
    features[17] *= 1e5
    graph = knn(features, 8, metric="euclidean", device=CPU)
    order, similarity = ranked(minus_distances(features), 8)
    assert (graph.neighbours == order).mean() > 0.999
    np.testing.assert_allclose(graph.similarity, similarity, rtol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_pairs_measured_by_torch_and_by_faiss_agree(metric):
    features = np.random.default_rng(6).normal(size=(50, 20)).astype(np.float32)
    points = space.Space.build(features, 5, metric, CPU)
    ids = torch.from_numpy(np.random.default_rng(7).integers(0, 50, size=(50, 70)))
    found = points._measure_by_torch(points.points, ids)
    found = found.clamp(-1, 1) if metric == "cosine" else -found.sqrt()
    torch.testing.assert_close(found, points.measure(points.points, ids), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [384, 35, 24, 1, 8])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_true_positions(size, share):
    mask = torch.from_numpy(np.random.default_rng(3).random(size) < share)
    assert _true_positions(mask).tolist() == mask.nonzero().view(-1).tolist()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [13, 8, 1])
def test_candidates_are_the_best_of_all_tiles(rows, transposed):
    scores = torch.from_numpy(np.random.default_rng(9).normal(size=(rows, 240)).astype(np.float32))
    best = Candidates(rows, 4, CPU)
    mask = torch.empty(rows * 40, dtype=torch.bool)
    for start in range(0, 240, 40):
        tile = scores[:, start : start + 40]
        best.offer(tile.T.contiguous().T if transposed else tile.contiguous(), start, mask)
        assert (best.bound <= scores.topk(4, dim=1).values[:, -1]).all()
    best.merge()
    values, ids = scores.topk(4, dim=1)
    assert torch.equal(best.scores.sort(dim=1, descending=True).values, values)
    assert torch.equal(best.ids.long().sort(dim=1).values, ids.sort(dim=1).values)


def test_memory_is_bounded_by_tiles():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    features = np.random.default_rng(0).normal(size=(20_000, 6)).astype(np.float32)
    knn(features, 5, device=CPU)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 0.25 * 4 * len(features) ** 2


def test_progress():
    seen = []
    knn(
        np.random.default_rng(0).normal(size=(3000, 4)),
        3,
        device=CPU,
        progress=lambda *call: seen.append(call),
    )
    assert seen[-1][0] == seen[-1][1]
    assert [call[0] for call in seen] == sorted({call[0] for call in seen})


@pytest.mark.parametrize("count", [1, 3])
def test_an_interrupt_ends_all_threads(count, small_tiles):
    def interrupt(done, total, note):
        raise KeyboardInterrupt

    threads, before = torch.get_num_threads(), threading.active_count()
    try:
        torch.set_num_threads(count)
        with pytest.raises(KeyboardInterrupt):
            knn(np.random.default_rng(0).normal(size=(1000, 4)), 3, device=CPU, progress=interrupt)
    finally:
        torch.set_num_threads(threads)
    assert threading.active_count() == before


def test_bad_input():
    good = np.random.default_rng(0).normal(size=(10, 3))
    for k in (0, -1, 10, 11, 2.5, True):
        with pytest.raises(BadInput, match=r"k=.*10 samples"):
            knn(good, k, device=CPU)
    with pytest.raises(BadInput, match="features must be a matrix"):
        knn(good[0], 1, device=CPU)
    with pytest.raises(BadInput, match="features must be a matrix"):
        knn(good.astype(str), 1, device=CPU)
    with pytest.raises(BadInput, match="features has no rows"):
        knn(good[:0], 1, device=CPU)
    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[6, 1] = value
        with pytest.raises(BadInput, match="features row 6"):
            knn(bad, 2, device=CPU)
        with pytest.raises(BadInput, match="queries row 6"):
            knn(good, 2, queries=bad, device=CPU)
    with pytest.raises(BadInput, match="queries have 2 columns, features have 3"):
        knn(good, 2, queries=good[:, :2], device=CPU)
    with pytest.raises(BadInput, match="manhattan"):
        knn(good, 2, metric="manhattan", device=CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_gpu_agrees_with_cpu(metric):
    features = np.random.default_rng(0).normal(size=(20_000, 32)).astype(np.float32)
    features[100:180] = features[3]
    there, here = (knn(features, 20, metric=metric, device=torch.device(name)) for name in ("cuda", "cpu"))
    np.testing.assert_allclose(there.similarity, here.similarity, atol=2e-6)
    assert (there.neighbours == here.neighbours).mean() > 0.999
