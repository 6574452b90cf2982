"""Scores from the last layer's gradients, which are never written out: g_i = b_i ⊗ [h_i, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import BadInput

__all__ = ["grand"]

Repeats = NDArray[Any] | Sequence[NDArray[Any]]


def grand(residuals: Repeats, features: Repeats) -> NDArray[np.float32]:
    """GraNd: length of the loss's gradient with respect to the last layer, averaged over trainings; long is hard.

    The gradient of the cross-entropy in a linear layer's weights and bias is g_i = b_i ⊗ [h_i, 1] with b_i = softmax(z_i) − onehot(y_i),
    so that its length needs no gradient:

        ‖g_i‖ = ‖b_i‖ · √(1 + ‖h_i‖²)

    Args:
        residuals: b, float (N, C); of several trainings a list of these, or (R, N, C).
        features: h, the layer's input: float (N, D); of several trainings a list, or (R, N, D).

    Returns:
        float32 (N,).

    Raises:
        BadInput: shapes that do not fit, NaN or infinity.

    >>> grand(np.array([[0.6, -0.8]]), np.array([[2.0, 2.0]])).tolist()
    [3.0]

    References:
        Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet: Finding Important Examples Early in Training, NeurIPS 2021, definition
        2.1.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/grand.py.

    Differences from upstream:
        The paper takes the gradient in all weights and averages over 10 trainings early on; DeepCore takes the last layer, as here.
        DeepCore divides each gradient by the size of its batch, which makes the samples of a smaller last batch look harder.
    """
    errors, inputs = _repeats(residuals), _repeats(features)
    if len(errors) != len(inputs) or not errors:
        raise BadInput(f"residuals of {len(errors)} trainings, features of {len(inputs)}.")
    total = np.zeros(len(errors[0]))
    for repeat, (error, h) in enumerate(zip(errors, inputs, strict=True)):
        for name, values in (("residuals", error), ("features", h)):
            if values.ndim != 2 or len(values) != len(total):
                raise BadInput(f"{name}[{repeat}]: shape {values.shape}, expected 2 dimensions and {len(total)} rows.")
        lengths = np.sqrt(_squared(error) * (1 + _squared(h)))
        if not np.isfinite(lengths).all():
            raise BadInput(f"training {repeat}: row {np.flatnonzero(~np.isfinite(lengths))[0]} of residuals or features is not finite.")
        total += lengths
    return (total / len(errors)).astype(np.float32)


def _repeats(values: Repeats) -> list[NDArray[Any]]:
    return [values] if isinstance(values, np.ndarray) and values.ndim != 3 else [np.asarray(one) for one in values]


def _squared(rows: NDArray[Any]) -> NDArray[np.float64]:
    return np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
