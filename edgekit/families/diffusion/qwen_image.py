"""Qwen-Image: dual blocks throughout, positions as complex numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from edgekit.model import Input

CLASS = "QwenImageTransformer2DModel"
OUTPUTS = ("sample",)


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """An image of 1024 x 1024: ``height`` and ``width`` in tokens of 16 x 16 pixels."""
    return {"height": 64, "width": 64, "text_tokens": 256}


def inputs(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> tuple[Input, ...]:
    """Packed latents, text, and the timestep from 1 to 0."""
    tokens = sizes["height"] * sizes["width"]
    found = (
        Input("hidden_states", (1, tokens, config["in_channels"])),
        Input("encoder_hidden_states", (1, sizes["text_tokens"], config["joint_attention_dim"])),
        Input("timestep", (1,)),
    )
    if config["use_additional_t_cond"]:
        return (*found, Input("additional_t_cond", (1,), "int64"))
    return found


class Call(torch.nn.Module):
    """The transformer on one image of a fixed shape."""

    def __init__(self, model: torch.nn.Module, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._shape = (1, sizes["height"], sizes["width"])

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor | None = None,
        additional_t_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(b, tokens, 4 x channels of the latents), the predicted velocity."""
        (sample,) = self.model(
            hidden_states=hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            encoder_hidden_states_mask=encoder_hidden_states_mask,
            timestep=timestep,
            img_shapes=[[self._shape]],
            additional_t_cond=additional_t_cond,
            return_dict=False,
        )
        return sample  # type: ignore[no-any-return]
