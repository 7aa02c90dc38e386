"""Evaluate a saved Core ML package operator by operator, on any machine.

The package's MIL program is loaded back with coremltools and each operator computed in
PyTorch (``edgekit.converters.mil_ops``), so that a package can be compared with its source
model where Core ML itself does not run. Numbers follow the program's types: every float16
result is rounded to float16, whatever was accumulated in float32 inside the operator.
Core ML on a device may round once more inside an operator, or keep float32 between two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.converters import coreml
from edgekit.converters.mil_ops import table
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    import numpy as np
    import torch

    Arrays = dict[str, np.ndarray[Any, Any]]


#: What changes a state.
UPDATE = "coreml_update_state"


@dataclass
class _Step:
    """One operator, bound to where its inputs come from and its outputs go.

    Variables are MIL's own objects: their names need not be unique.
    """

    op: Any
    compute: Callable[..., Any]
    fixed: dict[str, Any] = field(default_factory=dict)
    wired: dict[str, Any] = field(default_factory=dict)
    frees: list[Any] = field(default_factory=list)

    @property
    def reads(self) -> list[Any]:
        values = self.wired.values()
        return [var for value in values for var in (value if isinstance(value, list) else [value])]


class Evaluator:
    """A package ready to run.

    Args:
        package: a saved ``.mlpackage`` that holds an ML program.

    Raises:
        EdgekitError: it is not one, or it holds operators that the evaluator lacks (named).
    """

    def __init__(self, package: Path) -> None:
        self._package = package
        from coremltools.converters.mil.mil import types

        function = _load(package)
        given = dict(function.inputs)
        self._states = {name: var for name, var in given.items() if types.is_state(var.sym_type)}
        self._inputs = {name: var for name, var in given.items() if name not in self._states}
        self._outputs = list(function.outputs)
        self._constants: dict[Any, torch.Tensor] = {}
        operations = [op for op in function.operations if not _is_constant(op)]
        known = table()
        lacking = sorted({op.op_type for op in operations} - known.keys())
        if lacking:
            raise EdgekitError(
                f"{package} cannot be evaluated here.",
                f"The Core ML evaluator lacks the operators {', '.join(lacking)}.",
                "Run the package on macOS, or add them to a table in converters/mil_ops/.",
            )
        self._steps = [self._bind(op, known[op.op_type]) for op in operations]
        self._hold(self._outputs)
        _plan_frees(self._steps, {*self._constants, *self._outputs, *self._states.values()})

    @property
    def batch(self) -> int | None:
        """The first size of the first input; None where the package takes any."""
        first = next(iter(self._inputs.values()))
        return _static(first.shape[0]) if first.shape else 1

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first.

        A state that Core ML holds is among the inputs too, or is zero, and comes back as
        NAME_next.

        Raises:
            EdgekitError: an input is missing, unknown or wrongly shaped.
        """
        values = self._compute(inputs, keep_all=False)
        outputs = {var.name: values[var].numpy() for var in self._outputs}
        states = {f"{name}_next": values[var].numpy() for name, var in self._states.items()}
        return {**outputs, **states}

    def run_all(self, inputs: Arrays) -> Arrays:
        """Every tensor the program computes, by its name in the package, in order."""
        values = self._compute(inputs, keep_all=True)
        computed = [var for step in self._steps for var in step.op.outputs]
        return {var.name: values[var].numpy() for var in [*computed, *self._outputs]}

    def _bind(self, op: Any, compute: Callable[..., Any]) -> _Step:
        step = _Step(op, compute)
        for name, value in op.inputs.items():
            if isinstance(value, list | tuple):
                step.wired[name] = list(value)
            elif _is_parameter(op, name, value):
                step.fixed[name] = _python(value.val)
            else:
                step.wired[name] = value
        self._hold(step.reads)
        return step

    def _hold(self, variables: Iterable[Any]) -> None:
        """Keep the values of those variables that are known before running."""
        for var in variables:
            known = None if var in self._constants else _known(var)
            if known is not None:
                self._constants[var] = _tensor(known)

    def _compute(self, inputs: Arrays, keep_all: bool) -> dict[Any, torch.Tensor]:
        import torch

        values = {**self._constants, **self._fed(inputs)}
        with torch.inference_mode():
            for step in self._steps:
                results = _run(step, values)
                values.update(zip(step.op.outputs, results, strict=True))
                if step.op.op_type == UPDATE:
                    values[step.op.state] = results[0]
                if not keep_all:
                    for var in step.frees:
                        del values[var]
        return values

    def _fed(self, inputs: Arrays) -> dict[Any, torch.Tensor]:
        """The given arrays as the program's input variables."""
        import numpy as np
        import torch

        zeros = {
            name: np.zeros([int(size) for size in var.shape], np.float16)
            for name, var in self._states.items()
        }
        wanted = {**self._inputs, **self._states}
        inputs = {**zeros, **inputs}
        if inputs.keys() != wanted.keys():
            raise EdgekitError(
                f"Wrong inputs for {self._package}.",
                f"It takes {', '.join(self._inputs)}; given: {', '.join(inputs) or 'none'}.",
                "Give one array for each of its inputs.",
            )
        for name, var in wanted.items():
            _check_shape(f"Input {name} of {self._package}", var, inputs[name].shape)
        return {var: torch.from_numpy(inputs[name]).to(_dtype(var)) for name, var in wanted.items()}


