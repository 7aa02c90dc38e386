"""Stable Diffusion 3 and 3.5: dual blocks (MMDiT) on the latents as an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from edgekit.model import Input

CLASS = "SD3Transformer2DModel"
OUTPUTS = ("sample",)


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """``height`` and ``width`` of the latents; 77 tokens of CLIP and 256 of T5."""
    side = config["sample_size"]
    return {"height": side, "width": side, "text_tokens": 333}


def inputs(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> tuple[Input, ...]:
    """Latents, text, its pooled form, and the timestep from 1000 to 0."""
    return (
        Input("hidden_states", (1, config["in_channels"], sizes["height"], sizes["width"])),
        Input("encoder_hidden_states", (1, sizes["text_tokens"], config["joint_attention_dim"])),
        Input("pooled_projections", (1, config["pooled_projection_dim"])),
        Input("timestep", (1,)),
    )


class Call(torch.nn.Module):
    """The transformer; all that it needs is in its tensors."""

    def __init__(self, model: torch.nn.Module, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
    ) -> torch.Tensor:
        """(b, channels, height, width), the predicted velocity."""
        (sample,) = self.model(
            hidden_states=hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            timestep=timestep,
            return_dict=False,
        )
        return sample  # type: ignore[no-any-return]
