"""Families: where models come from, one file each.

Each has ``load(name, options) -> Model``, and ``REQUIRES``: ``{import name: pip name}`` of the
packages that it needs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit import find, packages
from edgekit.errors import EdgekitError
from edgekit.model import Input, Model

if TYPE_CHECKING:
    import torch

FORMS = (
    "Write timm/NAME (an architecture or a folder), transformers/FOLDER_OR_ID, diffusers/FOLDER, "
    "reference/NAME (a model of ours, or a folder), compressed/FOLDER, a file FILE.onnx, or "
    "package.module:factory for your own code."
)


@dataclass(frozen=True)
class Options:
    """How a model is to be made.

    Attributes:
        checkpoint: weights to load instead of the source's own.
        random_weights: load none; the initialisation is seeded, so it is always the same.
        allow_partial: accept a checkpoint that lacks keys or has others.
        inputs: to replace the inputs that the family finds by itself.
        arguments: for the model's constructor, as in ``--set num_classes=10``.
        mode: ``whole``: a sequence goes in at once; ``stream``: a piece with each call, and what
            a causal sequence model remembers of the pieces before is named states.
        context: positions that attention remembers at most in a stream; None is a usual number.
    """

    checkpoint: Path | None = None
    random_weights: bool = False
    allow_partial: bool = False
    inputs: tuple[Input, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    mode: Literal["whole", "stream"] = "whole"
    context: int | None = None


def load(source: str, options: Options) -> Model:
    """The model that ``source`` names, in evaluation mode, with its weights.

    Args:
        source: ``timm/NAME``, ``transformers/FOLDER_OR_ID``, ``diffusers/FOLDER``,
            ``reference/NAME``, ``FILE.onnx`` or ``package.module:factory``.

    Raises:
        EdgekitError: unknown form, model or weights, or a checkpoint of another model.
    """
    family, name = _parse(source)
    if options.checkpoint and options.random_weights:
        raise EdgekitError(
            f"{source}: both a checkpoint and random weights were asked for.",
            f"The checkpoint is {options.checkpoint}.",
            "Drop --checkpoint or --random-weights.",
        )
    _prepare(family)
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what no checkpoint fills is the same in every run
        model: Model = find.find("families", family).load(name, options)
        if options.random_weights:
            _spread(model.module)
    return model


def outline(source: str, options: Options) -> Model:
    """The model on torch's meta device: shapes without values, and no memory for them.

    Raises:
        EdgekitError: unknown form or model, or one whose making or running looks at values.
    """
    family, name = _parse(source)
    _prepare(family)
    import torch

    options = dataclasses.replace(options, checkpoint=None, random_weights=True)
    try:
        with torch.device("meta"):
            model: Model = find.find("families", family).load(name, options)
    except EdgekitError as error:
        if isinstance(error.__cause__, NotImplementedError | RuntimeError):
            raise EdgekitError(
                f"{source} cannot be planned: it looks at values.", error.why, "Inspect it whole."
            ) from error
        raise
    return model


def _prepare(family: str) -> None:
    """See that what a family needs is there, and works."""
    packages.require("families", [family])
    from edgekit.families import torchvision

    torchvision.repair()


def _spread(module: torch.nn.Module) -> None:
    """Draw what initialises to a constant: zero heads and vanishing layer scales.

    A model whose outputs do not depend on its layers would prove nothing about them.
    """
    import torch

    for parameter in module.parameters():
        values = parameter.detach()
        value = float(values.flatten()[0]) if values.numel() else 0.0
        if not bool((values == value).all()):
            continue
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
        elif 0 < abs(value) < 0.01:
            torch.nn.init.constant_(parameter, 0.1)


def is_onnx(source: str) -> bool:
    """Whether a source is the path of an ONNX file."""
    return source.endswith(".onnx")


def _parse(source: str) -> tuple[str, str]:
    """(family, name in it)."""
    if is_onnx(source):
        return "onnx", source
    family, slash, name = source.partition("/")
    if slash and name and family in find.names("families"):
        return family, name
    if re.fullmatch(r"[\w.]+:[\w.]+", source):
        return "factory", source
    raise EdgekitError(f"{source!r} does not name a model.", "", FORMS)
