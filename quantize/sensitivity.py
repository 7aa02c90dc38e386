"""Sensitivity: the damage that quantizing each module alone does, in an otherwise float graph.

A sample is run once in float, and all values are kept. For each module, its output is then
computed from quantized inputs and weights, and only what depends on that output is run again:
about half a forward pass a module and sample.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import log10, sqrt
from typing import TYPE_CHECKING, Any

import torch

from edgekit.edit import Editor
from edgekit.errors import EdgekitError
from edgekit.progress import track
from edgekit.quantize.place import DEQUANTIZE, DEQUANTIZE_FP8, QUANTIZE, QUANTIZE_FP8
from edgekit.quantize.scales import Entry, ScaleTable
from edgekit.quantize.schemes import QMAX
from edgekit.quantize.sites import find_sites
from edgekit.quantize.weights import rounded
from edgekit.targets.runtimes import Arrays

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Graph

#: Decibels that stand for no error at all, in JSON.
EXACT_DB = 999.0
#: A module is suggested to stay in float only if its drift is so many times the median,
OUTLIER = 5.0
#: and only until the drift predicted for the rest is this share of the whole's.
ENOUGH = 0.5
RULE = (
    f"modules with more than {OUTLIER:g} times the median drift, worst first, until the drift "
    f"predicted for the rest (root of the sum of squares) is {ENOUGH:.0%} of the whole's"
)


@dataclass(frozen=True)
class Damage:
    """What quantizing one module alone does. SQNRs are in decibels: higher is better.

    Attributes:
        module: its path in the user's code.
        operator: ``linear`` or ``conv``.
        parameters: of its weight.
        operations: multiply-accumulates of one sample.
        sqnr_input: of what enters it; None where that stays in float.
        sqnr_weight: of its weight.
        sqnr_output: of what leaves it.
        drift: relative error of the model's worst output, |a - r| / |r|.
        agreement: share of samples whose largest class stays; None where outputs are no classes.
        loss: by how much the cross-entropy of the labels grows; None without labels.
    """

    module: str
    operator: str
    parameters: int
    operations: int
    sqnr_input: float | None
    sqnr_weight: float
    sqnr_output: float
    drift: float
    agreement: float | None
    loss: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def sensitivity(
    graph: Graph,
    table: ScaleTable,
    batches: Sequence[Arrays],
    labels: Sequence[int] | None = None,
    spared: Collection[str] = (),
) -> tuple[Damage, ...]:
    """The damage of each module that the table quantizes, worst first.

    Args:
        graph: in float, with the changes that the table goes with applied.
        batches: inputs by name, one call each; 16 to 32 samples rank modules well.
        labels: one class a sample.
        spared: modules that are not quantized, though the table has them.

    Raises:
        EdgekitError: the table has none of the graph's other modules.
    """
    runner = _Runner(graph)
    probes = _probes(graph, table, runner, spared)
    if not probes:
        raise EdgekitError(
            "There is no module to examine.",
            "The scale table has none of the modules that this target quantizes.",
        )
    steps = _steps(runner, probes, batches, labels)
    with torch.inference_mode():
        for probe, call, classes in track(
            steps, "Quantizing each module alone", len(batches) * len(probes)
        ):
            probe.measure(runner, call, classes)
    damages = [probe.damage(sum(_samples(batch) for batch in batches)) for probe in probes]
    return tuple(sorted(damages, key=lambda damage: -damage.drift))


def suggest(damages: Sequence[Damage]) -> tuple[str, ...]:
    """The modules whose staying in float buys the most, worst first; see ``RULE``."""
    ordered = sorted(damages, key=lambda damage: -damage.drift)
    median = ordered[len(ordered) // 2].drift
    whole = together(ordered)
    chosen: list[str] = []
    for index, damage in enumerate(ordered):
        if together(ordered[index:]) <= ENOUGH * whole or damage.drift <= OUTLIER * median:
            break
        chosen.append(damage.module)
    return tuple(chosen)


def together(damages: Sequence[Damage]) -> float:
    """The drift predicted for several modules, were their errors independent."""
    return sqrt(sum(damage.drift**2 for damage in damages))


@dataclass
class _Ratio:
    """Squared sums of a tensor and of its error."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: torch.Tensor, actual: torch.Tensor) -> None:
        self.signal += float(reference.double().square().sum())
        self.noise += float((actual.double() - reference.double()).square().sum())

    @property
    def relative(self) -> float:
        if not self.signal:
            return float(self.noise > 0)
        return sqrt(self.noise / self.signal)

    @property
    def decibels(self) -> float:
        relative = self.relative
        return min(-20 * log10(relative), EXACT_DB) if relative else EXACT_DB


