"""The models that benchmarks/ssm.py compares: of one width, depth and size, random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WIDTH, LAYERS, WORDS, LONGEST = 256, 4, 256, 65536
_COMMON = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "tie_word_embeddings": True,
    "max_position_embeddings": LONGEST,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_STATE_SPACE_DUAL = {
    "mamba_n_heads": 8,
    "mamba_d_head": 64,
    "mamba_d_state": 64,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
}
#: name -> (class of configuration, what differs). Attention's and the hybrid's products are as
#: wide as makes them as large as Mamba-2.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mamba-1": ("MambaConfig", {"state_size": 16}),
    "Mamba-2": (
        "Mamba2Config",
        {"state_size": 64, "num_heads": 8, "head_dim": 64, "n_groups": 1, "chunk_size": 256},
    ),
    "hybrid": (
        "BambaConfig",
        {
            **_STATE_SPACE_DUAL,
            "attn_layer_indices": [2],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
        },
    ),
    "attention": (
        "LlamaConfig",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 320},
    ),
}


def save(name: str, folder: Path) -> int:
    """Save a model as a user has it; returns its parameters."""
    import torch
    import transformers

    from edgekit.families import torchvision

    torchvision.repair()
    kind, fields = CONFIGS[name]
    config = getattr(transformers, kind)(**{**_COMMON, **fields})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
