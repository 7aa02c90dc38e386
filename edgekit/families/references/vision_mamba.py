"""Vision Mamba (Zhu et al., 2024): patches, scanned from both ends, and one token that classifies.

    tokens = tokens + Gated(BothWays)(RMSNorm(tokens))                       in every block

The class token stands in the middle, so that each scan has seen half of the image when it
reaches it; with ``pool=mean`` the mean of all tokens classifies instead. A patch may be a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.errors import EdgekitError
from edgekit.families.references import images
from edgekit.families.references.selective import BothWays, Gated
from edgekit.model import Model

POOLS = ("middle", "mean")


@dataclass(frozen=True)
class Config:
    """The size of the model; by default Vim-Ti.

    Attributes:
        image_size, patch: (height, width) in pixels.
        mean, std: of the images, a number a channel.
        width, depth, state: of a token, in blocks, of a channel.
        pool: what classifies, ``middle`` (a token of its own) or ``mean``.
    """

    image_size: tuple[int, int] = (224, 224)
    patch: tuple[int, int] = (16, 16)
    classes: int = 1000
    width: int = 192
    depth: int = 24
    state: int = 16
    pool: str = "middle"
    mean: tuple[float, ...] = images.MEAN
    std: tuple[float, ...] = images.STD


class Block(nn.Module):
    """Tokens (b, length, width), and what the scans of both ways add to them."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.mixer = Gated(width, 2 * width, BothWays(2 * width, state))

    def forward(self, tokens: Tensor) -> Tensor:
        """As the class says."""
        added: Tensor = self.mixer(self.norm(tokens))
        return tokens + added


class VisionMamba(nn.Module):
    """Images (b, channels, height, width) to logits (b, classes)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        down, across = images.grid(config.image_size, config.patch)
        self.middle = down * across // 2 if config.pool == "middle" else None
        width, count = config.width, down * across + (config.pool == "middle")
        self.embed = nn.Conv2d(len(config.mean), width, config.patch, config.patch)
        self.position = nn.Parameter(torch.randn(count, width) * 0.02)
        if self.middle is not None:
            self.token = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, config.state) for _ in range(config.depth)))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        if self.middle is not None:
            own = self.token.expand(x.shape[0], 1, -1)
            tokens = torch.cat([tokens[:, : self.middle], own, tokens[:, self.middle :]], 1)
        tokens = self.blocks(tokens + self.position)
        pooled = tokens.mean(1) if self.middle is None else tokens[:, self.middle]
        logits: Tensor = self.head(self.norm(pooled))
        return logits


def make(config: Config) -> Model:
    """The model, untrained."""
    if config.pool not in POOLS:
        raise EdgekitError(
            f"vision_mamba has no pool {config.pool!r}.", "", f"It knows {' and '.join(POOLS)}."
        )
    return images.classifier(VisionMamba(config), config.image_size, config.mean, config.std)
