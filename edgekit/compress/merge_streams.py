"""merge_streams: deep dual-stream blocks with one set of weights for both streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.compress import Context, structure
from edgekit.errors import EdgekitError
from edgekit.progress import say

if TYPE_CHECKING:
    from torch import nn

    from edgekit.model import Model


@dataclass(frozen=True)
class MergeStreams:
    """Let deep dual-stream blocks run text and image as one stream, on the image branch's weights.

    A dual-stream block has weights for text and others for image, and joins them in attention only.
    A merged block has the image branch's modulation, projections and MLP for all tokens, which
    halves its weights; it is a start for distillation (the hybrid stream of Yang et al.,
    Amber-Image, 2026). For QwenImage, Flux and SD3 of diffusers. Flux's dual blocks take the same
    form; its single-stream blocks, which have parallel branches, stay as they are.

    Give one of ``keep`` and ``ratio``.

    Attributes:
        keep: how many of the dual-stream blocks stay so, from the first on.
        ratio: share of the dual-stream blocks that are merged, from the last on, at most 1.
    """

    keep: int | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.ratio is None):
            raise EdgekitError(
                "merge_streams takes one of keep and ratio.",
                "",
                "Write merge_streams:keep=10 or merge_streams:ratio=0.6.",
            )
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise EdgekitError(
                f"merge_streams: ratio is {self.ratio}.", "", "Give a share above 0, at most 1."
            )
        if self.keep is not None and self.keep < 0:
            raise EdgekitError(f"merge_streams: keep is {self.keep}.", "", "Give 0 or more.")

    def requires(self, model: Model, context: Context) -> None:
        """Raise where there is nothing to merge, or a block that cannot be."""
        self._deep(model)

    def call(self, model: Model, context: Context) -> Model:
        """The model with its deep dual-stream blocks merged."""
        from edgekit.compress.modules.shared_stream import merged

        made = structure.copied(model)
        deep = self._deep(made)
        for path, block in deep:
            parent, _, name = path.rpartition(".")
            made.module.get_submodule(parent)._modules[name] = merged(block)
        say(f"Merged the streams of {len(deep)} blocks: {', '.join(path for path, _ in deep)}.")
        return made

    def _deep(self, model: Model) -> list[tuple[str, nn.Module]]:
        """The dual-stream blocks to merge, by path.

        Raises:
            EdgekitError: as in ``requires``.
        """
        found = _dual(model)
        if not found:
            raise EdgekitError(
                f"{model.source} has no dual-stream block.",
                "Known are those of diffusers' QwenImageTransformer2DModel, FluxTransformer2DModel "
                "and SD3Transformer2DModel.",
                "Leave merge_streams out.",
            )
        keep = self.keep
        if keep is None:
            keep = len(found) - round((self.ratio or 0) * len(found))
        if keep >= len(found):
            asked = f"keep={self.keep}" if self.ratio is None else f"ratio={self.ratio}"
            raise EdgekitError(
                f"{asked} leaves nothing to merge.",
                f"{model.source} has {len(found)} dual-stream blocks.",
                f"Keep 0 to {len(found) - 1}.",
            )
        double = [place for place, (_, block) in enumerate(found) if _attends_twice(block)]
        if double and double[-1] >= keep:
            raise EdgekitError(
                f"{found[double[-1]][0]} cannot be merged.",
                "Its image branch has a second attention, which the text branch has not.",
                f"Keep the first {double[-1] + 1} blocks: merge_streams:keep={double[-1] + 1}.",
            )
        return found[keep:]


def _dual(model: Model) -> list[tuple[str, nn.Module]]:
    """The dual-stream blocks, first to last."""
    from edgekit.compress.modules.shared_stream import BRANCHES

    return [
        (path, module)
        for path, module in model.module.named_modules()
        if type(module).__name__ in BRANCHES and type(module).__module__.startswith("diffusers.")
    ]


def _attends_twice(block: nn.Module) -> bool:
    """Whether it is a block of Stable Diffusion 3.5 with a second attention for the image."""
    return bool(getattr(block, "use_dual_attention", False))


PASS = MergeStreams
