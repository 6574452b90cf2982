"""What methods on the last layer's gradients share: mean, inner products with it, validation samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.score.gradients import LastLayer
from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.graphs import rescaled
from winnow.tasks.select.signals import Signals

__all__ = ["ROUNDING", "arg_max", "correlation", "mean_gradient", "relevant", "rescaled_gradients"]

ROUNDING = 4e-7  # of a float32 product, as a share of the lengths of its factors

_TILE = 4096  # rows that float32 adds up


def rescaled_gradients(layer: LastLayer) -> tuple[LastLayer, int]:
    """Gradients whose products float32 can hold, and e in g_i = b_i ⊗ u_i · 2ᵉ, 0 for ordinary ones.

    >>> layer, exponent = rescaled_gradients(LastLayer.of(np.array([[3e30]]), np.zeros((1, 0))))
    >>> float(layer.b[0, 0]) < 1, bool(np.ldexp(layer.b[0, 0], exponent) == np.float32(3e30))
    (True, True)
    """
    (b, of_b), (u, of_u) = rescaled(layer.b), rescaled(layer.u)
    exponent = of_b + of_u
    return LastLayer(b, u, np.ldexp(layer.squared, -2 * exponent)), exponent


def mean_gradient(gradients: LastLayer) -> NDArray[np.float64]:
    """Mean of g_i = b_i ⊗ u_i, float64 (C, D + 1)."""
    total = np.zeros((gradients.b.shape[1], gradients.u.shape[1]))
    b, u = torch.from_numpy(gradients.b), torch.from_numpy(gradients.u)
    for tile in blocks(len(b), _TILE):  # float32 within a tile, float64 over the tiles
        total += (b[tile].T @ u[tile]).numpy()
    return total / len(gradients.b)


def correlation(gradients: LastLayer, direction: NDArray[np.float64]) -> NDArray[np.float32]:
    """⟨g_i, G⟩ = b_iᵀ G u_i of every sample with one direction G (C, D + 1); float32 (N,)."""
    # torch multiplies such narrow matrices twice as fast as NumPy
    projected = torch.nn.functional.linear(
        torch.from_numpy(gradients.u), torch.from_numpy(direction.astype(np.float32))
    )
    return np.einsum("nc,nc->n", gradients.b, projected.numpy())


def arg_max(values: NDArray[np.floating[Any]], ties: NDArray[np.float64], slack: float) -> int:
    """Row of the largest value; of those within ``slack`` of it, the one of lowest ``ties``.

    >>> arg_max(np.array([1.0, 2.0, 2.1]), np.array([0.1, 0.2, 0.3]), slack=0.5)
    1
    """
    near = np.flatnonzero(values >= values.max() - slack)
    return int(near[np.argmin(ties[near])])


def relevant(signals: Signals, validation: Signals | None) -> Signals:
    """The validation samples that concern these; ``signals`` where there is no validation.

    Raises:
        BadInput: residuals or features missing or not as wide as the samples', or no sample with a label that
            occurs.
    """
    if validation is None:
        return signals
    for name in ("residuals", "features"):
        width = getattr(signals, name).shape[1]
        theirs = getattr(validation, name).shape[1] if validation.has(name) else "no"
        if theirs != width:
            raise BadInput(f"validation has {theirs} {name}; the samples have {width}.")
    if not validation.has("labels") or not signals.has("labels"):
        return validation
    same = np.flatnonzero(np.isin(validation.labels, signals.labels))
    if not len(same):
        labels = np.unique(signals.labels)[:5].tolist()
        raise BadInput(f"validation has no sample of the labels {labels} …, which the samples have.")
    return validation.rows(same)
