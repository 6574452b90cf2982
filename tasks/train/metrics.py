"""How well clusters agree with classes."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn import metrics as sk

from winnow.tasks.errors import BadInput

__all__ = ["clustering_metrics", "contingency", "hungarian_accuracy"]


def contingency(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Counts n[c, y] of samples in the c-th used cluster and the y-th present class.

    Args:
        labels: (N,) whole numbers, cluster of each sample.
        truth: (N,) whole numbers, class of each sample.

    Returns:
        (clusters used, classes present) int64, both in ascending order of their ids.

    Raises:
        BadInput: arrays that are empty, of unequal length, or not whole numbers.

    >>> contingency(np.array([5, 5, 2]), np.array([0, 1, 1]))
    array([[0, 1],
           [1, 1]])
    """
    labels, truth = np.asarray(labels), np.asarray(truth)
    for name, values in (("labels", labels), ("truth", truth)):
        if values.ndim != 1 or values.dtype.kind not in "iub":
            raise BadInput(
                f"{name} must be a row of whole numbers, got {values.dtype} of shape {values.shape}."
            )
    if len(labels) != len(truth) or len(labels) == 0:
        raise BadInput(
            f"labels and truth have {len(labels)} and {len(truth)} entries; they must be as many, and not "
            "none."
        )
    return sk.cluster.contingency_matrix(labels, truth)


def hungarian_accuracy(labels: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy in percent under the best matching of clusters with classes; an unmatched cluster is wrong.

    100/N · max over matchings m of Σ_c n[c, m(c)]

    Args:
        labels: (N,) whole numbers, cluster of each sample.
        truth: (N,) whole numbers, class of each sample.

    Raises:
        BadInput: arrays that are empty, of unequal length, or not whole numbers.

    >>> hungarian_accuracy(np.array([0, 0, 2, 2, 1, 1, 3, 3]), np.array([0, 0, 0, 0, 1, 1, 1, 1]))
    50.0

    References:
        Kuhn, "The Hungarian method for the assignment problem", 1955; eltsai/elfs core/utils/misc.py,
        calculate_hungarian_misclassification_rate.
    """
    counts = contingency(labels, truth)
    return 100.0 * float(counts[linear_sum_assignment(counts, maximize=True)].sum()) / len(labels)


def clustering_metrics(labels: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Accuracy, NMI, AMI and ARI of clusters against classes, in percent.

    Accuracy matches clusters with classes one to one (Hungarian); where there are more used clusters than
    classes, each cluster left over counts for its majority class. NMI and AMI are normalised by the
    arithmetic mean of the entropies.

    Args:
        labels: (N,) whole numbers, cluster of each sample; ids need not be consecutive.
        truth: (N,) whole numbers, class of each sample.

    Returns:
        dict with accuracy, nmi, ami, ari.

    Raises:
        BadInput: arrays that are empty, of unequal length, or not whole numbers.

    >>> found = clustering_metrics(np.array([1, 1, 0, 2, 2, 2, 2, 1]), np.array([0, 0, 1, 1, 2, 2, 2, 0]))
    >>> {name: round(value, 2) for name, value in found.items()}
    {'accuracy': 87.5, 'nmi': 77.9, 'ami': 66.61, 'ari': 65.22}

    References:
        Adaloglou et al., BMVC 2023, section 4; HHU-MMBS/TEMI-official-BMVC2023 utils.py, compute_metrics.

    Differences from upstream:
        Where several matchings are equally good and clusters are left over, the published accuracy depends on
        how clusters are numbered; here it is the largest of the possible values.
    """
    counts = contingency(labels, truth)
    left_over = counts.max(axis=1) if counts.shape[0] > counts.shape[1] else np.zeros(len(counts), np.int64)
    # Several matchings can be best; the factor N + 1 lets the left-over clusters decide between those only.
    clusters, classes = linear_sum_assignment(counts * (len(labels) + 1) - left_over[:, None], maximize=True)
    correct = counts[clusters, classes].sum() + np.delete(left_over, clusters).sum()
    return {
        "accuracy": 100.0 * float(correct) / len(labels),
        "nmi": 100.0 * float(sk.normalized_mutual_info_score(truth, labels)),
        "ami": 100.0 * float(sk.adjusted_mutual_info_score(truth, labels)),
        "ari": 100.0 * float(sk.adjusted_rand_score(truth, labels)),
    }
