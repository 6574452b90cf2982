"""torch's fused optimisers as functions of plain buffers.

Its optimiser classes do the same, but constructing one imports the compiler (four seconds). Buffers exist
from the start: zeros give the same first step as torch's own lazy start, and a captured graph finds them in
place.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from winnow.tasks.train.recipe import Recipe

__all__ = ["Optimizer"]


class Optimizer:
    """The recipe's optimiser of these parameters: SGD, Adam or AdamW.

    Attributes:
        state: all buffers.
    """

    def __init__(self, parameters: list[nn.Parameter], recipe: Recipe) -> None:
        self._parameters = parameters
        zeros = [torch.zeros_like(p) for p in parameters]
        if recipe.optimizer == "sgd":
            self._buffers = {"momentum_buffer_list": zeros}
            rule = partial(sgd, momentum=recipe.momentum, nesterov=recipe.nesterov, dampening=0.0)
        else:
            self._buffers = {
                "exp_avgs": zeros,
                "exp_avg_sqs": [torch.zeros_like(p) for p in parameters],
                "state_steps": [torch.zeros((), device=p.device) for p in parameters],
            }
            decoupled = recipe.optimizer == "adamw"
            rule = partial(adam, max_exp_avg_sqs=[], amsgrad=False, decoupled_weight_decay=decoupled)
            rule = partial(rule, beta1=0.9, beta2=0.999, eps=1e-8)
        self._rule = partial(
            rule, weight_decay=recipe.weight_decay, maximize=False, foreach=False, fused=True
        )
        self.state = [buffer for buffers in self._buffers.values() for buffer in buffers]

    @torch.no_grad()
    def update(self, lr: Any) -> None:
        """Move the parameters that have a gradient; ``lr`` is a number or a tensor on their device."""
        grads = [p.grad for p in self._parameters]
        parameters, buffers = self._parameters, self._buffers
        if any(grad is None for grad in grads):
            used = [i for i, grad in enumerate(grads) if grad is not None]
            grads, parameters = [grads[i] for i in used], [parameters[i] for i in used]
            buffers = {name: [values[i] for i in used] for name, values in buffers.items()}
        self._rule(parameters, grads, **buffers, lr=lr)
