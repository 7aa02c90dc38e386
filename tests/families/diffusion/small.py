"""Small dual-stream transformers, as folders of diffusers: a configuration and the sizes of a call.

Real ones are hundreds of times wider; every kind of layer that they have is here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QWEN_IMAGE = {
    "_class_name": "QwenImageTransformer2DModel",
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "axes_dims_rope": [8, 12, 12],
}
FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "pooled_projection_dim": 24,
    "guidance_embeds": True,
    "axes_dims_rope": [8, 12, 12],
}
SD3 = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "caption_projection_dim": 64,
    "pooled_projection_dim": 24,
    "pos_embed_max_size": 8,
    "dual_attention_layers": [0],
    "qk_norm": "rms_norm",
}
LTX2 = {
    "_class_name": "LTX2VideoTransformer3DModel",
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "cross_attention_dim": 64,
    "audio_in_channels": 8,
    "audio_out_channels": 8,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 16,
    "audio_cross_attention_dim": 32,
    "num_layers": 2,
    "caption_channels": 40,
    "rope_type": "split",
}
HIDREAM = {
    "_class_name": "HiDreamImageTransformer2DModel",
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "caption_channels": [48, 40],
    "text_emb_dim": 24,
    "num_routed_experts": 4,
    "num_activated_experts": 2,
    "axes_dims_rope": [16, 8, 8],
    "max_resolution": [8, 8],
    "llama_layers": [0, 1, 2, 2],
}
GRID = {"height": 4, "width": 4, "text_tokens": 8}
CLIP = {"num_frames": 2, "height": 2, "width": 4, "audio_num_frames": 6, "text_tokens": 8}
#: name -> (configuration, sizes of a call)
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen_image": (QWEN_IMAGE, GRID),
    "flux": (FLUX, GRID),
    "sd3": (SD3, {"text_tokens": 8}),
    "ltx2": (LTX2, CLIP),
    "hidream": (HIDREAM, {"text_tokens": 8}),
}


def write(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A folder ``name`` with a small model's configuration, and the sizes of its call."""
    config, sizes = SMALL[name]
    home = folder / name
    home.mkdir(parents=True)
    (home / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return home, sizes
