"""Calibration: one pass over real samples in PyTorch fills the scale table.

Min-max: an activation's scale is its largest magnitude over all samples / 127, a weight's
the largest magnitude of each output channel / 127.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgekit.edit import Editor
from edgekit.errors import EdgekitError
from edgekit.progress import track
from edgekit.quantize.scales import Entry, ScaleTable
from edgekit.quantize.sites import Site

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.data import Dataset
    from edgekit.model import Graph


def calibrate(graph: Graph, sites: tuple[Site, ...], data: Dataset) -> ScaleTable:
    """Scales for every site.

    Args:
        graph: the fp32 graph.
        sites: from ``find_sites`` on the same graph.
        data: samples by input name, without a batch.

    Raises:
        EdgekitError: a site is fed NaN or infinity, or there are no samples or sites.
    """
    if not sites:
        raise EdgekitError(
            "There is nothing to quantize.",
            "The model has no linear or convolution with a constant weight left to quantize.",
            "Use --precision fp16, or exclude less.",
        )
    if not len(data):
        raise EdgekitError(f"The calibration set {data.origin} is empty.")
    peaks = _activation_peaks(graph, sites, data)
    editor = Editor(graph)
    calls = {node.name: node for node in editor.calls()}
    entries = {}
    for site in sites:
        peak = (
            _weight_peaks(editor, calls[site.node])
            if site.kind == "weight"
            else np.array([peaks[site.node]])
        )
        scale = half_exact(peak / site.qmax)
        entries[site.name] = Entry(
            kind=site.kind,
            operator=site.operator,
            bits=site.bits,
            axis=site.axis,
            scale=tuple(scale.tolist()),
        )
    return ScaleTable(method="minmax", data=data.origin, samples=len(data), sites=entries)


def half_exact(scale: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The least float16 values not below ``scale``, as float64.

    Core ML stores scales in float16, and engines multiply by them in float16: a scale that
    float16 holds exactly is the same number everywhere. Rounding up never clips the range.
    """
    least = np.float16(2.0**-24)
    half = np.maximum(scale.astype(np.float16), least)
    half = np.where(half.astype(np.float64) < scale, np.nextafter(half, np.float16(np.inf)), half)
    result: np.ndarray[Any, Any] = half.astype(np.float64)
    return result


def _activation_peaks(graph: Graph, sites: tuple[Site, ...], data: Dataset) -> dict[str, float]:
    watched = {site.node: site.name for site in sites if site.kind == "activation"}
    watcher = _Peaks(graph.exported.module(check_guards=False), watched)
    names = [spec.name for spec in graph.inputs]
    with torch.inference_mode():
        for sample in track(data, "Calibrating"):
            watcher.run(*(torch.from_numpy(sample[name][None]) for name in names))
    return watcher.peaks


class _Peaks(torch.fx.Interpreter):
    """Runs the graph and keeps the largest magnitude that reaches each watched call."""

    def __init__(self, module: torch.fx.GraphModule, watched: dict[str, str]) -> None:
        super().__init__(module)
        self._watched = watched
        self.peaks: dict[str, float] = {}

    def run_node(self, n: Node) -> Any:
        if n.name in self._watched:
            value = self.env[n.args[0]]  # type: ignore[index]
            peak = float(value.abs().max())
            if not np.isfinite(peak):
                raise EdgekitError(
                    f"{self._watched[n.name]} is not finite during calibration.",
                    "The model gives NaN or infinity on a calibration sample.",
                    "Check the checkpoint, and the calibration data's scale.",
                )
            self.peaks[n.name] = max(self.peaks.get(n.name, 0.0), peak)
        return super().run_node(n)


def _weight_peaks(editor: Editor, node: Node) -> np.ndarray[Any, Any]:
    weight = editor.tensor(node.args[1])
    if weight is None:
        raise KeyError(node.name)
    return weight.detach().flatten(1).abs().amax(1).double().numpy()
