"""torch's fused optimisers as functions of plain buffers.

Its optimiser classes do the same, but constructing one imports the compiler (four seconds). Buffers exist
from the start: zeros give the same first step as torch's own lazy start, and a captured graph finds them in
place.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from winnow.tasks.train.recipe import Recipe

__all__ = ["Optimizer", "optimizer_of"]


class Optimizer(Protocol):
    state: list[torch.Tensor]

    def update(self, lr: Any) -> None:
        """Move the parameters that have a gradient; ``lr`` is a number or a tensor on their device."""


class _Sgd:
    def __init__(self, parameters: list[nn.Parameter], recipe: Recipe) -> None:
        self.parameters = parameters
        self.state = [torch.zeros_like(p) for p in parameters]
        self.options: dict[str, Any] = {
            "momentum": recipe.momentum,
            "nesterov": recipe.nesterov,
            "weight_decay": recipe.weight_decay,
        }

    @torch.no_grad()
    def update(self, lr: Any) -> None:
        used = [
            (p, p.grad, m) for p, m in zip(self.parameters, self.state, strict=True) if p.grad is not None
        ]
        parameters, grads, momenta = (list(group) for group in zip(*used, strict=True))
        sgd(
            parameters,
            grads,
            momenta if self.options["momentum"] else [],
            lr=lr,
            dampening=0.0,
            maximize=False,
            has_sparse_grad=False,
            foreach=False,
            fused=True,
            **self.options,
        )


class _Adam:
    """Adam, or AdamW."""

    def __init__(self, parameters: list[nn.Parameter], recipe: Recipe) -> None:
        self.parameters = parameters
        self._means, self._squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        self._steps = [torch.zeros((), device=p.device) for p in parameters]
        self.state = [*self._means, *self._squares, *self._steps]
        self.options: dict[str, Any] = {
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": recipe.weight_decay,
            "decoupled_weight_decay": recipe.optimizer == "adamw",
        }

    @torch.no_grad()
    def update(self, lr: Any) -> None:
        state = zip(self.parameters, self._means, self._squares, self._steps, strict=True)
        used = [(p, p.grad, mean, square, step) for p, mean, square, step in state if p.grad is not None]
        parameters, grads, means, squares, steps = (list(group) for group in zip(*used, strict=True))
        adam(
            parameters,
            grads,
            means,
            squares,
            [],
            steps,
            lr=lr,
            amsgrad=False,
            maximize=False,
            foreach=False,
            fused=True,
            **self.options,
        )


def optimizer_of(parameters: list[nn.Parameter], recipe: Recipe) -> Optimizer:
    """The recipe's optimiser of these parameters."""
    return _Sgd(parameters, recipe) if recipe.optimizer == "sgd" else _Adam(parameters, recipe)
