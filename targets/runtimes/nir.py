"""nir: runs a spiking network's NIR file, step by step, on any machine.

Every step, each node takes the sum of what its edges bring in that step and gives its own result;
neurons keep their potential (``converters/nir.py`` says what NIR leaves open, and how the file
states it). With dt = 1 step,

    IF:   u = v + dt r x,    LIF:  u = v + dt / tau (v_leak - v + r x),    spike = u > v_threshold

and a spike sets v to v_reset, or takes the threshold off. Outputs are means over all steps, or of
each step. Potentials are float64: sums of many steps lose nothing that could change a spike.
It proves a file; how fast a chip runs it is another matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import packages
from edgekit.errors import EdgekitError
from edgekit.targets.runtimes import Arrays, Runtime

if TYPE_CHECKING:
    from torch import Tensor

OPENS = (".nir",)
REQUIRES = {"nir": "nir", "h5py": "h5py"}
THREADED = False


def unavailable() -> str:
    """Why no NIR file can run here: the package is missing."""
    return "nir is not installed" if packages.missing(REQUIRES) else ""


def untimed() -> str:
    """Why a latency measured here says nothing: a chip's neurons run side by side."""
    return "spikes are simulated here; a chip's time is its own"


def open(artifact: Path, threads: int | None = None) -> Simulation:
    """Load a NIR file that edgekit wrote; ``threads`` is not used.

    Raises:
        EdgekitError: it is no whole NIR file, does not say how it is run, or has a node that
            edgekit does not write.
    """
    return Simulation(_read(artifact), str(artifact))


def trace(artifact: Path, inputs: Arrays) -> Arrays:
    """What every node gives, in the model's unit: means over steps, or all of a sequence."""
    return Simulation(_read(artifact), str(artifact)).run_all(inputs)


class Simulation(Runtime):
    """An open NIR file."""

    def __init__(self, graph: Any, name: str) -> None:
        self._name = name
        self._timing = _timing(graph, name)
        self._read_by = {node: [a for a, b in graph.edges if b == node] for node in graph.nodes}
        self._order = _order(self._read_by, name)
        self._nodes = graph.nodes
        for node in graph.nodes.values():
            _known(node, name)
        self._inputs = {key: tuple(map(int, n.input_type["input"])) for key, n in _inputs(graph)}
        self._outputs = sorted(graph.outputs)

    @property
    def batch(self) -> None:
        """Samples that one call takes: any number."""
        return None

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
        found = self._run(inputs, self._outputs)
        whole = self._timing["decode"] == "sequence"
        return {k: (v if whole else v.mean(1)).numpy() for k, v in found.items()}

    def run_all(self, inputs: Arrays) -> Arrays:
        """As ``trace``."""
        found = self._run(inputs, self._order)
        whole = self._timing["input"] == "sequence"
        amplitudes = {k: float(n.metadata.get("amplitude", 1)) for k, n in self._nodes.items()}
        return {
            k: (v if whole else v.mean(1)).numpy() * amplitudes[k] for k, v in found.items()
        } | self.infer(inputs)

    def spikes(self, inputs: Arrays) -> Arrays:
        """The spikes of every population, (batch, steps, ...): 0 or 1."""
        firing = [key for key, node in self._nodes.items() if hasattr(node, "v_threshold")]
        return {key: value.numpy() for key, value in self._run(inputs, firing).items()}

    def _run(self, inputs: Arrays, kept: Sequence[str]) -> dict[str, Tensor]:
        """What these nodes give, (batch, steps, ...)."""
        import torch

        given, steps = self._currents(inputs)
        dt = float(self._timing["dt"])
        nodes = {k: _NODES[type(n).__name__](n, dt) for k, n in self._nodes.items()}
        found: dict[str, list[Tensor]] = {key: [] for key in kept}
        with torch.inference_mode():
            for t in range(steps):
                values: dict[str, Tensor] = {}
                for key in self._order:
                    entering = [values[source] for source in self._read_by[key]]
                    entered = sum(entering[1:], entering[0]) if entering else given[key][:, t]
                    values[key] = nodes[key](entered)
                for key in kept:
                    found[key].append(values[key])
            return {key: torch.stack(each, 1) for key, each in found.items()}

    def _currents(self, inputs: Arrays) -> tuple[dict[str, Tensor], int]:
        """Every input as (batch, steps, ...), and the number of steps."""
        import torch

        whole = self._timing["input"] == "sequence"
        shapes = {name: value.shape[2 if whole else 1 :] for name, value in inputs.items()}
        if shapes != self._inputs or any(value.dtype != "float32" for value in inputs.values()):
            raise EdgekitError(
                f"{self._name} cannot be run on these inputs.",
                f"It takes {self._inputs} a sample{' and step' if whole else ''}, in float32; it "
                f"was given {shapes}.",
            )
        currents = {name: torch.from_numpy(value) for name, value in inputs.items()}
        if whole:
            return currents, next(iter(currents.values())).shape[1]
        steps = int(self._timing["steps"])
        return {
            k: v.unsqueeze(1).expand(-1, steps, *v.shape[1:]) for k, v in currents.items()
        }, steps


