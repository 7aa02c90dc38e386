"""The first run of a model that has just been made: does it take its inputs?"""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.model import Input

if TYPE_CHECKING:
    import torch


def run(module: torch.nn.Module, inputs: tuple[Input, ...], source: str) -> Any:
    """Put the module in evaluation mode, run it on zeros (batch 1), give what it returns.

    Raises:
        EdgekitError: it does not take those inputs; says what it raised and where.
    """
    import torch

    zeros = {i.name: torch.zeros(i.concrete(1), dtype=_dtype(i, source)) for i in inputs}
    try:
        with torch.no_grad():
            return module.eval()(**zeros)
    except Exception as error:
        shapes = ", ".join(f"{i.name}:{'x'.join(map(str, i.shape))}:{i.dtype}" for i in inputs)
        raise failed(
            f"{source} does not run on {shapes}.",
            error,
            "Give the inputs that it takes with --input NAME:1x3x224x224[:dtype], or change its "
            "arguments with --set.",
        ) from error


def _dtype(spec: Input, source: str) -> torch.dtype:
    import torch

    found = getattr(torch, spec.dtype, None)
    if isinstance(found, torch.dtype):
        return found
    raise EdgekitError(
        f"Input {spec.name} of {source} has the unknown dtype {spec.dtype!r}.",
        "",
        "Write a NumPy dtype's name, such as float32 or int64.",
    )


def tensors(result: Any, source: str) -> tuple[torch.Tensor, ...]:
    """What a model returned, as a tuple.

    Raises:
        EdgekitError: it is neither a tensor nor a tuple or list of tensors.
    """
    import torch

    found = (result,) if isinstance(result, torch.Tensor) else result
    if isinstance(found, (tuple, list)) and found:
        kinds = {type(item).__name__ for item in found if not isinstance(item, torch.Tensor)}
        if not kinds:
            return tuple(found)
        why = f"It returned a {type(found).__name__} that holds {', '.join(sorted(kinds))}."
    else:
        why = f"It returned {type(result).__name__}."
    raise EdgekitError(
        f"{source} must return a tensor or a tuple of tensors.",
        why,
        "Wrap it in a module that returns the tensors you want.",
    )


def failed(what: str, error: BaseException, fix: str) -> EdgekitError:
    """The error for code of others that raised: its type, message and place."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = f"{type(error).__name__}: {' '.join(lines[:3])}"
    place = _place(error)
    return EdgekitError(what, f"{message} ({place})" if place else message, fix)


def _place(error: BaseException) -> str:
    """``file:line`` of the deepest frame in the user's own code, else of the deepest of all."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and Path(frame.filename).parent != Path(__file__).parent
    ]
    libraries = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    own = [f for f in frames if not any(f.filename.startswith(root) for root in libraries)]
    chosen = (own or frames)[-1:]
    return f"{chosen[0].filename}:{chosen[0].lineno}" if chosen else ""
