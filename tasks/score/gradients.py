"""Gradients of the loss: in the last layer (g_i = b_i ⊗ [h_i, 1], never written out) or in all; GraNd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.score.eval_mode import eval_mode

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "LastLayer",
    "Repeats",
    "batch_sizes",
    "grand",
    "grand_full",
    "mean_lengths",
    "residuals_of",
    "softmax",
]

CHUNK_NUMBERS = 2**26  # gradient entries held at a time: 256 MiB in float32


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Probabilities of logits (…, C); float32.

    >>> softmax(np.array([[0.0, 0.0]]))
    array([[0.5, 0.5]], dtype=float32)
    """
    shifted = np.exp(logits.astype(np.float32) - logits.max(axis=-1, keepdims=True).astype(np.float32))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def residuals_of(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Softmax minus one-hot: each sample's cross-entropy gradient in its logits; float32 (N, C).

    >>> residuals_of(np.array([[0.5, 0.5]]), np.array([0]))
    array([[-0.5,  0.5]], dtype=float32)
    """
    residuals = probabilities.astype(np.float32, copy=True)
    residuals[np.arange(len(labels)), labels] -= 1
    return residuals


@dataclass(frozen=True)
class LastLayer:
    """The last layer's gradients g_i = b_i ⊗ u_i with u_i = [h_i, 1], as their factors.

    Args:
        b: float32 (N, C), residuals.
        u: float32 (N, D + 1), features and bias.
        squared: float64 (N,), ‖g_i‖² = ‖b_i‖²‖u_i‖².
    """

    b: NDArray[np.float32]
    u: NDArray[np.float32]
    squared: NDArray[np.float64]

    @classmethod
    def of(cls, residuals: NDArray[Any], features: NDArray[Any]) -> LastLayer:
        """From residuals (N, C) and features (N, D).

        Raises:
            BadInput: a number beyond float32.

        >>> LastLayer.of(np.array([[3.0, -4.0]]), np.array([[2.0, 2.0]])).squared.tolist()
        [225.0]
        """
        for name, values in (("residuals", residuals), ("features", features)):
            if values.dtype.itemsize > 4 and values.dtype.kind == "f":
                beyond = (np.abs(values) > np.finfo(np.float32).max).any(axis=1)
                if beyond.any():
                    raise BadInput(f"{name}: row {int(beyond.argmax())} holds a number beyond float32.")
        b = np.ascontiguousarray(residuals, np.float32)
        u = np.ones((len(features), features.shape[1] + 1), np.float32)
        u[:, :-1] = features
        return cls(b, u, _squared(b) * _squared(u))


Repeats = NDArray[Any] | Sequence[NDArray[Any]]


def grand(residuals: Repeats, features: Repeats) -> NDArray[np.float32]:
    """GraNd: length of the loss's gradient in the last layer, averaged over trainings; long is hard.

    The gradient of the cross-entropy in a linear layer's weights and bias is g_i = b_i ⊗ [h_i, 1] with b_i =
    softmax(z_i) − onehot(y_i), so its length needs no backpropagation:

        ‖g_i‖ = ‖b_i‖ · √(1 + ‖h_i‖²)

    Args:
        residuals: b, float (N, C); for several trainings, a list of these or (R, N, C).
        features: h, the layer's input: float (N, D); for several trainings, a list or (R, N, D).

    Returns:
        float32 (N,).

    Raises:
        BadInput: shapes that do not fit, NaN or infinity.

    >>> grand(np.array([[0.6, -0.8]]), np.array([[2.0, 2.0]])).tolist()
    [3.0]

    References:
        Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet: Finding Important Examples Early in
        Training, NeurIPS 2021, definition 2.1.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/grand.py.

    Differences from upstream:
        The paper takes the gradient in all weights (:func:`grand_full`) and averages over 10 trainings early
        on; DeepCore takes the last layer, as here. DeepCore divides each gradient by the size of its batch,
        which makes the samples of a smaller last batch look harder: ``upstream=True`` does so, with batches
        of ``batch``.
    """
    return mean_lengths(residuals, features).astype(np.float32)


def mean_lengths(residuals: Repeats, features: Repeats) -> NDArray[np.float64]:
    """Mean of ‖g_i‖ = ‖b_i‖ · √(1 + ‖h_i‖²) over trainings, float64 (N,); Args as in :func:`grand`."""
    errors, inputs = _repeats(residuals), _repeats(features)
    if len(errors) != len(inputs) or not errors:
        raise BadInput(f"residuals of {len(errors)} trainings, features of {len(inputs)}.")
    total = np.zeros(len(errors[0]))
    for repeat, (error, h) in enumerate(zip(errors, inputs, strict=True)):
        for name, values in (("residuals", error), ("features", h)):
            if values.ndim != 2 or len(values) != len(total):
                raise BadInput(
                    f"{name}[{repeat}]: shape {values.shape}, expected 2 dimensions and {len(total)} rows."
                )
        lengths = np.sqrt(_squared(error) * (1 + _squared(h)))
        if not np.isfinite(lengths).all():
            raise BadInput(
                f"training {repeat}: row {np.flatnonzero(~np.isfinite(lengths))[0]} of residuals or features "
                "is not finite."
            )
        total += lengths
    return total / len(errors)


def grand_full(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, chunk: int | None = None
) -> NDArray[np.float32]:
    """GraNd as its paper defines it: length of the loss's gradient in all trainable parameters; long is hard.

        ‖∇_θ CE(f_θ(x_i), y_i)‖₂

    of one trained network in eval mode. The paper averages over trainings: call this for each and take the
    mean.

    Args:
        network: maps images to logits; left as it was. Parameters that do not require gradients count as
            constants.
        images: float (N, …), as the network takes them, on its device.
        labels: int (N,).
        chunk: samples whose gradients are held at a time; default as many as fit in 256 MiB. The result does
            not depend on it.

    Returns:
        float32 (N,).

    Raises:
        BadInput: labels that do not fit, no trainable parameter, or a gradient that is not finite.

    >>> import torch
    >>> network = torch.nn.Linear(2, 2)
    >>> _ = torch.nn.init.zeros_(network.weight), torch.nn.init.zeros_(network.bias)
    >>> grand_full(network, torch.tensor([[2.0, 2.0]]), torch.tensor([0])).round(4)  # √(2 · 0.5²) · √(1 + 8)
    array([2.1213], dtype=float32)

    Cost:
        One forward and one backward pass per sample, in chunks; memory: a chunk's samples times all
        parameters.

    References:
        Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet: Finding Important Examples Early in
        Training, NeurIPS 2021, definition 2.1.
    """
    import torch
    from torch.func import functional_call, grad, vmap

    if labels.shape != (len(images),) or labels.is_floating_point():
        raise BadInput(
            f"labels: shape {tuple(labels.shape)}, {labels.dtype}; expected {len(images)} integers."
        )
    parameters = {name: value.detach() for name, value in network.named_parameters() if value.requires_grad}
    if not parameters:
        raise BadInput("network: none of its parameters requires a gradient.")
    if chunk is None:
        chunk = max(1, CHUNK_NUMBERS // sum(value.numel() for value in parameters.values()))
    if chunk < 1:
        raise BadInput(f"chunk = {chunk}: there must be at least 1 sample in it.")

    def loss(weights: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        logits = functional_call(network, weights, (image[None],))
        return torch.nn.functional.cross_entropy(logits, label[None])

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))
    lengths = np.empty(len(images), np.float32)
    with eval_mode(network):
        for start in range(0, len(images), chunk):
            rows = slice(start, start + chunk)
            gradients = per_sample(parameters, images[rows], labels[rows].long())
            squared = sum(
                value.flatten(1).square().sum(1, dtype=torch.float64) for value in gradients.values()
            )
            lengths[rows] = torch.as_tensor(squared).sqrt().cpu().numpy()
    if not np.isfinite(lengths).all():
        raise BadInput(f"the gradient of row {np.flatnonzero(~np.isfinite(lengths))[0]} is not finite.")
    return lengths


def batch_sizes(n: int, batch: int) -> NDArray[np.int64]:
    """Size of the batch that each of n samples falls into, int64 (n,): the last one may be smaller.

    Raises:
        BadInput: ``batch`` below 1.

    >>> batch_sizes(5, 3).tolist()
    [3, 3, 3, 2, 2]
    """
    if batch < 1:
        raise BadInput(f"batch = {batch}: there must be at least 1 sample in it.")
    return np.minimum(batch, n - np.arange(n) // batch * batch)


def _repeats(values: Repeats) -> list[NDArray[Any]]:
    if isinstance(values, np.ndarray) and values.ndim != 3:
        return [values]
    return [np.asarray(training) for training in values]


def _squared(rows: NDArray[Any]) -> NDArray[np.float64]:
    return np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
