"""What takes the place of transformers' functions while a model is traced.

Each has the name and the arguments of the function whose place it takes, and computes the same
from our operators; what is not the recurrence itself stays in plain PyTorch. Shapes are those of
``edgekit.operators``: b batch, L length, d channels, n states, h heads, g groups of heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from edgekit.errors import EdgekitError
from edgekit.families.causal.cache import Cache
from edgekit.families.causal.layers import Taps
from edgekit.operators import gated_delta, linear_scan, mamba_scan, ssd


class Opaque:
    """The functions of one call of a model; those in ``NAMES`` are put in transformers' place.

    Args:
        cache: where states come from and go to; None starts from zero and keeps none.
    """

    NAMES = (
        "causal_conv1d_fn",
        "mamba_selective_scan",
        "mamba2_chunk_scan",
        "torch_chunk_gated_delta_rule",
    )

    def __init__(self, cache: Cache | None) -> None:
        self._cache = cache

    def causal_conv1d_fn(
        self,
        hidden_states: torch.Tensor,
        weight: Taps,
        bias: torch.Tensor | None = None,
        activation: str | None = None,
        **others: Any,
    ) -> torch.Tensor:
        """A depthwise convolution (b, d, L) over what came before, zero before the first."""
        _not_packed("causal_conv1d_fn", others)
        x = hidden_states
        if self._cache is None or not self._cache.is_prefixed(x):
            x = F.pad(x, (weight.size - 1, 0))
        return _activated(weight.convolve(x), activation)

    def mamba_selective_scan(
        self,
        hidden_states: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor | None = None,
        z: torch.Tensor | None = None,
        delta_bias: torch.Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
        use_mambapy: bool = False,
        use_associative_scan: bool = False,
        **others: Any,
    ) -> Any:
        """Mamba's scan. ``hidden_states``, ``dt`` and ``z`` are (b, d, L), ``B`` and ``C``
        (b, n, L); returns (b, d, L), and the last state where it is asked for."""
        _not_packed("mamba_selective_scan", others)
        x, delta, B, C = (value.transpose(1, 2) for value in (hidden_states, dt, B, C))
        if delta_bias is not None:
            delta = delta + delta_bias
        if delta_softplus:
            delta = F.softplus(delta)
        name, state = self._start(x, (x.shape[0], A.shape[1], x.shape[2]))
        y, last = mamba_scan.mamba_scan(x, delta, A, B, C, state)
        self._end(name, last)
        if D is not None:
            y = y + x * D
        if z is not None:
            y = y * F.silu(z.transpose(1, 2))
        y = y.transpose(1, 2)
        return (y, last) if return_last_state else y

    def mamba2_chunk_scan(
        self,
        hidden_states: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        chunk_size: int = 0,
        D: torch.Tensor | None = None,
        dt_bias: torch.Tensor | None = None,
        initial_states: None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        return_final_states: bool = False,
        **others: Any,
    ) -> Any:
        """Mamba-2's scan. ``hidden_states`` is (b, L, h, p), ``dt`` (b, L, h), ``B`` and ``C``
        (b, L, g, n); returns (b, L, h, p), and the last state where it is asked for."""
        _not_packed("mamba2_chunk_scan", others)
        x, delta = hidden_states, dt
        if dt_bias is not None:
            delta = delta + dt_bias
        if dt_softplus:
            delta = F.softplus(delta)
        if not (dt_softplus and dt_limit[0] <= 0 and dt_limit[1] == math.inf):
            delta = torch.clamp(delta, dt_limit[0], dt_limit[1])
        name, state = self._start(x, (x.shape[0], x.shape[2], B.shape[3], x.shape[3]))
        y, last = ssd.ssd(x * delta[..., None], delta * A, B, C, state)
        self._end(name, last)
        if D is not None:
            y = y + x * D[:, None]
        return (y, last) if return_final_states else y

    def torch_chunk_gated_delta_rule(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        chunk_size: int = 0,
        initial_state: None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gated delta rule. ``query`` and ``key`` are (b, L, g, k), ``value`` (b, L, h, v),
        ``g`` (a decay) and ``beta`` (b, L, h); returns (b, L, h, v) and the last state."""
        _not_packed("torch_chunk_gated_delta_rule", others)
        if use_qk_l2norm_in_kernel:
            query, key = _unit(query), _unit(key)
        query = query * query.shape[-1] ** -0.5
        shared = value.shape[2] // key.shape[2]
        if shared > 1:
            query, key = (t.repeat_interleave(shared, dim=2) for t in (query, key))
        shape = (value.shape[0], value.shape[2], key.shape[3], value.shape[3])
        name, state = self._start(value, shape)
        y, last = gated_delta.gated_delta(query, key, value, g, beta, state)
        self._end(name, last)
        return y, last

    def griffin_scan(self, x: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        """Griffin's recurrence of independent channels; both (b, L, d)."""
        name, state = self._start(x, (x.shape[0], x.shape[2]))
        y: torch.Tensor
        y, last = linear_scan.linear_scan(x, decay, state)
        self._end(name, last)
        return y

    def _start(self, like: torch.Tensor, shape: tuple[int, ...]) -> tuple[str, torch.Tensor]:
        return (
            self._cache.scan(like, shape)
            if self._cache is not None
            else ("", like.new_zeros(shape))
        )

    def _end(self, name: str, state: torch.Tensor) -> None:
        if self._cache is not None:
            self._cache.after[name] = state


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Of norm 1, as transformers' ``l2norm``."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def _activated(x: torch.Tensor, name: str | None) -> torch.Tensor:
    from transformers.activations import ACT2FN

    result: torch.Tensor = x if name is None else ACT2FN[name](x)
    return result


def _not_packed(function: str, others: dict[str, Any]) -> None:
    """Several sequences in one are told apart by arguments that must not be passed over."""
    given = [name for name in ("seq_idx", "cu_seqlens") if others.get(name) is not None]
    if given:
        raise EdgekitError(
            f"{function} is called with {given[0]}: several sequences packed into one.",
            "Its state would leak from one to the next.",
            "Export the model for one sequence in a row of the batch.",
        )
