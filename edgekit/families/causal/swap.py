"""Putting our functions in the place of transformers', for the time of one call."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch

from edgekit.families.causal import attention, experts, layers, recurrent_gemma
from edgekit.families.causal.cache import Cache
from edgekit.families.causal.opaque import Opaque

#: transformers' functions belong to the process, not to a thread.
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def swapped(model: torch.nn.Module, cache: Cache | None, own_attention: bool) -> Iterator[None]:
    """While it is open, the model computes through our operators.

    A function is found by its name in the files of the model's own classes, so that a family
    which calls the same functions works unasked. Everything is put back, whatever happens.

    Args:
        model: a transformers model.
        cache: what it remembers; None where a whole sequence goes in at once.
        own_attention: leave attention and its masks as they are.
    """
    opaque, attending = Opaque(cache), attention.Attention(cache)
    with _ONE_AT_A_TIME, ExitStack() as stack:
        for file in _files(model):
            for name in Opaque.NAMES:
                stack.enter_context(_set(file, name, getattr(opaque, name)))
            for name in () if own_attention else attention.MASKS:
                stack.enter_context(_set(file, name, getattr(attending, name)))
        stack.enter_context(_blocks(model, opaque, cache))
        stack.enter_context(layers.standing_in(mixers(model)))
        stack.enter_context(_implementations(model, attending, own_attention))
        yield


def mixers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules with a convolution whose file calls functions that we replace."""
    return [
        module
        for module in model.modules()
        if any(hasattr(_file(module), name) for name in Opaque.NAMES)
        and any(isinstance(layer, torch.nn.Conv1d) for layer in module.children())
        and type(module).__name__ != recurrent_gemma.CLASS
    ]


def recurrent(model: torch.nn.Module) -> bool:
    """Whether the model carries something from token to token besides keys and values."""
    types = getattr(model.config, "layer_types", None) or ()
    stateful = getattr(model, "_is_stateful", False) or "linear_attention" in types
    return bool(stateful or mixers(model))


def _file(module: torch.nn.Module) -> ModuleType:
    return sys.modules[type(module).__module__]


def _files(model: torch.nn.Module) -> list[ModuleType]:
    """The files of transformers that the model's classes are written in."""
    found = {type(module).__module__ for module in model.modules()}
    return [sys.modules[name] for name in sorted(found) if name.startswith("transformers.")]


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value for an attribute that exists."""
    if name not in vars(owner):
        yield
        return
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _blocks(model: torch.nn.Module, opaque: Opaque, cache: Cache | None) -> Iterator[None]:
    """RecurrentGemma's blocks, each told its layer."""
    blocks = [m for m in model.modules() if type(m).__name__ == recurrent_gemma.CLASS]
    layer_of = {
        child: index
        for listed in model.modules()
        if isinstance(listed, torch.nn.ModuleList)
        for index, layer in enumerate(listed)
        for child in layer.children()
        if child in blocks
    }

    def forward(
        self: Any, input_states: torch.Tensor, position_ids: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor, None]:
        layer = layer_of[self]
        return recurrent_gemma.block(self, input_states, position_ids, layer, opaque, cache), None

    with ExitStack() as stack:
        for cls in {type(found) for found in blocks}:
            stack.enter_context(_set(cls, "forward", forward))
        yield


@contextmanager
def _implementations(
    model: Any, attending: attention.Attention, own_attention: bool
) -> Iterator[None]:
    """Ours in transformers' registries, asked for by the model's configuration."""
    from transformers import AttentionInterface
    from transformers.integrations.moe import ExpertsInterface

    config = model.config
    before = config._attn_implementation, config._experts_implementation
    AttentionInterface.register(attention.NAME, attending.attend)
    ExpertsInterface.register(experts.NAME, experts.experts)
    try:
        if not own_attention:
            config._attn_implementation = attention.NAME
        config._experts_implementation = experts.NAME
        yield
    finally:
        config._attn_implementation, config._experts_implementation = before
        AttentionInterface._global_mapping.pop(attention.NAME)
        ExpertsInterface._global_mapping.pop(experts.NAME)
