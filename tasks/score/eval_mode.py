"""A network in eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["eval_mode"]


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """The network in eval mode; afterwards each of its modules is as before.

    >>> import torch
    >>> network = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    >>> with eval_mode(network):
    ...     [module.training for module in network]
    [False, False]
    >>> [module.training for module in network]
    [True, False]
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
