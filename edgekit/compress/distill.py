"""Distill: a student learns what its teacher says, and so wins back what passes cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit.compress import Context
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.model import Model

LOSSES = ("logits", "kl", "mse", "features", "attention", "labels")


@dataclass(frozen=True)
class Distill:
    """Train the model towards its teacher: the model before any pass, or another.

    G. Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. It learns from the
    training data (from the calibration data if there is none) with AdamW, a warm-up over 5% of the
    steps, a cosine to 0, and gradients cut to a norm of 1. Dropout is off and batch norms keep
    their statistics: what is trained is what ships. Weights that are sparse 2:4 stay so. A stopped
    run goes on where it was last kept. Under ``torchrun`` each batch is shared by all processes.

    Attributes:
        steps: updates in which the whole model learns.
        batch_size: samples an update, on all devices together.
        rate: the highest learning rate.
        losses: ``NAME`` or ``NAME:WEIGHT`` each. ``logits`` compares outputs: by KL divergence if
            they are scores of classes, else by their mean square; ``kl`` and ``mse`` are these
            by name. ``features`` compares what blocks give, through learned projections where
            widths differ, and ``attention`` how positions meet in them: relations of queries,
            keys and values (MiniLMv2), or what the mixer of a state-space block gives.
            ``labels`` is the cross entropy of the data's classes.
        temperature: of the KL divergence.
        layerwise_steps: updates before those, in which each block learns alone to give what its
            part of the teacher gives, from what that is given.
        accumulate: parts that a batch is run in, one after another, where memory is short.
        precision: that products are computed in; weights stay in fp32.
        average: decay of a running mean of the weights, such as 0.999, which is then the result;
            0 takes the last weights.
        teacher: a model to learn from instead, such as ``timm/NAME``, for the same samples.
        teacher_checkpoint: its weights, if they are not its own.
        checkpoint_every: updates between two states that are kept.
    """

    steps: int = 1000
    batch_size: int = 64
    rate: float = 5e-4
    losses: tuple[str, ...] = ("logits",)
    temperature: float = 2.0
    layerwise_steps: int = 0
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    average: float = 0.0
    teacher: str | None = None
    teacher_checkpoint: Path | None = None
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every"):
            _within(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        _within("layerwise_steps", self.layerwise_steps, self.layerwise_steps >= 0, "0 or more")
        for name in ("rate", "temperature"):
            value = getattr(self, name)
            _within(name, value, math.isfinite(value) and value > 0, "above 0")
        _within("average", self.average, 0 <= self.average < 1, "from 0 to below 1")
        if self.accumulate > self.batch_size:
            raise EdgekitError(
                f"distill: {self.batch_size} samples cannot be run in {self.accumulate} parts.",
                "",
                "Lower accumulate, or raise batch_size.",
            )
        if self.teacher_checkpoint and not self.teacher:
            raise EdgekitError(
                "distill: teacher_checkpoint is given without a teacher.",
                "The model before the passes has its own weights.",
                "Add teacher=NAME, or drop it.",
            )
        _ = self.weights

    @property
    def weights(self) -> dict[str, float]:
        """The losses' weights, by name.

        Raises:
            EdgekitError: an unknown loss, one twice, or a weight that is no number above 0.
        """
        found: dict[str, float] = {}
        for entry in self.losses:
            name, _, text = entry.partition(":")
            weight = _number(text) if text else 1.0
            if name not in LOSSES or name in found or weight is None:
                raise EdgekitError(
                    f"distill: {entry!r} is not a loss.",
                    f"Losses are {', '.join(LOSSES)}, each once, as NAME or NAME:WEIGHT.",
                    "Write losses=[logits,labels:0.5].",
                )
            found[name] = weight
        if not found or len({"logits", "kl", "mse"} & found.keys()) > 1:
            raise EdgekitError(
                f"distill: losses are {list(self.losses)}.",
                "One at least is needed, and of logits, kl and mse, which compare outputs, one "
                "at most.",
                "Write losses=[logits].",
            )
        return found

    def requires(self, model: Model, context: Context) -> None:
        """Raise unless there is data, and a teacher that fits."""
        from edgekit.compress.distillation import running

        running.check(self, model, context)

    def call(self, model: Model, context: Context) -> Model:
        """The model, trained."""
        from edgekit.compress import structure
        from edgekit.compress.distillation import running

        student, teacher = structure.copied(model), running.teacher_of(self, model, context)
        running.run(self, student, teacher, context)
        return student


def _within(name: str, value: object, fits: bool, words: str) -> None:
    if not fits:
        raise EdgekitError(f"distill: {name} is {value}.", f"It must be {words}.")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


PASS = Distill
