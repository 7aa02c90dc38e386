"""A block in one piece: what stands in its place while the dependency graph is traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from edgekit.compress.pruning.groups import Block


class _Join(torch.autograd.Function):
    """Zeros of given shapes that depend on all inputs in one step."""

    @staticmethod
    def forward(ctx: Any, shapes: Sequence[torch.Tensor], *inputs: torch.Tensor) -> Any:
        return tuple(torch.zeros_like(shape) for shape in shapes)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise NotImplementedError


class Whole(nn.Module):
    """A block while it is traced: it gives what the block gave, in one piece."""

    def __init__(self, block: Block, result: Any) -> None:
        super().__init__()
        self.block = (block,)  # in a tuple, so that its module is no child
        self.result = result

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # a model may read a block's settings
            return getattr(self.__dict__["block"][0].module, name)

    def forward(self, *given: Any, **named: Any) -> Any:
        leaves, _ = _pytree.tree_flatten((given, named))
        inputs = [x for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad]
        values, form = _pytree.tree_flatten(self.result)
        floats = [x for x in values if isinstance(x, torch.Tensor) and x.is_floating_point()]
        made = iter(_Join.apply(floats, *inputs))  # type: ignore[no-untyped-call]
        values = [next(made) if any(x is f for f in floats) else x for x in values]
        return _pytree.tree_unflatten(values, form)
