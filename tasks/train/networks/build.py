"""Registered networks with weights drawn from a seed."""

from __future__ import annotations

from typing import Any

from torch import nn

from winnow.tasks.hardware import borrowed_generator, torch_generator
from winnow.tasks.registry import networks

__all__ = ["build"]


def build(name: str, *, seed: int, pretrained: bool = False, **shape: Any) -> nn.Module:
    """The registered network of that name with weights drawn from ``seed``, on the CPU.

    Args:
        name: of the network.
        seed: of its weights.
        pretrained: start from pretrained weights instead.
        shape: what it is built for; ``classes``, ``channels`` and ``size`` for image networks.

    Raises:
        UnknownName: no such network.

    >>> import torch
    >>> one, other = (build("mlp", classes=3, channels=1, size=4, seed=0) for _ in range(2))
    >>> all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    True
    """
    entry = networks.get(name)
    with borrowed_generator(torch_generator(seed, "init").initial_seed()):
        return entry(**shape, pretrained=pretrained)
