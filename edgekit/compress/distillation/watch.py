"""Watch: what goes on inside a model in one forward pass, seen by hooks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Inputs = Mapping[str, Tensor]
#: What was seen, nothing but containers and tensors: ``outputs`` of the model, ``features`` (the
#: float tensors that a block gives), ``attention`` (a tuple a call: queries, keys and values, or
#: the probabilities alone), ``mixing`` (the float tensors that its mixer gives) and ``calls`` (a
#: block's own arguments), all but the first by path.
Seen = dict[str, Any]

#: What libraries call the part of a block in which positions meet.
MIXERS = ("mixer", "mamba", "ssm", "linear_attn", "token_mixer", "self_attn", "attn", "attention")
_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class Watch:
    """Runs a model and tells what it saw in some of its modules, until ``close``."""

    def __init__(
        self,
        module: nn.Module,
        call: Callable[[Inputs], tuple[Tensor, ...]],
        features: Collection[str] = (),
        attention: Collection[str] = (),
        calls: Collection[str] = (),
    ) -> None:
        """
        Args:
            module: that ``call`` runs.
            call: inputs by name to outputs.
            features, attention, calls: paths of the blocks in which each is to be seen.
        """
        self._call, self._attention = call, bool(attention)
        self._seen: Seen = {}
        self._within: list[str] = []
        self._handles: list[Any] = []
        for path in features:
            self._after(module.get_submodule(path), "features", path)
        for path in attention:
            block = module.get_submodule(path)
            self._around(block, path)
            self._after(mixer_of(block), "mixing", path)
        for path in calls:
            self._before(module.get_submodule(path), path)

    def __call__(self, inputs: Inputs) -> Seen:
        """Run once."""
        self._seen = {"features": {}, "attention": {}, "mixing": {}, "calls": {}}
        with self._listening():
            outputs = self._call(inputs)
        seen, self._seen = self._seen, {}
        return {"outputs": list(outputs), **{kind: each for kind, each in seen.items() if each}}

    def close(self) -> None:
        """Leave the module as it was."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        if not self._attention:
            yield
            return
        with _Attention(self._noted):
            yield

    def _noted(self, tensors: tuple[Tensor, ...]) -> None:
        if self._within:
            self._seen["attention"].setdefault(self._within[-1], []).append(tensors)

    def _after(self, module: nn.Module, kind: str, path: str) -> None:
        def hook(_: nn.Module, args: Any, result: Any) -> None:
            if self._seen:
                self._seen[kind][path] = floats(result)

        self._handles.append(module.register_forward_hook(hook))

    def _before(self, module: nn.Module, path: str) -> None:
        def hook(_: nn.Module, args: Any, named: Any) -> None:
            if self._seen:
                self._seen["calls"][path] = (args, named)

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _around(self, module: nn.Module, path: str) -> None:
        def enter(_: nn.Module, args: Any) -> None:
            self._within.append(path)

        def leave(_: nn.Module, args: Any, result: Any) -> None:
            if self._within:
                self._within.pop()

        self._handles.append(module.register_forward_pre_hook(enter))
        self._handles.append(module.register_forward_hook(leave, always_call=True))


class _Attention(TorchFunctionMode):
    """Tells of every attention: a fused one's operands, or else the softmax of scores."""

    def __init__(self, tell: Callable[[tuple[Tensor, ...]], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | named
            self.tell((given["query"], given["key"], given["value"]))
        result = func(*args, **named)
        if func in _SOFTMAX and isinstance(result, Tensor) and result.dim() == 4:
            self.tell((result,))
        return result


def mixer_of(block: nn.Module) -> nn.Module:
    """The part of a block in which positions meet; the block itself where none is named so."""
    children = dict(block.named_children())
    return next((children[name] for name in MIXERS if name in children), block)


def floats(result: Any) -> list[Tensor]:
    """The float tensors of what a module returned, in order."""
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, list | tuple):
        return [tensor for each in result for tensor in floats(each)]
    return []
