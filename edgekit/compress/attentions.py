"""Attentions: which modules are self-attention over fused queries, keys and values.

Names of layers make a candidate. What it computes decides, on the module at hand:

    q, k, v = qkv(x);    y = proj(norm(softmax(k_norm(k) q_norm(q) / sqrt(head_dim)) v))

A candidate whose output is another, for a mask, a position's bias or a rotation, is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.compress import layers
from edgekit.compress.layers import Layers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.model import Model

#: The largest difference, relative to the output's largest magnitude, between two equal attentions.
_EQUAL = 1e-4


@dataclass(frozen=True)
class SelfAttention:
    """A module that is softmax attention of its parts.

    Attributes:
        path: of the module.
        qkv: gives queries, keys and values of all heads in this order, (..., 3 heads head_dim).
        proj: takes what the heads give, (..., heads head_dim).
        q_norm, k_norm: of a head's queries and keys; Identity where there is none.
        norm: of what enters ``proj``.
    """

    path: str
    module: nn.Module
    heads: int
    head_dim: int
    qkv: nn.Linear
    proj: nn.Linear
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (b, heads, L, head_dim) of x (b, L, width)."""
        return split(self.qkv(x), self.heads, self.q_norm, self.k_norm)

    def joined(self, y: Tensor) -> Tensor:
        """What the module gives for y (b, heads, L, head_dim) of its heads."""
        out: Tensor = self.proj(self.norm(y.transpose(1, 2).flatten(2)))
        return out


def split(
    qkv: Tensor, heads: int, q_norm: nn.Module, k_norm: nn.Module
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (b, heads, L, head_dim) of what ``qkv`` gives."""
    samples, length, width = qkv.shape
    parts = qkv.reshape(samples, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    q, k, v = parts.unbind(0)
    return q_norm(q), k_norm(k), v


def find(model: Model, exclude: Sequence[str]) -> Layers:
    """The attentions (``SelfAttention``) of a model, and why others are left.

    Args:
        exclude: globs over paths of attentions, or of modules that hold them.

    Raises:
        EdgekitError: a glob matches nothing.
    """
    from edgekit.compress.pruning import attention

    found = Layers()
    heads = {
        path: module
        for path, module in model.module.named_modules()
        if attention.find(path, module) is not None
    }
    asked = layers.excluded(exclude, heads)
    given = _inputs(model, heads.values())
    for path, module in heads.items():
        parts = _parts(path, module)
        if path in asked:
            found.leave(path, "as asked")
        elif parts is None:
            found.leave(path, "their queries, keys and values are not one linear's")
        elif module not in given:
            found.leave(path, "a call of the model does not go through them")
        elif any(extra is not None and extra is not False for extra in given[module][1:]):
            found.leave(path, "they take a mask, a rotation or other inputs")
        elif not _is_plain(parts, given[module][0]):
            found.leave(path, "they compute more than softmax attention of their parts")
        else:
            found.chosen[path] = parts
    return found


def _parts(path: str, module: nn.Module) -> SelfAttention | None:
    """A candidate's parts; None where it has no fused ones of one width."""
    from torch import nn

    from edgekit.compress.pruning.attention import FUSED, HEADS

    heads = next((v for n in HEADS if isinstance(v := vars(module).get(n), int)), None)
    for first, last in FUSED:
        qkv, proj = (module._modules.get(name) for name in (first, last))
        if heads and isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear):
            norms = (module._modules.get(name) for name in ("q_norm", "k_norm", "norm"))
            made = [nn.Identity() if norm is None else norm for norm in norms]
            return SelfAttention(path, module, heads, proj.in_features // heads, qkv, proj, *made)
    return None


def _inputs(model: Model, modules: Any) -> dict[nn.Module, tuple[Any, ...]]:
    """What each module that a call goes through is given."""
    given: dict[nn.Module, tuple[Any, ...]] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given[module] = (*args, *kwargs.values())

    hooks = [m.register_forward_pre_hook(hook, with_kwargs=True) for m in modules]
    try:
        layers.run_once(model)
    finally:
        for each in hooks:
            each.remove()
    return given


def _is_plain(parts: SelfAttention, like: Tensor) -> bool:
    """Whether the module gives what its parts do, on noise of the shape of ``like``."""
    import torch
    import torch.nn.functional as F

    if like.dim() != 3:
        return False
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)
    with torch.no_grad():
        wanted = parts.module(noise)
        q, k, v = parts.split(noise)
        given = parts.joined(F.scaled_dot_product_attention(q, k, v))
    if not isinstance(wanted, torch.Tensor) or wanted.shape != given.shape:
        return False
    return bool((wanted - given).abs().amax() <= _EQUAL * wanted.abs().amax())
