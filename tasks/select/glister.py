"""GLISTER: the samples whose gradient steps lower the validation loss most."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.score.gradients import LastLayer, softmax
from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.graphs import rescaled
from winnow.tasks.select.last_layer import (
    ROUNDING,
    arg_max,
    correlation,
    mean_gradient,
    relevant,
    rescaled_gradients,
)
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import NO_ROWS, Selection, Signals

__all__ = ["definition", "glister"]

LOST = 2.0**-25  # a label's probability below this becomes 0 once 1 is subtracted in float32 …
SMALLEST = 2.0**-126  # … and this is the smallest of the probabilities themselves


def definition(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    eta: float | None = None,
    refresh: int = 1,
) -> NDArray[np.int64]:
    """GLISTER's picks in the paper's notation, watching the samples themselves: the reference for tests."""
    n, b = signals.n, signals.residuals.astype(np.float64)
    u = np.column_stack([signals.features, np.ones(n)]).astype(np.float64)
    label, z = np.eye(b.shape[1])[b.argmin(axis=1)], np.log(signals.probabilities.astype(np.float64))
    step = 0.2 / (u**2).sum(axis=1).mean() if eta is None else eta
    ties = generator.random(n)
    S: list[int] = []
    while len(S) < len(already) + budget:
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        slope = (p - label).T @ u / n  # ∇L_V(θ_S)
        gain = step * (b @ slope * u).sum(axis=1)
        gain[S] = -np.inf
        ranked = order(-gain.round(9), ties)
        ranked = np.append(already[len(S) :], ranked[~np.isin(ranked, already)])  # these first
        picks = ranked[: min(refresh, len(already) + budget - len(S))]
        z -= step * u @ u[picks].T @ b[picks]
        S += picks.tolist()
    return np.array(S[len(already) :])


def glister(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    eta: float | None = None,
    refresh: int = 1,
    validation: Signals | None = None,
) -> Selection:
    """Keep the samples whose gradient steps lower the validation loss most, picked greedily.

    With θ the last layer, g_i = b_i ⊗ [h_i, 1] the gradient of sample i's loss and L_V the mean loss of the
    validation samples, the selection approximately minimises L_V(θ − η Σ_{i∈S} g_i). By Taylor's theorem one
    more sample lowers it by

        gain(i | S) = η ⟨g_i, ∇L_V(θ_S)⟩,   θ_S = θ − η Σ_{j∈S} g_j

    After each pick j the step is taken: validation sample v's logits move by −η (1 + ⟨h_v, h_j⟩) b_j, and
    with them its residual and ∇L_V, so that what the picks have taught no longer counts.

    Args:
        signals: residuals b = softmax − one-hot, features h. Probabilities are read too, if given: residuals
            lose those of samples that are confidently wrong.
        budget: k, samples to keep.
        generator: breaks ties.
        already: int64 (m,), rows that count as picked before the first pick, in this order.
        eta: η, the learning rate. Default a tenth of the longest safe step on the mean validation loss: 0.2 /
            (1 + mean ‖h_v‖²).
        refresh: picks between two passes over the validation samples.
        validation: samples whose loss is to fall, given by residuals and features; default ``signals``
            themselves. If both have labels, only those whose label occurs in ``signals`` count: with
            ``balanced=True`` each class has its own.

    Returns:
        Selection in pick order: a smaller one is a prefix of a larger one. Gains as above.

    Raises:
        BadInput: ``eta`` or ``refresh`` not positive, steps that move logits beyond float32, a validation
            that does not fit, residuals that are not a softmax minus one-hot.

    Cost:
        O(N·C·D) per refresh and O(N·D) per pick; memory O(N·(C + D)).

    References:
        Killamsetty, Sivasubramanian, Ramakrishnan and Iyer, GLISTER: Generalization based Data Subset
        Selection for Efficient and Robust Learning, AAAI 2021, algorithm 2.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/glister.py.

    Differences from upstream:
        Upstream's step is never taken (an argument's name is misspelt), so it keeps the k largest ⟨g_i,
        ∇L_V(θ)⟩; had it been, it would have followed the picks' mean, not their sum. It divides gradients by
        the size of their batch, which favours the samples of a smaller last batch, and loses the pick order.

    >>> b = np.array([[0.6, -0.6], [-0.5, 0.5], [0.5, -0.5]])  # after 0, the other class is wrong
    >>> s = Signals(n=3, residuals=b, features=np.zeros((3, 1)))
    >>> glister(s, 3, generator=np.random.default_rng(0), eta=1.0).indices.tolist()
    [0, 1, 2]
    """
    if refresh < 1 or (eta is not None and not eta > 0):
        raise BadInput(f"eta = {eta}, refresh = {refresh}: they must be positive.")
    watched = relevant(signals, validation)
    layer = LastLayer.of(signals.residuals, signals.features)
    theirs = layer if validation is None else LastLayer.of(watched.residuals, watched.features)
    logits, labels = _logits(theirs.b, watched.probabilities if watched.has("probabilities") else None)
    # with g_i = ĝ_i·2ᵉ and u_v = û_v·2ᶠ a step moves logits by η·2ᵉ⁺ᶠ (û_v ⊗ ĝ_i), and gains are η·2ᵉ⁺ᶠ
    # ⟨ĝ_i, ∇⟩
    (gradients, exponent), (u, u_exponent) = rescaled_gradients(layer), rescaled(theirs.u)
    squared = np.einsum("nd,nd->n", u, u, dtype=np.float64)
    if eta is None:
        step = float(np.ldexp(0.2 / squared.mean(), exponent - u_exponent))
    else:
        step = float(np.ldexp(eta, exponent + u_exponent))
    lengths = np.sqrt(gradients.squared)
    there, total = len(already), len(already) + budget
    _check_step(step, total * lengths.max() * np.sqrt(squared.max()))
    ties = generator.random(signals.n)
    picks, gains = np.append(already, np.empty(budget, np.int64)), np.empty(total)
    learned = already[: there // refresh * refresh]  # whole blocks, which need no slope
    if len(learned):
        logits -= step * u @ (gradients.u[learned].T @ gradients.b[learned])
    for block in blocks(total, refresh):
        if block.stop <= there:
            continue
        start = max(block.start, there)
        errors = softmax(logits)
        errors[np.arange(len(labels)), labels] -= 1
        slope = mean_gradient(LastLayer(errors, u, squared))
        products = correlation(gradients, slope)
        products[picks[:start]] = -np.inf
        rounding = ROUNDING * float(np.linalg.norm(slope))
        for pick in range(start, block.stop):
            row = arg_max(products, ties, rounding * lengths[int(np.argmax(products))])
            picks[pick], gains[pick], products[row] = row, step * products[row], -np.inf
        chosen = picks[block]
        logits -= step * (u @ gradients.u[chosen].T) @ gradients.b[chosen]
    return Selection.of(picks[there:], gains=gains[there:])


def _check_step(step: float, reach: float) -> None:
    """Refuse a step beyond float32, or ``step · reach``, the farthest that all may move a logit."""
    if 4 * step * max(1.0, reach) > float(np.finfo(np.float32).max):
        raise BadInput(
            f"eta, features and residuals: steps may move logits by {step * reach:.0e}, beyond float32.",
            remedy="pass a smaller eta, or divide the features by their largest value",
        )


def _logits(
    residuals: NDArray[np.float32], probabilities: NDArray[np.floating[Any]] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Log-probabilities and labels behind softmax − one-hot: only the label's entry is negative."""
    labels = residuals.argmin(axis=1)
    recovered = residuals.copy()
    recovered[np.arange(len(labels)), labels] += 1
    wrong = np.flatnonzero((recovered.min(1) < -1e-3) | (np.abs(recovered.sum(1) - 1) > 1e-2))
    if len(wrong):
        raise BadInput(
            f"residuals: row {wrong[0]} is not a softmax minus one-hot.",
            remedy="winnow.tasks.score.gradients.residuals_of makes them",
        )
    if probabilities is None:
        return np.log(np.maximum(recovered, LOST)), labels
    return np.log(np.maximum(probabilities.astype(np.float32), SMALLEST)), labels
