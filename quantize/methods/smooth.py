"""smooth: move outliers of activations into the weights that read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from edgekit.edit import Editor
from edgekit.quantize.channels import (
    READERS,
    Reader,
    by_input,
    find_producers,
    multiply_inputs,
    owned,
    rescale,
    spread,
)
from edgekit.quantize.follow import follow
from edgekit.quantize.methods import divide
from edgekit.quantize.sites import find_sites
from edgekit.quantize.spiking.units import unit_behind

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Graph
    from edgekit.quantize.calibrate import Seen
    from edgekit.quantize.observe import Statistics

    #: The largest magnitude of each input channel, by call.
    _Peaks = dict[str, torch.Tensor]

#: Factors stay within 2 ** -LIMIT .. 2 ** LIMIT, so that scaled weights stay within float16.
LIMIT = 10
#: Tried where alpha is not given.
_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass
class _Layer:
    """What the noise of one layer is made of, by its input channel.

    Attributes:
        node: the call.
        peak: largest magnitude of the input, (C,).
        power: mean square of the input, (C,); each channel's is its squared peak times what that
            ratio is over the whole tensor.
        weight: largest magnitude of each output's weight for each input, (outputs, C); 0 where
            a group does not read it.
        energy: sum of the squares of the weights of each input, (C,).
        by_channel: as in Smooth.
    """

    node: Node
    peak: torch.Tensor
    power: torch.Tensor
    weight: torch.Tensor
    energy: torch.Tensor
    by_channel: bool

    def noise(self, factors: torch.Tensor, levels: int) -> float:
        """Noise to signal of the output once the input is divided by ``factors``.

        Rounding to a step d gives each value the noise d^2 / 12.
        """
        step = (self.peak / factors).amax() / 127
        steps = (self.weight * factors).amax(1) / levels
        if not self.by_channel:
            steps = steps.amax().expand_as(steps)
        from_input = step.square() * (factors.square() @ self.energy)
        reads = (self.weight > 0).double()
        from_weight = steps.square() @ reads @ (self.power / factors.square())
        signal = (self.power @ self.energy).clamp_min(1e-30)
        return float((from_input + from_weight) / 12 / signal)


@dataclass(frozen=True)
class Smooth:
    """x_j / s_j and W_j s_j, with s_j = max|x_j|^alpha / max|W_j|^(1 - alpha), a power of two.

    A power of two leaves every float as exact as it was. The division costs nothing where the
    operator that gives x can take it into its own constants: a norm's weight and bias, a product
    with a constant, a linear or convolution whose channels reach x through operators that hand a
    scale on (V through attention, one side of a gate). Elsewhere a linear's input is divided as
    the model runs, where that pays: its noise to signal falls by ``gain`` and by half or more.

    G. Xiao et al., "SmoothQuant", ICML 2023; Z. Li et al., "RepQ-ViT", ICCV 2023.

    Attributes:
        alpha: how much of an outlier moves; None takes for each x the one of five from 0 to 1, or
            no move at all, that leaves the least expected noise in what reads it.
        levels: the largest level of a weight.
        divide: whether a division as the model runs is allowed.
        gain: by how much noise to signal must fall for that.
        by_channel: whether each output channel of a weight has its own scale. If not, the weights
            of a linear or convolution are not rescaled by what their outputs need.
    """

    alpha: float | None = None
    levels: int = 127
    divide: bool = True
    gain: float = 1e-2
    by_channel: bool = True
    observes: ClassVar[bool] = True

    def prepare(self, graph: Graph, seen: Seen) -> tuple[Graph, dict[str, torch.Tensor]]:
        """The graph with smoother inputs, and by site what is divided as the model runs."""
        editor = Editor(graph)
        names = {site.node: site.name for site in find_sites(editor) if site.kind == "input"}
        known = {node: seen.by_site[name] for node, name in names.items() if name in seen.by_site}
        peaks = {node: torch.from_numpy(s.channel_peak).double() for node, s in known.items()}
        # Backwards: what a layer gives is settled before the weights that give it are looked at.
        for producer in reversed(list(find_producers(editor))):
            if not self.by_channel and str(producer.node.target) in READERS:
                continue
            reach = follow(editor, producer)
            if not reach.free.any():
                continue
            readers = [r for r in reach.readers if r.node.name in peaks]
            layers = [self._layer(editor, r.node, known, peaks) for r in readers]
            factors = self._factors(readers, layers, reach.free)
            if factors is None:
                continue
            rescale(editor, producer, reach, factors)
            for reader in readers:
                peaks[reader.node.name] /= spread(factors, reader, 1.0)
        divided = self._divide(editor, known, peaks) if self.divide else {}
        return editor.done(), {names[node]: factors for node, factors in divided.items()}

    def _factors(
        self, readers: list[Reader], layers: list[_Layer], free: torch.Tensor
    ) -> torch.Tensor | None:
        """The factors of a producer's channels (count,), or None where none is better."""
        peak = torch.zeros(len(free), dtype=torch.float64)
        weight = torch.zeros_like(peak)
        for reader, layer in zip(readers, layers, strict=True):
            read = reader.channels >= 0
            index = reader.channels[read]
            peak.scatter_reduce_(0, index, layer.peak[read], "amax")
            weight.scatter_reduce_(0, index, layer.weight.amax(0)[read], "amax")
        movable = free & (peak > 0) & (weight > 0)
        if not movable.any():
            return None
        tried = [torch.ones_like(peak)]
        for alpha in _ALPHAS if self.alpha is None else (self.alpha,):
            ratio = alpha * peak.log2() - (1 - alpha) * weight.log2()
            ratio = ratio - ratio[movable].median()
            factors = ratio.round().clamp(-LIMIT, LIMIT).exp2()
            tried.append(torch.where(movable, factors, 1.0))
        if self.alpha is not None:
            return tried[1]

        def noise(factors: torch.Tensor) -> float:
            return sum(
                layer.noise(spread(factors, reader, 1.0), self.levels)
                for reader, layer in zip(readers, layers, strict=True)
            )

        best = min(tried, key=noise)
        return None if best is tried[0] else best

    def _divide(
        self, editor: Editor, known: dict[str, Statistics], peaks: _Peaks
    ) -> dict[str, torch.Tensor]:
        """Divide inputs of linears where it pays; the factors by call."""
        by_source: dict[Node, list[Node]] = {}
        for call in editor.calls("aten.linear.default"):
            # Levels are divided by nothing: they would not be levels any more.
            if unit_behind(call.args[0]) is not None:
                continue
            if call.name in peaks and owned(editor, call.args[1]):
                by_source.setdefault(call.args[0], []).append(call)  # type: ignore[arg-type]
        divided = {}
        for calls in by_source.values():
            layers = [self._layer(editor, call, known, peaks) for call in calls]
            count = len(layers[0].peak)
            readers = [Reader(call, torch.arange(count)) for call in calls]
            factors = self._factors(readers, layers, torch.ones(count, dtype=torch.bool))
            if factors is None or not self._pays(layers, factors):
                continue
            for call in calls:
                divide(editor, call, factors)
                multiply_inputs(editor, call, factors)
                divided[call.name] = factors
        return divided

    def _pays(self, layers: Iterable[_Layer], factors: torch.Tensor) -> bool:
        before = sum(layer.noise(torch.ones_like(factors), self.levels) for layer in layers)
        after = sum(layer.noise(factors, self.levels) for layer in layers)
        return before - after > max(self.gain, before / 2)

    def _layer(
        self, editor: Editor, call: Node, known: dict[str, Statistics], peaks: _Peaks
    ) -> _Layer:
        seen, peak = known[call.name], peaks[call.name]
        weight: Any = editor.tensor(call.args[1])
        blocks = by_input(call, weight)
        groups, outputs, inputs, _ = blocks.shape
        largest = torch.zeros(groups, outputs, groups, inputs, dtype=torch.float64)
        each = torch.arange(groups)
        largest[each, :, each] = blocks.abs().amax(3)
        square = float(seen.counts @ seen.centres**2 / max(seen.counts.sum(), 1))
        seen_peak = torch.from_numpy(seen.channel_peak).double()
        share = square / float(seen_peak.square().mean().clamp_min(1e-30))
        return _Layer(
            call,
            peak,
            peak.square() * min(share, 1.0),
            largest.reshape(groups * outputs, groups * inputs),
            blocks.square().sum((1, 3)).flatten(),
            self.by_channel,
        )
