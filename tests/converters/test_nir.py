"""NIR files: read back with NIR's own package, and equal to their source as they are said to be."""

from __future__ import annotations

import itertools

import h5py
import nir
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from edgekit import families, targets
from edgekit.compress import Context, apply
from edgekit.compress.modules.qcfs import QCFS
from edgekit.compress.spiking import Spiking
from edgekit.converters import nir as converter
from edgekit.converters.nir_neurons import just_below
from edgekit.converters.nir_nodes import whole
from edgekit.data import open_data
from edgekit.drift import compare, tolerance_for
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.model import BATCH, Dim, Input, Model
from edgekit.operators.lmu import lmu
from edgekit.operators.qcfs import spikes
from edgekit.quantize.spiking.neurons import IF, LIF, PLIF
from edgekit.targets.runtimes import nir as runtime
from edgekit.work import export, trace_graph

TARGET = targets.load("neuromorphic")
PIXELS, LABELS = load_digits(return_X_y=True)
IMAGES = (PIXELS / 16).astype(np.float32).reshape(-1, 1, 8, 8)
LEARN, JUDGE = slice(0, 600), slice(600, 700)


class Net(nn.Module):
    """Layers in a row, with an input called x."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class Residual(nn.Module):
    """Sums of a unit with itself, and with what is of other factors."""

    def __init__(self):
        super().__init__()
        self.stem, self.unit = nn.Conv2d(1, 4, 3, padding="same"), unit(4, 1)
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.unit(self.stem(x))
        return self.head((self.first(h) + self.second(h) + h + h).mean((2, 3)))


def unit(channels, axis, steps=8, signed=False, form="folded"):
    made = QCFS(channels, axis, steps, 0.25, signed, form)
    made.threshold.copy_(torch.rand(channels) + 0.5)
    return made


def model_of(module, *sizes):
    return Model(module.eval(), (Input("x", (BATCH, *sizes)),), ("y",), "here")


def made(module, path, *sizes):
    """The graph, and its file at ``path``."""
    graph = export(model_of(module, *sizes))
    converter.convert(graph, path, TARGET)
    return graph


def given(path, x):
    with runtime.open(path) as session:
        return session.infer({"x": x})["y"]


def agree(graph, path, x):
    expected = graph.run({"x": x})["y"]
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(given(path, x), expected, atol=1e-5)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def mlp():
    return trained(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )


@pytest.fixture(scope="module")
def cnn():
    return trained(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def trained(*layers):
    """On digits."""
    torch.manual_seed(0)
    module = Net(*layers)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    images, labels = torch.from_numpy(IMAGES[LEARN]), torch.from_numpy(LABELS[LEARN])
    for chosen in itertools.chain(*(torch.randperm(600).split(60) for _ in range(6))):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return model_of(module, 1, 8, 8)


def spiking(model, steps):
    data = open_data({"x": IMAGES[:64]}, model.inputs, None)
    return apply(Spiking(steps=steps), model, Context(data=data))


def test_nodes_are_the_models(tmp_path):
    net = Net(nn.Linear(6, 4), unit(4, -1, steps=5), nn.Linear(4, 3, bias=False))
    made(net, tmp_path / "m.nir", 6)
    first, neurons, last = net.layers
    graph = nir.read(tmp_path / "m.nir")
    kinds = {type(node): node for node in graph.nodes.values()}
    names = {type(node): name for name, node in graph.nodes.items()}
    assert set(kinds) == {nir.Input, nir.Affine, nir.IF, nir.Linear, nir.Output}
    order = [names[kind] for kind in (nir.Input, nir.Affine, nir.IF, nir.Linear, nir.Output)]
    assert sorted(graph.edges) == sorted(itertools.pairwise(order))
    threshold = neurons.threshold.numpy()
    np.testing.assert_array_equal(kinds[nir.Affine].weight, first.weight.detach())
    np.testing.assert_array_equal(kinds[nir.Affine].bias, first.bias.detach())
    np.testing.assert_array_equal(kinds[nir.IF].v_threshold, just_below(threshold))
    np.testing.assert_array_equal(kinds[nir.IF].r, np.ones(4))
    np.testing.assert_array_equal(kinds[nir.IF].metadata["v_start"], threshold / 2)
    assert kinds[nir.IF].metadata["reset"] == "subtract"
    np.testing.assert_allclose(kinds[nir.Linear].weight, last.weight.detach() * 0.25 * 5)
    assert {k: graph.metadata[k] for k in ("steps", "dt", "input", "decode")} == {
        "steps": 5,
        "dt": 1.0,
        "input": "constant",
        "decode": "mean",
    }


@pytest.mark.parametrize("form", ["folded", "temporal"])
def test_a_unit_behind_no_other_fires_as_its_operator_spike_by_spike(tmp_path, form):
    net = Net(nn.Linear(6, 4), unit(4, -1, form=form), nn.Linear(4, 3))
    graph = made(net, tmp_path / "m.nir", 6)
    x = torch.randn(32, 6)
    with torch.no_grad():
        expected = spikes(net.layers[1].normalised(net.layers[0](x)), 8).transpose(0, 1)
    with runtime.open(tmp_path / "m.nir") as session:
        (found,) = session.spikes({"x": x.numpy()}).values()
    assert 0.1 < found.mean() < 0.9
    np.testing.assert_array_equal(found, expected)
    agree(graph, tmp_path / "m.nir", x.numpy())


def test_a_unit_fires_at_its_threshold(tmp_path):
    """Where NIR's neurons fire above theirs: z = 1/2 is the least of the first level."""
    net = Net(unit(1, -1, steps=4), nn.Linear(2, 1))
    net.layers[0].threshold.fill_(1)
    graph = made(net, tmp_path / "m.nir", 2)
    agree(graph, tmp_path / "m.nir", np.array([[0.125, 0.0], [0.375, 0.12]], np.float32))


