"""torch: runs the source module itself, eagerly or compiled; the baseline of every figure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    import torch

    from edgekit.model import Model
    from edgekit.targets.runtimes import Arrays


class Eager:
    """A module called as it is, with a number of threads."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._module: torch.nn.Module = model.module

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
        from edgekit.model import run_module

        return run_module(self._module, inputs, self._model.outputs)


class Compiled(Eager):
    """The module through ``torch.compile`` with its default backend."""

    def __init__(self, model: Model) -> None:
        import torch

        super().__init__(model)
        self._module = torch.compile(model.module)  # type: ignore[assignment]

    def infer(self, inputs: Arrays) -> Arrays:
        """As Eager; the first call compiles."""
        try:
            return super().infer(inputs)
        except RuntimeError as error:
            text = str(error).strip().splitlines()
            raise EdgekitError(
                "torch.compile cannot run this model here.",
                text[0] if text else type(error).__name__,
                "It needs a C++ compiler on the PATH.",
            ) from error


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use ``count`` threads within the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
