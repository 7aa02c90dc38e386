"""equalize: give the channels between two layers weights of equal range on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from edgekit.edit import Editor
from edgekit.quantize.channels import READERS, Producer, Reach, by_input, find_producers, rescale
from edgekit.quantize.follow import follow

if TYPE_CHECKING:
    from edgekit.model import Graph
    from edgekit.quantize.calibrate import Seen


@dataclass(frozen=True)
class Equalize:
    """f(W1 x + b1) with W1, b1 over s, and W2 s, with s_i = sqrt(max|W1_i| / max|W2_i|).

    W1's row i and all that W2 holds for channel i then have equal ranges. f hands a positive scale
    on: nothing, ReLU, leaky ReLU, a pooling, ...; s_i is a power of two, so that every float stays
    as exact as it was. In a chain each pair moves the next, hence several sweeps.

    With a scale for each output channel of a weight, only W2 gains; it is for one scale a tensor.

    M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019.

    Attributes:
        sweeps: over the whole model, at most.
    """

    sweeps: int = 8
    observes: ClassVar[bool] = False

    def prepare(self, graph: Graph, seen: Seen) -> tuple[Graph, dict[str, torch.Tensor]]:
        """The graph with equal ranges; nothing is divided as the model runs."""
        editor = Editor(graph)
        layers = [p for p in find_producers(editor) if str(p.node.target) in READERS]
        pairs = [(producer, follow(editor, producer)) for producer in layers]
        for _ in range(self.sweeps):
            moved = [_equalize(editor, *pair) for pair in pairs]
            if not any(moved):
                break
        return editor.done(), {}


def _equalize(editor: Editor, producer: Producer, reach: Reach) -> bool:
    """Equalize one pair; whether anything moved."""
    weight: Any = editor.tensor(producer.constants[0])
    before = weight.detach().double().flatten(1).abs().amax(1)
    after = torch.zeros_like(before)
    for reader in reach.readers:
        held: Any = editor.tensor(reader.node.args[1])
        ranges = by_input(reader.node, held).abs().amax((1, 3)).flatten()
        read = reader.channels >= 0
        after.scatter_reduce_(0, reader.channels[read], ranges[read], "amax")
    movable = reach.free & (before > 0) & (after > 0)
    exponent = ((before.log2() - after.log2()) / 2).round()
    factors = torch.where(movable, exponent.exp2(), 1.0)
    if bool((factors == 1).all()):
        return False
    rescale(editor, producer, reach, factors)
    return True
