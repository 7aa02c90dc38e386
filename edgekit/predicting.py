"""Predicting: what a model would take on devices that are not here, labelled as what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit import families, targets
from edgekit.errors import EdgekitError
from edgekit.model import Input
from edgekit.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.model import Model
    from edgekit.targets.prediction import Prediction


def predict(
    recipe: Recipe | str,
    target: str | Sequence[str] | None = None,
    precision: str | None = None,
    batch: int | None = None,
    threads: int = 1,
) -> list[Prediction]:
    """The latency and memory of a model on devices, with an error bar; nothing is measured on them.

    No weights are read, and none are made where the model can do without.

    Args:
        recipe: or a model's name, as ``timm/deit_tiny_patch16_224``.
        target: one device or several, in place of the recipe's.
        precision, batch: in place of the recipe's.
        threads: of a CPU.

    Raises:
        EdgekitError: unknown model, device or precision, a device that cannot run it or of which
            too little is known, or a model that streams.
    """
    recipe = _recipe(recipe, target, precision, batch)
    counted = _count(recipe)
    from edgekit.targets.prediction import forecast

    return [forecast(counted, each, recipe.precision, threads) for each in recipe.devices()]


def everywhere(
    recipe: Recipe | str,
    precision: str | None = None,
    batch: int | None = None,
    threads: int = 1,
) -> tuple[list[Prediction], dict[str, str]]:
    """As ``predict`` on every target, and by name why the others have no prediction."""
    from edgekit.targets.prediction import forecast

    recipe = _recipe(recipe, None, precision, batch)
    counted = _count(recipe)
    found, absent = [], {}
    for name in targets.names():
        try:
            found.append(forecast(counted, targets.load(name), recipe.precision, threads))
        except EdgekitError as error:
            absent[name] = f"{error.what} {error.why}"
    return found, absent


def _recipe(
    recipe: Recipe | str,
    target: str | Sequence[str] | None,
    precision: str | None,
    batch: int | None,
) -> Recipe:
    fields: dict[str, Any] = {"precision": precision, "batch": batch}
    if target is not None:
        fields["targets"] = (target,) if isinstance(target, str) else tuple(target)
    given = {name: value for name, value in fields.items() if value is not None}
    if isinstance(recipe, str):
        return Recipe.check({"model": recipe, **given}, "the call")
    return recipe.model_copy(update=given)


def _count(recipe: Recipe) -> Any:
    from edgekit.targets.prediction.counting import count
    from edgekit.targets.prediction.shapes import exported

    if recipe.passes:
        raise EdgekitError(
            f"What {recipe.model} is after its passes cannot be predicted.",
            "Passes look at weights and data, which a prediction does without.",
            "Run `edgekit compress` first, and predict compressed/FOLDER.",
        )
    batch = 1 if recipe.batch == "dynamic" else recipe.batch
    return count(exported(_model(recipe), batch), recipe.model, recipe.exclude)


def _model(recipe: Recipe) -> Model:
    """The model without values; with its own where its making looks at them."""
    if recipe.mode == "stream":
        raise EdgekitError(
            f"{recipe.model} cannot be predicted as a stream.",
            "A prompt and each token after it take different times, by what came before.",
            "Drop --mode stream: the time of a whole sequence is predicted.",
        )
    inputs = tuple(Input.parse(text) for text in recipe.inputs)
    options = families.Options(
        inputs=inputs, arguments=recipe.arguments, allow_partial=recipe.allow_partial
    )
    try:
        return families.outline(recipe.model, options)
    except EdgekitError as error:
        if "looks at values" not in error.what:
            raise
    from edgekit.source import load_model

    return load_model(recipe)