def _known(node: Any, name: str) -> None:
    """Raise unless it is a node that edgekit writes."""
    if type(node).__name__ not in _NODES:
        raise EdgekitError(
            f"{name} has a node of kind {type(node).__name__}.",
            f"edgekit runs the nodes that it writes: {', '.join(_NODES)}.",
            "Run it in a simulator that takes NIR.",
        )


class Neurons:
    """A population, with its potentials.

    Args:
        node: IF or LIF.
        dt: length of a step.
    """

    def __init__(self, node: Any, dt: float) -> None:
        import torch

        self._dt = dt
        names = ("r", "v_threshold", "v_reset", "tau", "v_leak")
        arrays = {name: getattr(node, name) for name in names if hasattr(node, name)}
        self._p = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
        self._subtracts = node.metadata.get("reset") == "subtract"
        start = node.metadata.get("v_start")
        self._v = torch.zeros(()) if start is None else torch.from_numpy(start).double()

    def __call__(self, x: Tensor) -> Tensor:
        """Spikes of a step."""
        import torch

        p, v = self._p, self._v
        flow = p["r"] * x
        if "tau" in p:
            flow = (p["v_leak"] - v + flow) / p["tau"]
        u = v + self._dt * flow
        fired = u > p["v_threshold"]
        after = u - p["v_threshold"] if self._subtracts else p["v_reset"]
        self._v = torch.where(fired, after, u)
        return fired.to(x.dtype)


def _affine(node: Any, dt: float) -> Callable[[Tensor], Tensor]:
    from torch.nn.functional import linear

    weight, bias = _tensors(node, "weight", "bias")
    return lambda x: linear(x, weight, bias)


def _convolution(node: Any, dt: float) -> Callable[[Tensor], Tensor]:
    from torch.nn import functional

    weight, bias = _tensors(node, "weight", "bias")
    apply: Any = functional.conv1d if weight.dim() == 3 else functional.conv2d
    how = [_sizes(each) for each in (node.stride, node.padding, node.dilation)]
    return lambda x: apply(x, weight, bias, *how, int(node.groups))


def _pool(node: Any, dt: float) -> Callable[[Tensor], Tensor]:
    from torch.nn.functional import avg_pool2d

    how = [_sizes(each) for each in (node.kernel_size, node.stride, node.padding)]
    return lambda x: avg_pool2d(x, *how)


def _flatten(node: Any, dt: float) -> Callable[[Tensor], Tensor]:
    start, end = int(node.start_dim), int(node.end_dim)
    return lambda x: x.flatten(start + 1 if start >= 0 else start, end + 1 if end >= 0 else end)


def _scale(node: Any, dt: float) -> Callable[[Tensor], Tensor]:
    (scale,) = _tensors(node, "scale")
    return lambda x: x * scale


def _same(node: Any, dt: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x


#: The kinds that edgekit writes.
_NODES: dict[str, Callable[[Any, float], Callable[[Tensor], Tensor]]] = {
    "Input": _same,
    "Output": _same,
    "Affine": _affine,
    "Linear": _affine,
    "Conv1d": _convolution,
    "Conv2d": _convolution,
    "AvgPool2d": _pool,
    "Flatten": _flatten,
    "Scale": _scale,
    "IF": Neurons,
    "LIF": Neurons,
}


def _tensors(node: Any, *names: str) -> list[Any]:
    import torch

    arrays = (getattr(node, name, None) for name in names)
    return [None if array is None else torch.from_numpy(array) for array in arrays]


def _sizes(given: Any) -> Any:
    """A whole number, some, or "same" or "valid"."""
    import numpy as np

    if isinstance(given, str):
        return given
    return tuple(map(int, given)) if np.ndim(given) else int(given)


def _inputs(graph: Any) -> list[tuple[str, Any]]:
    return list(graph.inputs.items())


def _order(read_by: Mapping[str, Sequence[str]], name: str) -> list[str]:
    """Nodes after those that they read.

    Raises:
        EdgekitError: some read each other.
    """
    try:
        return list(TopologicalSorter(read_by).static_order())
    except CycleError as error:
        raise EdgekitError(
            f"{name} has nodes that read each other: {', '.join(error.args[1])}.",
            "edgekit runs the networks that it writes, which are feed-forward.",
            "Run it in a simulator that takes NIR.",
        ) from error


def _timing(graph: Any, name: str) -> dict[str, Any]:
    """How it is run, as its metadata says."""
    said = graph.metadata
    lacking = [key for key in ("dt", "input", "decode") if key not in said]
    if not lacking and said["input"] == "constant" and "steps" not in said:
        lacking = ["steps"]
    if lacking:
        raise EdgekitError(
            f"{name} does not say how it is run.",
            f"Its metadata lack {', '.join(lacking)}, which NIR leaves to each tool.",
            "Export it with edgekit, or run it in a simulator that takes NIR.",
        )
    return dict(said)


def _read(artifact: Path) -> Any:
    if unavailable():
        raise EdgekitError(
            f"{artifact} cannot be opened.",
            f"{unavailable()}.",
            f"Run: {packages.install_command(REQUIRES.values())}",
        )
    import nir

    try:
        return nir.read(artifact)
    # A file of another kind, one that was cut short, and one of other nodes or shapes.
    except (OSError, KeyError, ValueError, TypeError, AssertionError) as error:
        raise EdgekitError(
            f"{artifact} is not a whole NIR file.", str(error), "Build or copy it again."
        ) from error