class _Runner(torch.fx.Interpreter):
    """Runs the graph whole, keeping every value, or again from one changed value on."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.exported.module(check_guards=False), False)
        self.nodes = {node.name: node for node in self.graph.nodes}
        self._complete = graph.complete
        self.values: dict[Node, Any] = {}
        self.outputs: tuple[torch.Tensor, ...] = ()
        self._inputs: tuple[torch.Tensor, ...] = ()

    def whole(self, batch: Arrays) -> None:
        """Run everything."""
        self._inputs = tuple(torch.from_numpy(v) for v in self._complete(batch).values())
        self.outputs = _tensors(self.run(*self._inputs))
        self.values = dict(self.env)

    def again(self, node: Node, value: torch.Tensor, after: frozenset[Node]) -> Any:
        """The outputs where ``node`` gives ``value``; ``after`` are the nodes that this changes."""
        known = {n: v for n, v in self.values.items() if n not in after}
        return _tensors(self.run(*self._inputs, initial_env={**known, node: value}))


@dataclass
class _Probe:
    """One module: how it is quantized, and what that did so far."""

    module: str
    operator: str
    node: Node
    entries: dict[str, Entry]
    weight: torch.Tensor
    stored: torch.Tensor
    after: frozenset[Node]
    inputs: _Ratio = field(default_factory=_Ratio)
    result: _Ratio = field(default_factory=_Ratio)
    outputs: dict[int, _Ratio] = field(default_factory=dict)
    agreeing: int | None = None
    loss: float | None = None
    operations: int = 0

    def measure(self, runner: _Runner, samples: int, classes: torch.Tensor | None) -> None:
        """Quantize the module in the call that the runner has just made."""
        value = self._quantized(runner.values)
        reference = runner.values[self.node]
        self.result.add(reference, value)
        self.operations = reference.numel() // samples * self.weight[0].numel()
        changed = runner.again(self.node, value, self.after)
        for index, (r, a) in enumerate(zip(runner.outputs, changed, strict=True)):
            if r.is_floating_point():
                self.outputs.setdefault(index, _Ratio()).add(r, a)
        self._classify(runner.outputs[0], changed[0], classes)

    def damage(self, samples: int) -> Damage:
        """What was found."""
        weights = _Ratio()
        weights.add(self.weight, self.stored)
        return Damage(
            module=self.module,
            operator=self.operator,
            parameters=self.weight.numel(),
            operations=self.operations,
            sqnr_input=self.inputs.decibels if "input" in self.entries else None,
            sqnr_weight=weights.decibels,
            sqnr_output=self.result.decibels,
            drift=max((ratio.relative for ratio in self.outputs.values()), default=0.0),
            agreement=None if self.agreeing is None else self.agreeing / samples,
            loss=None if self.loss is None else self.loss / samples,
        )

    def _quantized(self, values: dict[Node, Any]) -> torch.Tensor:
        """The module's output from a quantized input and weight."""
        args: list[Any] = [torch.fx.node.map_arg(a, values.__getitem__) for a in self.node.args]
        if "input" in self.entries:
            exact = args[0]
            args[0] = _through(exact, self.entries["input"])
            self.inputs.add(exact, args[0])
        args[1] = self.stored
        operator: Any = self.node.target
        result: torch.Tensor = operator(*args, **self.node.kwargs)
        return result

    def _classify(
        self, reference: torch.Tensor, actual: torch.Tensor, classes: torch.Tensor | None
    ) -> None:
        if reference.dim() != 2 or reference.shape[1] < 2:
            return
        same = int((reference.argmax(1) == actual.argmax(1)).sum())
        self.agreeing = (self.agreeing or 0) + same
        if classes is not None and int(classes.max()) < reference.shape[1]:
            entropy = torch.nn.functional.cross_entropy
            pair = [
                float(entropy(t.double(), classes, reduction="sum")) for t in (actual, reference)
            ]
            self.loss = (self.loss or 0.0) + pair[0] - pair[1]


def _probes(
    graph: Graph, table: ScaleTable, runner: _Runner, spared: Collection[str]
) -> list[_Probe]:
    """One a module with a weight in the table, in the order of the graph."""
    editor = Editor(graph)
    calls = {node.name: node for node in editor.calls()}
    probes = []
    for site in find_sites(editor):
        entry = table.sites.get(site.name)
        weight = editor.tensor(calls[site.node].args[1])
        if site.kind != "weight" or entry is None or weight is None:
            continue
        if site.module in spared:
            continue
        node = runner.nodes[site.node]
        kinds = {kind: table.sites.get(f"{site.module}.{kind}") for kind in ("input", "weight")}
        entries = {kind: found for kind, found in kinds.items() if found is not None}
        exact, stored = weight.detach(), rounded(weight, entry)
        after = frozenset(_after(node))
        probes.append(_Probe(site.module, site.operator, node, entries, exact, stored, after))
    return probes


def _after(node: Node) -> set[Node]:
    """The nodes that depend on a node."""
    found: set[Node] = set()
    waiting = list(node.users)
    while waiting:
        user = waiting.pop()
        if user not in found:
            found.add(user)
            waiting += user.users
    return found


def _steps(
    runner: _Runner,
    probes: list[_Probe],
    batches: Sequence[Arrays],
    labels: Sequence[int] | None,
) -> Iterator[tuple[_Probe, int, torch.Tensor | None]]:
    """Each module on each call, with the call's number of samples and their classes."""
    done = 0
    for batch in batches:
        runner.whole(batch)
        samples = _samples(batch)
        classes = None if labels is None else torch.tensor(labels[done : done + samples])
        done += samples
        for probe in probes:
            yield probe, samples, classes


def _through(value: torch.Tensor, entry: Entry) -> torch.Tensor:
    """An activation quantized and back, as placement does it."""
    scale = entry.scale[0]
    if entry.dtype == "fp8":
        result: torch.Tensor = DEQUANTIZE_FP8(QUANTIZE_FP8(value, scale), torch.tensor([scale]), 0)
        return result
    qmax = QMAX[entry.dtype]
    how = (scale, 0, -qmax - 1, qmax, torch.int8)
    result = DEQUANTIZE(QUANTIZE(value, *how), *how)
    return result


def _tensors(result: Any) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def _samples(batch: Arrays) -> int:
    return len(next(iter(batch.values())))
