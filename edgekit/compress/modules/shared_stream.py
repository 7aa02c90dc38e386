"""Shared stream: a dual-stream block whose image branch's weights serve text and image alike.

With z the tokens of both streams as one sequence, text first, and (shift, scale, gate) twice from
the block's modulation of the conditioning,

    z <- z + gate1 W_o attention(Q n, K n, V n),   n = (1 + scale1) norm1(z) + shift1
    z <- z + gate2 MLP((1 + scale2) norm2(z) + shift2)

then split again, so that blocks of both kinds follow one another in any order. It is the dual block
of diffusers with the text branch's weights set to the image branch's, in half the products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Where the parts of the image branch are in each dual-stream block of diffusers.
BRANCHES = {
    "QwenImageTransformerBlock": {
        "silu": "img_mod.0",
        "modulation": "img_mod.1",
        "norm1": "img_norm1",
        "attn": "attn",
        "norm2": "img_norm2",
        "mlp": "img_mlp",
    },
    "FluxTransformerBlock": {
        "silu": "norm1.silu",
        "modulation": "norm1.linear",
        "norm1": "norm1.norm",
        "attn": "attn",
        "norm2": "norm2",
        "mlp": "ff",
    },
}
BRANCHES["JointTransformerBlock"] = BRANCHES["FluxTransformerBlock"]
#: Layers of diffusers' attention that are the text branch's own.
TEXT_LAYERS = "add_q_proj add_k_proj add_v_proj to_add_out norm_added_q norm_added_k".split()

Turn = Callable[[Tensor], Any]


class SharedStream(nn.Module):
    """What the blocks of all models have in common; each has diffusers' own ``forward``.

    Args:
        block: the class of the dual-stream block that it stands for.
        last: it gives no text, as nothing after it takes any.
    """

    silu: nn.Module
    modulation: nn.Module
    norm1: nn.Module
    attn: Any
    norm2: nn.Module
    mlp: nn.Module

    def __init__(self, block: str, last: bool) -> None:
        super().__init__()
        self.block, self.last = block, last

    def arguments(self) -> dict[str, Any]:
        """What it is made of."""
        return {"block": self.block, "last": self.last}

    def run(
        self,
        image: Tensor,
        text: Tensor,
        temb: Tensor,
        turn: Turn,
        mask: Tensor | None = None,
        index: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """(text, image) after the block.

        Args:
            image, text: (b, tokens, width).
            temb: the conditioning (b, width); with ``index``, of both kinds of tokens (2b, width).
            turn: gives queries and keys (b, tokens, heads, width) their positions.
            mask: of text (b, tokens), False at padding.
            index: 0 or 1 for each token (b, tokens), which conditioning is its own.
        """
        length = text.shape[1]
        tokens = torch.cat([text, image], 1)
        parts = self.modulation(self.silu(temb)).chunk(6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = (_by_token(each, index) for each in parts)
        mixed = self._attend(self.norm1(tokens) * (1 + scale1) + shift1, turn, mask)
        tokens = tokens + gate1 * mixed
        if self.last:  # what the text becomes is not asked for
            tokens = tokens[:, length:]
        tokens = tokens + gate2 * self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)
        return (None, tokens) if self.last else (tokens[:, :length], tokens[:, length:])

    def _attend(self, tokens: Tensor, turn: Turn, mask: Tensor | None) -> Tensor:
        """Attention among all tokens (b, tokens, width), with the output projection."""
        attn = self.attn
        query, key, value = (
            project(tokens).unflatten(-1, (attn.heads, -1))
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        query, key, value = (each.transpose(1, 2) for each in (turn(query), turn(key), value))
        if mask is not None:
            mask = F.pad(mask, (0, tokens.shape[1] - mask.shape[1]), value=True)[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        y: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return y


class QwenImage(SharedStream):
    """In Qwen-Image's place: positions are complex numbers, and text may be padded."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        modulate_index: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """(text, image)."""
        from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen

        def turn(heads: Tensor) -> Any:
            if image_rotary_emb is None:
                return heads
            image, text = image_rotary_emb
            return apply_rotary_emb_qwen(heads, torch.cat([text, image]), use_real=False)

        _check(joint_attention_kwargs)
        if modulate_index is not None:
            text_tokens = encoder_hidden_states.shape[1]
            modulate_index = F.pad(modulate_index, (text_tokens, 0))
        return self.run(
            hidden_states,
            encoder_hidden_states,
            temb,
            turn,
            encoder_hidden_states_mask,
            modulate_index,
        )


class Flux(SharedStream):
    """In FLUX's place: positions are angles of text and image together."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """(text, image)."""
        from diffusers.models.embeddings import apply_rotary_emb

        def turn(heads: Tensor) -> Any:
            if image_rotary_emb is None:
                return heads
            angles: Any = image_rotary_emb
            return apply_rotary_emb(heads, angles, sequence_dim=1)

        _check(joint_attention_kwargs)
        return self.run(hidden_states, encoder_hidden_states, temb, turn)


class StableDiffusion3(SharedStream):
    """In Stable Diffusion 3's place: positions are in the image's tokens."""

    @property
    def context_pre_only(self) -> bool:
        """What the model asks its blocks for."""
        return self.last

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """(text, image); the last block gives None for text."""
        _check(joint_attention_kwargs)
        return self.run(hidden_states, encoder_hidden_states, temb, _as_is)


_CLASSES: dict[str, type[SharedStream]] = {
    "QwenImageTransformerBlock": QwenImage,
    "FluxTransformerBlock": Flux,
    "JointTransformerBlock": StableDiffusion3,
}


def make(block: str, last: bool) -> SharedStream:
    """One without its layers; see ``merged``."""
    return _CLASSES[block](block, last)


def merged(dual: nn.Module) -> SharedStream:
    """A dual-stream block's image branch as a block for both streams.

    Takes the branch's layers over; the text branch's are left behind.

    Args:
        dual: of a class in ``BRANCHES``.
    """
    name = type(dual).__name__
    made = make(name, bool(getattr(dual, "context_pre_only", False)))
    for part, path in BRANCHES[name].items():
        setattr(made, part, dual.get_submodule(path))
    for layer in TEXT_LAYERS:
        made.attn._modules.pop(layer, None)
    return made.train(dual.training)


def _by_token(value: Tensor, index: Tensor | None) -> Tensor:
    """(b, width) for all tokens, or of (2b, width) each token's own, (b, tokens, width)."""
    if index is None:
        return value[:, None]
    first, second = value.chunk(2)
    return torch.where(index[..., None] == 0, first[:, None], second[:, None])


def _as_is(heads: Tensor) -> Tensor:
    return heads


def _check(joint_attention_kwargs: dict[str, Any] | None) -> None:
    if joint_attention_kwargs:
        raise ValueError(
            f"A merged block takes no {', '.join(joint_attention_kwargs)}: "
            "adapters of attention belong to dual-stream blocks."
        )
