"""Norms: batch norms beside a single layer go into it, wherever the forward calls the two.

Which norm follows which layer is read from the exported graph, whose steps name their modules.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import nn

from edgekit.compress.reparameterization import affine
from edgekit.compress.reparameterization.affine import Convolved, Scaled
from edgekit.compress.reparameterization.blocks import replace

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Model

_NORM = "aten._native_batch_norm_legit_no_training.default"
_LAYERS = (
    "aten.conv1d.default",
    "aten.conv2d.default",
    "aten.conv1d.padding",
    "aten.conv2d.padding",
    "aten.linear.default",
)


def fold(model: Model) -> list[str]:
    """Fold norms into the layers before them, or else after them, in place.

    Returns:
        The norms' paths in what is exported.
    """
    root = model.traced or model.module
    done = []
    for node in list(model.export().exported.graph.nodes):
        path = _path(node)
        if str(node.target) != _NORM or path is None or len(node.args[3].users) != 1:
            continue
        norm = root.get_submodule(path)
        if not isinstance(norm, affine.NORMS):
            continue
        left = _left_of(norm)
        if left is not None and _absorbed(root, node, norm):
            for holder in (model.module, model.traced):
                replace(holder, norm, left)
            done.append(path)
    return done


def _absorbed(root: nn.Module, node: Node, norm: Any) -> bool:
    """Put a norm into a layer beside it, if there is one for it alone."""
    by = affine.of_norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps, None)
    if by is None:
        return False
    before = _layer(root, node.args[0])
    if before is not None and len(node.args[0].users) == 1:  # type: ignore[union-attr]
        return _set(before, affine.scaled, by)
    (first,) = node.users
    following = list(first.users)
    layer = _layer(root, following[0]) if len(following) == 1 else None
    # With an activation of its own, the norm's output is not what the layer takes.
    alone = type(norm) in affine.NORMS
    if layer is None or following[0].args[0] is not first or not alone:
        return False
    return _set(layer, affine.after, by)


def _set(layer: Any, fold: Any, by: Scaled) -> bool:
    value = affine.of_layer(layer)
    made = None if value is None else fold(value, by)
    if not isinstance(made, Convolved):
        return False
    kind = layer.weight.dtype
    layer.weight = nn.Parameter(made.weight.to(kind))
    layer.bias = nn.Parameter(made.bias.to(kind))
    return True


def _layer(root: nn.Module, node: Any) -> nn.Module | None:
    """The layer that a step is, if it is one of ours that is called once."""
    path = _path(node)
    if str(getattr(node, "target", "")) not in _LAYERS or path is None:
        return None
    layer = root.get_submodule(path)
    # A norm's channels are the second axis, a linear layer's the last.
    apart = isinstance(layer, nn.Linear) and node.meta["val"].dim() != 2
    once = len(node.args[1].users) == 1
    return layer if type(layer) in affine.LAYERS and once and not apart else None


def _path(node: Any) -> str | None:
    """The path of the module that a step belongs to."""
    stack = getattr(node, "meta", {}).get("nn_module_stack")
    return None if not stack else str(list(stack.values())[-1][0])


def _left_of(norm: Any) -> nn.Module | None:
    """What stays in a norm's place: nothing, or the activation that timm puts into its norms."""
    if type(norm) in affine.NORMS:
        return nn.Identity()
    timm = sys.modules.get("timm.layers")  # not loaded, it has made no norm
    of_timm = timm is not None and type(norm) is timm.BatchNormAct2d
    if of_timm and isinstance(norm.drop, nn.Identity):
        act: nn.Module = norm.act
        return act
    return None
