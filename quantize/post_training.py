"""Post-training quantization: a graph, samples and a plan give scales and changed tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgekit import files
from edgekit.edit import Editor
from edgekit.errors import EdgekitError
from edgekit.progress import stage
from edgekit.quantize.calibrate import Seen, Store, observe
from edgekit.quantize.effort import Plan
from edgekit.quantize.methods import divide
from edgekit.quantize.scales import Entry, ScaleTable, half_exact
from edgekit.quantize.schemes import QMAX, Dtype
from edgekit.quantize.sites import Site, find_sites
from edgekit.quantize.spiking.units import scale_behind
from edgekit.quantize.weights import levels, real, scale_of, weight_entry

if TYPE_CHECKING:
    from edgekit.data import Dataset
    from edgekit.model import Graph

#: Samples that the methods before calibration look at: peaks of channels settle soon.
PREPARING = 16
TENSORS = ".safetensors"
_SCALE, _FACTORS = ":scale", ":factors"


@dataclass(frozen=True)
class Quantized:
    """What quantization found, apart from any graph.

    Attributes:
        table: the scales.
        tensors: what accuracy methods changed, by its name in the graph's state dict. A weight
            that has scales is kept as its levels, with them under ``NAME:scale``; what an
            input is divided by is under ``SITE:factors``.
    """

    table: ScaleTable
    tensors: dict[str, torch.Tensor]

    @property
    def factors(self) -> dict[str, torch.Tensor]:
        """Those of the tensors that inputs are divided by."""
        return {name: value for name, value in self.tensors.items() if name.endswith(_FACTORS)}

    def applied(self, graph: Graph) -> Graph:
        """The float graph with the changed tensors, and with inputs divided where that is due.

        Raises:
            EdgekitError: it lacks one of them, or has one of another shape.
        """
        if not self.tensors:
            return graph
        editor = Editor(graph)
        for name, value in self.tensors.items():
            if ":" not in name:
                scale = self.tensors.get(f"{name}{_SCALE}")
                editor.assign(name, value if scale is None else real(value, scale).float())
        calls = {node.name: node for node in editor.calls()}
        for site in find_sites(editor):
            factors = self.tensors.get(f"{site.name}{_FACTORS}")
            if factors is not None:
                divide(editor, calls[site.node], factors)
        return editor.done()

    def save(self, path: Path) -> None:
        """Write the table to ``path``, and the tensors, if any, beside it as ``.safetensors``."""
        from safetensors.torch import save_file

        beside, table = path.with_suffix(TENSORS), self.table
        if self.tensors:
            save_file(self.tensors, beside)
            table = table.model_copy(update={"tensors": files.sha256(beside)})
        table.save(path)

    @classmethod
    def load(cls, path: Path) -> Quantized:
        """Read what was saved.

        Raises:
            EdgekitError: the table is missing or malformed, or the tensors that it was found with
                are not beside it.
        """
        from safetensors.torch import load

        table, beside = ScaleTable.load(path), path.with_suffix(TENSORS)
        if table.tensors is None:
            return cls(table, {})
        if not beside.exists() or files.sha256(beside) != table.tensors:
            raise EdgekitError(
                f"{path} lacks the tensors that it was found with.",
                f"{beside.name} beside it is " + ("another." if beside.exists() else "missing."),
                "Copy both files together.",
            )
        # Read, not mapped: a mapped file keeps its disk busy.
        return cls(table, load(beside.read_bytes()))


def quantize(
    graph: Graph,
    data: Dataset,
    plan: Plan,
    exclude: Sequence[str] = (),
    batch_size: int = 1,
    store: Store | None = None,
    as_levels: bool = True,
) -> Quantized:
    """Scales for every site, and the tensors that the plan's methods changed.

    What a spiking unit feeds has the unit's own scale, whatever its range.

    Args:
        graph: in fp32; it must take ``batch_size`` samples.
        data: samples by input name, without a batch.
        exclude: globs over module paths that stay in float.
        store: where calibration keeps what it saw, to go on after it was killed.
        as_levels: whether weights that changed are kept as levels; else as unrounded floats.

    Raises:
        EdgekitError: nothing to quantize; no, constant or not finite samples.
    """
    sites = find_sites(Editor(graph), exclude)
    if not sites:
        raise EdgekitError(
            "There is nothing to quantize.",
            "The model has no linear or convolution with a constant weight left to quantize.",
            "Use --precision fp16, or exclude less.",
        )
    prepared, factors = _prepared(graph, sites, data, plan, batch_size)
    products = any(method.products for method in plan.round)
    seen = Seen({}, 0)
    if plan.scheme.activation is not None or plan.round:
        seen = observe(prepared, sites, data, plan.range, products, batch_size, store)
    table = ScaleTable(
        method=plan.method,
        effort=plan.effort,
        data=data.origin,
        samples=seen.samples,
        sites=_entries(prepared, sites, seen, plan),
    )
    rounded = prepared
    for method in plan.round:
        with stage(f"Rounding weights: {type(method).__name__}"):
            rounded = method.round(rounded, table, seen)
    return Quantized(table, changed_tensors(graph, rounded, table if as_levels else None) | factors)


def _prepared(
    graph: Graph, sites: tuple[Site, ...], data: Dataset, plan: Plan, batch_size: int
) -> tuple[Graph, dict[str, torch.Tensor]]:
    """The graph after the plan's preparing methods, and the factors that it divides by."""
    factors: dict[str, torch.Tensor] = {}
    if not plan.prepare or plan.scheme.activation is None:
        return graph, factors
    few = data.take(min(PREPARING, len(data)), seed=0)
    inputs = tuple(site for site in sites if site.kind == "input")
    for method in plan.prepare:
        seen = Seen({}, 0)
        if method.observes:
            seen = observe(graph, inputs, few, plan.range, batch_size=batch_size)
        with stage(f"Preparing: {type(method).__name__}"):
            graph, added = method.prepare(graph, seen)
        factors |= {f"{site}{_FACTORS}": value for site, value in added.items()}
    return graph, factors


