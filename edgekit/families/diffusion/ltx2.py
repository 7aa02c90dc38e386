"""LTX-2: a stream for video and a narrower one for audio, joined by cross-attention both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from edgekit.model import Input

CLASS = "LTX2VideoTransformer3DModel"
OUTPUTS = ("video", "audio")
#: Where the streams start, which read each other in every block.
STREAMS = (("video", "hidden_states"), ("audio", "audio_hidden_states"))


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """121 frames of 768 x 512 and five seconds of sound, all counted in latents."""
    return {
        "num_frames": 16,
        "height": 16,
        "width": 24,
        "fps": 24.0,
        "audio_num_frames": 126,
        "text_tokens": 1024,
    }


def inputs(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> tuple[Input, ...]:
    """Latents of both streams as tokens, text for each, and the timestep from 1000 to 0."""
    patch, frames = config["patch_size"], sizes["num_frames"] // config["patch_size_t"]
    tokens = frames * (sizes["height"] // patch) * (sizes["width"] // patch)
    heard = sizes["audio_num_frames"] // config["audio_patch_size_t"]
    found = (
        Input("hidden_states", (1, tokens, config["in_channels"])),
        Input("audio_hidden_states", (1, heard, config["audio_in_channels"])),
        Input("encoder_hidden_states", (1, sizes["text_tokens"], _text(config, ""))),
        Input("audio_encoder_hidden_states", (1, sizes["text_tokens"], _text(config, "audio_"))),
        Input("timestep", (1,)),
    )
    modulated = config["cross_attn_mod"] or config["audio_cross_attn_mod"]
    by_time = modulated and config["use_prompt_adaln_single"]
    return (*found, Input("sigma", (1,))) if by_time else found


def _text(config: Mapping[str, Any], stream: str) -> int:
    """Channels of a stream's text: those of the text encoder where the model projects them."""
    if config["use_prompt_embeddings"]:
        return int(config["caption_channels"])
    return int(config[f"{stream}cross_attention_dim"])


class Call(torch.nn.Module):
    """The transformer on a clip of a fixed shape and rate; one timestep for both streams."""

    def __init__(self, model: torch.nn.Module, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        names = ("num_frames", "height", "width", "fps", "audio_num_frames")
        self._clip = {name: sizes[name] for name in names}

    def forward(
        self,
        hidden_states: torch.Tensor,
        audio_hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        audio_encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        sigma: torch.Tensor | None = None,
        audio_timestep: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        audio_encoder_attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, tokens, channels) of the video and of the audio, the predicted velocities."""
        video, audio = self.model(
            hidden_states=hidden_states,
            audio_hidden_states=audio_hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            audio_encoder_hidden_states=audio_encoder_hidden_states,
            timestep=timestep,
            audio_timestep=audio_timestep,
            sigma=sigma,
            encoder_attention_mask=encoder_attention_mask,
            audio_encoder_attention_mask=audio_encoder_attention_mask,
            return_dict=False,
            **self._clip,
        )
        return video, audio
