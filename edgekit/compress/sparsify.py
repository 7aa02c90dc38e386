"""sparsify: a model with weights that are sparse 2:4, for tensor cores that skip the zeros."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekit import interrupt
from edgekit.compress import Context, layers, sparsity, structure
from edgekit.errors import EdgekitError
from edgekit.progress import say, track

if TYPE_CHECKING:
    from edgekit.compress.layers import Layers
    from edgekit.model import Model

#: Input channels that a sparse product of tensor cores takes at once in fp16; a convolution with
#: fewer has nothing to skip.
CHANNELS = 32
#: Bytes of products of inputs that are held at a time; more layers take further runs.
_HELD = 2**30


@dataclass(frozen=True)
class Sparsify:
    """Set two of every four weights in a row, along the inputs, to zero (2:4 sparsity).

    NVIDIA's tensor cores from Ampere on skip them, in TensorRT with the builder flag
    SPARSE_WEIGHTS (the on-device kit sets it; TensorRT for RTX has none that acts). Elsewhere the
    model is as large and as fast as before. INT8 and distillation keep the zeros.

    Linears with inputs divisible by 4 become sparse, and convolutions of 32 input channels or more
    in each group. Left dense are embeddings and heads, which cost little and lose most.

    ``sparsegpt`` is algorithm 1 of Frantar and Alistarh, SparseGPT (ICML 2023): the weights that
    are left make up for those that went, on calibration data. ``magnitude`` keeps the two largest
    of every four as they are (Mishra et al., Accelerating Sparse Deep Neural Networks, 2021), and
    needs no data.

    Attributes:
        method: ``sparsegpt`` or ``magnitude``.
        exclude: globs of paths of layers, or of what holds them, that stay dense.
        samples: of calibration data, at most (sparsegpt).
        batch_size: samples of a call (sparsegpt).
        damping: share of the inputs' mean square that is added to each input's (sparsegpt).
    """

    method: Literal["sparsegpt", "magnitude"] = "sparsegpt"
    exclude: tuple[str, ...] = ()
    samples: int = 128
    batch_size: int = 16
    damping: float = 0.01

    def __post_init__(self) -> None:
        for name, value in (("samples", self.samples), ("batch_size", self.batch_size)):
            if value < 1:
                raise EdgekitError(f"sparsify: {name}={value} is below 1.", "", "Give 1 or more.")
        if not self.damping >= 0:
            raise EdgekitError(
                f"sparsify: damping={self.damping} is below 0.",
                "It is a share of the inputs' mean square.",
                "Give 0.01, or 0.1 where calibration data is scarce.",
            )

    def requires(self, model: Model, context: Context) -> None:
        """Raise without data, where weights are reconstructed."""
        if self.method == "sparsegpt" and context.data is None:
            raise EdgekitError(
                "There is no data for sparsegpt.",
                "It moves the weights that are left by what enters each layer.",
                "Pass --calibration DATA, or use sparsify:method=magnitude, which needs none.",
            )

    def call(self, model: Model, context: Context) -> Model:
        """The model with sparse weights.

        Raises:
            EdgekitError: no layer can be sparse.
        """
        made = structure.copied(model)
        found = self._layers(made)
        if self.method == "magnitude":
            for layer in found.chosen.values():
                layers.assign(layer, sparsity.by_magnitude(layers.matrix_of(layer)))
        else:
            self._reconstruct(made, found, context)
        say(f"{len(found.chosen)} layers are sparse 2:4.")
        found.tell()
        return made

    def _layers(self, made: Model) -> Layers:
        """The layers to make sparse; what else there is and why not."""
        from torch import nn

        found = layers.find(made, (nn.Linear, nn.Conv1d, nn.Conv2d), self.exclude)
        for path, layer in list(found.chosen.items()):
            why = _dense(path, layer)
            if why:
                found.leave(path, why)
        if not found.chosen:
            raise EdgekitError(
                f"{made.source} has no layer to make sparse.",
                "; ".join(f"{', '.join(paths[:5])}: {why}" for why, paths in found.left.items()),
                "Exclude less, or leave this pass out.",
            )
        return found

    def _reconstruct(self, made: Model, found: Layers, context: Context) -> None:
        """Layer by layer; in a further run, inputs come from what is sparse already."""
        import torch

        data = context.samples("sparsegpt").take(self.samples, context.seed)
        for part in _parts(found.chosen):
            seen = layers.grams(made, part, data, self.batch_size)
            for path, layer in track(part.items(), "Making layers sparse", len(part)):
                interrupt.check()
                pairs = zip(layers.matrix_of(layer), seen.pop(path), strict=True)
                rows = [sparsity.by_reconstruction(w, h, self.damping) for w, h in pairs]
                layers.assign(layer, torch.stack(rows))


def _dense(path: str, layer: Any) -> str:
    """Why a layer stays dense, or nothing."""
    from torch import nn

    why = layers.delicate(path)
    if why:
        return why
    if not isinstance(layer, nn.Linear):
        channels = layer.in_channels // layer.groups
        if channels < CHANNELS or channels % sparsity.GROUP:
            return f"convolutions of fewer than {CHANNELS} input channels, or of no multiple of 4"
    elif layer.in_features % sparsity.GROUP:
        return "their inputs are no multiple of 4"
    return ""


def _parts(chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The layers in parts whose products of inputs fit into memory."""
    part: dict[str, Any] = {}
    held = 0
    for path, layer in chosen.items():
        groups, _, width = layers.matrix_of(layer).shape
        size = 4 * groups * width**2
        if part and held + size > _HELD:
            yield part
            part, held = {}, 0
        part[path] = layer
        held += size
    yield part


PASS = Sparsify