def test_a_unit_with_a_sign_is_two_populations(tmp_path):
    graph = made(Net(unit(1, -1, signed=True), nn.Linear(6, 3)), tmp_path / "m.nir", 6)
    x = torch.randn(32, 6).numpy()
    agree(graph, tmp_path / "m.nir", x)
    with runtime.open(tmp_path / "m.nir") as session:
        above, below = session.spikes({"x": x}).values()
    assert above.any()
    assert below.any()
    assert not (above.any(1) & below.any(1)).any()


@pytest.mark.parametrize(
    ("layers", "sizes"),
    [
        ((nn.AvgPool2d(2, 1), nn.Conv2d(4, 4, 3, groups=4, dilation=2), nn.Flatten()), (2, 8, 8)),
        ((nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)), (2, 8, 8)),
        ((nn.AvgPool2d(2, padding=1), nn.Flatten(1), nn.Linear(100, 3)), (2, 8, 8)),
        ((nn.AvgPool2d(2, divisor_override=1), nn.Conv2d(4, 2, 1), nn.Flatten()), (2, 8, 8)),
        ((nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), nn.Flatten()), (2, 9)),
        ((nn.Flatten(),), (2, 3)),
    ],
    ids=["grouped", "adaptive", "padded", "summed", "1d", "output"],
)
def test_layers_behind_a_unit(tmp_path, layers, sizes):
    kind = nn.Conv1d if len(sizes) == 2 else nn.Conv2d
    net = Net(kind(2, 4, 3, padding=1), unit(4, 1), *layers)
    graph = made(net, tmp_path / "m.nir", *sizes)
    agree(graph, tmp_path / "m.nir", torch.randn(4, *sizes).numpy())


def test_branches_are_edges_that_meet(tmp_path):
    graph = made(Residual(), tmp_path / "m.nir", 1, 6, 6)
    agree(graph, tmp_path / "m.nir", torch.randn(4, 1, 6, 6).numpy())


def test_a_grouped_weight_is_written_whole():
    weight, x = torch.randn(6, 2, 3), torch.randn(1, 4, 5)
    found = nn.functional.conv1d(x, torch.from_numpy(whole(weight.numpy(), 2)))
    torch.testing.assert_close(found, nn.functional.conv1d(x, weight, groups=2))


