"""Shapes: a model exported at the sizes that are to be predicted, with or without values."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.model import Graph, Model


def exported(model: Model, batch: int | None) -> Graph:
    """The model's graph with every size fixed: the batch as asked, others as usual.

    Spiking units are written out, so that each step of a temporal one counts.

    Args:
        batch: samples a call; None leaves the model's own, or 1 where that varies.

    Raises:
        EdgekitError: the model streams, or cannot be exported.
    """
    import torch

    from edgekit.converters.rewrites import spiking_units

    if model.states:
        raise EdgekitError(
            f"The latency of {model.source} as a stream cannot be predicted.",
            "A prompt and each token after it take different times, by what came before.",
            "Predict it whole, at the length of a prompt: drop --mode stream.",
        )
    inputs = tuple(
        dataclasses.replace(spec, shape=(batch or spec.concrete()[0], *spec.concrete()[1:]))
        for spec in model.inputs
    )
    tensor = next(model.module.parameters(), None)
    meta = tensor is not None and tensor.device.type == "meta"
    with torch.device("meta") if meta else nullcontext():
        return spiking_units.rewrite(dataclasses.replace(model, inputs=inputs).export())
