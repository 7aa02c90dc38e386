"""Work: one pruning, from a model that may be changed to the smaller one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from edgekit.compress import batches, measure
from edgekit.compress.modules import cross_attention
from edgekit.compress.pruning import blocks, budget, graph, importance, refit, surgery, widths
from edgekit.compress.pruning.groups import DIMENSIONS, Group
from edgekit.compress.pruning.proof import proven
from edgekit.data import random_data
from edgekit.errors import EdgekitError
from edgekit.model import Dim
from edgekit.progress import say, stage

if TYPE_CHECKING:
    from edgekit.compress import Context
    from edgekit.compress.batches import Batch
    from edgekit.compress.prune import Prune
    from edgekit.compress.pruning.budget import Budget
    from edgekit.compress.pruning.reading import Left
    from edgekit.compress.pruning.widths import Step
    from edgekit.data import Dataset
    from edgekit.model import Input, Model

#: What shrinks unless the user says. The width of the tokens touches every layer, so it costs
#: more accuracy than the others for what it saves.
USUAL = ("heads", "mlp", "channels", "state")
#: Widths are rounded to this unless the user says; below four times it, to a fourth of them.
MULTIPLE, TENSOR_CORES = 8, 16
#: Tokens that couplings are found and proven on, where any number will do.
TOKENS = 16


class Work:
    """One pruning; ``model`` is changed."""

    def __init__(self, options: Prune, model: Model, context: Context) -> None:
        self.options, self.model, self.context = options, model, context
        self.root = model.module
        self.source = model.source

    def result(self) -> Model:
        """The model, smaller."""
        self._adapt()
        scores = self._scores()
        with stage("Measuring what the model costs"):
            goal = self._budget()
        order = widths.path(scores, goal.cost, self._multiple)
        steps, cost, least = budget.search(order, goal)
        if cost > goal.limit:
            raise self._unreachable(least)
        self._take_out(widths.removals(steps))
        self._say(steps, cost)
        return self.model

    def _adapt(self) -> None:
        """Put modules of ours where a library's cannot run with fewer heads."""
        for parent in list(self.root.modules()):
            for name, child in list(parent._modules.items()):
                if child is not None and cross_attention.fits(child):
                    parent._modules[name] = cross_attention.take_over(child)

    @cached_property
    def groups(self) -> list[Group]:
        """What may shrink."""
        with stage("Finding coupled layers"):
            found = blocks.find(self.root)
            layers, left = graph.layer_groups(self.root, self._example(1).inputs, found)
            all_groups = [group for block in found for group in block.groups] + layers
            wanted = [g for g in all_groups if g.dimension in self._dimensions and g.items > 1]
            chosen = self._without_excluded(wanted)
            good, unproven = proven(self.root, chosen, self._example(2))
        left = [each for each in [*left, *unproven] if each.dimension in self._dimensions]
        for each in left:
            say(f"{each.name} ({each.dimension}) stays as it is: {each.reason}.")
        self._check_found(good, wanted, left)
        return good

    @property
    def _dimensions(self) -> tuple[str, ...]:
        return self.options.dimensions or USUAL

    def _check_found(self, good: list[Group], wanted: list[Group], left: list[Left]) -> None:
        """Raise if nothing is left, or nothing of what was asked for by name."""
        have = {group.dimension for group in good}
        known = {each.dimension for each in wanted} | {each.dimension for each in left}
        absent = [name for name in self.options.dimensions or () if name not in have]
        if good and not known.intersection(absent):
            for name in absent:
                say(f"{self.source} has no {name} to prune.")
            return
        reason = next((f"{each.name}: {each.reason}." for each in left), "")
        raise EdgekitError(
            f"{self.source} has no {' or '.join(absent or self._dimensions)} that can be pruned.",
            reason or "None of its layers share a width that may shrink, or all are excluded.",
            f"Choose others of {', '.join(DIMENSIONS)} with dimensions=[...], or exclude less.",
        )

    def _without_excluded(self, found: list[Group]) -> list[Group]:
        """Groups none of whose modules, or what holds them, the user excluded."""
        paths = {id(module): path for path, module in self.root.named_modules()}
        for glob in self.options.exclude:
            if not any(fnmatchcase(path, glob) for path in paths.values()):
                raise EdgekitError(
                    f"exclude: {glob} is no module of {self.source}.",
                    f"It has {', '.join(name for name, _ in self.root.named_children())}.",
                    "Give paths as `edgekit inspect` shows them; * stands for anything.",
                )
        return [group for group in found if not self._excluded(group, paths)]

    def _excluded(self, group: Group, paths: dict[int, str]) -> bool:
        names = {group.name} | {paths.get(id(each.port.owner), "") for each in group.slices}
        held = {name.rsplit(".", up)[0] for name in names for up in range(name.count(".") + 1)}
        return any(fnmatchcase(name, glob) for name in held for glob in self.options.exclude)

    def _scores(self) -> dict[Group, torch.Tensor]:
        chosen = importance.MEASURES[self.options.importance]
        of = chosen(importance.Subject(self.root, self.groups, self._batches, *self._amount))
        return {group: of(group) for group in self.groups}

    def _budget(self) -> Budget:
        options = self.options
        if options.ratio is not None:
            return budget.shares(1 - options.ratio, self.groups)
        if options.parameters is not None:
            present = measure.parameters(self.root)
            return budget.parameters(_most(options.parameters, present), self.root)
        uses = budget.uses(self.root, self._example(1, TOKENS * 8).inputs)
        if options.flops is not None:
            present = measure.operations(self.model)
            return budget.operations(_most(options.flops, present), self.model, uses)
        return budget.latency(float(options.latency or 0), self.model, uses, self._milliseconds)

    def _milliseconds(self, model: Model) -> float:
        """Of a call of the model as it is now."""
        if self.context.latency is None:
            raise ValueError(self.options)
        cost = self.context.latency(model)
        say(f"{cost.milliseconds:.3f} ms a call ({cost.source}).")
        return cost.milliseconds

    def _multiple(self, group: Group) -> int:
        """What the width of a group is a multiple of."""
        if group.whole:
            return 1
        if self.options.round_to is not None:
            return self.options.round_to
        target = self.context.target
        cores = target is not None and target.compute_capability is not None
        return min(TENSOR_CORES if cores else MULTIPLE, max(group.items // 4, 1))

    def _take_out(self, gone: dict[Group, torch.Tensor]) -> None:
        """Shrink the model, and fit the layers behind."""
        made = {}
        wanted = refit.layers(gone) if self.options.refit and self.context.data else {}
        if wanted:
            seen = refit.observe(self.root, wanted, self._batches(), self._amount[0])
            made = {layer: refit.solved(layer, seen[layer], wanted[layer]) for layer in wanted}
        rows = surgery.kept_rows(gone)
        surgery.shrink(self.root, gone)
        for layer, (weight, bias) in made.items():
            stays = rows.get(layer, ...)
            layer.weight.data = weight[stays].contiguous()
            if bias is not None and layer.bias is not None:
                layer.bias.data = bias[stays].contiguous()
        self._check_runs()

    def _check_runs(self) -> None:
        with torch.no_grad():
            results = batches.outputs(self.root, self._example(2))
        if not all(bool(torch.isfinite(each).all()) for each in results):
            raise EdgekitError(
                f"{self.source} gives outputs that are not finite once it is pruned.",
                "Its weights may be so before.",
                "Check the model with `edgekit verify`, or prune less.",
            )

    def _unreachable(self, least: float) -> EdgekitError:
        (name,) = [n for n in ("ratio", "parameters", "flops", "latency") if self._asked(n)]
        asked = self._asked(name)
        reach = {
            "ratio": f"a ratio of {1 - least:.3f}",
            "parameters": f"{least:,.0f} weights",
            "flops": f"{least:,.0f} multiply-accumulates",
            "latency": f"{least:.3f} ms",
        }[name]
        return EdgekitError(
            f"{name}={asked:g} cannot be met.",
            f"With every width of {', '.join(self._dimensions)} at its least, {self.source} has "
            f"{reach}.",
            f"Ask for less, allow more dimensions ({', '.join(DIMENSIONS)}), or drop layers first.",
        )

    def _asked(self, name: str) -> float | None:
        value: float | None = getattr(self.options, name)
        return value

    def _say(self, steps: list[Step], cost: float) -> None:
        if not steps:
            say("The model is within the budget as it is: nothing is pruned.")
            return
        gone = widths.removals(steps)
        for name in DIMENSIONS:
            own = [group for group in self.groups if group.dimension == name]
            if own:
                before = sum(group.items for group in own)
                after = before - sum(len(gone.get(group, ())) for group in own)
                say(f"{name}: {before} to {after} in {len(own)} places.")

    def _batches(self) -> Iterator[Batch]:
        return batches.batches(self._data, self.options.batch_size)

    @cached_property
    def _data(self) -> Dataset:
        data = self.context.samples("pruning")
        if len(data) <= self.options.samples:
            return data
        return data.take(self.options.samples, self.context.seed)

    @property
    def _amount(self) -> tuple[int, int]:
        """How many batches there are, and the seed of random choices."""
        size = len(self._data) if self.context.data is not None else 0
        return -(-size // self.options.batch_size), self.context.seed

    def _example(self, samples: int, tokens: int = TOKENS) -> Batch:
        """Samples to trace and to prove on: the user's, where there are and sizes do not vary."""
        short = tuple(_short(spec, tokens) for spec in self.model.inputs)
        if self.context.data is not None and short == self.model.inputs:
            data = self.context.data
            return batches.batch(data, [index % len(data) for index in range(samples)])
        return batches.batch(random_data(short, samples, self.context.seed), range(samples))


def _short(spec: Input, tokens: int) -> Input:
    """An input whose sizes that vary are small."""
    sizes = (
        max(size.least, min(size.most, tokens)) if isinstance(size, Dim) and axis else size
        for axis, size in enumerate(spec.shape)
    )
    return dataclasses.replace(spec, shape=tuple(sizes))


def _most(asked: float, present: int) -> float:
    """A count, from one or from a share below 1 of what there is."""
    return asked * present if asked < 1 else asked