@pytest.mark.parametrize(("name", "depth"), [("mlp", 2), ("cnn", 3)])
def test_networks_on_digits_come_nearer_with_more_steps(tmp_path, request, name, depth):
    source, errors = request.getfixturevalue(name), []
    x, labels = IMAGES[JUDGE], LABELS[JUDGE]
    for steps in (8, 32):
        graph = export(spiking(source, steps))
        artifact = converter.convert(graph, tmp_path / "m.nir", TARGET)
        assert artifact.details["depth"] == depth
        expected, found = graph.run({"x": x}), {"y": given(tmp_path / "m.nir", x)}
        drift = compare([expected], [found])
        assert not tolerance_for("fp32", graph.discrete).failure(drift)
        errors.append(drift.relative)
    assert errors[1] < errors[0] / 2
    float_right = (source.export().run({"x": x})["y"].argmax(1) == labels).mean()
    assert (found["y"].argmax(1) == labels).mean() >= float_right - 0.03


def test_a_trace_is_in_the_models_unit(tmp_path):
    graph = made(Net(nn.Linear(6, 4), unit(4, -1), nn.Linear(4, 3)), tmp_path / "m.nir", 6)
    x = {"x": torch.randn(8, 6).numpy()}
    found, expected = runtime.trace(tmp_path / "m.nir", x), trace_graph(graph, x)
    shared = [name for name in expected if name in found]
    assert len(shared) == 4
    for name in shared:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


class Sequence(nn.Module):
    def __init__(self, kind, hard, mean):
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 3)
        self.first, self.second = kind(8, hard=hard, threshold=0.25), IF(8, hard=hard)
        self.mean = mean

    def forward(self, x):
        spikes = self.second(self.first(self.enter(x)))
        return self.leave(spikes.mean(1) if self.mean else spikes)


@pytest.mark.parametrize(
    ("kind", "hard", "mean"),
    [(IF, True, True), (LIF, False, False), (LIF, True, True), (PLIF, False, True)],
)
def test_neurons_step_along_a_sequence(tmp_path, kind, hard, mean):
    net = Sequence(kind, hard, mean)
    graph = made(net, tmp_path / "m.nir", Dim("length", 1, 12, 64), 6)
    agree(graph, tmp_path / "m.nir", torch.randn(4, 12, 6).numpy())
    read = nir.read(tmp_path / "m.nir")
    neurons = [n for n in read.nodes.values() if isinstance(n, nir.IF | nir.LIF)]
    assert {n.metadata["reset"] for n in neurons} == {"hard" if hard else "subtract"}
    leaky = [n for n in neurons if isinstance(n, nir.LIF)]
    assert len(leaky) == (kind is not IF)
    for node in leaky:
        np.testing.assert_allclose(node.tau, 2, rtol=1e-6)
        np.testing.assert_allclose(node.r, 1, rtol=1e-6)
        assert not node.v_leak.any()


def test_a_vit_is_refused_by_what_it_has(tmp_path, digits_model):
    vit = families.load(f"timm/{digits_model}", Options())
    with pytest.raises(EdgekitError, match="NIR cannot hold the model") as caught:
        converter.convert(export(vit), tmp_path / "m.nir", TARGET)
    for said in ("layer_norm (blocks.0.norm1", "scaled_dot_product_attention", "blocks.0.attn"):
        assert said in caught.value.why
    assert "units" in caught.value.fix
    assert not (tmp_path / "m.nir").exists()


