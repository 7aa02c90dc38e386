"""One calibration, the same numbers: the graph in PyTorch, ONNX Runtime, OpenVINO and Core ML."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit import targets
from edgekit.drift import compare
from edgekit.edit import Editor
from edgekit.find import find
from edgekit.quantize.place import DEQUANTIZE
from edgekit.recipe import Recipe
from edgekit.targets.runtimes import runtime_for
from edgekit.work import Work, trace_graph

#: A small model of each family.
MODELS = {
    "vit": {"model": "timm/examples/digits_vit"},
    "dual-branch": {
        "model": "timm/crossvit_tiny_240",
        "arguments": {
            "img_size": 32,
            "img_scale": [1.0, 0.75],
            "patch_size": [4, 6],
            "in_chans": 1,
            "num_classes": 10,
            "embed_dim": [48, 96],
            "depth": [[1, 2, 0]],
            "num_heads": [3, 3],
            "mlp_ratio": [4, 4, 1],
        },
        "random_weights": True,
    },
    "state space": {
        "model": "reference/vision_mamba",
        "arguments": {
            "image_size": [32, 32],
            "patch": [8, 8],
            "classes": 10,
            "width": 64,
            "depth": 2,
            "state": 8,
            "mean": [0.3],
            "std": [0.35],
        },
        "random_weights": True,
    },
}
BACKENDS = ("cpu", "cpu-openvino", "iphone-15-pro")


@pytest.fixture(scope="module", params=MODELS)
def work(request, digits_folder):
    recipe = {
        **MODELS[request.param],
        "targets": BACKENDS,
        "precision": "int8",
        "calibration": digits_folder,
        "samples": 8,
        "effort": "balanced" if request.param == "vit" else "quick",
        "evaluation_samples": 4,
    }
    torch.manual_seed(0)
    made = Work(Recipe.check(recipe, "test"))
    return made, made.quantize()


@pytest.mark.parametrize("device", BACKENDS)
def test_a_backend_gives_the_numbers_of_the_graph(work, device, tmp_path):
    """One level at a site at most: the same sum in another order may round to a neighbour.

    Downstream of a scan, which carries such a difference on, it may be two.
    """
    made, quantized = work
    graph = made.lower(targets.load(device), quantized)
    # Core ML computes what lies between sites in float16, unless the graph is called fp32.
    cosine, most = _compared(made, graph.replace(graph.exported, "fp32"), device, tmp_path)
    assert cosine > 0.9999
    assert most <= (2 if "mamba" in made.recipe.model else 1)


def test_float16_between_sites_adds_a_few_levels(work, tmp_path):
    made, quantized = work
    if made.model.weights == "random":
        pytest.skip("untrained networks magnify every rounding")
    graph = made.lower(targets.load("iphone-15-pro"), quantized)
    cosine, most = _compared(made, graph, "iphone-15-pro", tmp_path)
    assert cosine > 0.9999
    assert 1 <= most <= 4


def _compared(made, graph, device, folder):
    """The outputs' cosine, and the most levels between a site's values here and there."""
    target = targets.load(device)
    format = target.formats[-1]
    runtime = runtime_for(target.runtime, format)
    artifact = folder / find("converters", format).NAME
    made.convert(graph, format, artifact, target)
    outputs = [graph.run(batch) for batch in made.batches]
    traced = find("runtimes", runtime).trace(artifact, made.batches[0])
    steps = _steps(graph, made.batches[0], traced)
    return compare(outputs, made.run(artifact, runtime)).cosine, max(steps.values())


def _steps(graph, batch, actual):
    """By site: the most levels between a value here and there."""
    expected = trace_graph(graph, batch)
    calls = list(Editor(graph).calls(str(DEQUANTIZE)))
    # Core ML numbers what it quantizes anew, in the same order.
    anew = [name for name in actual if name.startswith("dequantize_") and name[11:].isdigit()]
    names = anew if anew else [node.name for node in calls]
    return {
        node.name: np.abs(np.round((expected[node.name] - actual[name]) / node.args[1])).max()
        for node, name in zip(calls, names, strict=True)
    }
