"""Trainer: the steps of a distillation, resumable at each that was kept.

AdamW with a warm-up and a cosine, gradients cut to a norm of 1. Modules are in evaluation mode
throughout: no dropout, and batch norms with the statistics that they ship with, so that what is
trained is what is exported, and a batch can be taken in parts and on many devices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit import interrupt
from edgekit.compress.distillation import checkpoint, parallel, schedule, sparsity
from edgekit.compress.distillation.material import Material
from edgekit.compress.distillation.parallel import Place
from edgekit.errors import EdgekitError
from edgekit.progress import bar, say

if TYPE_CHECKING:
    from edgekit.compress.distill import Distill
    from edgekit.data import Dataset

#: The largest norm of an update's gradient.
CLIP = 1.0
#: Decay of matrices; biases, norms and learned steps do not decay.
DECAY = 0.01
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Groups = Callable[[nn.Module], list[dict[str, Any]]]


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes:
        name: as it is shown.
        lesson: holds what learns; inputs, the teacher's answer and labels to (batch,).
        ask: the teacher: inputs to containers of tensors.
        steps: updates.
        note: what is to be said of it.
    """

    name: str
    lesson: nn.Module
    ask: Callable[[Any], Any]
    steps: int
    note: str = ""


@dataclass(frozen=True)
class Setting:
    """What all phases share.

    Attributes:
        options: the pass.
        data: samples.
        place: of this process.
        folder: for the checkpoint; None keeps none.
        key: of all that the result depends on.
        seed: of the samples' order.
        groups: a lesson to its parameter groups, with their rates.
    """

    options: Distill
    data: Dataset
    place: Place
    folder: Path | None
    key: str
    seed: int
    groups: Groups


def train(phases: Sequence[Phase], setting: Setting) -> None:
    """Run all phases, or what is left of them after an earlier run was stopped.

    Raises:
        EdgekitError: the loss or a gradient is not finite; the last checkpoint is left.
    """
    state = checkpoint.load(setting.folder, setting.key)
    start = 0 if state is None else int(state["phase"])
    # The last lesson holds all that learns. Found before training: later zeros are chance.
    kept = sparsity.masks(phases[-1].lesson)
    for place, phase in enumerate(phases):
        if place < start:
            continue
        run = _Run(place, phase, setting, kept)
        if state is not None and place == start:
            run.restore(state)
        run.all()


def groups(rate: float) -> Groups:
    """Matrices, which decay, and the rest."""

    def of(module: nn.Module) -> list[dict[str, Any]]:
        every = [each for each in module.parameters() if each.requires_grad]
        return [
            {"params": [p for p in every if p.dim() > 1], "lr": rate, "weight_decay": DECAY},
            {"params": [p for p in every if p.dim() <= 1], "lr": rate, "weight_decay": 0.0},
        ]

    return of


