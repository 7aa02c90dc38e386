"""few_levels: a model with weights of two or three levels a channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekit.compress import Context, layers, structure
from edgekit.errors import EdgekitError
from edgekit.progress import say

if TYPE_CHECKING:
    from edgekit.compress.layers import Layers
    from edgekit.model import Model


@dataclass(frozen=True)
class FewLevels:
    """Give linears and convolutions binary or ternary weights: a scale a channel times -1, 0, 1.

    Binary is XNOR-Net's (Rastegari et al., ECCV 2016), ternary the least squares that Ternary
    Weight Networks (Li et al., 2016) approximates; ``operators/few_levels.py`` has the equations.
    Accuracy falls far: let ``distill`` follow, which trains the weights behind the levels through
    the rounding. What is exported holds the levels alone.

    Left as they are, as both papers do, are the first and the last layers: patch and token
    embeddings, and heads.

    INT8 holds the levels exactly, as -127, 0 and 127, where each output channel has its scale. No
    runtime here has kernels for fewer bits: the model runs as fast as any in INT8, and takes as
    many bytes; a compressed file of it is smaller.

    Attributes:
        levels: ``ternary`` or ``binary``.
        exclude: globs of paths of layers, or of what holds them, that stay as they are.
    """

    levels: Literal["ternary", "binary"] = "ternary"
    exclude: tuple[str, ...] = ()

    def call(self, model: Model, context: Context) -> Model:
        """The model with weights of few levels.

        Raises:
            EdgekitError: no layer can have them.
        """
        from edgekit.compress.modules.few_levels import take_over

        made = structure.copied(model)
        found = self._layers(made)
        layers.replace(made, {each: take_over(each, self.levels) for each in found.chosen.values()})
        say(f"{len(found.chosen)} layers have {self.levels} weights.")
        found.tell()
        return made

    def _layers(self, made: Model) -> Layers:
        """The layers to change; what else there is and why not."""
        from torch import nn

        found = layers.find(made, (nn.Linear, nn.Conv1d, nn.Conv2d), self.exclude)
        for path, layer in list(found.chosen.items()):
            why = layers.delicate(path) or _other(layer)
            if why:
                found.leave(path, why)
        if not found.chosen:
            raise EdgekitError(
                f"{made.source} has no layer to give {self.levels} weights.",
                "; ".join(f"{', '.join(paths[:5])}: {why}" for why, paths in found.left.items()),
                "Exclude less, or leave this pass out.",
            )
        return found


def _other(layer: object) -> str:
    """Why a layer of torch's kinds cannot be replaced, or nothing."""
    from torch import nn

    if type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d):
        return ""
    return "a layer of their own kind computes their products"


PASS = FewLevels
