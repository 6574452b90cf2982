r"""A network in one file: an MLP-Mixer small enough for a CPU.

    WINNOW_PLUGINS=examples/mixer.py winnow run deepcore/digits -p training.network=mixer \
        -p training.lr=0.02 -p method=herding
"""

from __future__ import annotations

import torch
from torch import nn

from winnow.tasks.errors import BadInput
from winnow.tasks.registry import networks
from winnow.tasks.train.networks.base import Network

WIDTH, DEPTH = 64, 2


class Block(nn.Module):
    """Mixes patches, then channels, by perceptrons with skip connections; (n, patches, width) in and out."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.before_patches, self.before_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.patches = nn.Sequential(
            nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches)
        )
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.patches(self.before_patches(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.before_channels(x))


class Mixer(nn.Module):
    """Patches of a quarter of the side, mixed, then averaged; (n, C, H, H) to (n, width)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, WIDTH, size // 4, stride=size // 4)
        self.blocks = nn.Sequential(*(Block(16, WIDTH) for _ in range(DEPTH)), nn.LayerNorm(WIDTH))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.embed(images).flatten(2).transpose(1, 2)).mean(1)


def mixer(*, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False) -> Network:
    """MLP-Mixer of 16 patches and two blocks.

    Args:
        classes: outputs.
        channels: of the images.
        size: side of the images in pixels, a multiple of 4.
        pretrained: must be False.

    Returns:
        a network with ``features`` (n, 64).

    Raises:
        BadInput: a side that is not a multiple of 4, or ``pretrained``.

    >>> mixer(classes=10, channels=1, size=8)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])

    References:
        Tolstikhin et al., MLP-Mixer: An all-MLP Architecture for Vision, NeurIPS 2021.
    """
    if pretrained or size % 4:
        raise BadInput(
            f"mixer: pretrained = {pretrained}, size = {size}: it has no weights and needs a multiple of 4 "
            "pixels."
        )
    return Network(Mixer(channels, size), width=WIDTH, classes=classes)


networks.add("mixer", mixer)
