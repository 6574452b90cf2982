"""torchvision's networks, fitted to the images: another stem, no classifier, seeded dropout."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import nn

from winnow.tasks.train.networks.base import Network, pretrained_file

__all__ = ["Dropout", "fitted", "published", "refitted"]

_WORD = 0xFFFFFFFF


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """Bits of 32-bit integers (held as int64) spread evenly; two rounds of multiply and shift."""
    x = ((x >> 16) ^ x) * 0x45D9F3B & _WORD
    x = ((x >> 16) ^ x) * 0x45D9F3B & _WORD
    return (x >> 16) ^ x


class Dropout(nn.Module):
    """Dropout from a seed and a batch count, both buffers: y = x · m / (1 − p), m ~ Bernoulli(1 − p).

    torch's own draws from the process's generator, which concurrent runs would share and a resumed one could
    not restore. Here the mask of batch t is a hash of (seed, t, position): the same on every device,
    in a captured graph, and after a resume.

    Args:
        p: share of the values that become 0, in [0, 1).

    >>> drop = Dropout(0.5)
    >>> drop(torch.ones(1000)).unique().tolist(), drop.eval()(torch.ones(2)).tolist()
    ([0.0, 2.0], [1.0, 1.0])
    """

    seed: torch.Tensor
    batch: torch.Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("seed", torch.randint(1 << 31, ()))
        self.register_buffer("batch", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        self.batch += 1
        key = _mixed(self.seed ^ _mixed(self.batch & _WORD))
        bits = _mixed(torch.arange(x.numel(), device=x.device) ^ key)
        keep = (bits >= round(self.p * (_WORD + 1))).view(x.shape)
        return x * keep / (1 - self.p)


def published(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """torchvision's network of that name, with its default ImageNet weights if ``pretrained``.

    Raises:
        MissingData: the weights file is not on this machine.
    """
    body = torchvision.models.get_model(name, weights=None, **options)
    if pretrained:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        file = pretrained_file(weights.url.rpartition("/")[2], weights.url)
        state = torch.load(file, map_location="cpu", weights_only=True)
        # Inception's second classifier is not built
        body.load_state_dict({key: value for key, value in state.items() if not key.startswith("AuxLogits.")})
    return body


def refitted(
    conv: nn.Conv2d, *, channels: int, stride: int | None = None, padding: int | None = None
) -> nn.Conv2d:
    """A fresh convolution like ``conv`` on other channels, or with another stride or padding.

    >>> refitted(nn.Conv2d(3, 8, 3, stride=2), channels=1, padding=1)
    Conv2d(1, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    """
    return nn.Conv2d(
        channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride if stride is None else stride,  # type: ignore[arg-type]
        padding=conv.padding if padding is None else padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )


def fitted(body: nn.Module, *, classes: int, channels: int, **stem: int) -> Network:
    """A published network as one of ours: first convolution refitted if needed, last linear layer the head.

    Args:
        body: from torchvision; changed in place.
        classes: outputs.
        channels: of the images.
        stem: ``stride`` and ``padding`` of the first convolution where they differ.
    """
    name, first = next(
        (name, module) for name, module in body.named_modules() if isinstance(module, nn.Conv2d)
    )
    if stem or channels != first.in_channels:
        body.set_submodule(name, refitted(first, channels=channels, **stem))
    *_, (name, last) = (
        (name, module) for name, module in body.named_modules() if isinstance(module, nn.Linear)
    )
    body.set_submodule(name, nn.Identity())
    for name, module in list(body.named_modules()):
        if isinstance(module, nn.Dropout):
            body.set_submodule(name, Dropout(module.p))
    return Network(body, width=last.in_features, classes=classes)
