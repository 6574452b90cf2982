"""Clustering metrics against the published implementation's numbers."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from winnow.tasks.errors import BadInput
from winnow.tasks.train.metrics import clustering_metrics, contingency, hungarian_accuracy

GOLDEN = np.load(Path(__file__).parent / "golden" / "clustering_metrics.npz", allow_pickle=False)
CASES = GOLDEN["case_names"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    labels, truth = GOLDEN[f"{case}_preds"], GOLDEN[f"{case}_targets"]
    found = clustering_metrics(labels, truth)
    assert list(found) == ["accuracy", "nmi", "ami", "ari"]
    accuracy, *others = GOLDEN[f"{case}_metrics"]
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-4)
    np.testing.assert_allclose([found["nmi"], found["ami"], found["ari"]], others, atol=1e-8)
    assert hungarian_accuracy(labels, truth) == pytest.approx(
        float(GOLDEN[f"{case}_hungarian_acc"]), abs=1e-9
    )


@pytest.mark.parametrize(("clusters", "classes"), [(4, 4), (3, 5), (5, 3)])
def test_matching_is_the_best_of_all(clusters, classes):
    rng = np.random.default_rng(clusters)
    labels, truth = rng.integers(0, clusters, 60), rng.integers(0, classes, 60)
    counts = contingency(labels, truth)
    wide = counts if clusters <= classes else counts.T
    best = max(
        sum(wide[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(wide.shape[1]), wide.shape[0])
    )
    assert hungarian_accuracy(labels, truth) == pytest.approx(100 * best / 60)


def test_ids_do_not_matter():
    rng = np.random.default_rng(0)
    labels, truth = rng.integers(0, 7, 200), rng.integers(0, 5, 200)
    renamed = np.array([900, -3, 14, 0, 77, 5, 8])[labels]
    assert clustering_metrics(labels, truth) == pytest.approx(clustering_metrics(renamed, truth + 1000))


def test_bad_input():
    for labels, truth in (([0, 1], [0]), ([], []), ([0.5, 1.0], [0, 1]), ([[0]], [[1]])):
        with pytest.raises(BadInput):
            clustering_metrics(np.array(labels), np.array(truth))
        with pytest.raises(BadInput):
            hungarian_accuracy(np.array(labels), np.array(truth))
