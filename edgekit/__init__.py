"""edgekit: from a PyTorch checkpoint to a small, fast engine, proven equal to its source.

Public names, loaded when first used:

- ``build(recipe, out)``: the whole way to a bundle; ``Recipe`` says what, ``Bundle`` is what.
- ``evaluate``: a bundle's source and artifacts on the same samples by the same metrics.
- ``convert``, ``verify``, ``bench``, ``inspect``, ``doctor``: single steps.
- ``deploy``: a bundle's kit to a device over SSH, and its result back.
- ``predict``: latency and memory on a device that is not here, labelled predicted.
- ``sweep``: a grid of models, precisions, targets and batches.
- ``targets``: the devices that edgekit knows (``targets.names()``, ``targets.load(name)``).
- ``Session``: a streaming artifact, run prompt by prompt and token by token.
- ``Model``, ``Input``, ``Dim`` and ``State``: what a factory of your own may return.
- ``EdgekitError`` and ``CheckFailed``: bad input, and a result that failed its check.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit import targets
    from edgekit.bundle import Bundle
    from edgekit.deployment import deploy
    from edgekit.doctor import doctor
    from edgekit.errors import CheckFailed, EdgekitError
    from edgekit.evaluation import evaluate
    from edgekit.flow import build
    from edgekit.model import Dim, Input, Model, State
    from edgekit.predicting import predict
    from edgekit.recipe import Recipe
    from edgekit.session import Session
    from edgekit.single import bench, convert, inspect, verify
    from edgekit.sweeps import sweep

_HOMES = {
    "Bundle": "bundle",
    "CheckFailed": "errors",
    "Dim": "model",
    "EdgekitError": "errors",
    "Input": "model",
    "Model": "model",
    "Recipe": "recipe",
    "Session": "session",
    "State": "model",
    "bench": "single",
    "build": "flow",
    "convert": "single",
    "deploy": "deployment",
    "doctor": "doctor",
    "evaluate": "evaluation",
    "inspect": "single",
    "predict": "predicting",
    "sweep": "sweeps",
    "targets": "",
    "verify": "single",
}

__all__ = [
    "Bundle",
    "CheckFailed",
    "Dim",
    "EdgekitError",
    "Input",
    "Model",
    "Recipe",
    "Session",
    "State",
    "bench",
    "build",
    "convert",
    "deploy",
    "doctor",
    "evaluate",
    "inspect",
    "predict",
    "sweep",
    "targets",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
    home = _HOMES[name]
    if not home:
        return import_module(f"edgekit.{name}")
    return getattr(import_module(f"edgekit.{home}"), name)


def __dir__() -> list[str]:
    return __all__