def _entries(graph: Graph, sites: tuple[Site, ...], seen: Seen, plan: Plan) -> dict[str, Entry]:
    editor = Editor(graph)
    calls = {node.name: node for node in editor.calls()}
    scheme = plan.scheme
    entries = {}
    for site in sites:
        if site.kind == "weight":
            weight = editor.tensor(calls[site.node].args[1])
            if weight is not None:
                entries[site.name] = weight_entry(weight, site.operator, scheme)
        elif scheme.activation is not None:
            dtype = _activation_dtype(scheme.activation, site)
            scale = scale_behind(editor, calls[site.node], site)
            if scale is None:
                peak = plan.range.peak(seen.by_site[site.name], QMAX[dtype])
                scale = float(half_exact(np.array(peak / QMAX[dtype])))
            entries[site.name] = Entry(
                kind=site.kind, operator=site.operator, dtype=dtype, scale=(scale,)
            )
    return entries


def _activation_dtype(dtype: Dtype, site: Site) -> Dtype:
    """Probabilities are never negative: a sign would waste half of the levels."""
    return "uint8" if dtype == "int8" and site.kind == "probabilities" else dtype


def changed_tensors(
    before: Graph, after: Graph, table: ScaleTable | None
) -> dict[str, torch.Tensor]:
    """The tensors of ``before`` that differ in ``after``, weights as a table's levels and scales.

    A weight that something else reads too, such as an embedding, is kept in float.
    """
    old, new = before.exported.state_dict, after.exported.state_dict
    changed = {name: new[name] for name in old if name in new and new[name] is not old[name]}
    editor = Editor(after)
    calls = {node.name: node for node in editor.calls()}
    for site in find_sites(editor):
        entry = table.sites.get(site.name) if table else None
        if site.kind != "weight" or entry is None:
            continue
        holder: Any = calls[site.node].args[1]
        name = editor.tensor_name(holder)
        if name in changed and len(holder.users) == 1:
            changed[name] = levels(changed[name], entry)
            changed[f"{name}{_SCALE}"] = scale_of(entry).half()
    return {name: value.detach().contiguous() for name, value in changed.items()}
