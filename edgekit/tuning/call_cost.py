"""What a call of a model takes on a device: measured here where it can be, else predicted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.compress import Cost
from edgekit.find import find
from edgekit.targets.runtimes import runtime_for

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.recipe import Recipe
    from edgekit.targets import Target


def call_cost(recipe: Recipe, target: Target) -> Callable[[Model], Cost]:
    """A function from a model to its latency on the target, in the recipe's precision.

    Latency does not depend on values, so a quantized model is calibrated on a few random numbers
    only; nothing of it is kept.
    """
    format = target.formats[-1]
    runtime = runtime_for(target.runtime, format)
    if runtime is None or find("runtimes", runtime).untimed():
        return lambda model: _predicted(model, target, recipe)
    return lambda model: _measured(model, target, recipe, format, runtime)


def _measured(model: Model, target: Target, recipe: Recipe, format: str, runtime: str) -> Cost:
    from edgekit.data import random_data
    from edgekit.latency import measure
    from edgekit.source import stacked
    from edgekit.work import Work

    changes = {"random_calibration": True, "samples": 2, "effort": "quick", "passes": ()}
    changes["split_streams"] = False
    quick = recipe.model_copy(update={**changes, "qat": None, "scales": None})
    work = Work(quick)
    work.original = model
    made = work.quantize() if quick.scheme else None
    size = 1 if recipe.batch == "dynamic" else recipe.batch
    inputs = next(stacked(random_data(model.inputs, size, recipe.seed), size, size))
    with tempfile.TemporaryDirectory() as folder:
        artifact = work.artifact(target, format, Path(folder), made)
        with find("runtimes", runtime).open(artifact, 1) as session:
            found = measure(
                lambda: session.infer(inputs),
                size,
                recipe.warmup,
                recipe.iterations,
                recipe.seconds,
            )
    return Cost(found.p50, f"measured in {recipe.precision} on one thread of this machine")


def _predicted(model: Model, target: Target, recipe: Recipe) -> Cost:
    """What ``edgekit predict`` says.

    Raises:
        EdgekitError: too little is known of the target.
    """
    from edgekit.targets.prediction import predict

    batch = 1 if recipe.batch == "dynamic" else recipe.batch
    found = predict(model, target, recipe.precision, batch, recipe.exclude)
    return Cost(found.milliseconds, found.basis.text)
