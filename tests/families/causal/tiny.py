"""Tiny models of every causal family, with weights drawn by seed: ``transformers/FOLDER`` at once.

    import tiny                                        # pyproject.toml puts this folder on the path
    folder = tiny.save("jamba", tmp_path)              # config.json and model.safetensors
    model = families.load(f"transformers/{folder}", Options(mode="stream"))

A script outside of pytest puts ``tests/families/causal`` on ``sys.path`` first. ``TINY`` maps a
name to what its ``config.json`` holds: ``model_type``, ``architectures`` and sizes, which a
benchmark may change (``save("mamba", folder, hidden_size=256)``). Weights are larger than
transformers draws them, so that a late output depends on an early token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgekit.families.torchvision import repair

VOCABULARY = 64

_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
_BASE: dict[str, Any] = {**_TOKENS, **_SIZES, **_HEADS}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

TINY: dict[str, dict[str, Any]] = {
    "mamba": {
        **_TOKENS,
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
    },
    "falcon_mamba": {
        **_TOKENS,
        "model_type": "falcon_mamba",
        "architectures": ["FalconMambaForCausalLM"],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
    },
    "mamba2": {
        **_TOKENS,
        "model_type": "mamba2",
        "architectures": ["Mamba2ForCausalLM"],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 2,
        "chunk_size": 16,
    },
    "jamba": {
        **_BASE,
        "model_type": "jamba",
        "architectures": ["JambaForCausalLM"],
        "num_hidden_layers": 3,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "bamba": {
        **_BASE,
        **_MAMBA2,
        "model_type": "bamba",
        "architectures": ["BambaForCausalLM"],
        "attn_layer_indices": [1],
    },
    "zamba": {
        **_BASE,
        "model_type": "zamba",
        "architectures": ["ZambaForCausalLM"],
        "num_key_value_heads": 4,
        "attention_head_dim": 16,
        "layers_block_type": ["hybrid", "hybrid"],
        "n_mamba_heads": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        **_BASE,
        "model_type": "zamba2",
        "architectures": ["Zamba2ForCausalLM"],
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "attention_head_dim": 16,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_ngroups": 2,
        "mamba_expand": 2,
        "chunk_size": 16,
        "use_mem_rope": True,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
    },
    "falcon_h1": {
        **_BASE,
        **_MAMBA2,
        "model_type": "falcon_h1",
        "architectures": ["FalconH1ForCausalLM"],
        "num_hidden_layers": 2,
        "head_dim": 8,
        "mamba_d_ssm": 64,
    },
    "nemotron_h": {
        **_BASE,
        "model_type": "nemotron_h",
        "architectures": ["NemotronHForCausalLM"],
        "layers_block_type": ["mamba", "moe", "attention"],
        "num_hidden_layers": 3,
        "head_dim": 8,
        "ssm_state_size": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "expand": 2,
        "chunk_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 24,
        "n_group": 1,
        "topk_group": 1,
    },
    "granitemoehybrid": {
        **_BASE,
        **_MAMBA2,
        "model_type": "granitemoehybrid",
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 24,
        "position_embedding_type": "rope",
    },
    "lfm2": {
        **_BASE,
        "model_type": "lfm2",
        "architectures": ["Lfm2ForCausalLM"],
        "layer_types": ["conv", "full_attention"],
        "block_auto_adjust_ff_dim": False,
    },
    "lfm2_moe": {
        **_BASE,
        **_EXPERTS,
        "model_type": "lfm2_moe",
        "architectures": ["Lfm2MoeForCausalLM"],
        "layer_types": ["conv", "full_attention"],
        "num_dense_layers": 1,
    },
    "lfm3": {
        **_BASE,
        "model_type": "lfm3",
        "architectures": ["Lfm3ForCausalLM"],
        "layer_types": ["conv", "sliding_attention"],
        "sliding_window": 6,
    },
    "recurrent_gemma": {
        **_BASE,
        "model_type": "recurrent_gemma",
        "architectures": ["RecurrentGemmaForCausalLM"],
        "num_hidden_layers": 3,
        "lru_width": 32,
        "head_dim": 8,
        "attention_window_size": 6,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "qwen3_next": {
        **_BASE,
        **_DELTA,
        **_EXPERTS,
        "model_type": "qwen3_next",
        "architectures": ["Qwen3NextForCausalLM"],
        "shared_expert_intermediate_size": 24,
    },
    "qwen3_5": {
        **_BASE,
        **_DELTA,
        "model_type": "qwen3_5_text",
        "architectures": ["Qwen3_5ForCausalLM"],
    },
    "olmo_hybrid": {
        **_BASE,
        **_DELTA,
        "model_type": "olmo_hybrid",
        "architectures": ["OlmoHybridForCausalLM"],
        "linear_num_key_heads": 4,
    },
    "llama": {
        **_BASE,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
    },
    "mistral": {
        **_BASE,
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "num_hidden_layers": 2,
        "sliding_window": 6,
    },
    "qwen3_moe": {
        **_BASE,
        **_EXPERTS,
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": 2,
        "head_dim": 8,
    },
}


def make(name: str, **changes: Any) -> Any:
    """The transformers model of a name in ``TINY``, always with the same weights.

    Args:
        changes: of its configuration.
    """
    repair()
    import transformers

    sizes = {**TINY[name], **changes}
    cls = getattr(transformers, sizes.pop("architectures")[0])
    config = transformers.AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def save(name: str, folder: Path, **changes: Any) -> Path:
    """The model of a name in ``TINY`` as a folder below ``folder``; else as in ``make``."""
    path = folder / name
    make(name, **changes).save_pretrained(path)
    return path
