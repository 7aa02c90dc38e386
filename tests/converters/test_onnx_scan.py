"""onnx_scan: every form of every operator against its definition, at any length."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgekit import targets
from edgekit.converters import onnx as converter
from edgekit.converters import tensorrt
from edgekit.converters.onnx_scan import gated_delta, lmu, ssd
from edgekit.model import Dim, Input, Model
from edgekit.operators import causal_attention, latest, linear_scan, mamba_scan
from edgekit.operators import gated_delta as kernels_delta
from edgekit.operators import lmu as kernels_lmu
from edgekit.operators import ssd as kernels_ssd
from edgekit.quantize.fp16 import rewrite_fp16
from edgekit.targets.runtimes import onnxruntime, openvino

LENGTH = Dim("length", 1, 64, 100_000)
PAST = Dim("past", 0, 16, 100_000)
MEMORY = np.array([[0.9, -0.2, 0.1], [0.2, 0.8, -0.1], [0.0, 0.3, 0.7]], np.float32)
RATES = -np.geomspace(0.05, 16, 6 * 4).reshape(6, 4).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator as the whole of a model, and its inputs by name."""

    module: torch.nn.Module
    shapes: dict[str, tuple[int | Dim, ...]]
    make: Callable[[np.random.Generator, str, tuple[int, ...]], np.ndarray]
    outputs: tuple[str, ...] = ("y", "last")
    chunk: int = 8
    native: bool = False

    def model(self, batch: int = 2) -> Model:
        inputs = tuple(Input(name, (batch, *shape)) for name, shape in self.shapes.items())
        return Model(self.module, inputs, self.outputs, type(self.module).__name__)

    def feed(self, length: int, past: int = 0, batch: int = 2) -> dict[str, np.ndarray]:
        random = np.random.default_rng(length)
        sizes = {LENGTH: length, PAST: past}
        shaped = {
            name: (batch, *(sizes.get(size, size) for size in shape))
            for name, shape in self.shapes.items()
        }
        return {k: self.make(random, k, v).astype(np.float32) for k, v in shaped.items()}

    def expected(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """In float64."""
        wide = {name: torch.from_numpy(value).double() for name, value in feed.items()}
        found = copy.deepcopy(self.module).double()(**wide)
        found = (found,) if isinstance(found, torch.Tensor) else found
        return dict(zip(self.outputs, (value.numpy() for value in found), strict=True))


class Mamba(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("A", torch.from_numpy(RATES))

    def forward(self, x, delta, B, C, state):
        return mamba_scan.mamba_scan(x, delta, self.A, B, C, state)


class Linear(torch.nn.Module):
    def forward(self, x, decay, state):
        return linear_scan.linear_scan(x, decay, state)


class Dual(torch.nn.Module):
    def forward(self, x, decay, B, C, state):
        return kernels_ssd.ssd(x, decay, B, C, state)


class Delta(torch.nn.Module):
    def forward(self, query, key, value, decay, beta, state):
        return kernels_delta.gated_delta(query, key, value, decay, beta, state)


class Legendre(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("A", torch.from_numpy(MEMORY))
        self.register_buffer("B", torch.tensor([0.5, -0.2, 0.3]))

    def forward(self, x, state):
        return kernels_lmu.lmu(x, self.A, self.B, state)


class Attention(torch.nn.Module):
    def __init__(self, window=None):
        super().__init__()
        self.window = window

    def forward(self, query, key, value):
        return causal_attention.causal_attention(query, key, value, 0.5, self.window)


class Cached(torch.nn.Module):
    """Attention to a cache and to what is new; of a window, the cache keeps that."""

    def __init__(self, window):
        super().__init__()
        self.window = window

    def forward(self, query, key, value, past_key, past_value):
        keys, values = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        kept = keys, values
        if self.window is not None:
            kept = tuple(latest.latest(each, self.window - 1) for each in kept)
        y = causal_attention.causal_attention(query, keys, values, 0.5, self.window)
        return y, *kept


def usual(random, name, shape):
    """Values as models have them."""
    x = random.standard_normal(shape)
    if name == "delta":
        return np.abs(x) * 0.3
    if name == "decay":
        return -np.abs(x) * 0.3
    if name == "beta":
        return 1 / (1 + np.exp(-x))
    if name in ("key", "query") and len(shape) == 4:
        return x / np.sqrt((x * x).sum(-1, keepdims=True))
    return x


def kept(random, name, shape):
    """For linear_scan, whose decay is what is kept itself."""
    return random.uniform(0, 1, shape) if name == "decay" else random.standard_normal(shape)


CASES = {
    "mamba_scan": Case(
        Mamba(),
        {
            "x": (LENGTH, 6),
            "delta": (LENGTH, 6),
            "B": (LENGTH, 4),
            "C": (LENGTH, 4),
            "state": (4, 6),
        },
        usual,
    ),
    "linear_scan": Case(Linear(), {"x": (LENGTH, 5), "decay": (LENGTH, 5), "state": (5,)}, kept),
    "ssd": Case(
        Dual(),
        {
            "x": (LENGTH, 4, 5),
            "decay": (LENGTH, 4),
            "B": (LENGTH, 2, 3),
            "C": (LENGTH, 2, 3),
            "state": (4, 3, 5),
        },
        usual,
        chunk=ssd.SIZE,
        native=True,
    ),
    "gated_delta": Case(
        Delta(),
        {
            "query": (LENGTH, 2, 4),
            "key": (LENGTH, 2, 4),
            "value": (LENGTH, 2, 3),
            "decay": (LENGTH, 2),
            "beta": (LENGTH, 2),
            "state": (2, 4, 3),
        },
        usual,
        chunk=gated_delta.SIZE,
        native=True,
    ),
    "lmu": Case(
        Legendre(),
        {"x": (LENGTH, 5), "state": (3, 5)},
        usual,
        chunk=lmu.SIZE,
    ),
    "causal_attention": Case(
        Attention(),
        {"query": (4, LENGTH, 8), "key": (2, LENGTH, 8), "value": (2, LENGTH, 8)},
        usual,
        outputs=("y",),
        native=True,
    ),
    "windowed": Case(
        Attention(window=3),
        {"query": (4, LENGTH, 8), "key": (2, LENGTH, 8), "value": (2, LENGTH, 8)},
        usual,
        outputs=("y",),
        native=True,
    ),
}
#: ``cpu`` has native forms, ``rtx-4090`` has none.
FORMS = [(name, "rtx-4090") for name in CASES] + [(n, "cpu") for n, c in CASES.items() if c.native]
RECURRENT = [(name, target) for name, target in FORMS if "state" in CASES[name].shapes]


def cached(window):
    new, past = (2, LENGTH, 8), (2, PAST, 8)
    shapes = {"query": (4, LENGTH, 8), "key": new, "value": new, "past_key": past}
    shapes["past_value"] = past
    outputs = ("y", "key_next", "value_next")
    return Case(Cached(window), shapes, usual, outputs)


def convert(graph, out, target):
    converter.convert(graph, out, targets.load(target))
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Exports each case once, and makes its file for a target once."""
    folder, graphs, made = tmp_path_factory.mktemp("files"), {}, {}

    def get(name, target) -> Path:
        if name not in graphs:
            graphs[name] = CASES[name].model().export()
        if (name, target) not in made:
            made[name, target] = convert(graphs[name], folder / f"{name}-{target}.onnx", target)
        return made[name, target]

    return get


def operators_of(path):
    """How many there are of each, within Scans too."""
    found = Counter()

    def count(graph):
        for node in graph.node:
            found[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    count(attribute.g)

    count(onnx.load(path).graph)
    return found


def worst(expected, found):
    """The greatest error of any output, as a share of its greatest value."""
    assert all(np.isfinite(value).all() for value in found.values())
    return max(
        float(np.abs(found[k] - v).max() / max(np.abs(v).max(), 1e-30)) for k, v in expected.items()
    )


@pytest.mark.parametrize(("name", "target"), FORMS)
def test_every_length_equals_the_definition(files, name, target):
    case = CASES[name]
    with onnxruntime.open(files(name, target)) as session:
        for length in (1, 2, case.chunk - 1, case.chunk, case.chunk + 1, 3 * case.chunk + 5):
            feed = case.feed(length)
            assert worst(case.expected(feed), session.infer(feed)) < 2e-6, length


@pytest.mark.parametrize(("name", "target"), RECURRENT)
def test_two_calls_equal_one(files, name, target):
    case, split = CASES[name], CASES[name].chunk + 3
    whole = case.feed(2 * case.chunk + 1)
    with onnxruntime.open(files(name, target)) as session:
        expected = session.infer(whole)
        parts = [
            {k: v if k == "state" else v[:, part] for k, v in whole.items()}
            for part in (slice(split), slice(split, None))
        ]
        first = session.infer(parts[0])
        second = session.infer({**parts[1], "state": first["last"]})
    found = {"y": np.concatenate([first["y"], second["y"]], 1), "last": second["last"]}
    assert worst(expected, found) < 2e-6


@pytest.mark.parametrize("name", CASES)
def test_any_runtime_gets_plain_operators_and_tensorrt_reads_them(files, name):
    path = files(name, "rtx-4090")
    assert not [kind for kind in operators_of(path) if "::" in kind]
    pytest.importorskip("tensorrt_rtx")
    tensorrt.check(path)


@pytest.mark.parametrize("name", CASES)
def test_openvino_computes_the_same(files, name):
    pytest.importorskip("openvino")
    case = CASES[name]
    with openvino.open(files(name, "rtx-4090")) as session:
        for length in (1, case.chunk + 5):
            feed = case.feed(length)
            assert worst(case.expected(feed), session.infer(feed)) < 2e-6, length


def test_onnx_runtime_gets_its_own(files):
    attention, linear = "com.microsoft::GroupQueryAttention", "com.microsoft::LinearAttention"
    for name, own in (("ssd", linear), ("gated_delta", linear), ("windowed", attention)):
        kinds = operators_of(files(name, "cpu"))
        assert kinds[own] == 1
        assert not {"Scan", "Softmax"} & set(kinds)


def test_a_step_of_mamba_is_six_operators(files):
    model = onnx.load(files("mamba_scan", "rtx-4090"))
    (scan,) = (node for node in model.graph.node if node.op_type == "Scan")
    (body,) = (a.g for a in scan.attribute if a.name == "body")
    assert len(body.node) == 6


@pytest.mark.parametrize("name", ["ssd", "lmu"])
def test_a_long_known_length_takes_no_more_nodes(files, name, tmp_path):
    case = CASES[name]
    inputs = tuple(
        Input(k, (2, *(40 * case.chunk + 1 if size is LENGTH else size for size in shape)))
        for k, shape in case.shapes.items()
    )
    graph = dataclasses.replace(case.model(), inputs=inputs).export()
    known = operators_of(convert(graph, tmp_path / "model.onnx", "rtx-4090"))
    assert known.total() <= operators_of(files(name, "rtx-4090")).total()


def extreme(feed, name):
    """Steps up to 20, decays of nothing and of all, keys that repeat."""
    if name == "mamba_scan":
        feed["delta"][:, ::3] = 20
    if name == "linear_scan":
        feed["decay"][:, ::3], feed["decay"][:, 1::3] = 0, 1
    if name in ("ssd", "gated_delta"):
        feed["decay"][:] = -1e-3
        feed["decay"][:, ::7], feed["decay"][:, 1::7] = -1e4, 0
    if name == "gated_delta":
        feed["key"][:], feed["beta"][:] = feed["key"][:, :1].copy(), 0.999
    return feed


@pytest.mark.parametrize(("name", "target"), [f for f in RECURRENT if f[0] != "lmu"])
def test_extreme_steps(files, name, target):
    case = CASES[name]
    feed = extreme(case.feed(3 * case.chunk + 5), name)
    with onnxruntime.open(files(name, target)) as session:
        assert worst(case.expected(feed), session.infer(feed)) < 5e-6


@pytest.mark.parametrize(
    ("name", "target"), [("mamba_scan", "rtx-4090"), ("ssd", "rtx-4090"), ("ssd", "cpu")]
)
def test_65536_steps_that_forget_little(files, name, target):
    case = CASES[name]
    feed = case.feed(65_536)
    feed["delta" if name == "mamba_scan" else "decay"] *= 1e-3
    with onnxruntime.open(files(name, target)) as session:
        found = session.infer(feed)
    with torch.no_grad():
        assert worst(case.expected(feed), found) < 2e-5


@pytest.mark.parametrize("name", ["ssd", "linear_scan"])
def test_fp16_keeps_a_decay_near_one_over_4096_steps(name, tmp_path):
    case = CASES[name]
    graph = rewrite_fp16(case.model().export())
    path = convert(graph, tmp_path / "model.onnx", "rtx-4090")
    feed = case.feed(4096)
    feed["decay"] = np.full_like(feed["decay"], 0.9999 if name == "linear_scan" else -1e-4)
    feed["x"] = np.abs(feed["x"])  # sums grow to what fp16 cannot add to
    with onnxruntime.open(path) as session:
        assert worst(case.expected(feed), session.infer(feed)) < 2e-3


@pytest.mark.parametrize("window", [None, 5])
def test_attention_with_a_cache(window, tmp_path):
    case = cached(window)
    path = convert(case.model().export(), tmp_path / "model.onnx", "cpu")
    kinds = operators_of(path)  # ONNX Runtime's own operator would be slower
    assert (kinds["com.microsoft::GroupQueryAttention"], kinds["Softmax"]) == (0, 1)
    with onnxruntime.open(path) as session:
        for length, past in ((1, 0), (6, 0), (1, 4), (6, 4)):
            feed = case.feed(length, past)
            assert worst(case.expected(feed), session.infer(feed)) < 2e-6, (length, past)
