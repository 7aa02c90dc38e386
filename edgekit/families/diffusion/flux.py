"""FLUX.1: dual blocks for image and text, then single blocks for both as one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from edgekit.families.diffusion.grid import positions
from edgekit.model import Input

CLASS = "FluxTransformer2DModel"
OUTPUTS = ("sample",)


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """An image of 1024 x 1024: ``height`` and ``width`` in tokens of 16 x 16 pixels."""
    return {"height": 64, "width": 64, "text_tokens": 512}


def inputs(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> tuple[Input, ...]:
    """Packed latents, text, its pooled form, and the timestep from 1 to 0."""
    tokens = sizes["height"] * sizes["width"]
    found = (
        Input("hidden_states", (1, tokens, config["in_channels"])),
        Input("encoder_hidden_states", (1, sizes["text_tokens"], config["joint_attention_dim"])),
        Input("pooled_projections", (1, config["pooled_projection_dim"])),
        Input("timestep", (1,)),
    )
    return (*found, Input("guidance", (1,))) if config["guidance_embeds"] else found


class Call(torch.nn.Module):
    """The transformer on one grid of image tokens; text tokens are all at the origin."""

    def __init__(self, model: torch.nn.Module, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._grid = (sizes["height"], sizes["width"])

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(b, tokens, channels), the predicted velocity."""
        image = positions(*self._grid, hidden_states.device)
        (sample,) = self.model(
            hidden_states=hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            timestep=timestep,
            img_ids=image,
            txt_ids=image.new_zeros(encoder_hidden_states.shape[1], 3),
            guidance=guidance,
            return_dict=False,
        )
        return sample  # type: ignore[no-any-return]
