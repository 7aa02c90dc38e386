"""reparameterize: what is one layer by its function becomes one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.compress import Context
    from edgekit.model import Model

#: Of the largest output; what float32 may round is well below it.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Reparameterize:
    """Fold branches and batch norms into single convolutions and linear layers.

    X. Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", 2021, for any block: its
    forward is evaluated on affine maps, so that parallel convolutions of any kernel size and
    groups, batch norms, layer scales and residual connections add up to one layer (FastViT,
    MobileOne, RepViT, LevIT, your own). Then batch norms beside a single layer go into it.

    The outputs stay as they are, up to rounding; this is checked. A block stays where its single
    layer would hold more weights than it does. Converters fold the norms anyway; the pass lets
    the passes after it see the layers that will run. It has no options, and needs no data.
    """

    def call(self, model: Model, context: Context) -> Model:
        """The model with fewer layers.

        Raises:
            EdgekitError: there is nothing to fold, or the outputs changed.
        """
        import torch

        from edgekit.compress import structure
        from edgekit.compress.batches import batch, outputs
        from edgekit.compress.reparameterization import norms
        from edgekit.compress.reparameterization.blocks import Folder, replace
        from edgekit.data import random_data
        from edgekit.progress import say

        made = structure.copied(model)
        made.module.eval()
        noise = batch(random_data(made.inputs, 2, context.seed), [0, 1])
        with torch.no_grad():
            expected = outputs(made.module, noise)
            folder = Folder()
            folder.fold(made.module)
            for old, new in folder.done.values():
                replace(made.traced, old, new)
            folded = norms.fold(made)
            found = outputs(made.module, noise)
        if not (folder.done or folded):
            raise EdgekitError(
                f"{model.source} has nothing to reparameterize.",
                "No batch norm stands beside a single layer, and no block is one layer by its "
                "function" + _kept(folder.left, " would hold more weights as one"),
                "Drop the pass.",
            )
        for before, after in zip(expected, found, strict=True):
            far = float((before - after).abs().max() / before.abs().max().clamp_min(1e-12))
            if not far <= TOLERANCE:
                raise EdgekitError(
                    f"{model.source} cannot be reparameterized.",
                    f"Its outputs changed by {far:.1e} of the largest.",
                    "Its forward does more than its modules show; drop the pass.",
                )
        say(
            f"{len(folder.done)} blocks became single layers, {len(folded)} more norms were folded"
            + _kept(folder.left, " stay, for a single layer would be larger")
        )
        return made


def _kept(paths: list[str], words: str) -> str:
    """The end of a sentence, naming the blocks that stay."""
    return f"; {', '.join(paths[:3])}{words}." if paths else "."


PASS = Reparameterize
