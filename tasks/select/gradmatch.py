"""GradMatch: weighted samples whose last-layer gradients add up to that of all, by matching pursuit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.score.gradients import LastLayer
from winnow.tasks.select.last_layer import mean_gradient, relevant, rescaled_gradients
from winnow.tasks.select.pursuit import pursue
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import NO_ROWS, Selection, Signals

__all__ = ["definition", "gradmatch"]

_OVERWHELMING = 2.0**100  # λ above so many times ‖g‖² leaves weights that float32 cannot hold


def definition(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    lam: float = 0.5,
) -> NDArray[np.int64]:
    """GradMatch's picks on gradients written out: the reference that tests hold the engine to."""
    from scipy.optimize import nnls

    inputs = np.column_stack([signals.features, np.ones(signals.n)]).astype(np.float64)
    g = (signals.residuals[:, :, None] * inputs[:, None]).reshape(signals.n, -1)
    mean, ties = g.mean(axis=0), generator.random(signals.n)
    S, w = already, np.zeros(0)
    while True:
        if len(S):
            ridge = np.sqrt(lam) * np.eye(len(S))
            w = nnls(np.vstack([g[S].T, ridge]), np.append(mean, np.zeros(len(S))))[0]
            S, w = S[w > 1e-12], w[w > 1e-12]
        product = (g @ (mean - w @ g[S])).round(9)  # ⟨g_i, r⟩; rounding makes equals tie
        ranked, picks = order(-product, ties), S[~np.isin(S, already)]
        rest = ranked[~np.isin(ranked, S)]
        if len(picks) == budget or product[rest[0]] <= 0:
            break
        S = np.append(S, rest[0])
    return np.append(picks, rest[~np.isin(rest, already)][: budget - len(picks)])


def gradmatch(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    lam: float = 0.5,
    validation: Signals | None = None,
) -> Selection:
    """Keep samples whose weighted last-layer gradients add up to the gradient of all.

    With g_i = b_i ⊗ [h_i, 1] and ḡ their mean, S and its weights approximately minimise

        E(S, w) = ‖Σ_{i∈S} w_i g_i − ḡ‖² + λ‖w‖²,   w ≥ 0, |S| ≤ k

    by orthogonal matching pursuit: the sample whose gradient has the largest inner product with what is left
    over, r = ḡ − Σ w_i g_i, enters, then all weights are solved for again. One whose weight falls to 0 leaves
    and makes room. The weights returned are N times these, so that the weighted sum stands for the sum over
    all samples, as in the paper, and classes fit together.

    Args:
        signals: residuals b = softmax − one-hot, features h.
        budget: k, samples to keep.
        generator: breaks ties.
        already: int64 (m,), rows that are in S before the first pick, as far as their weights are above 0.
        lam: λ ≥ 0, in units of ‖g‖².
        validation: match the mean gradient of these samples instead, given by residuals and features. If both
            have labels, only those whose label occurs in ``signals`` count: with ``balanced=True`` each class
            is matched to its own.

    Returns:
        Selection in order of entry; weights; gains are what E fell by. Once no sample has a positive product
        with r, the rest follow in the order of their products, with weight 1 and gain 0.

    Raises:
        BadInput: ``lam`` below 0 or so large that no weight is left, gradients whose squares float32 cannot
            hold, or a validation that does not fit.

    Cost:
        O(N·C·D + k²) per pick; memory O(N·(C + D) + k·D + k²).

    References:
        Killamsetty, Sivasubramanian, Ramakrishnan, De and Iyer, GRAD-MATCH: Gradient Matching based Data
        Subset Selection for Efficient Deep Model Training, ICML 2021, algorithm 2.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/gradmatch.py.

    Differences from upstream:
        Upstream divides gradients by the size of their batch, next to which its λ = 1 is so large that the
        pursuit takes the samples of largest inner product with ḡ and little else; ignores its ``lam``; lets
        weights be negative until the end, then drops these samples and returns fewer than asked for; loses
        the pick order; writes out all gradients and solves from scratch at each pick.

    >>> b = np.array([[1.0, -1.0], [-0.5, 0.5], [0.1, -0.1]])
    >>> s = Signals(n=3, residuals=b, features=np.zeros((3, 1)))
    >>> chosen = gradmatch(s, 1, generator=np.random.default_rng(0), lam=0)
    >>> chosen.indices, chosen.weights  # the gradients add up to [0.6, -0.6]
    (array([0]), array([0.6], dtype=float32))
    """
    if not lam >= 0:
        raise BadInput(f"lam = {lam}: it must not be negative.")
    watched = relevant(signals, validation)
    gradients, exponent = rescaled_gradients(LastLayer.of(signals.residuals, signals.features))
    theirs, theirs_exponent = gradients, exponent
    if validation is not None:
        theirs, theirs_exponent = rescaled_gradients(LastLayer.of(watched.residuals, watched.features))
    target = mean_gradient(theirs)
    # with g = ĝ·2ᵉ and ḡ = t·2ᶠ, E is 2²ᶠ times that of ĝ, t and λ·2⁻²ᵉ, whose weights are w·2ᵉ⁻ᶠ
    scaled_lam = float(np.ldexp(lam, -2 * exponent))
    length = float(np.ldexp(np.linalg.norm(target), theirs_exponent))
    if length**2 > float(np.finfo(np.float32).max):
        raise BadInput(
            f"features and residuals: the mean gradient's length squared, {length:.0e}², is beyond float32.",
            remedy="divide the features by their largest value",
        )
    if scaled_lam > _OVERWHELMING * gradients.squared.max() > 0:
        raise BadInput(
            f"lam = {lam:g}, in units of ‖g‖², leaves no weight beside gradients of length "
            f"{np.ldexp(np.sqrt(gradients.squared.max()), exponent):.0e}.",
            remedy="pass a smaller lam; 0 is the least",
        )
    ties = generator.random(signals.n)
    picks, weights, gains = pursue(gradients, target, budget, scaled_lam, ties, already)
    weights = signals.n * np.ldexp(weights, theirs_exponent - exponent)
    return Selection.of(
        picks, weights=np.where(weights > 0, weights, 1.0), gains=np.ldexp(gains, 2 * theirs_exponent)
    )
