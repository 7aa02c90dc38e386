"""The seam: what a causal sequence model of transformers is exported as."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch

from edgekit.errors import EdgekitError
from edgekit.families import probe
from edgekit.families.causal import swap, trace
from edgekit.families.causal.cache import Cache
from edgekit.model import Dim, Model

TOKENS, MASK = "input_ids", "attention_mask"
#: Tokens of one call, by mode. A stream takes a long prompt in several calls.
LENGTHS = {"whole": Dim("length", 1, 128, 2048), "stream": Dim("length", 1, 64, 256)}
#: Positions that attention remembers from call to call, unless the user says how many.
PAST = Dim(trace.PAST, 0, 256, 4096)


def length(model: Any, mode: str) -> Dim | None:
    """How many tokens a model takes if the user does not say; None is some fixed number.

    A recurrence costs the same for every token, so any length will do, and so will any in a
    stream. A plain decoder takes a fixed number, as engines for attention are fastest.
    """
    if not causal(model) or (mode == "whole" and not swap.recurrent(model)):
        return None
    return _at_most(LENGTHS[mode], model)


def causal(model: Any) -> bool:
    """Whether each output depends on the tokens before it only, which a cache can hold."""
    config = model.config
    decoder = not config.is_encoder_decoder and getattr(config, "is_decoder", True)
    return bool(decoder and trace.cache_name(model) and model.main_input_name == TOKENS)


def attach(
    model: Model, own: Any, mode: str, attention: str | None, context: int | None = None
) -> Model:
    """The model with what is exported in its place, and in mode ``stream`` with its states.

    A plain decoder of a fixed length stays as it is.

    Args:
        model: of the family.
        own: the transformers model in it.
        mode: ``whole`` or ``stream``.
        attention: the implementation that the user asked for, which is then kept.
        context: positions that attention remembers at most; None is a usual number.

    Raises:
        EdgekitError: a recurrence that no operator of ours computes, attention with what ours has
            not, or ``stream`` of a model or with inputs that cannot be streamed.
    """
    if mode == "stream":
        _check_stream(model, own, attention)
    elif not _needs_ours(model, own):
        return model
    keep = attention is not None or any(spec.name == MASK for spec in model.inputs)
    found, result = _survey(model, own, keep)
    if mode == "whole":
        return dataclasses.replace(model, traced=trace.Whole(own, model.outputs, keep).eval())
    _check_outputs(model, result)
    batch = model.inputs[0].shape[0]
    states = tuple(
        dataclasses.replace(state, shape=(batch, *state.shape[1:]))
        for state in found.states(_past(own, context))
    )
    traced = trace.stream(own, model.outputs, states)
    return dataclasses.replace(model, traced=traced, states=states)


def _at_most(dim: Dim, model: Any) -> Dim:
    """Not longer than the positions that a model knows."""
    most = min(dim.most, getattr(model.config, "max_position_embeddings", None) or dim.most)
    return dataclasses.replace(dim, usual=min(dim.usual, most), most=most)


def _past(model: Any, context: int | None) -> Dim:
    """How much attention remembers."""
    if context is None:
        return _at_most(PAST, model)
    known = getattr(model.config, "max_position_embeddings", None)
    if known is not None and context > known:
        raise EdgekitError(
            f"A context of {context} is longer than the model knows.",
            f"Its max_position_embeddings is {known}.",
            f"Give --context {known} or less.",
        )
    return dataclasses.replace(PAST, usual=min(PAST.usual, context), most=context)


def _needs_ours(model: Model, own: Any) -> bool:
    """Whether a whole sequence goes through our operators: recurrences, and any length at all.

    Raises:
        EdgekitError: a recurrence of a model or of inputs that our operators do not know.
    """
    others = [spec.name for spec in model.inputs if spec.name not in (TOKENS, MASK)]
    if not swap.recurrent(own):
        varies = any(isinstance(size, Dim) for spec in model.inputs for size in spec.sample_shape)
        return varies and causal(own) and not others
    if not causal(own):
        raise _unknown_recurrence(model, own)
    if others:
        raise EdgekitError(
            f"{model.source} cannot take the input {others[0]}.",
            "A recurrent model is exported on tokens, and on a mask where some are padding.",
            f"Give --input {TOKENS}:..., and {MASK}:... of the same sizes if need be.",
        )
    return True


def _survey(model: Model, own: Any, keep: bool) -> tuple[Cache, Any]:
    """Run two tokens through our operators, to see what is remembered; gives the result too.

    Raises:
        EdgekitError: as in ``attach``.
    """
    cache = Cache()
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    try:
        with torch.no_grad():
            result = trace.run(own, tokens, cache, keep)
    except EdgekitError:
        raise
    except Exception as error:
        raise probe.failed(
            f"{model.source} does not run through edgekit's operators.",
            error,
            "It has a recurrence or a cache of its own kind: this family is not supported yet."
            if swap.recurrent(own)
            else "Give a fixed length with --input input_ids:1x128:int64, and mode whole.",
        ) from error
    if swap.recurrent(own) and not any(n.startswith(("conv_", "scan_")) for n in cache.after):
        raise _unknown_recurrence(model, own)
    return cache, result


def _check_stream(model: Model, own: Any, attention: str | None) -> None:
    if not causal(own):
        raise EdgekitError(
            f"{model.source} cannot be streamed.",
            f"{type(own).__name__} is not a causal decoder: what it computes of a token depends "
            "on later ones, or it does not keep what it has seen.",
            "Use mode whole.",
        )
    others = [spec.name for spec in model.inputs if spec.name != TOKENS]
    if others:
        raise EdgekitError(
            f"{model.source} cannot be streamed with the input {others[0]}.",
            "A stream has tokens and states only: no token of it is padding.",
            f"Leave {others[0]} out, or use mode whole.",
        )
    if attention is not None:
        raise EdgekitError(
            f"{model.source} cannot be streamed with attn_implementation={attention}.",
            "Only edgekit's own attention takes keys and values of any length.",
            "Leave --set attn_implementation out, or use mode whole.",
        )


def _check_outputs(model: Model, result: Any) -> None:
    for name in model.outputs:
        if result[name].dim() < 3:
            raise EdgekitError(
                f"{model.source} cannot be streamed.",
                f"Its {name} is one for a sequence, not one for each token.",
                "Use mode whole, or a model for causal language modelling.",
            )


def check_layers(model: Any, missing: list[str], extra: list[str], path: str, source: str) -> None:
    """Say so if a checkpoint's layers are of other types than the configuration's.

    Args:
        model: the transformers model that was loaded.
        missing, extra: names of tensors that only the model or only the checkpoint has.
        path: of the checkpoint.

    Raises:
        EdgekitError: a layer lacks tensors and the checkpoint has others for it.
    """
    lacks, has = _by_layer(missing), _by_layer(extra)
    wrong = sorted(lacks.keys() & has.keys())
    if not wrong or not swap.recurrent(model):
        return
    layer = wrong[0]
    raise EdgekitError(
        f"{path} has layers of other types than the configuration of {source}.",
        f"Layer {layer} should have {lacks[layer][0]}, and the checkpoint has {has[layer][0]}"
        + (f"; so it is with layers {', '.join(map(str, wrong[1:]))}." if wrong[1:] else "."),
        "Correct layer_types (or layers_block_type, attn_layer_indices...) in config.json, or "
        "give the checkpoint that it belongs to.",
    )


def _by_layer(names: list[str]) -> dict[int, list[str]]:
    """What follows the number of its layer in each name."""
    found: dict[int, list[str]] = {}
    for name in names:
        match = re.search(r"\blayers\.(\d+)\.(.+)", name)
        if match:
            found.setdefault(int(match[1]), []).append(match[2])
    return found


def _unknown_recurrence(model: Model, own: Any) -> EdgekitError:
    return EdgekitError(
        f"{model.source} has a recurrence that edgekit does not know.",
        f"{type(own).__name__} carries its state in a way of its own: it would be traced as a "
        "loop over the tokens, of one length only.",
        "See edgekit/families/causal for the recurrences that are known.",
    )
