"""Attention of causal layers as ``edgekit::causal_attention``, and the masks that say so.

transformers' functions make a mask from sizes; ours say in two words what it is, so that no mask
is built in the graph, and an attention that gets any other mask is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from edgekit.errors import EdgekitError
from edgekit.families.causal.cache import Cache
from edgekit.operators.causal_attention import causal_attention

NAME = "edgekit"
#: Arguments of an attention that do not change what it computes.
HARMLESS = frozenset(
    "dropout position_ids cache_position use_cache sliding_window is_causal output_attentions "
    "output_hidden_states output_router_logits num_items_in_batch return_dict position_embeddings "
    "past_key_values cache_params logits_to_keep".split()
)
MASKS = (
    "create_causal_mask",
    "create_sliding_window_causal_mask",
    "create_chunked_causal_mask",
    "create_recurrent_attention_mask",
)


@dataclass(frozen=True)
class Mask:
    """Each token sees itself and those before it.

    Attributes:
        window: how many of them, itself included; None is all.
    """

    window: int | None = None


class Attention:
    """The attention and the masks of one call of a model.

    Args:
        cache: to be told how far back an attention sees.
    """

    def __init__(self, cache: Cache | None) -> None:
        self._cache = cache

    def create_causal_mask(self, config: Any, *_: Any, **options: Any) -> Mask:
        """All before."""
        _plain("create_causal_mask", options)
        return Mask()

    def create_sliding_window_causal_mask(self, config: Any, *_: Any, **options: Any) -> Mask:
        """As many as the configuration's ``sliding_window``."""
        _plain("create_sliding_window_causal_mask", options)
        return Mask(config.sliding_window)

    def create_chunked_causal_mask(self, *_: Any, **options: Any) -> Mask:
        """An error: the operator has no chunks."""
        raise _unknown("attention in chunks")

    def create_recurrent_attention_mask(self, *_: Any, **options: Any) -> None:
        """None: no token is padding."""

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Mask,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """As transformers' attention functions: (b, h, T, k) and (b, g, S, ...) to (b, T, h, v).

        Raises:
            EdgekitError: with a soft cap, sinks, another mask, or what else the operator has not.
        """
        where = f"layer {getattr(module, 'layer_idx', '')} ({type(module).__name__})"
        if not isinstance(attention_mask, Mask):
            raise _unknown(f"a mask of its own in {where}")
        for name, given in options.items():
            if name not in HARMLESS and given is not None and given is not False:
                raise _unknown(f"{name} in {where}")
        if options.get("is_causal") is False:
            raise _unknown(f"attention to later tokens in {where}")
        if self._cache is not None:
            self._cache.read(attention_mask.window)
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        y = causal_attention(query, key, value, scale, attention_mask.window)
        return y.transpose(1, 2), None


def _plain(function: str, options: dict[str, Any]) -> None:
    for name in ("or_mask_function", "and_mask_function", "block_sequence_ids"):
        if options.get(name) is not None:
            raise _unknown(f"{name} in {function}")


def _unknown(what: str) -> EdgekitError:
    return EdgekitError(
        f"The model has {what}, which edgekit::causal_attention has not.",
        "Left out, the model would compute something else.",
        "Keep transformers' own attention with --set attn_implementation=sdpa (mode whole).",
    )