def _load(package: Path) -> Any:
    """The ``main`` function of the package's program, as coremltools' objects."""
    with coreml.quiet():
        import coremltools
        from coremltools.converters.mil.frontend.milproto.load import load

        try:
            spec = coremltools.utils.load_spec(str(package))
            weights = package / "Data" / "com.apple.CoreML" / "weights"
            program = load(spec, spec.specificationVersion, str(weights))
        except Exception as error:
            raise EdgekitError(
                f"{package} cannot be read as a Core ML program.",
                f"coremltools says: {error}",
                "Give an .mlpackage folder that holds an ML program (iOS 15 or later).",
            ) from error
    return program.functions["main"]


def _known(var: Any) -> Any:
    """A variable's value where it is known before running, else None."""
    if var.val is None and var.op is not None and var.op.op_type.startswith("constexpr_"):
        return var.op.materialized_val_inference()
    return var.val


def _is_constant(op: Any) -> bool:
    return op.op_type.startswith("constexpr_") or all(v.val is not None for v in op.outputs)


def _is_parameter(op: Any, name: str, var: Any) -> bool:
    """Whether MIL demands a constant here, and it is not an array of floats."""
    import numpy as np

    if not getattr(op.input_spec.input_types[name], "const", False) or var.val is None:
        return False
    value = np.asarray(var.val)
    return value.ndim == 0 or not np.issubdtype(value.dtype, np.floating)


def _python(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _tensor(value: Any) -> torch.Tensor:
    """A constant, with floats held as float32 once for all runs."""
    import numpy as np
    import torch

    array = np.asarray(value)
    floating = np.issubdtype(array.dtype, np.floating)
    return torch.from_numpy(np.array(array, dtype=np.float32 if floating else array.dtype))


def _dtype(var: Any) -> torch.dtype:
    import torch
    from coremltools.converters.mil.mil import types

    name = types.builtin_to_string(var.dtype)
    dtype: torch.dtype = getattr(torch, {"fp16": "float16", "fp32": "float32"}.get(name, name))
    return dtype


def _run(step: _Step, values: dict[Any, torch.Tensor]) -> list[torch.Tensor]:
    """Compute one operator: widen float16, compute, round to the declared types."""
    arguments = {
        name: [_wide(values[v]) for v in var] if isinstance(var, list) else _wide(values[var])
        for name, var in step.wired.items()
    }
    result = step.compute(**arguments, **step.fixed)
    results = result if isinstance(result, list) else [result]
    for var, tensor in zip(step.op.outputs, results, strict=True):
        _check_shape(f"The evaluator's {step.op.op_type} {var.name}", var, tuple(tensor.shape))
    return [t.to(_dtype(v)) for v, t in zip(step.op.outputs, results, strict=True)]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    if tensor.dtype == torch.uint16:  # few of torch's operators take it
        return tensor.int()
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _check_shape(what: str, var: Any, shape: tuple[int, ...]) -> None:
    """Raise unless a shape is the declared one; symbolic sizes match any."""
    sizes = [_static(size) for size in var.shape]
    if len(sizes) != len(shape) or any(
        size not in (None, got) for size, got in zip(sizes, shape, strict=True)
    ):
        declared = ", ".join(str(size) for size in var.shape)
        raise EdgekitError(
            f"{what} has the wrong shape.",
            f"The package declares ({declared}); got {shape}.",
            "",
        )


def _static(size: Any) -> int | None:
    from coremltools.converters.mil.mil.types.symbolic import is_symbolic

    return None if is_symbolic(size) else int(size)


def _plan_frees(steps: list[_Step], keep: Iterable[Any]) -> None:
    """Note at each step the variables that no later step reads."""
    seen = set(keep)
    for step in reversed(steps):
        for var in {*step.reads, *step.op.outputs} - seen:
            step.frees.append(var)
            seen.add(var)
