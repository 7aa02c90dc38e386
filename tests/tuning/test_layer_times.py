"""Layer times: each kernel counts for a module of the user's code."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgekit import targets
from edgekit.converters import onnx
from edgekit.errors import EdgekitError
from edgekit.latency import Ratio
from edgekit.model import Input, Model
from edgekit.quantize.schemes import SCHEMES
from edgekit.quantize.sensitivity import Damage
from edgekit.tuning.costs import by_peaks, by_profile, by_share
from edgekit.tuning.layer_times import _homes, layer_times

RATIO = Ratio(0.5, 0.4, 0.6, first_ms=2.0, second_ms=4.0, rounds=3, threads=1)


def damage(module, operations=100, parameters=100):
    return Damage(module, "linear", parameters, operations, None, 40.0, 40.0, 0.1, None, None)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = torch.nn.Linear(64, 512)
        self.narrow = torch.nn.Linear(512, 8)

    def forward(self, x):
        return self.narrow(torch.relu(self.wide(x)))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    graph = Model(Net(), (Input("x", (1, 64, 64)),), ("y",), "net").export()
    path = tmp_path_factory.mktemp("net") / "model.onnx"
    onnx.convert(graph, path, targets.load("cpu"))
    return path


def test_modules_of_a_real_file(artifact):
    inputs = {"x": np.ones((1, 64, 64), np.float32)}
    found = layer_times(artifact, inputs, 1)
    assert {"wide", "narrow"} <= set(found)
    assert found["wide"] > 0
    assert not list(artifact.parent.glob("*profile*"))


def test_a_nameless_kernel_counts_for_its_reader():
    def kernel(name, inputs, outputs):
        return SimpleNamespace(name=name, input=inputs, output=outputs)

    kernels = [
        kernel("quantize", ["x"], ["x_u8"]),
        kernel("product", ["x_u8"], ["product"]),
        kernel("last", ["product"], ["y"]),
    ]
    homes = _homes(kernels, {"product": "blocks.0.fc1"})
    assert homes == {"quantize": "blocks.0.fc1", "product": "blocks.0.fc1", "last": ""}


def test_one_file_against_itself_saves_next_to_nothing(artifact):
    inputs = {"x": np.ones((1, 64, 64), np.float32)}
    found = by_profile(artifact, artifact, inputs, [damage("wide"), damage("elsewhere")], RATIO)
    assert found.milliseconds == 4.0
    assert found.source.startswith("measured")
    assert found.saved["wide"] == 0  # one path, one best time
    assert found.saved["elsewhere"] == pytest.approx(1.0)  # half of what the whole model saves


def test_shares_add_up_to_the_whole_difference():
    found = by_share([damage("a", operations=300), damage("b")], RATIO)
    assert found.saved == {"a": pytest.approx(1.5), "b": pytest.approx(0.5)}


def test_prediction_is_the_longer_of_computing_and_moving():
    target = targets.load("rtx-4090")
    many = damage("many", operations=10**9, parameters=1)
    heavy = damage("heavy", operations=1, parameters=10**8)
    found = by_peaks(target, SCHEMES["int8"], [many, heavy], batch=1)
    assert found.source.startswith("predicted")
    peak = target.peak
    saved = 2 * 1e9 * (1 / (peak["fp16"] * 1e9) - 1 / (peak["int8"] * 1e9))
    assert found.saved["many"] == pytest.approx(saved)
    assert found.saved["heavy"] == pytest.approx(10**8 / (target.bandwidth_gb_s * 1e6))
    weights = by_peaks(target, SCHEMES["w4a16"], [many, heavy], batch=1)
    assert weights.saved["many"] == pytest.approx(0)
    assert weights.saved["heavy"] == pytest.approx(1.5 * found.saved["heavy"])


def test_a_device_of_unknown_speed_is_refused():
    with pytest.raises(EdgekitError, match="neither measured nor predicted"):
        by_peaks(targets.load("cpu"), SCHEMES["int8"], [damage("a")], 1)
