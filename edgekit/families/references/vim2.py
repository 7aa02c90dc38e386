"""ViM2, MambaMixer's image model (Behrouz, Santacatterina and Zabih, 2024).

Patches go through stages of MambaMixer blocks, each stage on a grid of half the height and width.
Tokens are scanned along rows and along columns, each both ways; channels in two directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import EdgekitError
from edgekit.families.references import images
from edgekit.families.references.mixing import MambaMixer, channel_mixer
from edgekit.families.references.selective import Gated, SelectiveScan
from edgekit.model import Model


@dataclass(frozen=True)
class Config:
    """The size of the model.

    Attributes:
        image_size, patch: (height, width) in pixels.
        widths, depths: of each stage's tokens, in blocks.
        state: of a channel.
        mean, std: of the images, a number a channel.
    """

    image_size: tuple[int, int] = (224, 224)
    patch: tuple[int, int] = (4, 4)
    classes: int = 1000
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 5, 2)
    state: int = 16
    mean: tuple[float, ...] = images.MEAN
    std: tuple[float, ...] = images.STD


class FourWays(nn.Module):
    """A 3x3 convolution over the grid, SiLU, and the sum of scans in four directions."""

    def __init__(self, grid: tuple[int, int], width: int, state: int) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.scans = nn.ModuleList(SelectiveScan(width, state) for _ in range(4))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (b, height * width, channels), row by row, to the same shape."""
        image = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *self.grid)
        x = F.silu(self.conv(image))
        rows = x.flatten(2).transpose(1, 2)
        columns = x.transpose(2, 3).flatten(2).transpose(1, 2)
        right, left, down, up = self.scans
        by_row = right(rows) + left(rows.flip(1)).flip(1)
        by_column = down(columns) + up(columns.flip(1)).flip(1)
        turned = by_column.unflatten(1, self.grid[::-1]).transpose(1, 2).flatten(1, 2)
        y: Tensor = self.norm(by_row + turned)
        return y


class Stage(nn.Module):
    """Merge patches into tokens of this stage's width, and mix them."""

    def __init__(
        self, source: int, patch: tuple[int, int], grid: tuple[int, int],
        width: int, depth: int, state: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.merge = nn.Conv2d(source, width, patch, patch)
        self.grid = grid

        def normed(mixer: nn.Module) -> nn.Module:
            return nn.Sequential(nn.LayerNorm(width), mixer)

        self.mixer = MambaMixer(
            [
                normed(Gated(width, 2 * width, FourWays(grid, 2 * width, state)))
                for _ in range(depth)
            ],
            [normed(channel_mixer(math.prod(grid), width, state)) for _ in range(depth)],
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, height, width) to the same form, smaller."""
        tokens = self.mixer(self.merge(x).flatten(2).transpose(1, 2))
        y: Tensor = tokens.transpose(1, 2).unflatten(2, self.grid)
        return y


class ViM2(nn.Module):
    """Images (b, channels, height, width) to logits (b, classes)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, patch, source = config.image_size, config.patch, len(config.mean)
        self.stages = nn.ModuleList()
        for width, depth in zip(config.widths, config.depths, strict=True):
            size = images.grid(size, patch)
            self.stages.append(Stage(source, patch, size, width, depth, config.state))
            patch, source = (2, 2), width
        self.norm = nn.LayerNorm(source)
        self.head = nn.Linear(source, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(self.norm(x.flatten(2).mean(2)))
        return logits


def make(config: Config) -> Model:
    """The model, untrained."""
    if len(config.widths) != len(config.depths):
        raise EdgekitError(
            f"vim2 has {len(config.widths)} widths and {len(config.depths)} depths.",
            "",
            "Give one of each for every stage.",
        )
    return images.classifier(ViM2(config), config.image_size, config.mean, config.std)
