"""RecurrentGemma's block of a convolution and a recurrence (Griffin; De et al., 2024, section 2.4).

transformers keeps this block's states in the module itself, so the whole block is replaced.
"""

from __future__ import annotations

from typing import Any

import torch

from edgekit.families.causal.cache import Cache
from edgekit.families.causal.layers import Taps
from edgekit.families.causal.opaque import Opaque

CLASS = "RecurrentGemmaRecurrentBlock"


def block(
    self: Any,
    x: torch.Tensor,
    position_ids: torch.Tensor,
    layer: int,
    opaque: Opaque,
    cache: Cache | None,
) -> torch.Tensor:
    """The block ``self`` on ``x`` (b, L, channels); ``position_ids`` is (b or 1, L)."""
    gate = self.act_fn(self.linear_y(x))
    u = self.linear_x(x).transpose(1, 2)
    if cache is not None:
        u = cache.update_conv_state(u, layer, conv_kernel_size=self.conv1d_width)
    u = opaque.causal_conv1d_fn(u, Taps(self.conv_1d)).transpose(1, 2)
    y = _rg_lru(self.rg_lru, u, position_ids, opaque)
    result: torch.Tensor = self.linear_out(y * gate)
    return result


def _rg_lru(self: Any, x: torch.Tensor, position_ids: torch.Tensor, opaque: Opaque) -> torch.Tensor:
    """The recurrence with its gates, which the first position of a sequence resets."""
    first = (position_ids == 0)[..., None]
    input_gate = _gate(x, self.input_gate_weight, self.input_gate_bias)
    recurrent_gate = _gate(x, self.recurrent_gate_weight, self.recurrent_gate_bias)
    log_decay = -8.0 * recurrent_gate * torch.nn.functional.softplus(self.recurrent_param)
    scale = torch.sqrt(1 - torch.exp(2 * log_decay))
    scale = torch.where(first, torch.ones_like(scale), scale)
    decay = torch.where(first, torch.zeros_like(scale), torch.exp(log_decay))
    return opaque.griffin_scan(x * input_gate * scale, decay)


def _gate(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A sigmoid of a block-diagonal layer, ``weight`` (blocks, in, out)."""
    blocks = x.reshape(*x.shape[:2], weight.shape[0], 1, weight.shape[1])
    return torch.sigmoid(torch.matmul(blocks, weight).squeeze(3) + bias).reshape(x.shape)