@pytest.mark.parametrize(
    ("layers", "sizes", "said"),
    [
        ((nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (6,), r"relu \(layers\.1\)"),
        ((nn.Linear(6, 4),), (6,), "no spiking neurons"),
        ((unit(4, -1), nn.Linear(4, 2)), (3, 4), "over 3 axes"),
        ((unit(1, 1), nn.MaxPool2d(2)), (1, 4, 4), "max_pool2d"),
        ((unit(1, 1), nn.AvgPool2d(3, ceil_mode=True)), (1, 5, 5), "windows differ"),
        ((unit(1, 1), nn.AdaptiveAvgPool2d(2)), (1, 5, 5), "multiple"),
        ((unit(1, 1), nn.Conv2d(1, 2, (1, 3))), (1, 5, 5), "not those that NIR infers"),
        ((unit(1, -1, 4), nn.Linear(4, 4), unit(1, -1, 8)), (4,), "4, 8 steps"),
        ((LIF(4), unit(1, -1)), (3, 4), "of two times"),
        ((nn.Conv1d(3, 3, 1), LIF(4)), (3, 4), "along a sequence"),
    ],
    ids="relu linear rank max ceil adaptive kernel steps times mixed".split(),
)
def test_what_nir_cannot_hold_is_named(tmp_path, layers, sizes, said):
    with pytest.raises(EdgekitError, match=said) as caught:
        made(Net(*layers), tmp_path / "m.nir", *sizes)
    assert caught.value.fix
    assert not (tmp_path / "m.nir").exists()


class Memory(nn.Module):
    """A Legendre memory before neurons."""

    def __init__(self):
        super().__init__()
        self.neurons = IF(2)
        self.register_buffer("A", torch.eye(2) / 2)
        self.register_buffer("B", torch.ones(2))

    def forward(self, x):
        memory, _ = lmu(x, self.A, self.B, x.new_zeros(x.shape[0], 2, 1))
        return self.neurons(memory.flatten(2))


def test_a_recurrence_is_named(tmp_path):
    with pytest.raises(EdgekitError, match=r"edgekit\.lmu"):
        made(Memory(), tmp_path / "m.nir", 5, 1)


@pytest.fixture
def small(tmp_path):
    made(Net(nn.Linear(6, 4), unit(4, -1), nn.Linear(4, 3)), tmp_path / "m.nir", 6)
    return tmp_path / "m.nir"


@pytest.mark.parametrize("damage", ["short", "other", "hdf5"])
def test_a_file_that_is_no_whole_nir_file_is_named(small, damage):
    content = small.read_bytes()
    if damage == "hdf5":
        with h5py.File(small, "w") as file:
            file["a"] = 1
    else:
        small.write_bytes(content[: len(content) // 2] if damage == "short" else b"no NIR")
    with pytest.raises(EdgekitError, match=r"m\.nir is not a whole NIR file"):
        runtime.open(small)


def written(path, nodes, edges, metadata):
    nir.write(path, nir.NIRGraph(nodes, edges, metadata, type_check=False))


@pytest.mark.parametrize(
    ("node", "edges", "metadata", "said"),
    [
        (nir.Scale(np.ones(2)), (), {}, "does not say how it is run"),
        (nir.Threshold(np.ones(2)), (), {"steps": 2}, "node of kind Threshold"),
        (nir.Scale(np.ones(2)), (("a", "a"),), {"steps": 2}, "read each other: a"),
    ],
    ids=["metadata", "kind", "recurrent"],
)
def test_a_file_of_another_tool_is_refused_with_its_reason(tmp_path, node, edges, metadata, said):
    nodes = {"x": nir.Input(np.array([2])), "a": node, "y": nir.Output(np.array([2]))}
    more = {"dt": 1.0, "input": "constant", "decode": "mean"} if metadata else {}
    written(tmp_path / "m.nir", nodes, [("x", "a"), ("a", "y"), *edges], {**more, **metadata})
    with pytest.raises(EdgekitError, match=said):
        runtime.open(tmp_path / "m.nir")


@pytest.mark.parametrize(
    "x",
    [np.zeros((2, 5), np.float32), np.zeros((2, 6))],
    ids=["shape", "dtype"],
)
def test_inputs_that_do_not_fit_are_refused(small, x):
    with runtime.open(small) as session, pytest.raises(EdgekitError, match="cannot be run on"):
        session.infer({"x": x})


def test_a_call_does_not_change_the_next(small):
    x = {"x": torch.randn(3, 6).numpy()}
    with runtime.open(small) as session:
        first, second = session.infer(x)["y"], session.infer(x)["y"]
        alone = session.infer({"x": x["x"][:1]})["y"]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(alone, first[:1], atol=1e-6)
