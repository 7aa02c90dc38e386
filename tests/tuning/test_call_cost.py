"""What a call of a model takes: measured where the target runs here, else predicted."""

from __future__ import annotations

import pytest

from edgekit import families, targets
from edgekit.compress import Context, apply, parse
from edgekit.errors import EdgekitError
from edgekit.recipe import Recipe
from edgekit.tuning.call_cost import call_cost


@pytest.fixture(scope="module")
def models(digits_model):
    whole = families.load(f"timm/{digits_model}", families.Options())
    return whole, apply(parse("drop_layers:keep=[0]"), whole, Context())


def cost_on(name, digits_model, **fields):
    quick = {"warmup": 0, "iterations": 10, "seconds": 0.01}
    recipe = Recipe.check({"model": f"timm/{digits_model}", **quick, **fields}, "here")
    return call_cost(recipe, targets.load(name))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_here_it_is_measured(precision, models, digits_model):
    found = cost_on("cpu", digits_model, precision=precision)(models[0])
    assert found.source.startswith(f"measured in {precision}")
    assert found.milliseconds > 0


def test_elsewhere_it_is_predicted(models, digits_model):
    cost = cost_on("jetson-orin-nano-super", digits_model, precision="fp16")
    whole, shallow = (cost(model) for model in models)
    assert whole.source.startswith("predicted")
    assert 0 < shallow.milliseconds < whole.milliseconds
    quantized = cost_on("jetson-orin-nano-super", digits_model, precision="int8")(models[0])
    assert quantized.milliseconds < whole.milliseconds


def test_a_device_without_peaks_cannot_be_predicted(models, digits_model):
    bare = targets.load("jetson-orin-nano-super").model_copy(update={"peak": {}})
    recipe = Recipe.check({"model": f"timm/{digits_model}"}, "here")
    with pytest.raises(EdgekitError, match="neither measured nor predicted"):
        call_cost(recipe, bare)(models[0])