@dataclass
class _Run:
    """One phase."""

    index: int
    phase: Phase
    setting: Setting
    kept: Mapping[nn.Parameter, Tensor]
    done: int = 0
    averaged: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        setting, lesson = self.setting, self.phase.lesson
        options, place = setting.options, setting.place
        self.weights = [each for each in lesson.parameters() if each.requires_grad]
        self.optimizer = torch.optim.AdamW(setting.groups(lesson), fused=True)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        half = options.precision == "fp16"
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=half)
        if options.average:
            self.averaged = [each.detach().clone() for each in self.weights]

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.done = int(state["step"])
        with torch.no_grad():
            for name, value in self.phase.lesson.named_parameters():
                if value.requires_grad:
                    value.copy_(state["weights"][name])
            for average, value in zip(self.averaged, state["averaged"], strict=True):
                average.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.done:
            say(f"{self.phase.name}: going on after step {self.done} of {self.phase.steps}.")

    def all(self) -> None:
        setting, steps = self.setting, self.phase.steps
        size, count = setting.options.batch_size, len(setting.data)
        self.order = [schedule.samples_of(s, size, count, setting.seed) for s in range(steps)]
        with self._autocast():
            self.material = Material(setting.data, self.phase.ask, setting.place.device)
            if self.done < steps:
                self.material.prepare([i for step in self.order for i in step], size)
        self.joined = parallel.joined(self.phase.lesson, setting.place)
        if self.phase.note:
            say(self.phase.note)
        with bar(self.phase.name, steps, self.done) as advance:
            for step in range(self.done, steps):
                interrupt.check()
                loss = self._step(step)
                advance(f"loss {loss:.4g}")
                self.done = step + 1
                if self.done % setting.options.checkpoint_every == 0 or self.done == steps:
                    self._save()
        with torch.no_grad():
            for weight, average in zip(self.weights, self.averaged, strict=False):
                weight.copy_(average)

    def _step(self, step: int) -> float:
        """One update; returns the batch's loss."""
        share = schedule.factor(step, self.phase.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.setting.place.device)
        parts = _parts(self.order[step], self.setting.options.accumulate)
        for part in parts:
            last = part is parts[-1]
            total += self._part(part, len(self.order[step]), last)
        loss = parallel.mean(total, self.setting.place).item()
        self.scaler.unscale_(self.optimizer)
        sparsity.keep(self.kept)
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, CLIP))
        # In fp16 the scaler leaves out an update whose gradients overflow, and scales less.
        if not _finite(loss) or not (_finite(norm) or self.scaler.is_enabled()):
            raise self._diverged(step, loss, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._average(step)
        return loss

    def _part(self, part: Sequence[int], count: int, last: bool) -> Tensor:
        """Add a part's gradient; returns its share of the batch's loss, times the processes."""
        place, module = self.setting.place, self.joined
        with parallel.alone(module) if not last else contextlib.nullcontext():
            with self._autocast():
                batch, told = self.material.get(parallel.share(part, place))
                each = module(batch.inputs, told, batch.labels)
            # Gradients are averaged over processes, and the batch over its samples.
            loss: Tensor = each.sum() * (place.world / count)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _average(self, step: int) -> None:
        """A running mean, whose first steps forget faster."""
        if self.averaged:
            decay = min(self.setting.options.average, (1 + step) / (10 + step))
            weights = [each.detach() for each in self.weights]
            torch._foreach_lerp_(self.averaged, weights, 1 - decay)

    def _autocast(self) -> torch.autocast:
        precision = self.setting.options.precision
        kind = self.setting.place.device.type
        return torch.autocast(kind, DTYPES[precision], enabled=precision != "fp32")

    def _save(self) -> None:
        setting = self.setting
        if setting.folder is None or not setting.place.first:
            return
        weights = {
            name: value.detach()
            for name, value in self.phase.lesson.named_parameters()
            if value.requires_grad
        }
        checkpoint.save(
            setting.folder,
            {
                "key": setting.key,
                "phase": self.index,
                "step": self.done,
                "weights": weights,
                "averaged": self.averaged,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
        )

    def _diverged(self, step: int, loss: float, norm: float) -> EdgekitError:
        setting = self.setting
        kept = f" The last good state is in {setting.folder / checkpoint.NAME}." if (
            setting.folder and (setting.folder / checkpoint.NAME).exists()
        ) else ""  # fmt: skip
        found = f"The loss is {loss:.4g}, the gradient's norm {norm:.4g}."
        return EdgekitError(
            f"{self.phase.name} has diverged at step {step + 1} of {self.phase.steps}.",
            f"{found}{kept}",
            f"Lower the rate, which is {setting.options.rate:g}; or the data or the teacher gives "
            "values that are not finite.",
        )


def _parts(indices: Sequence[int], count: int) -> list[Sequence[int]]:
    """A batch in so many parts, one after another, none of them empty."""
    cuts = [len(indices) * place // count for place in range(count + 1)]
    return [indices[start:end] for start, end in pairwise(cuts) if end > start]


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
