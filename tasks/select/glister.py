"""GLISTER: the samples whose gradient steps lower the validation loss most."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.score.gradients import softmax
from winnow.tasks.select.badge import Gradients
from winnow.tasks.select.gradmatch import (
    ROUNDING,
    correlation,
    first,
    gradients_of,
    mean_gradient,
    of_batches,
    relevant,
)
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["glister"]

LOST = 2.0**-25  # a label's probability below this is 0 once 1 has been taken from it in float32 …
SMALLEST = 2.0**-126  # … and this is the smallest of the probabilities themselves


def glister(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    eta: float | None = None,
    refresh: int = 1,
    validation: Signals | None = None,
    upstream: bool = False,
    batch: int = 256,
) -> Selection:
    """Keep the samples whose gradient steps lower the validation loss most, picked greedily.

    With θ the last layer, g_i = b_i ⊗ [h_i, 1] the gradient of sample i's loss and L_V the mean loss of the
    validation samples, the selection approximately minimises L_V(θ − η Σ_{i∈S} g_i). By Taylor's theorem one
    more sample lowers it by

        gain(i | S) = η ⟨g_i, ∇L_V(θ_S)⟩,   θ_S = θ − η Σ_{j∈S} g_j

    After each pick j the step is taken: validation sample v's logits move by −η (1 + ⟨h_v, h_j⟩) b_j, and
    with them its residual and ∇L_V, so that what the picks have taught counts no more.

    Args:
        signals: residuals b = softmax − one-hot, features h. Probabilities are read, too, if given: residuals
            have lost those of samples that are wrong beyond doubt.
        budget: k, samples to keep.
        generator: breaks ties.
        eta: η, the learning rate. Default a tenth of the longest safe step on the mean validation loss: 0.2 /
            (1 + mean ‖h_v‖²).
        refresh: picks between two looks at the validation samples.
        validation: samples whose loss is to fall, given by residuals and features; default ``signals``
            themselves. If both have labels, only those count whose label occurs in ``signals``: with
            ``balanced=True`` each class has its own.
        upstream: replay the published code, which takes no step.
        batch: size of the batches by which upstream divides gradients.

    Returns:
        Selection in the order of the picks: a smaller one is a prefix of a larger one. Gains as above.

    Raises:
        BadInput: ``eta`` or ``refresh`` not positive, a validation that does not fit, residuals that are no
            softmax minus one-hot.

    Cost:
        O(N·C·D) a refresh and O(N·D) a pick; memory O(N·(C + D)).

    References:
        Killamsetty, Sivasubramanian, Ramakrishnan and Iyer, GLISTER: Generalization based Data Subset
        Selection for Efficient and Robust Learning, AAAI 2021, algorithm 2.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/glister.py.

    Differences from upstream:
        Upstream's step is never taken (an argument's name is misspelt), so that it keeps the k largest ⟨g_i,
        ∇L_V(θ)⟩; had it been, it would have been along the picks' mean and not their sum. It divides
        gradients by the size of their batch, which favours the samples of a smaller last batch, and loses the
        order.

    >>> s = Signals(n=3, residuals=np.array([[0.6, -0.6], [-0.5, 0.5], [0.5, -0.5]]), features=np.zeros((3, 1)))
    >>> glister(s, 3, generator=np.random.default_rng(0), eta=1.0).indices.tolist()  # after 0, the other class is wrong
    [0, 1, 2]
    """
    watched = relevant(signals, validation)
    if upstream:
        products = correlation(of_batches(signals, batch), mean_gradient(of_batches(watched, batch)))
        rows = np.argsort(-products, kind="stable")[:budget]
        return Selection.of(rows, gains=products[rows])
    if refresh < 1 or (eta is not None and not eta > 0):
        raise BadInput(f"eta = {eta}, refresh = {refresh}: they must be positive.")
    # sums follow the order of the rows: make that the order of the ids
    rows = np.arange(signals.n)
    keys = generator.random(signals.n)[rows]
    watched = signals.rows(rows) if validation is None else watched
    gradients = gradients_of(signals.rows(rows))
    slopes = gradients if validation is None else gradients_of(watched)
    if eta is None:
        eta = float(0.2 / np.einsum("nd,nd->n", slopes.u, slopes.u, dtype=np.float64).mean())
    logits, labels = _logits(slopes.b, watched.probabilities if watched.has("probabilities") else None)
    lengths = np.sqrt(gradients.squared)
    picks, gains = np.empty(budget, np.int64), np.empty(budget)
    taken = np.zeros(signals.n, bool)
    done = 0
    while done < budget:
        errors = softmax(logits)
        errors[np.arange(len(labels)), labels] -= 1
        slope = mean_gradient(Gradients(errors, slopes.u, slopes.squared))
        products = np.where(taken, -np.inf, correlation(gradients, slope))
        count = min(refresh, budget - done)
        slack = ROUNDING * float(np.linalg.norm(slope))
        if count == 1:
            chosen = np.array([first(products, keys, slack * lengths[int(np.argmax(products))])])
        else:
            chosen = order(-products, keys)[:count]
        picks[done : done + count], gains[done : done + count] = chosen, eta * products[chosen]
        taken[chosen] = True
        logits -= eta * (slopes.u @ gradients.u[chosen].T) @ gradients.b[chosen]
        done += count
    return Selection.of(rows[picks], gains=gains)


def _logits(
    residuals: NDArray[np.float32], probabilities: NDArray[np.floating[Any]] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Log-probabilities and labels that softmax − one-hot was made of: the label's entry alone is negative."""
    labels = residuals.argmin(axis=1)
    found = residuals.copy()
    found[np.arange(len(labels)), labels] += 1
    wrong = np.flatnonzero((found.min(1) < -1e-3) | (np.abs(found.sum(1) - 1) > 1e-2))
    if len(wrong):
        raise BadInput(
            f"residuals: row {wrong[0]} is not a softmax minus one-hot.",
            remedy="winnow.tasks.select.signals.residuals_of makes them",
        )
    if probabilities is None:
        return np.log(np.maximum(found, LOST)), labels
    return np.log(np.maximum(probabilities.astype(np.float32), SMALLEST)), labels
