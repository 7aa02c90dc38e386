"""Layer times: each kernel counts for a module of the user's code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit import targets
from edgekit.converters import onnx
from edgekit.errors import EdgekitError
from edgekit.latency import Ratio
from edgekit.model import Input, Model
from edgekit.quantize.sensitivity import Damage
from edgekit.tuning.costs import by_prediction, by_profile, by_share
from edgekit.tuning.layer_times import layer_times

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


def net():
    return Model(Net(), (Input("x", (1, 64, 64)),), ("y",), "net")


def test_what_is_predicted_to_be_saved_is_each_module_s_own():
    target = targets.load("rtx-4090")
    damages = [damage("wide"), damage("narrow")]
    found = by_prediction(net(), target, "int8", damages, batch=1)
    assert found.source.startswith("predicted")
    assert min(found.saved.values()) > 0
    assert sum(found.saved.values()) < found.milliseconds
    weights = by_prediction(net(), target, "w8a16", damages, batch=1)
    assert 0 < weights.saved["wide"] < found.saved["wide"]


def test_a_module_called_twice_shares_what_it_saves():
    damages = [damage("wide"), damage("wide#2")]
    found = by_prediction(net(), targets.load("rtx-4090"), "int8", damages, batch=1)
    assert found.saved["wide"] == found.saved["wide#2"] > 0


def test_a_device_of_unknown_speed_is_refused():
    bare = targets.load("rtx-4090").model_copy(update={"peak": {}})
    with pytest.raises(EdgekitError, match="neither measured nor predicted"):
        by_prediction(net(), bare, "int8", [damage("wide")], 1)
