import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.tasks.errors import BadInput, WinnowError
from winnow.tasks.registry import scores as registered
from winnow.tasks.score.dynamics import (
    DynamicsAccumulator,
    scores_from_epoch_rows,
    scores_from_log_probs,
    scores_from_logits,
)
from winnow.tasks.score.final import final_scores
from winnow.tasks.score.recorder import Recorder
from winnow.tasks.score.reducer import Reducer
from winnow.tasks.store import Scratch
from winnow.tasks.train.problems.classification import COLUMNS

UPSTREAM = {
    "aum": "accumulated_margin",
    "correctness": "correctness",
    "el2n": "el2n",
    "forgetting": "forgetting",
    "last_correctness": "last_correctness",
}


def random_log(epochs=7, n=23, classes=4, seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(epochs, n, classes))).astype(np.float32)
    return logits, rng.integers(0, classes, n)


def feed(accumulator, logits, labels, *, first=0, batch=5, seed=0):
    labels = torch.as_tensor(labels)
    for epoch, rows in enumerate(torch.as_tensor(logits), start=first):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed + epoch))
        for ids in order.split(batch):
            accumulator(ids, rows[ids], labels[ids], epoch)
    return accumulator


# -- against the published code ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["ccs_main", "elfs_main", "short"])
@pytest.mark.parametrize("streamed", [True, False])
def test_matches_the_published_scores(golden, case, streamed):
    g = golden("dynamics_scores")
    log, targets, raw = g[f"{case}_log"], g[f"{case}_targets"], bool(g[f"{case}_raw_logits"][0])
    if streamed:
        accumulator = DynamicsAccumulator(log.shape[1], log.shape[2])
        take = accumulator if raw else accumulator.add_log_probs
        for epoch, order in enumerate(g[f"{case}_order"].astype(np.int64)):
            for ids in torch.from_numpy(order).split(32):
                take(ids, torch.from_numpy(log[epoch])[ids], torch.from_numpy(targets)[ids], epoch)
        found = accumulator.scores()
    else:
        found = (scores_from_logits if raw else scores_from_log_probs)(log, targets)
    for name, upstream in UPSTREAM.items():
        expected = g[f"{case}_{upstream}"]
        if expected.dtype.kind == "i":
            assert np.array_equal(found[name], expected), name
        else:
            np.testing.assert_allclose(found[name], expected, atol=1e-5, err_msg=name)
    assert np.array_equal(found["forgetting_toneva"], g[f"corrected_{case}_forgetting"])
    never = g[f"{case}_never_learned"]
    assert never.any()
    assert np.array_equal(found["correctness"] == 0, never)
    assert (found["forgetting"][never] == 0).all()
    assert (found["forgetting_toneva"][never] == len(log)).all()


def test_final_scores_match_the_published_ones(golden):
    g = golden("dynamics_scores")
    found = final_scores(g["final_logits"], g["final_targets"])
    np.testing.assert_allclose(found["entropy"], g["final_entropy"], atol=1e-5)
    np.testing.assert_allclose(found["loss"], g["final_loss"], atol=1e-5)
    np.testing.assert_allclose(found["confidence"], g["final_confidence"], atol=1e-6)
    for name, values in found.items():
        assert np.array_equal(registered.get(f"final_{name}")(g["final_logits"], g["final_targets"]), values)


# -- streaming is the definition -----------------------------------------------------------------------------


def by_definition(log_probs, labels):
    """Every score of dynamics from all probabilities (E, N, C), as their papers write them."""
    p, at = np.exp(log_probs.astype(np.float64)), np.arange(log_probs.shape[1])
    own = p[:, at, labels]
    others = p.copy()
    others[:, at, labels] = -1
    right = log_probs.argmax(-1) == labels
    forgotten = (right[:-1] & ~right[1:]).sum(0)
    error = np.linalg.norm(p - np.eye(p.shape[2])[labels], axis=2)
    return {
        "aum": (own - others.max(2)).sum(0),
        "confidence": own.mean(0),
        "correctness": right.sum(0),
        "el2n": error[:10].sum(0),
        "entropy": -(p * np.maximum(log_probs, -1e4)).sum(2).mean(0),
        "forgetting": forgotten,
        "forgetting_toneva": np.where(right.any(0), forgotten, len(p)),
        "last_correctness": right[-1],
        "loss": -log_probs[:, at, labels].mean(0),
        "variability": own.std(0),
    }


