"""HiDream-I1: dual blocks, then single ones, with shared and routed experts in each.

diffusers hands each expert the tokens that chose it, as many as there are, which no exporter
follows. Ours computes every expert for every token and weighs those not chosen with zero:

    y[t] = sum_e weight[t, e] expert_e(x[t]),  weight[t, e] = 0 unless e is among t's top k
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from edgekit.model import Input

CLASS = "HiDreamImageTransformer2DModel"
OUTPUTS = ("sample",)


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """An image of 1024 x 1024: ``height`` and ``width`` of the latents, at most as configured."""
    height, width = (min(128, side) for side in config["max_resolution"])
    return {"height": height, "width": width, "text_tokens": 128}


def inputs(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> tuple[Input, ...]:
    """Latents, the timestep from 1000 to 0, and text: of T5, of every layer of Llama, pooled."""
    t5, llama = config["caption_channels"]
    layers, text = max(config["llama_layers"]) + 1, sizes["text_tokens"]
    return (
        Input("hidden_states", (1, config["in_channels"], sizes["height"], sizes["width"])),
        Input("timesteps", (1,)),
        Input("encoder_hidden_states_t5", (1, text, t5)),
        Input("encoder_hidden_states_llama3", (1, layers, text, llama)),
        Input("pooled_embeds", (1, config["text_emb_dim"])),
    )


class Call(torch.nn.Module):
    """The transformer; Llama's states are batch first here, and layers first in diffusers."""

    #: Whether the forms below stand in for diffusers' methods.
    static = False

    def __init__(self, model: torch.nn.Module, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        grid = (sizes["height"], sizes["width"])
        self._forms = {
            "moe_infer": experts,
            "unpatchify": functools.partial(unpatchify, size=grid),
        }

    def forward(
        self,
        hidden_states: torch.Tensor,
        timesteps: torch.Tensor,
        encoder_hidden_states_t5: torch.Tensor,
        encoder_hidden_states_llama3: torch.Tensor,
        pooled_embeds: torch.Tensor,
    ) -> torch.Tensor:
        """(b, channels, height, width), the predicted velocity."""
        # On the meta device there are no values for a shape to depend on.
        static = self.static or hidden_states.is_meta
        with _standing_in(self.model, self._forms if static else {}):
            (sample,) = self.model(
                hidden_states=hidden_states,
                timesteps=timesteps,
                encoder_hidden_states_t5=encoder_hidden_states_t5,
                encoder_hidden_states_llama3=encoder_hidden_states_llama3.transpose(0, 1),
                pooled_embeds=pooled_embeds,
                return_dict=False,
            )
        return sample  # type: ignore[no-any-return]


class Exported(Call):
    """The same without shapes that depend on values."""

    static = True


@contextmanager
def _standing_in(model: torch.nn.Module, forms: Mapping[str, Any]) -> Iterator[None]:
    """Other methods for the modules that have methods of these names."""
    with ExitStack() as stack:
        for module in model.modules():
            for name, form in forms.items():
                if hasattr(type(module), name):
                    setattr(module, name, functools.partial(form, module))
                    stack.callback(delattr, module, name)
        yield


def experts(
    self: Any, x: torch.Tensor, flat_expert_indices: torch.Tensor, flat_expert_weights: torch.Tensor
) -> torch.Tensor:
    """All experts' outputs (tokens, channels), weighed.

    Args:
        self: diffusers' module of experts.
        x: (tokens, channels).
        flat_expert_indices: (tokens x k); ``flat_expert_weights``: (tokens x k, 1).
    """
    k = self.num_activated_experts
    numbers = torch.arange(len(self.experts), device=x.device)
    chosen = flat_expert_indices.reshape(-1, k, 1) == numbers
    weight = (chosen * flat_expert_weights.reshape(-1, k, 1)).sum(1)
    y = torch.zeros_like(x)
    for number, expert in enumerate(self.experts):
        y = y + weight[:, number : number + 1] * expert(x)
    return y


def unpatchify(
    self: Any, x: torch.Tensor, img_sizes: Any, is_training: bool, size: tuple[int, int]
) -> torch.Tensor:
    """(b, tokens, patch x patch x channels) as images, which are all of one size (h, w)."""
    patch = self.config.patch_size
    rows, columns = (side // patch for side in size)
    x = x[:, : rows * columns].reshape(-1, rows, columns, patch, patch, self.out_channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.out_channels, *size)
