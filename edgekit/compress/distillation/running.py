"""Running: a distillation of one model by another, from options to trained weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgekit import files
from edgekit.compress.distillation import checkpoint, parallel, trainer
from edgekit.compress.distillation.course import Side, course, placed
from edgekit.compress.distillation.parallel import Place
from edgekit.compress.distillation.teacher import call_of, load, teaching
from edgekit.compress.distillation.trainer import Setting
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.compress import Context
    from edgekit.compress.distill import Distill
    from edgekit.data import Dataset
    from edgekit.model import Model


def check(options: Distill, student: Model, context: Context) -> None:
    """Raise unless the teacher fits the student, and both fit the data and this machine."""
    check_place(options)
    data = data_of(context)
    cpu = torch.device("cpu")
    teacher = teacher_of(options, student, context)
    theirs = Side(teacher.module, teaching(teacher, student, teacher.module))
    mine = Side(student.module, call_of(student.module))
    names, alike = student.outputs, options.teacher is None
    with course(options, mine, theirs, data, cpu, names, by_origin=alike):
        pass


def run(options: Distill, student: Model, teacher: Model, context: Context) -> None:
    """Train the student's module in place.

    Raises:
        EdgekitError: it does not fit its teacher, or training has diverged.
    """
    place, data, module = parallel.find_place(), data_of(context), student.module.eval()
    taught = placed(teacher.module.eval(), place.device)
    key = key_of(options, module, teacher.module, data, context.seed)
    module.to(place.device)
    for weight in module.parameters():
        weight.requires_grad_(weight.is_floating_point())
    mine = Side(module, call_of(module))
    theirs = Side(taught, teaching(teacher, student, taught))
    setting = Setting(
        options, data, place, context.folder, key, context.seed, trainer.groups(options.rate)
    )
    names, alike = student.outputs, options.teacher is None
    try:
        with course(
            options, mine, theirs, data, place.device, names, context.seed, alike
        ) as phases:
            trainer.train(phases, setting)
    finally:
        load.cache_clear()
    module.to("cpu")


def key_of(
    options: Distill, student: nn.Module, teacher: nn.Module, data: Dataset, seed: int
) -> str:
    """Of all that the result depends on."""
    return files.digest(
        [
            dataclasses.asdict(options),
            checkpoint.digest(student),
            checkpoint.digest(teacher),
            data.fingerprint,
            seed,
            torch.__version__,
        ]
    )


def check_place(options: Distill, place: Place | None = None) -> None:
    """Raise for what this machine, or so many processes, cannot do."""
    place = place or parallel.find_place()
    if options.precision == "fp16" and place.device.type == "cpu":
        raise EdgekitError(
            "distill: fp16 cannot be trained on a CPU.",
            "Its gradients need a GPU's scaled arithmetic.",
            "Use precision=bf16 or fp32.",
        )
    if options.batch_size // options.accumulate < place.world:
        raise EdgekitError(
            f"distill: {options.batch_size} samples in {options.accumulate} parts are too few for "
            f"{place.world} processes.",
            "Each takes one sample of a part at least.",
            "Raise batch_size, or lower accumulate.",
        )


def data_of(context: Context) -> Dataset:
    """The samples to learn from.

    Raises:
        EdgekitError: there are none.
    """
    return context.samples("distillation") if context.training is None else context.training


def teacher_of(options: Distill, model: Model, context: Context) -> Model:
    """The model to learn from: the one asked for, the one before any pass, or this very one."""
    if options.teacher is not None:
        return load(options.teacher, options.teacher_checkpoint)
    return context.teacher or model
