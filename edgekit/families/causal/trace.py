"""The modules that are exported in a transformers model's place, and what they remember."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from edgekit.families.causal import swap
from edgekit.families.causal.cache import Cache
from edgekit.model import State

#: The name of the size of keys and values that reach back to the first token.
PAST = "past"


class Whole(torch.nn.Module):
    """A model on a whole sequence, through our operators. It stays at ``.model``.

    Args:
        model: transformers' own.
        outputs: the names of what is returned.
        own_attention: leave attention to transformers, as padding needs.
    """

    def __init__(self, model: torch.nn.Module, outputs: tuple[str, ...], own_attention: bool):
        super().__init__()
        self.model = model
        self._outputs = outputs
        self._own_attention = own_attention

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        masks = {} if attention_mask is None else {"attention_mask": attention_mask}
        with swap.swapped(self.model, None, self._own_attention):
            result = self.model(input_ids=input_ids, **masks)
        return tuple(result[name] for name in self._outputs)


def stream(
    model: torch.nn.Module, outputs: tuple[str, ...], states: tuple[State, ...]
) -> torch.nn.Module:
    """A module of the next tokens of a sequence and of its states, which are returned changed.

    Args:
        model: transformers' own; it stays at ``.model``.
        outputs: the names of what is returned before the states.
        states: in the order in which they are taken and returned.
    """
    bounded = {s.name for s in states if PAST not in {dim.name for dim in s.input.dims}}

    class Stream(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, input_ids: torch.Tensor, **before: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            cache = Cache(before, bounded)
            result = run(self.model, input_ids, cache)
            given = tuple(result[name] for name in outputs)
            return (*given, *(cache.after[state.name] for state in states))

    # torch.export pairs shapes with the names of parameters, and loses those behind two stars.
    names = ("self", "input_ids", *(state.name for state in states))
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    Stream.forward.__signature__ = signature  # type: ignore[attr-defined]
    return Stream().eval()


def run(
    model: torch.nn.Module, input_ids: torch.Tensor, cache: Cache, own_attention: bool = False
) -> Any:
    """The model's own output for the next tokens; the cache holds the states after them."""
    options: dict[str, Any] = {cache_name(model): cache}
    tokens = input_ids.shape[1]
    if "position_ids" in inspect.signature(model.forward).parameters:
        # Some models count from 0 unless they are told.
        options["position_ids"] = (torch.arange(tokens) + cache.get_seq_length())[None]
    with swap.swapped(model, cache, own_attention):
        result = model(input_ids=input_ids, **options)
    if not own_attention:
        cache.check_read()
    cache.advance(tokens)
    return result


def cache_name(model: torch.nn.Module) -> str:
    """What the model calls its cache; '' where it has none."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in names), "")
