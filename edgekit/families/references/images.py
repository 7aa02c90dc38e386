"""What our image models share: the contract of their one input."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from edgekit.errors import EdgekitError
from edgekit.model import Input, Model, Preprocess

#: Of ImageNet.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def classifier(
    module: nn.Module, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Model:
    """A module that gives logits for images ``x`` with as many channels as ``mean`` has."""
    prepare = Preprocess(size, size, "bicubic", tuple(mean), tuple(std), len(mean))
    spec = Input("x", (1, len(mean), *size))
    return Model(module.eval(), (spec,), ("logits",), "", preprocess=prepare)


def grid(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """How many patches an image has, (down, across).

    Raises:
        EdgekitError: the patches do not fill it.
    """
    if len(size) != 2 or len(patch) != 2 or size[0] % patch[0] or size[1] % patch[1]:
        raise EdgekitError(
            f"Patches of {patch} do not fill an image of {size}.",
            "Both are (height, width).",
            "Pass --set image_size=[H,W] and --set patch=[H,W] that divide it.",
        )
    return size[0] // patch[0], size[1] // patch[1]
