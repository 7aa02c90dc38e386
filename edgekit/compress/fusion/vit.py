"""Vision transformers of timm, brought to a form in which their weights can be compared.

None of what ``normalise`` does changes the function:

1. a norm's gain and offset go into the layers that read it, a layer scale into the layer before;
2. what is written to the residual stream has the mean zero, which the norms subtract anyway.

Then every rotation of the residual stream leaves the function as it is, given that it is undone
where the stream is read; so does one of a head's queries with its keys, or of its values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.compress.fusion.moments import Sites
from edgekit.errors import EdgekitError

SUPPORTED = (
    "Fuse knows timm's VisionTransformer and DeiT with plain blocks: LayerNorm, fused qkv, MLP of "
    "two layers."
)
#: Parts of timm's ViT that a plain one leaves out, by who holds them.
_ABSENT = {"block": ("attn.q_norm", "attn.k_norm", "attn.norm", "mlp.norm"), "model": ("norm_pre",)}
_TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed")


def check(module: nn.Module, whose: str) -> None:
    """Raise an EdgekitError unless it is a vision transformer that can be fused."""
    from timm.models.vision_transformer import Block, VisionTransformer

    if not isinstance(module, VisionTransformer):
        raise EdgekitError(f"{whose} is a {type(module).__name__}.", SUPPORTED)
    found = [name for name in _ABSENT["model"] if _present(module, name)]
    found += [] if getattr(module, "attn_pool", None) is None else ["attn_pool"]
    found += [] if isinstance(module.patch_embed.norm, nn.Identity) else ["patch_embed.norm"]
    found += [] if all(isinstance(head, nn.Linear) for head in heads(module)) else ["no head"]
    found += [] if len(_final(module)) == 1 else ["two final norms, or none"]
    for block in module.blocks:
        found += [type(block).__name__] if type(block) is not Block else _odd(block)
    if found:
        raise EdgekitError(f"{whose} has {', '.join(dict.fromkeys(found))}.", SUPPORTED)


def _odd(block: Any) -> list[str]:
    found = [name for name in _ABSENT["block"] if _present(block, name)]
    if not (hasattr(block.attn, "qkv") and hasattr(block.mlp, "fc1")):
        return [*found, "another attention or MLP"]
    if block.mlp.fc1.out_features != block.mlp.fc2.in_features:
        found.append("a gated MLP")
    if not all(isinstance(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2)):
        found.append("another norm than LayerNorm")
    return found


def _present(holder: nn.Module, name: str) -> bool:
    try:
        return not isinstance(holder.get_submodule(name), nn.Identity)
    except AttributeError:
        return False


def shape(module: Any) -> dict[str, Any]:
    """What two models must have alike, for people."""
    grid = tuple(module.patch_embed.proj.weight.shape[1:])
    return {
        "blocks": len(module.blocks),
        "patches (channels, height, width)": grid,
        "tokens": {name: value.shape[1] for name, value in tokens(module).items()},
        "classes": tuple(head.out_features for head in heads(module)),
        "pooling": module.global_pool,
    }


def heads(module: Any) -> list[Any]:
    """The classifiers: one, or DeiT's two."""
    return [getattr(module, name) for name in ("head", "head_dist") if hasattr(module, name)]


def tokens(module: Any) -> dict[str, Tensor]:
    """Learned tokens and positions (1, tokens, width) by name, those that there are."""
    found = {name: getattr(module, name, None) for name in _TOKENS}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def sites(module: Any) -> Sites:
    """Where the units of every layer are seen; ``stream/last`` is what the head reads."""
    found: Sites = {}
    for place, block in enumerate(module.blocks):
        found[f"stream/{place}.1"] = (block.norm1, False)
        found[f"stream/{place}.2"] = (block.norm2, False)
        found[f"qkv/{place}"] = (block.attn.qkv, False)
        found[f"values/{place}"] = (block.attn.proj, True)
        found[f"hidden/{place}"] = (block.mlp.fc2, True)
    (last,) = _final(module)
    found["stream/last"] = (last, False)
    return found


@torch.no_grad()
def normalise(module: Any) -> None:
    """Bring it to the common form, in place; its function stays."""
    for block in module.blocks:
        _fold_norm(block.norm1, [block.attn.qkv])
        _fold_norm(block.norm2, [block.mlp.fc1])
        _fold_scale(block.attn.proj, block.ls1)
        _fold_scale(block.mlp.fc2, block.ls2)
    (last,) = _final(module)
    _fold_norm(last, heads(module))
    for writer in _writers(module):
        writer.weight.sub_(writer.weight.mean(0, keepdim=True))
        if writer.bias is not None:
            writer.bias.sub_(writer.bias.mean())
    for value in tokens(module).values():
        value.sub_(value.mean(-1, keepdim=True))


def _final(module: Any) -> list[nn.LayerNorm]:
    found = (module.norm, module.fc_norm)
    return [norm for norm in found if isinstance(norm, nn.LayerNorm)]


def _writers(module: Any) -> Iterator[Any]:
    """The layers that write to the residual stream."""
    yield module.patch_embed.proj
    for block in module.blocks:
        yield block.attn.proj
        yield block.mlp.fc2


def _fold_norm(norm: Any, readers: list[Any]) -> None:
    if norm.weight is None:
        return
    for reader in readers:
        if norm.bias is not None:
            offset = (reader.weight.double() @ norm.bias.double()).to(reader.weight.dtype)
            bias = offset if reader.bias is None else reader.bias + offset
            reader.bias = nn.Parameter(bias)
        reader.weight.mul_(norm.weight)
    norm.weight.fill_(1)
    if norm.bias is not None:
        norm.bias.zero_()


def _fold_scale(layer: Any, scale: nn.Module) -> None:
    gain = getattr(scale, "gamma", None)
    if isinstance(gain, Tensor):
        layer.weight.mul_(gain[:, None])
        if layer.bias is not None:
            layer.bias.mul_(gain)
        gain.fill_(1)
