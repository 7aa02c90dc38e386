"""MambaMixer (Behrouz, Santacatterina and Zabih, 2024): tokens and channels mixed in turns.

With y_T(0) = y_C(0) = x, block l of the stack computes, with learned weights a, b, c and d,

    y_T(l) = TokenMixer(  sum_{i<l}  a[l,i] y_T(i)  +  sum_{i<l} b[l,i] y_C(i))
    y_C(l) = ChannelMixer(sum_{0<i<=l} c[l,i] y_T(i) + sum_{i<l} d[l,i] y_C(i))

There is no other residual connection. The weights of each sum start as those of the mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from edgekit.families.references.selective import BothWays, Gated


class AcrossChannels(nn.Module):
    """The scan over a token's channels, both ways; the tokens are its features."""

    def __init__(self, tokens: int, state: int) -> None:
        super().__init__()
        self.scan = BothWays(tokens, state)

    def forward(self, x: Tensor) -> Tensor:
        """(b, tokens, channels) to the same shape."""
        y: Tensor = self.scan(x.transpose(1, 2)).transpose(1, 2)
        return y


def channel_mixer(tokens: int, width: int, state: int) -> Gated:
    """The selective channel mixer: as many channels are scanned as there are."""
    return Gated(width, width, AcrossChannels(tokens, state))


class WeightedSum(nn.Module):
    """sum_i weight[i] values[i]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((count,), 1 / count))

    def forward(self, values: Sequence[Tensor]) -> Tensor:
        """All values are of one shape."""
        weighted = [w * v for w, v in zip(self.weight.unbind(), values, strict=True)]
        return torch.stack(weighted).sum(0)


class MambaMixer(nn.Module):
    """A stack of blocks; tokens (b, length, width) to the same shape, y_C of the last block."""

    def __init__(self, token_mixers: Iterable[nn.Module], channel_mixers: Iterable[nn.Module]):
        super().__init__()
        self.token_mixers = nn.ModuleList(token_mixers)
        self.channel_mixers = nn.ModuleList(channel_mixers)
        blocks = range(1, len(self.token_mixers) + 1)
        self.into_token = nn.ModuleList(WeightedSum(2 * block) for block in blocks)
        self.into_channel = nn.ModuleList(WeightedSum(2 * block) for block in blocks)

    def forward(self, x: Tensor) -> Tensor:
        """The equations above."""
        by_token, by_channel = [x], [x]
        for token_mixer, channel_mixer, into_token, into_channel in zip(
            self.token_mixers, self.channel_mixers, self.into_token, self.into_channel, strict=True
        ):
            by_token.append(token_mixer(into_token([*by_token, *by_channel])))
            by_channel.append(channel_mixer(into_channel([*by_token[1:], *by_channel])))
        return by_channel[-1]
