"""Course: the phases of a distillation, put together and checked on two samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.compress.batches import Batch, batch
from edgekit.compress.distillation import blocks
from edgekit.compress.distillation.lessons import (
    Attention,
    Features,
    Labels,
    Layers,
    Outputs,
    Whole,
)
from edgekit.compress.distillation.teacher import Call
from edgekit.compress.distillation.trainer import Phase
from edgekit.compress.distillation.watch import Seen, Watch, floats
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.compress.distill import Distill
    from edgekit.data import Dataset


@dataclass(frozen=True)
class Side:
    """A student or a teacher: its module, and how it is called."""

    module: nn.Module
    call: Call


@contextmanager
def course(
    options: Distill,
    student: Side,
    teacher: Side,
    data: Dataset,
    device: torch.device,
    names: Sequence[str],
    seed: int = 0,
    by_origin: bool = False,
) -> Iterator[list[Phase]]:
    """The phases; both models are left as they were, but for what was trained.

    Args:
        names: of the outputs.
        by_origin: whether the student's origins are paths in this teacher.

    Raises:
        EdgekitError: the teacher does not fit the student, or the data a loss.
    """
    made = _Course(options, student, teacher, data, device, by_origin)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            phases = made.phases(names)
        yield phases
    finally:
        for watch in made.watches:
            watch.close()


class _Course:
    def __init__(
        self,
        options: Distill,
        student: Side,
        teacher: Side,
        data: Dataset,
        device: torch.device,
        by_origin: bool,
    ) -> None:
        self.options, self.student, self.teacher = options, student, teacher
        self.weights, self.data = options.weights, data
        read = batch(data, range(min(2, len(data))))
        inputs = {name: value.to(device) for name, value in read.inputs.items()}
        self.probe = Batch(inputs, None if read.labels is None else read.labels.to(device))
        self.watches: list[Watch] = []
        wanted = {"features", "attention"} & self.weights.keys()
        self.pairs = self._pairs(by_origin) if wanted or options.layerwise_steps else []

    def phases(self, names: Sequence[str]) -> list[Phase]:
        whole = self._whole(names)
        layers = [self._layers()] if self.options.layerwise_steps else []
        return [*layers, whole]

    def _pairs(self, by_origin: bool) -> list[blocks.Pair]:
        paths = [p for held in blocks.blocks(self.teacher.module).values() for p in held]
        watch = Watch(self.teacher.module, self.teacher.call, features=paths, calls=paths)
        try:
            chained = _chained(watch(self.probe.inputs), paths)
        finally:
            watch.close()
        found = blocks.pairs(self.student.module, self.teacher.module, by_origin, chained)
        if not found:
            raise EdgekitError(
                "There are no blocks to compare.",
                "The student or the teacher has no list of layers of a kind of its own.",
                "Leave features and attention out of the losses, and layerwise_steps at 0.",
            )
        return found

    def _whole(self, names: Sequence[str]) -> Phase:
        weights, pairs = self.weights, self.pairs
        features = pairs if "features" in weights else []
        attention = pairs if "attention" in weights else []
        mine = self._watch(
            self.student, [p.student for p in features], [p.student for p in attention]
        )
        theirs = self._watch(self.teacher, [p.last for p in features], [p.own for p in attention])
        with torch.no_grad():
            seen, told = mine(self.probe.inputs), theirs(self.probe.inputs)
        outputs = {"logits", "kl", "mse"} & weights.keys()
        if outputs:
            _check_outputs(seen["outputs"], told["outputs"], names)
        terms: list[tuple[float, nn.Module]] = []
        notes = []
        for name, weight in weights.items():
            if name in outputs:
                kinds = _kinds(name, names, told["outputs"], self.probe.labels is not None)
                terms.append((weight, Outputs(kinds, self.options.temperature)))
                notes.append(_said(names, kinds))
            elif name == "labels":
                _check_labels(self.data, seen["outputs"][0])
                terms.append((weight, Labels()))
            elif name == "features":
                terms.append((weight, Features(pairs, seen, told)))
            else:
                term = Attention(pairs, seen, told)
                terms.append((weight, term))
                notes += [
                    f"{each} attend differently: what they give is compared."
                    for each in term.differing
                ]
        ask = theirs if weights.keys() - {"labels"} else _nothing
        lesson = Whole(self.student.module, mine, terms)
        return Phase("Distilling", lesson, ask, self.options.steps, "\n".join(notes))

    def _layers(self) -> Phase:
        lasts, firsts = [p.last for p in self.pairs], [p.first for p in self.pairs]
        ask = self._watch(self.teacher, lasts, calls=firsts)
        lesson = Layers(self.student.module, self.pairs)
        try:
            with torch.no_grad():
                lesson(self.probe.inputs, ask(self.probe.inputs), None)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise EdgekitError(
                "The student's blocks cannot be trained alone.",
                f"Given what the teacher's blocks are given, one fails: {error}",
                "Leave layerwise_steps at 0, and add features to the losses.",
            ) from error
        return Phase("Distilling layers", lesson, ask, self.options.layerwise_steps)

    def _watch(
        self,
        side: Side,
        features: Sequence[str],
        attention: Sequence[str] = (),
        calls: Sequence[str] = (),
    ) -> Watch:
        self.watches.append(Watch(side.module, side.call, features, attention, calls))
        return self.watches[-1]


def placed(module: nn.Module, device: torch.device) -> nn.Module:
    """The module where it is to run: itself if it is there, else a copy."""
    first = next(module.parameters(), None)
    if first is None or first.device == device:
        return module
    return copy.deepcopy(module).to(device)


def _nothing(inputs: Any) -> Seen:
    return {}


def _chained(seen: Seen, paths: Sequence[str]) -> set[str]:
    """Blocks that give the very tensor that the next one takes."""
    found = set()
    calls, features = seen.get("calls", {}), seen.get("features", {})
    for path, after in pairwise(paths):
        taken = {id(each) for each in floats(calls.get(after, ()))}
        if any(id(each) in taken for each in features.get(path, [])):
            found.add(path)
    return found


def _check_outputs(mine: list[Tensor], theirs: list[Tensor], names: Sequence[str]) -> None:
    if len(mine) == len(theirs) and all(
        a.shape == b.shape for a, b in zip(mine, theirs, strict=True)
    ):
        return

    def shapes(tensors: list[Tensor]) -> str:
        return ", ".join("x".join(map(str, each.shape[1:])) or "1" for each in tensors)

    raise EdgekitError(
        "The teacher's outputs do not fit the student's.",
        f"A sample gives {shapes(mine)} ({', '.join(names)}) in the student and {shapes(theirs)} "
        "in the teacher.",
        "Choose a teacher for the same classes, or losses=[features] that compare none.",
    )


def _kinds(name: str, names: Sequence[str], told: list[Tensor], has_labels: bool) -> list[str]:
    """kl or mse for each output."""
    if name != "logits":
        return [name] * len(names)
    pairs = zip(names, told, strict=True)
    return ["kl" if _scores(*each, has_labels) else "mse" for each in pairs]


def _said(names: Sequence[str], kinds: Sequence[str]) -> str:
    words = {"kl": "KL divergence", "mse": "mean square"}
    pairs = zip(names, kinds, strict=True)
    return f"Distilling {', '.join(f'{name} by {words[kind]}' for name, kind in pairs)}."


def _scores(name: str, output: Tensor, has_labels: bool) -> bool:
    """Whether an output is scores of classes, in its last dimension."""
    named = name.startswith("logits") and output.dim() in (2, 3)
    return (named or (has_labels and output.dim() == 2)) and output.shape[-1] > 1


def _check_labels(data: Dataset, output: Tensor) -> None:
    labels = data.labels
    if labels is None:
        raise EdgekitError(
            f"{data.origin} has no labels to learn from.",
            "",
            "Put the images in one folder a class, or leave labels out of the losses.",
        )
    if output.dim() != 2 or max(labels) >= output.shape[1] or min(labels) < 0:
        raise EdgekitError(
            f"The labels of {data.origin} are not classes of this model.",
            f"They go from {min(labels)} to {max(labels)}; its first output is "
            f"{tuple(output.shape[1:])} a sample.",
            "Correct the labels, or leave labels out of the losses.",
        )
