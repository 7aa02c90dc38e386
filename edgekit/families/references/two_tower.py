"""Two towers of their own widths and numbers of tokens that read each other in every block.

The pattern of LTX-2's video and audio streams, in its plainest form. With n a LayerNorm, block by
block and for both towers x and y alike,

    x' = x + Attention(n(x), n(x))
    x  = x' + Attention(n(x'), n(y'))          y' being what the other tower has at this point
    x  = x + MLP(n(x))

where Attention(a, b) takes its queries from a, its keys and values from b. The tokens are
projected into a tower at its start and out of it at its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import EdgekitError
from edgekit.model import Input, Model

TOWERS = ("video", "audio")


@dataclass(frozen=True)
class Config:
    """The size of the model; what is a pair is of the video and of the audio tower.

    Attributes:
        tokens: of a sample.
        features: of a token, given and predicted.
        widths: of a token inside.
        heads: of every attention.
        depth: blocks.
    """

    tokens: tuple[int, int] = (256, 64)
    features: tuple[int, int] = (32, 16)
    widths: tuple[int, int] = (192, 128)
    heads: int = 4
    depth: int = 4


class Attention(nn.Module):
    """Queries of one width, keys and values of another; as wide as the queries inside."""

    def __init__(self, width: int, read: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(read, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, read: Tensor) -> Tensor:
        """(b, tokens, width) and (b, others, read) to (b, tokens, width)."""
        q = self._split(self.query(x))
        k, v = (self._split(part) for part in self.key_value(read).chunk(2, -1))
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(b, tokens, width) to (b, heads, tokens, width / heads)."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Half(nn.Module):
    """One tower's half of a block."""

    def __init__(self, width: int, other: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.inner = Attention(width, width, heads)
        self.cross = Attention(width, other, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def alone(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x' of the equations, and n(x') for both towers."""
        own = self.norms[0](x)
        x = x + self.inner(own, own)
        return x, self.norms[1](x)

    def together(self, x: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """The rest of the block, from x', n(x') and n(y')."""
        x = x + self.cross(own, other)
        y: Tensor = x + self.mlp(self.norms[2](x))
        return y


class Block(nn.Module):
    """Both towers' halves."""

    def __init__(self, widths: tuple[int, int], heads: int) -> None:
        super().__init__()
        self.video = Half(widths[0], widths[1], heads)
        self.audio = Half(widths[1], widths[0], heads)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The equations above, for both at once."""
        (x, seen), (y, heard) = self.video.alone(x), self.audio.alone(y)
        return self.video.together(x, seen, heard), self.audio.together(y, heard, seen)


class TwoTower(nn.Module):
    """(b, tokens, features) of both towers to tensors of the same shapes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, features = config.widths, config.features
        pairs = list(zip(widths, features, strict=True))
        self.enter = nn.ModuleList(nn.Linear(feature, width) for width, feature in pairs)
        self.position = nn.ParameterList(
            torch.randn(count, width) * 0.02
            for count, width in zip(config.tokens, widths, strict=True)
        )
        self.blocks = nn.ModuleList(Block(widths, config.heads) for _ in range(config.depth))
        self.leave = nn.ModuleList(nn.Linear(width, feature) for width, feature in pairs)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """As the class says."""
        x = self.enter[0](video) + self.position[0]
        y = self.enter[1](audio) + self.position[1]
        for block in self.blocks:
            x, y = block(x, y)
        return self.leave[0](x), self.leave[1](y)


def make(config: Config) -> Model:
    """The model, untrained."""
    for name, width in zip(TOWERS, config.widths, strict=True):
        if width % config.heads:
            raise EdgekitError(
                f"two_tower: the {name} tower's width {width} is not divided by its "
                f"{config.heads} heads.",
                "",
                "Choose --set widths=[192,128] and --set heads=4, or others that are.",
            )
    sizes = zip(TOWERS, config.tokens, config.features, strict=True)
    inputs = tuple(Input(name, (1, count, features)) for name, count, features in sizes)
    outputs = ("video_out", "audio_out")
    streams = tuple((name, name) for name in TOWERS)
    return Model(TwoTower(config).eval(), inputs, outputs, "", streams=streams)
