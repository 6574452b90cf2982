"""Selectors against the published code's output, and what they refuse."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from winnow.tasks.errors import BadInput, MissingSignal, UnknownName
from winnow.tasks.registry import selectors
from winnow.tasks.select.allocation import water_fill
from winnow.tasks.select.budget import count, per_class
from winnow.tasks.select.ccs import strata_of
from winnow.tasks.select.signals import Signals
from winnow.tasks.select.upstream import allocation as published_allocation


class Recorded:
    """Stands in for a generator: ties by storage order, permutations as the published run drew them."""

    def __init__(self, permutations: np.ndarray) -> None:
        self.permutations, self.used = permutations, 0

    def random(self, n: int) -> np.ndarray:
        return np.linspace(0, 1, n)

    def permutation(self, n: int) -> np.ndarray:
        drawn = self.permutations[self.used : self.used + n]
        self.used += n
        return drawn


NAMES = {"accumulated_margin": "aum"}


def scores_of(arrays, prefix=""):
    found = {
        NAMES.get(k, k): arrays[prefix + k]
        for k in ("forgetting", "accumulated_margin", "el2n")
        if prefix + k in arrays
    }
    return Signals(n=len(found["aum"]), scores=found)


@pytest.mark.parametrize("case", [f"strat{i:02d}" for i in range(12)])
def test_ccs_equals_the_published_selection(golden, case):
    data = golden("ccs")
    ratio, beta, _ = data[f"{case}_args"]
    key = NAMES.get(str(data[f"{case}_key"]), str(data[f"{case}_key"]))
    generator = Recorded(data[f"{case}_perms"])
    ccs = selectors.get("ccs")
    published = ccs(
        scores_of(data), float(ratio), generator=generator, score=key, mis_ratio=float(beta), upstream=True
    )
    assert published.indices.tolist() == data[f"{case}_index"].tolist()
    # by default, strata of equal population may swap their odd sample: at most one sample each way differs
    ours = ccs(
        scores_of(data),
        float(ratio),
        generator=Recorded(data[f"{case}_perms"]),
        score=key,
        mis_ratio=float(beta),
    )
    assert len(set(ours.indices.tolist()) ^ set(data[f"{case}_index"].tolist())) <= 2


@pytest.mark.parametrize("case", [f"strat{i:02d}" for i in range(12)])
def test_ccs_strata_and_budgets(golden, case):
    data = golden("ccs")
    ratio, beta, _ = data[f"{case}_args"]
    aum = data["accumulated_margin"]
    kept = np.argsort(aum, kind="stable")[int(beta * len(aum)) :]
    counts = np.bincount(strata_of(data[str(data[f"{case}_key"])][kept], 50), minlength=50)
    assert counts.tolist() == data[f"{case}_counts"].tolist()
    budget = int(ratio * len(aum))
    assert published_allocation.water_fill(counts, budget).tolist() == data[f"{case}_budgets"].tolist()
    for size in np.unique(counts):
        assert sorted(water_fill(counts, budget)[counts == size]) == sorted(
            data[f"{case}_budgets"][counts == size]
        )


@pytest.mark.parametrize("case", ["neg_aum", "zero_score"])
def test_ccs_mends_what_upstream_loses(golden, case):
    data = golden("ccs")
    ratio, beta, seed = data[f"{case}_args"]
    signals = scores_of(data, f"{case}_")
    key = NAMES.get(str(data[f"{case}_key"]), str(data[f"{case}_key"]))
    values = signals.score(key)
    kept = np.argsort(signals.score("aum"), kind="stable")[int(beta * signals.n) :]
    counts = np.bincount(strata_of(values[kept], 50), minlength=50)
    assert counts.tolist() == data[f"corrected_{case}_counts"].tolist()
    assert water_fill(counts, int(ratio * signals.n)).tolist() == data[f"corrected_{case}_budgets"].tolist()
    import torch

    torch_generator = torch.Generator().manual_seed(int(seed))
    drawn = np.concatenate([torch.randperm(int(c), generator=torch_generator).numpy() for c in counts])
    chosen = selectors.get("ccs")(
        signals, float(ratio), generator=Recorded(drawn), score=key, mis_ratio=float(beta)
    )
    assert chosen.indices.tolist() == data[f"corrected_{case}_index"].tolist()
    published = selectors.get("ccs")(
        signals,
        float(ratio),
        generator=Recorded(data[f"{case}_perms"]),
        score=key,
        mis_ratio=float(beta),
        upstream=True,
    )
    assert published.indices.tolist() == data[f"{case}_index"].tolist()


def test_ccs_of_a_constant_score(golden):
    data = golden("ccs")
    ratio, beta, _ = data["const_score_args"]
    for upstream in (False, True):
        generator = Recorded(data["const_score_perms"])
        chosen = selectors.get("ccs")(
            scores_of(data, "const_score_"),
            float(ratio),
            generator=generator,
            score="el2n",
            mis_ratio=float(beta),
            upstream=upstream,
        )
        assert chosen.indices.tolist() == data["const_score_index"].tolist()


def test_ccs_refuses_a_budget_that_does_not_fit(golden):
    data = golden("ccs")
    assert data["corrected_too_much_error"].all()
    ratio, beta, _ = data["too_much_args"]
    signals = scores_of(data, "too_much_")
    with pytest.raises(BadInput, match=r"mis_ratio = 0\.3 drops 30 of 100 samples; 90"):
        selectors.get("ccs")(signals, float(ratio), mis_ratio=float(beta))
    published = selectors.get("ccs")(
        signals,
        float(ratio),
        generator=Recorded(data["too_much_perms"]),
        mis_ratio=float(beta),
        upstream=True,
    )
    assert published.indices.tolist() == data["too_much_index"].tolist()


@pytest.mark.parametrize("case", [f"mono{i:02d}" for i in range(8)])
def test_top_equals_monotonic_selection(golden, case):
    data = golden("ccs")
    ratio, descending = data[f"{case}_args"]
    key = NAMES.get(str(data[f"{case}_key"]), str(data[f"{case}_key"]))
    # descending means the largest first: the hardest first for forgetting and EL2N, the easiest first for AUM
    hardest = bool(descending) == (key != "aum")
    chosen = selectors.get("top")(scores_of(data), float(ratio), score=key, hardest=hardest)
    assert chosen.gains.tolist() == data[f"{case}_scores"].astype(np.float32).tolist()
    if len(np.unique(data[f"{case}_scores"])) == len(chosen.gains):  # ties are in any order upstream
        assert chosen.indices.tolist() == data[f"{case}_index"].tolist()


@pytest.mark.parametrize("name", ["aum", "el2n", "forgetting", "grand"])
def test_scores_of_papers_are_names_of_top(name):
    signals = Signals(n=60, scores={name: np.random.default_rng(2).integers(0, 9, 60)})
    for hardest in (True, False):
        ours = selectors.get(name)(signals, 20, hardest=hardest)
        assert (
            ours.indices.tolist()
            == selectors.get("top")(signals, 20, score=name, hardest=hardest).indices.tolist()
        )
    for fixed in ({"score": "el2n"}, {"higher_is": "easier"}):
        with pytest.raises(BadInput, match=f"{name} has no parameter '{next(iter(fixed))}'"):
            selectors.get(name)(signals, 20, **fixed)
    example = doctest.DocTestParser().get_doctest(selectors.get(name).doc, globals(), name, None, None)
    assert doctest.DocTestRunner().run(example) == (0, 2)


@pytest.mark.parametrize("case", ["cb0", "cb1"])
def test_class_balanced_selection(golden, case):
    data = golden("ccs")
    labels, ratio = data["cb_labels"], float(data[f"{case}_ratio"])
    signals = Signals(n=len(labels), labels=labels, scores=scores_of(data).scores)
    corrected = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        budget = int(np.float32(len(rows)) * np.float32(ratio))
        corrected += (
            rows[selectors.get("top")(signals.rows(rows), budget, score="aum").indices].tolist()
            if budget
            else []
        )
    assert corrected == data[f"corrected_{case}_index"].tolist()
    # ours meets the budget exactly: the published shares, and one more where the remainder is largest
    balanced = selectors.get("top")(signals, ratio, score="aum", balanced=True)
    assert len(balanced.indices) == int(ratio * len(labels))
    assert set(corrected) <= set(balanced.indices.tolist())


def test_water_filling_tables(golden):
    data = golden("ccs")
    for budget, bins, expected in zip(data["wf_num"], data["wf_bins"], data["wf_budgets"], strict=True):
        used = bins >= 0
        ours = water_fill(bins[used], int(budget))
        assert ours.sum() == expected[used].sum()
        for size in np.unique(bins[used]):
            assert sorted(ours[bins[used] == size]) == sorted(expected[used][bins[used] == size])


@pytest.mark.parametrize("case", range(11))
def test_elfs_equals_double_end_pruning(golden, case):
    data = golden("elfs_budget")
    ratio, mis_ratio = map(float, data["args"][case])
    signals = Signals(n=200, scores={"aum": data["accumulated_margin"], "el2n": data["el2n"]})
    elfs = selectors.get("elfs")
    published = data[f"budget{case:02d}_index"].tolist()
    assert elfs(signals, ratio, mis_ratio=mis_ratio, upstream=True).indices.tolist() == published
    if f"corrected_budget{case:02d}_error" in data:
        with pytest.raises(BadInput, match="mis_ratio"):
            elfs(signals, ratio, mis_ratio=mis_ratio)
    else:
        expected = data.get(f"corrected_budget{case:02d}_index", data[f"budget{case:02d}_index"]).tolist()
        ours = elfs(signals, ratio, mis_ratio=mis_ratio).indices.tolist()
        k = round(ratio * 200)  # the published int(0.29 · 200) is 57
        assert ours[: len(expected)] == expected
        assert len(ours) == k


def test_elfs_honours_the_score(golden):
    data = golden("elfs_budget")
    ratio, mis_ratio = map(float, data["key_ignored_args"])
    signals = Signals(n=200, scores={"aum": data["accumulated_margin"], "el2n": data["el2n"]})
    elfs = selectors.get("elfs")
    chosen = elfs(signals, ratio, score="el2n", mis_ratio=mis_ratio)
    assert chosen.indices.tolist() == data["corrected_key_ignored_index"].tolist()
    published = elfs(signals, ratio, score="el2n", mis_ratio=mis_ratio, upstream=True)
    assert published.indices.tolist() == data["key_ignored_index"].tolist()


def test_prototypicality_baseline_of_elfs(golden):
    """The farthest of each cluster, an even share of the budget each: published baseline, from ``top``."""
    data = golden("elfs_budget")
    clusters, left = data["proto_label"], int(data["proto_num"])
    signals = Signals(n=len(clusters), labels=clusters, scores={"distance": data["proto_distance"]})
    chosen = []
    for done, cluster in enumerate(np.unique(clusters)):
        rows = np.flatnonzero(clusters == cluster)
        share = left // (len(np.unique(clusters)) - done)
        left -= share
        part = selectors.get("top")(signals.rows(rows), share, score="distance", higher_is="harder")
        chosen += rows[part.indices].tolist()
    assert sorted(chosen) == sorted(data["proto_index"].tolist())


@pytest.mark.parametrize(("dtype", "power"), [(np.float32, -100), (np.float32, 100), (np.float64, -200)])
@pytest.mark.parametrize(
    ("name", "params"), [("ccs", {"mis_ratio": 0.1}), ("elfs", {}), ("top", {"score": "aum"})]
)
def test_magnitude_of_scores_does_not_matter(name, params, dtype, power):
    values = np.random.default_rng(0).normal(size=400).astype(dtype)
    ours, theirs = (
        selectors.get(name)(Signals(n=400, scores={"aum": scaled}), 100, **params)
        for scaled in (values, np.ldexp(values, power))
    )
    assert ours.indices.tolist() == theirs.indices.tolist()


# -- refusals ------------------------------------------------------------------------------------------------


def test_budgets_are_checked():
    for bad in (0, -1, 11, 1.5, 0.0, -0.1, float("nan"), True, "0.1", None):
        with pytest.raises(BadInput):
            count(bad, 10)
    with pytest.raises(BadInput, match="keeps none"):
        count(0.01, 10)
    assert (count(1, 10), count(1.0, 10), count(0.29, 200)) == (1, 10, 58)
    assert (count(0.29, 100), count(0.57, 100), count(0.58, 50), count(0.999, 10)) == (29, 57, 29, 9)
    assert count(0.29, 200, upstream=True) == 57


def test_signals_are_checked():
    with pytest.raises(BadInput, match=r"scores\['aum'\]: row 2 is inf"):
        Signals(n=3, scores={"aum": np.array([0, 1, np.inf])}).score("aum")
    with pytest.raises(BadInput, match="features: row 1 is nan"):
        np.abs(Signals(n=2, features=np.array([[0.0], [np.nan]])).features)
    with pytest.raises(BadInput, match=r"labels: shape \(2,\), expected 3"):
        Signals(n=3, labels=np.array([0, 1]))
    with pytest.raises(BadInput, match="no samples"):
        Signals(n=0)
    with pytest.raises(BadInput, match="twice"):
        Signals(n=2, ids=np.array([5, 5])).order()


def test_what_a_selector_needs():
    with pytest.raises(MissingSignal, match="elfs needs scores"):
        selectors.get("elfs")(Signals(n=3), 1)
    with pytest.raises(MissingSignal, match="random needs labels"):
        selectors.get("random")(Signals(n=3), 1, balanced=True)
    signals = Signals(n=3, scores={"mine": np.arange(3.0)})
    with pytest.raises(MissingSignal, match="'aum' is not among the scores given: mine"):
        selectors.get("elfs")(signals, 1)
    with pytest.raises(BadInput, match="higher value harder or easier"):
        selectors.get("elfs")(signals, 1, score="mine")
    assert selectors.get("elfs")(signals, 1, score="mine", higher_is="harder").indices.tolist() == [2]
    with pytest.raises(UnknownName, match="Did you mean 'elfs'"):
        selectors.get("elf")
    with pytest.raises(BadInput, match=r"has no parameter 'misratio'\. Did you mean 'mis_ratio'"):
        selectors.get("elfs")(signals, 1, misratio=0.1)


def test_per_class_budgets_are_exact():
    generator = np.random.default_rng(0)
    for _ in range(200):
        labels = generator.integers(0, 7, generator.integers(1, 60))
        k = int(generator.integers(1, len(labels) + 1))
        shares = per_class(labels, k)
        classes, sizes = np.unique(labels, return_counts=True)
        assert sum(shares.values()) == k
        assert all(0 <= shares[c] <= s for c, s in zip(classes.tolist(), sizes.tolist(), strict=True))
        if k >= len(classes):
            assert min(shares.values()) >= 1
