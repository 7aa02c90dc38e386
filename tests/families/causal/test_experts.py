"""Mixtures of experts: both forms equal transformers' own, for each kind of experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgekit.errors import EdgekitError
from edgekit.families.causal import experts
from edgekit.families.torchvision import repair

repair()
transformers = pytest.importorskip("transformers")

COUNT, CHOSEN = 9, 2


def gated() -> Any:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    return Qwen3MoeExperts(
        transformers.Qwen3MoeConfig(num_experts=COUNT, hidden_size=16, moe_intermediate_size=12)
    )


def biased_and_turned() -> Any:
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    return GptOssExperts(
        transformers.GptOssConfig(num_local_experts=COUNT, hidden_size=16, intermediate_size=12)
    )


def without_gates() -> Any:
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

    return NemotronHExperts(
        transformers.NemotronHConfig(
            n_routed_experts=COUNT, hidden_size=16, moe_intermediate_size=12
        )
    )


@pytest.mark.parametrize("make", [gated, biased_and_turned, without_gates])
@pytest.mark.parametrize("tokens", [1, 7])  # one takes the chosen, seven all
def test_the_same_as_transformers(make: Any, tokens: int) -> None:
    module = make().eval()
    module.config._experts_implementation = "eager"
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    x = torch.randn(tokens, 16, generator=generator)
    weights, index = torch.rand(tokens, COUNT, generator=generator).topk(CHOSEN)
    with torch.no_grad():
        ours = experts.experts(module, x, index, weights)
        torch.testing.assert_close(ours, module(x, index, weights), rtol=1e-5, atol=1e-5)


def test_a_norm_behind_each_expert_is_refused() -> None:
    module = gated()
    module.has_post_expert_norm = True
    x, index = torch.zeros(1, 16), torch.zeros(1, CHOSEN, dtype=torch.int64)
    with pytest.raises(EdgekitError, match="a norm behind each expert"):
        experts.experts(module, x, index, torch.ones(1, CHOSEN))