@settings(max_examples=40, deadline=None)
@given(
    epochs=st.integers(1, 14),
    n=st.integers(1, 12),
    classes=st.integers(2, 5),
    batch=st.integers(1, 13),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.0, 1.0, 8.0, 60.0]),
)
def test_streamed_and_stored_are_the_definition(epochs, n, classes, batch, seed, scale):
    logits, labels = random_log(epochs, n, classes, seed, scale)
    streamed = feed(DynamicsAccumulator(n, classes), logits, labels, batch=batch, seed=seed).scores()
    log_probs = torch.log_softmax(torch.from_numpy(logits), -1)
    expected = by_definition(log_probs.numpy(), labels)
    assert streamed.keys() == expected.keys() == {e.name for e in registered if "dynamics" in e.needs}
    for name, values in expected.items():
        np.testing.assert_allclose(streamed[name], values, rtol=1e-5, atol=2e-6, err_msg=name)
        stored = registered.get(name)(log_probs, labels)
        np.testing.assert_allclose(stored, streamed[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_of_an_epoch_merge_to_the_whole(shards):
    """Ranks see batches of their own; one reduction an epoch makes them one, bit for bit."""
    logits, labels = random_log(6)
    whole = feed(DynamicsAccumulator(23, 4, keep_rows=True), logits, labels)
    first, *others = (DynamicsAccumulator(23, 4, keep_rows=True) for _ in range(shards))
    y = torch.as_tensor(labels)
    for epoch, rows in enumerate(torch.from_numpy(logits)):
        for shard, ids in zip((first, *others), torch.randperm(23).chunk(shards), strict=True):
            shard(ids, rows[ids], y[ids], epoch)
        for other in others:
            first.absorb(other)
        first.end_epoch()
        others = [DynamicsAccumulator(23, 4) for _ in others]
    merged = first.scores()
    assert all(np.array_equal(merged[name], values) for name, values in whole.scores().items())
    for one, other in zip(first.epoch_rows(), whole.epoch_rows(), strict=True):
        assert all(np.array_equal(one.columns[name], other.columns[name]) for name in COLUMNS)
    again, late = DynamicsAccumulator(23, 4), DynamicsAccumulator(23, 4)
    again(torch.tensor([0]), torch.zeros(1, 4), torch.tensor([0]), 0)
    late(torch.tensor([1]), torch.zeros(1, 4), torch.tensor([0]), 1)
    with pytest.raises(BadInput, match="epoch 1 cannot be absorbed into epoch 0"):
        again.absorb(late)


def test_a_score_of_ones_own_is_a_reducer_and_a_line():
    worst = Reducer(
        ("loss",),
        update=lambda state, visit: {"loss": state["loss"].maximum(visit.loss)},
        result=lambda state: state["loss"],
    )
    logits, labels = random_log(5)
    log_probs = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
    expected = -log_probs[:, np.arange(23), labels].min(0)
    np.testing.assert_allclose(worst(log_probs, labels), expected, rtol=1e-6)
    streamed = feed(DynamicsAccumulator(23, 4, scores={"worst": worst}), logits, labels).scores()
    np.testing.assert_allclose(streamed["worst"], expected, rtol=1e-5)
    with pytest.raises(AttributeError, match="no column 'iou'; it has margin, loss"):
        Reducer((), lambda state, visit: {"x": visit.iou}, lambda state: state["visits"])(log_probs, labels)


def test_other_problems_record_columns_of_their_own():
    recorder = Recorder(
        3,
        ("distance",),
        lambda outputs, targets: (outputs - targets).abs(),
        {"mean": Reducer(("d",), lambda s, v: {"d": s["d"] + v.distance}, lambda s: s["d"] / s["visits"])},
    )
    for epoch, shift in enumerate((1.0, 3.0)):
        ids = torch.tensor([0, 1, 2])[: 3 - epoch]
        recorder(ids, torch.full((len(ids), 1), shift), torch.zeros(len(ids), 1), epoch)
    assert recorder.seen["distance"].tolist() == [3, 3, 1], "of the last visit"
    assert recorder.scores()["mean"].tolist() == [2, 2, 1]


def test_definitions_by_hand():
    p = np.array([[[0.6, 0.3, 0.1]], [[0.2, 0.5, 0.3]], [[0.5, 0.1, 0.4]]])
    found = {name: float(v[0]) for name, v in scores_from_log_probs(np.log(p), [0], el2n_epochs=2).items()}
    own = p[:, 0, 0]
    assert found["aum"] == pytest.approx(0.3 - 0.3 + 0.1, abs=1e-6)
    assert found["el2n"] == pytest.approx(np.sqrt(0.16 + 0.09 + 0.01) + np.sqrt(0.64 + 0.25 + 0.09))
    assert found["confidence"] == pytest.approx(own.mean())
    assert found["variability"] == pytest.approx(own.std())
    assert found["entropy"] == pytest.approx(-(p * np.log(p)).sum(-1).mean())
    assert found["loss"] == pytest.approx(-np.log(own).mean())
    assert (
        found["correctness"],
        found["forgetting"],
        found["forgetting_toneva"],
        found["last_correctness"],
    ) == (2, 1, 1, 1)


def test_batching_order_and_dtype_change_nothing():
    logits, labels = random_log(12)
    one = feed(DynamicsAccumulator(23, 4), logits, labels, batch=23).scores()
    other = feed(DynamicsAccumulator(23, 4), logits, labels, batch=3, seed=9).scores()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    half = torch.from_numpy(logits).half()
    rounded = feed(DynamicsAccumulator(23, 4), half, labels).scores()
    same = feed(DynamicsAccumulator(23, 4), half.float(), labels).scores()
    assert all(np.array_equal(rounded[name], same[name]) for name in one)


def test_variability_is_stable_where_probabilities_hardly_move():
    p = 0.9 + 1e-4 * np.random.default_rng(0).normal(size=(500, 8, 1))
    found = scores_from_log_probs(np.log(np.concatenate([p, 1 - p], -1)), np.zeros(8, int))
    np.testing.assert_allclose(found["variability"], p[..., 0].std(0), rtol=5e-3)


def test_epochs_that_leave_samples_out_count_only_visits():
    logits, labels = random_log(3, n=4, scale=1.0)
    y = torch.as_tensor(labels)
    accumulator = DynamicsAccumulator(4, 4)
    for epoch, ids in enumerate([[0, 1, 2, 3], [0, 2], [0, 1, 2]]):
        ids = torch.tensor(ids)
        accumulator(ids, torch.from_numpy(logits[epoch])[ids], y[ids], epoch)
    found = accumulator.scores()
    full = scores_from_logits(logits, labels)
    partial = scores_from_logits(logits[[0, 2]], labels)
    for name in ("aum", "confidence", "variability", "loss", "entropy", "correctness", "forgetting"):
        np.testing.assert_allclose(found[name][[0, 2]], full[name][[0, 2]], rtol=1e-6)
        np.testing.assert_allclose(found[name][1], partial[name][1], rtol=1e-6)
        np.testing.assert_allclose(
            found[name][3], scores_from_logits(logits[:1], labels)[name][3], rtol=1e-6, atol=1e-7
        )


def test_forgetting_is_from_visit_to_visit():
    right, wrong, labels = (
        torch.tensor([[1.0, 0.0]] * 2),
        torch.tensor([[0.0, 1.0]] * 2),
        torch.tensor([0, 0]),
    )
    accumulator = DynamicsAccumulator(2, 2)
    for epoch, (ids, logits) in enumerate([([0, 1], right), ([1], right), ([0], wrong)]):
        accumulator(torch.tensor(ids), logits[: len(ids)], labels[: len(ids)], epoch)
    found = accumulator.scores()
    assert found["forgetting"].tolist() == [1, 0]  # sample 0 was left out between being right and being wrong
    assert found["last_correctness"].tolist() == [0, 1]


def test_state_does_not_grow_with_epochs():
    accumulator = DynamicsAccumulator(23, 4)
    sizes = []
    for epoch in range(3):
        logits, labels = random_log(1, seed=epoch)
        feed(accumulator, logits, labels, first=epoch)
        sizes.append(sum(v.numel() for v in accumulator.state_dict().values() if isinstance(v, torch.Tensor)))
    assert len(set(sizes)) == 1
    assert sizes[0] < 23 * 20 + 50


def test_registry_says_which_end_is_hard():
    table = {entry.name: entry.higher_is for entry in registered if "dynamics" in entry.needs}
    logits, labels = random_log(12, n=200, scale=1.0, seed=3)
    logits[np.arange(12)[:, None], np.arange(200), labels] += np.linspace(0, 4, 200)  # the later the easier
    for name, values in scores_from_logits(logits, labels).items():
        trend = np.corrcoef(np.arange(200), values)[0, 1]
        if name not in ("variability", "forgetting"):  # hard here because undecided, not because wrong
            assert (trend > 0) == (table[name] == "easier"), name
    assert all(registered.get(name).summary and registered.get(name).reference for name in table)


# -- resuming and storing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("spilled", [True, False])
@pytest.mark.parametrize("stop", [0, 7, 23 * 3 + 11])
def test_resumed_amid_an_epoch_is_bit_identical(stop, spilled, tmp_path):
    logits, labels = random_log(5)
    options = {"keep_rows": True, "spill": Scratch(tmp_path) if spilled else None}
    whole = feed(DynamicsAccumulator(23, 4, keep_rows=True), logits, labels, batch=1)
    halves = [DynamicsAccumulator(23, 4, **options), DynamicsAccumulator(23, 4, **options)]
    y = torch.as_tensor(labels)
    visits = 0
    for epoch in range(5):
        for i in torch.randperm(23, generator=torch.Generator().manual_seed(epoch)).split(1):
            if visits == stop:
                saved = Scratch(tmp_path / "checkpoint")
                saved.save("state", halves[0].state_dict())
                halves[1].load_state_dict(saved.load("state"))
            halves[visits >= stop](i, torch.from_numpy(logits[epoch])[i], y[i], epoch)
            visits += 1
    one, other = whole.scores(), halves[1].scores()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    for a, b in zip(whole.epoch_rows(), halves[1].epoch_rows(), strict=True):
        assert a.epoch == b.epoch
        assert np.array_equal(a.ids, b.ids)
        assert all(np.array_equal(a.columns[name], b.columns[name]) for name in COLUMNS)


def test_stored_epochs_give_the_same_scores_and_are_handed_out_once():
    logits, labels = random_log(12)
    accumulator = feed(DynamicsAccumulator(23, 4, keep_rows=True), logits, labels)
    found = accumulator.scores()
    stored = list(accumulator.epoch_rows())
    assert list(accumulator.epoch_rows()) == []
    assert [rows.epoch for rows in stored] == list(range(12))
    assert all(np.array_equal(rows.ids, np.arange(23)) for rows in stored)
    again = scores_from_epoch_rows(stored, 23)
    assert all(np.array_equal(found[name], again[name]) for name in found)
    with pytest.raises(BadInput, match="epoch 0 comes after epoch 11"):
        scores_from_epoch_rows([stored[11], stored[0]], 23)
    with pytest.raises(BadInput, match="id 10 is outside"):
        scores_from_epoch_rows(stored, 10)


def test_a_damaged_spill_is_said(tmp_path):
    logits, labels = random_log(2)
    accumulator = feed(DynamicsAccumulator(23, 4, keep_rows=True, spill=Scratch(tmp_path)), logits, labels)
    accumulator.end_epoch()
    file = next(tmp_path.glob("*00001*"))
    file.write_bytes(file.read_bytes()[:-3])
    rows = accumulator.epoch_rows()
    assert next(rows).epoch == 0
    with pytest.raises(WinnowError, match="epoch 1 are missing or damaged"):
        next(rows)


# -- what is refused -----------------------------------------------------------------------------------------


def test_refuses_what_cannot_be(tmp_path):
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    ids = torch.tensor([0, 1])
    make = lambda: DynamicsAccumulator(4, 3)  # noqa: E731
    for wrong_ids, wrong_labels, message in (
        ([0, 4], [0, 1], "epoch 0: id 4 is outside 0 to 3"),
        ([-1, 0], [0, 1], "id -1 is outside"),
        ([0, 1], [0, 3], "label 3 is outside 0 to 2"),
        ([0, 1], [0, -1], "label -1 is outside"),
    ):
        accumulator = make()
        accumulator(torch.tensor(wrong_ids), logits, torch.tensor(wrong_labels), 0)
        with pytest.raises(BadInput, match=message):
            accumulator.end_epoch()
    with pytest.raises(BadInput, match="do not fit"):
        make()(ids, torch.zeros(2, 4), labels, 0)
    with pytest.raises(BadInput, match="do not fit"):
        make()(ids, logits, torch.tensor([0]), 0)
    with pytest.raises(BadInput, match="two classes"):
        DynamicsAccumulator(4, 1)

    twice = make()
    twice(torch.tensor([2, 2]), logits, labels, 0)
    with pytest.raises(BadInput, match="epoch 0: sample 2 was visited 2 times"):
        twice.end_epoch()
    for value in (np.nan, np.inf):
        broken = make()
        broken(ids, torch.tensor([[0.0, 0, 0], [0, value, 0]]), labels, 0)
        with pytest.raises(BadInput, match="epoch 0: sample 1 has NaN"):
            broken(ids, logits, labels, 1)
    back = make()
    back(ids, logits, labels, 1)
    back(ids, logits, labels, 2)
    with pytest.raises(BadInput, match="epoch 1 comes after epoch 2"):
        back(ids, logits, labels, 1)
    partial = make()
    partial(ids, logits, labels, 0)
    with pytest.raises(BadInput, match=r"sample 2 was never seen \(2 of 4\)"):
        partial.scores()
    with pytest.raises(BadInput, match="a state of 2 samples"):
        make().load_state_dict(DynamicsAccumulator(2, 3).state_dict())


def test_stored_logs_are_checked_at_the_start():
    logits, labels = random_log()
    with pytest.raises(BadInput, match=r"labels\[3\] = 9"):
        scores_from_logits(logits, np.where(np.arange(23) == 3, 9, labels))
    with pytest.raises(BadInput, match="labels have shape"):
        scores_from_logits(logits, labels[:-1])
    with pytest.raises(BadInput, match="epochs, samples"):
        scores_from_logits(logits[0], labels)
    logits[2, 5, 1] = np.nan
    with pytest.raises(BadInput, match=r"logits\[2, 5\]"):
        scores_from_logits(logits, labels)


def test_inputs_and_global_random_state_stay():
    logits, labels = random_log()
    kept = logits.copy(), labels.copy()
    before = torch.get_rng_state()
    scores_from_logits(logits, labels)
    scores_from_log_probs(logits - 9, labels)
    assert np.array_equal(logits, kept[0])
    assert np.array_equal(labels, kept[1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_and_refuses_at_the_epochs_end():
    logits, labels = random_log(12)
    expected = scores_from_logits(logits, labels)
    found = scores_from_logits(torch.from_numpy(logits).cuda(), torch.from_numpy(labels).cuda())
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)
    accumulator = DynamicsAccumulator(4, 3, "cuda")
    accumulator(torch.tensor([0, 9]).cuda(), torch.zeros(2, 3).cuda(), torch.tensor([0, 7]).cuda(), 0)
    with pytest.raises(BadInput, match="id 9 is outside"):
        accumulator.end_epoch()


# -- real dynamics -------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def anli():
    """A language model's ten epochs on 1,801 samples of ANLI, and d2pruning's scores of them; not ours."""
    folder = Path(os.environ.get("WINNOW_GROUND_TRUTH", ROOT.parent / "shared" / "data" / "ground_truth"))
    file = folder / "anli-2k_dynamics_and_scores.npz"
    if not file.exists():
        pytest.skip(f"no {file.name} in $WINNOW_GROUND_TRUTH or {folder}")
    with np.load(file, allow_pickle=False) as archive:
        return dict(archive)


def test_real_dynamics_give_the_published_scores(anli):
    log = anli["log_probs"]
    assert (log.shape, log.dtype) == ((10, 1801, 3), np.float16)
    found = scores_from_log_probs(log, anli["targets"])
    for name in ("forgetting", "correctness", "last_correctness"):
        assert np.array_equal(found[name], anli[name]), name
        assert len(np.unique(anli[name])) > 1, name
    np.testing.assert_allclose(found["aum"], anli["accumulated_margin"], atol=1e-5)
    np.testing.assert_allclose(found["el2n"], anli["el2n"], atol=1e-5)
    np.testing.assert_allclose(
        found["variability"], anli["variance"], atol=1e-6
    )  # so named there; it is the standard deviation
