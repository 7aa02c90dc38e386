"""Profiling: where a runtime spends its time, by class of operator and by module of the source.

    found = profile(Path("out/model.onnx"), "onnxruntime", inputs, threads=1)
    [(share.name, share.milliseconds, share.share) for share in found.by_class()]
    found.by_module(depth=2)

A runtime that tells has ``layers`` (see ``edgekit.targets.runtimes``); the source in PyTorch is
profiled by ``profile_source``. A profiler takes time itself, in loops the most: beside the layers
stand a call's time without it and with it, and how much of the former the layers explain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.profiling.classes import class_of

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.targets.runtimes import Arrays

#: Calls that are profiled, and those before them that are not.
CALLS, WARMUP = 12, 3
#: A module that takes more of the time than this is shown by its parts.
_MOST = 0.6


@dataclass(frozen=True)
class Layer:
    """One piece of work that a runtime times by itself: a node, or a kernel fused of several.

    Attributes:
        name: the runtime's own.
        operator: its operator, or what the runtime calls the kernel that it fused.
        module: dotted path of the source's module that it belongs to; ``""`` where that is
            unknown or the model itself.
        milliseconds: of one call, the quickest of several: the others were disturbed. (OpenVINO
            gives their mean only.)
        role: its class where the graph tells more than the operator does, as of a product that
            is part of attention; ``""``: by its operator and name.
    """

    name: str
    operator: str
    module: str
    milliseconds: float
    role: str = ""

    @property
    def kind(self) -> str:
        """Its class, one of ``classes.CLASSES``."""
        return self.role or class_of(self.operator, self.name)


class Layers(list[Layer]):
    """The layers of one call, and its milliseconds without (``whole``) and with the profiler.

    Both were taken in turns. None: not measured.
    """

    def __init__(
        self,
        layers: Iterable[Layer],
        whole: float | None = None,
        profiled: float | None = None,
    ) -> None:
        super().__init__(layers)
        self.whole, self.profiled = whole, profiled


@dataclass(frozen=True)
class Share:
    """What the layers of one class or module take: milliseconds, and their part of all layers."""

    name: str
    milliseconds: float
    share: float
    layers: int


@dataclass(frozen=True)
class Profile:
    """Where one call spends its time.

    Attributes:
        runtime: which profiler told.
        layers: in the order in which they ran, where the runtime says it.
        whole_ms: a call without the profiler; None where that was not measured.
        profiled_ms: a call with it.
    """

    runtime: str
    layers: tuple[Layer, ...]
    whole_ms: float | None = None
    profiled_ms: float | None = None

    @property
    def milliseconds(self) -> float:
        """The sum of the layers."""
        return sum(layer.milliseconds for layer in self.layers)

    @property
    def covered(self) -> float | None:
        """The layers' part of a call without the profiler; the rest is between them.

        It is 1 where ONNX Runtime ran a loop, which is given what the others leave, and over 1
        where the machine was busier while the layers were timed.
        """
        return self.milliseconds / self.whole_ms if self.whole_ms else None

    @property
    def slowdown(self) -> float | None:
        """How many times as long a call takes with the profiler on."""
        both = self.whole_ms and self.profiled_ms
        return self.profiled_ms / self.whole_ms if both else None  # type: ignore[operator]

    def by_class(self) -> list[Share]:
        """By class of operator, the costliest first."""
        return self._shares(lambda layer: layer.kind)

    def by_module(self, depth: int | None = None) -> list[Share]:
        """By module of the source, to a depth: ``blocks.3.attn`` is ``blocks.3`` at 2.

        None: the least depth at which no module takes most of the time, as a list of blocks does.
        What belongs to no module below the model, or to an unknown one, is at ``""``.
        """
        if depth is not None:
            return self._shares(lambda layer: ".".join(layer.module.split(".")[:depth]))
        deepest = max(layer.module.count(".") + 1 for layer in self.layers)
        for depth in range(1, deepest + 1):
            found = self.by_module(depth)
            if all(share.share <= _MOST for share in found if share.name):
                break
        return found

    def _shares(self, key: Callable[[Layer], str]) -> list[Share]:
        groups: dict[str, list[float]] = {}
        for layer in self.layers:
            groups.setdefault(key(layer), []).append(layer.milliseconds)
        total = self.milliseconds or 1.0
        found = [Share(n, sum(ms), sum(ms) / total, len(ms)) for n, ms in groups.items()]
        return sorted(found, key=lambda share: -share.milliseconds)

    def as_dict(self, depth: int | None = None) -> dict[str, Any]:
        """For JSON: the groups, each layer, and what the profile covers and costs."""
        from dataclasses import asdict

        return {
            "runtime": self.runtime,
            "whole_ms": self.whole_ms,
            "profiled_ms": self.profiled_ms,
            "layers_ms": self.milliseconds,
            "covered": self.covered,
            "slowdown": self.slowdown,
            "by_class": [asdict(share) for share in self.by_class()],
            "by_module": [asdict(share) for share in self.by_module(depth)],
            "layers": [{**asdict(layer), "class": layer.kind} for layer in self.layers],
        }


def profile(
    artifact: Path, runtime: str, inputs: Arrays, threads: int | None = None
) -> Profile | None:
    """Where one call of an artifact spends its time; None where its runtime does not tell.

    Args:
        inputs: those of one call.
        threads: None takes all cores, as where the artifact is run.

    Raises:
        EdgekitError: the artifact cannot run here.
    """
    from edgekit.find import find

    layers = getattr(find("runtimes", runtime), "layers", None)
    if layers is None or not artifact.is_file():  # a split model is a folder: profile its parts
        return None
    return profile_of(runtime, layers(artifact, inputs, threads))


def profile_source(model: Model, inputs: Arrays, threads: int) -> Profile:
    """Where the source itself spends its time in eager PyTorch."""
    from edgekit.profiling.torch import layers

    return profile_of("torch eager", layers(model, inputs, threads))


def profile_of(runtime: str, layers: list[Layer]) -> Profile:
    """The profile of a runtime's layers.

    Raises:
        EdgekitError: there are none.
    """
    if not layers:
        raise EdgekitError(f"{runtime} gave no profile.", "It timed no layer of the call.")
    whole, profiled = getattr(layers, "whole", None), getattr(layers, "profiled", None)
    return Profile(runtime, tuple(layers), whole, profiled)
