"""Teacher: the model before any pass, or another that takes the same samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit import families
from edgekit.errors import EdgekitError
from edgekit.families import Options

if TYPE_CHECKING:
    from edgekit.compress.distillation.watch import Inputs
    from edgekit.model import Model

Call = Callable[["Inputs"], tuple[Tensor, ...]]


@lru_cache(maxsize=1)
def load(source: str, checkpoint: Path | None) -> Model:
    """A teacher by its name; kept for the next call, as it is looked at before it is used."""
    return families.load(source, Options(checkpoint=checkpoint))


def call_of(module: nn.Module, names: dict[str, str] | None = None) -> Call:
    """A module as inputs by name to outputs.

    Args:
        names: what the module calls inputs that are called otherwise.
    """

    def call(inputs: Inputs) -> tuple[Tensor, ...]:
        given = {(names or {}).get(name, name): value for name, value in inputs.items()}
        result = module(**given)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    return call


def teaching(teacher: Model, student: Model, module: nn.Module) -> Call:
    """The teacher on the student's samples, without gradients.

    Inputs may have other names, and images another normalisation.

    Args:
        module: the teacher's, where it is to run.

    Raises:
        EdgekitError: it does not take them.
    """
    call = call_of(module, _names(teacher, student))
    convert = _normalised(teacher, student)

    @torch.no_grad()
    def taught(inputs: Inputs) -> tuple[Tensor, ...]:
        return call(convert(inputs))

    return taught


def _names(teacher: Model, student: Model) -> dict[str, str]:
    """The teacher's names of the student's inputs."""
    mine, theirs = student.inputs, teacher.inputs
    by_name = {spec.name: spec for spec in theirs}
    if by_name.keys() != {spec.name for spec in mine}:
        by_name = {a.name: b for a, b in zip(mine, theirs, strict=False)}
    fits = len(mine) == len(theirs) and all(
        a.dtype == by_name[a.name].dtype and a.sample_shape == by_name[a.name].sample_shape
        for a in mine
    )
    if not fits:
        raise EdgekitError(
            f"The teacher {teacher.source} does not take the student's samples.",
            f"The student takes {', '.join(map(str, mine))}; the teacher "
            f"{', '.join(map(str, theirs))}.",
            "Choose a teacher of the same inputs.",
        )
    return {name: spec.name for name, spec in by_name.items()}


def _normalised(teacher: Model, student: Model) -> Callable[[Inputs], Inputs]:
    """Images as the teacher wants them: (x std + mean - mean') / std'."""
    mine, theirs = student.preprocess, teacher.preprocess
    if mine is None or theirs is None or (mine.mean, mine.std) == (theirs.mean, theirs.std):
        return lambda inputs: inputs

    def convert(inputs: Inputs) -> Inputs:
        return {name: image(x) if x.dim() == 4 else x for name, x in inputs.items()}

    def image(x: Tensor) -> Tensor:
        mean, std, mean_, std_ = (
            torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None]
            for values in (mine.mean, mine.std, theirs.mean, theirs.std)
        )
        return (x * std + mean - mean_) / std_

    return convert
