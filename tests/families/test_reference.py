"""Our reference models: they are what their papers say, train, export whole and load again."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit import families
from edgekit.errors import EdgekitError
from edgekit.families import Options, reference
from edgekit.families.references.lmu import legendre
from edgekit.families.references.mixing import MambaMixer
from edgekit.families.references.selective import BothWays, Forwards, SelectiveScan
from edgekit.families.references.vim2 import FourWays
from edgekit.model import Dim, Model, run_module
from edgekit.operators.linear_scan import linear_scan
from edgekit.operators.lmu import lmu
from edgekit.operators.mamba_scan import mamba_scan

IMAGES = {"classes": 5, "mean": [0.3], "std": [0.35]}
SMALL: dict[str, dict[str, Any]] = {
    "vision_mamba": {"image_size": [8, 8], "patch": [1, 8], "width": 16, "depth": 1, **IMAGES},
    "vim2": {"image_size": [8, 12], "patch": [2, 2], "widths": [8, 16], "depths": [1, 1], **IMAGES},
    "tsm2": {"length": 12, "horizon": 4, "variables": 3, "width": 8},
    "lmu": {"features": 3, "window": 10, "order": 5, "width": 16},
    "lmuformer": {"features": 3, "window": 10, "order": 5, "width": 16},
}
#: Scans in each of them.
OPERATORS = {
    "vision_mamba": ["mamba_scan"] * 2,
    "vim2": ["mamba_scan"] * (4 + 2) * 2,
    "tsm2": ["mamba_scan"] * (1 + 2) * 2,
    "lmu": ["lmu"],
    "lmuformer": ["lmu", "linear_scan"],
}


def small(name: str, **arguments: Any) -> Model:
    options = Options(random_weights=True, arguments={**SMALL[name], **arguments})
    return families.load(f"reference/{name}", options)


def double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def scan_inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    delta, a = torch.rand(2, 4, 3).double(), -torch.rand(3, 2).double()
    b, c, state = double(2, 4, 2), double(2, 4, 2), double(2, 2, 3)
    return double(2, 4, 3), delta.requires_grad_(), a.requires_grad_(), b, c, state


def plain_scan(x, delta, a, b, c, state):
    """The operator's equations, one index at a time of the length alone, by autograd."""
    h, outputs = state, []
    for t in range(x.shape[1]):
        kept = torch.exp(torch.einsum("bd,dn->bnd", delta[:, t], a))
        h = kept * h + torch.einsum("bd,bn->bnd", delta[:, t] * x[:, t], b[:, t])
        outputs.append(torch.einsum("bn,bnd->bd", c[:, t], h))
    return torch.stack(outputs, 1), h


def plain_lmu(x, a, b, state):
    m, outputs = state, []
    for t in range(x.shape[1]):
        m = torch.einsum("nm,bmd->bnd", a, m) + torch.einsum("n,bd->bnd", b, x[:, t])
        outputs.append(m)
    return torch.stack(outputs, 1), m


def lmu_inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return double(2, 6, 3), double(4, 4), double(4), double(2, 4, 3)


def plain_linear(x, decay, state):
    y, outputs = state, []
    for t in range(x.shape[1]):
        y = decay[:, t] * y + x[:, t]
        outputs.append(y)
    return torch.stack(outputs, 1), y


def linear_inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(2)
    return double(2, 6, 3), torch.rand(2, 6, 3).double().requires_grad_(), double(2, 3)


@pytest.mark.parametrize(
    ("operator", "plain", "inputs"),
    [
        (mamba_scan, plain_scan, scan_inputs()),
        (lmu, plain_lmu, lmu_inputs()),
        (linear_scan, plain_linear, linear_inputs()),
    ],
    ids=["mamba_scan", "lmu", "linear_scan"],
)
def test_an_operator_and_its_gradient_are_those_of_the_equations(operator, plain, inputs):
    found, expected = operator(*inputs), plain(*inputs)
    loss = [(y.sin().sum() + h.cos().sum()) for y, h in (found, expected)]
    gradients = [torch.autograd.grad(each, inputs) for each in loss]
    for one, other in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert torch.autograd.gradcheck(operator, inputs)


def test_a_gradient_has_the_dtype_of_its_input():
    x, delta, a, b, c, state = (value.detach().half() for value in scan_inputs())
    y, _ = mamba_scan(x.requires_grad_(), delta, a, b, c, state)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float16


@pytest.mark.parametrize("name", SMALL)
def test_an_exported_model_is_itself_with_its_scans_whole(name):
    model = small(name).with_batch("dynamic")
    graph = model.export()
    found = [
        str(node.target).split(".")[1]
        for node in graph.exported.graph.nodes
        if str(node.target).startswith("edgekit")
    ]
    assert found == OPERATORS[name]
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 3):
        inputs = {
            spec.name: torch.randn(spec.concrete(batch), generator=generator).numpy()
            for spec in model.inputs
        }
        expected = run_module(model.module, inputs, model.outputs)
        for key, value in graph.run(inputs).items():
            torch.testing.assert_close(
                torch.from_numpy(value), torch.from_numpy(expected[key]), rtol=1e-5, atol=1e-6
            )
            assert value.std() > 1e-3


def test_an_exported_lmu_takes_any_length():
    model = small("lmu")
    assert isinstance(model.inputs[0].shape[1], Dim)
    graph = model.export()
    for length in (1, 4, 25):
        x = torch.randn(1, length, 3).numpy()
        expected = run_module(model.module, {"x": x}, model.outputs)["logits"]
        torch.testing.assert_close(graph.run({"x": x})["logits"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_it_trains(name):
    torch.manual_seed(0)
    model = small(name)
    x = torch.randn(model.inputs[0].concrete(8))
    with torch.no_grad():
        target = torch.randn_like(model.module(x))
    optimiser = torch.optim.Adam(model.module.parameters(), lr=0.01)
    losses = []
    for _ in range(25):
        loss = torch.nn.functional.mse_loss(model.module(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    unused = [key for key, value in model.module.named_parameters() if value.grad is None]
    assert unused == []
    assert losses[-1] < losses[0] / 2


def test_the_scan_of_selective_layers_is_the_papers():
    torch.manual_seed(0)
    layer = SelectiveScan(8, 4).double()
    x = torch.randn(2, 5, 8).double()
    step, b, c = layer.x_proj(x).split([1, 4, 4], -1)
    delta = torch.log1p(torch.exp(layer.dt_proj(step)))
    start = torch.zeros(2, 4, 8).double()
    y, _ = plain_scan(x, delta, -torch.exp(layer.A_log), b, c, start)
    torch.testing.assert_close(layer(x), y + layer.D * x, rtol=0, atol=1e-10)


def reach(layer: torch.nn.Module, shape: tuple[int, ...], position: int) -> list[int]:
    """The positions whose outputs change with the input at one position."""
    x = torch.randn(1, *shape)
    changed = x.clone()
    changed[:, position] += 1
    with torch.no_grad():
        difference = (layer(x) - layer(changed)).abs().flatten(2).amax((0, 2))
    return torch.nonzero(difference > 1e-7).flatten().tolist()


def test_what_each_way_of_scanning_sees():
    torch.manual_seed(0)
    assert reach(Forwards(8, 4), (6, 8), 3) == [3, 4, 5]
    assert reach(BothWays(8, 4), (6, 8), 3) == [0, 1, 2, 3, 4, 5]
    assert reach(FourWays((3, 4), 8, 4), (12, 8), 5) == list(range(12))


def test_four_ways_read_rows_and_columns():
    """Alone, each scan reaches what comes after a patch in its own order."""
    torch.manual_seed(0)
    layer = FourWays((3, 4), 8, 4)
    layer.norm = torch.nn.Identity()
    layer.conv = torch.nn.Identity()
    reached = []
    for kept in range(4):
        for index, scan in enumerate(layer.scans):
            scan.forward = (
                SelectiveScan.forward.__get__(scan) if index == kept else torch.zeros_like
            )
        reached.append(reach(layer, (12, 8), 5))
    right, left, down, up = reached  # patch 5 is in row 1, column 1
    assert right == [5, 6, 7, 8, 9, 10, 11]
    assert left == [0, 1, 2, 3, 4, 5]
    assert down == [2, 3, 5, 6, 7, 9, 10, 11]
    assert up == [0, 1, 4, 5, 8]


def test_mixers_get_weighted_sums_of_all_that_came_before():
    class Times(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * x

    stack = MambaMixer([Times(2), Times(3)], [Times(5), Times(7)])
    with torch.no_grad():
        for index, each in enumerate([*stack.into_token, *stack.into_channel]):
            each.weight.copy_(torch.arange(1.0, len(each.weight) + 1) + 10 * index)
    x = torch.ones(1, 1, 1)
    t1 = 2 * (1 * x + 2 * x)
    c1 = 5 * (21 * t1 + 22 * x)
    t2 = 3 * (11 * x + 12 * t1 + 13 * x + 14 * c1)
    c2 = 7 * (31 * t1 + 32 * t2 + 33 * x + 34 * c1)
    torch.testing.assert_close(stack(x), c2)


def test_vision_mamba_reads_its_class_token_in_the_middle():
    middle, mean = (small("vision_mamba", pool=pool).module for pool in ("middle", "mean"))
    assert middle.position.shape == (9, 16)
    assert mean.position.shape == (8, 16)
    assert middle.middle == 4
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        before = middle(x), mean(x)
        middle.token += 1
        assert not torch.allclose(middle(x), before[0])
        assert torch.equal(mean(x), before[1])


def test_a_forecast_moves_with_its_series():
    """Its own mean and deviation are taken off and put back, for each variable."""
    model = small("tsm2").module
    x = torch.randn(2, 12, 3)
    scale, shift = torch.tensor([2.0, 0.5, 10.0]), torch.tensor([5.0, -3.0, 100.0])
    with torch.no_grad():
        moved, expected = model(x * scale + shift), model(x) * scale + shift
    assert moved.shape == (2, 4, 3)
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-3)


def test_the_memory_is_the_window_before():
    """12 polynomials hold a sine of one period a window, at every delay, with an error of 0.3%.

    Here u(t - s) = sum_i P_i(2 s / window - 1) m[i](t), and a value is held for the step after
    it: at the end of a step, u is the sine of half a step before.
    """
    window, order = 200, 12
    a, b = legendre(order, window)
    time = torch.arange(3 * window).double()
    u = torch.sin(2 * math.pi * time / window)
    memory, _ = lmu(u[None, :, None], a, b, torch.zeros(1, order, 1).double())
    for delay in (0, 50, 125, 200):
        at = torch.tensor(2 * delay / window - 1).double()
        weights = [torch.special.legendre_polynomial_p(at, torch.tensor(i)) for i in range(order)]
        found = memory[0, :, :, 0] @ torch.stack(weights)
        expected = torch.sin(2 * math.pi * (time - delay + 0.5) / window)
        settled = slice(2 * window, None)
        torch.testing.assert_close(found[settled], expected[settled], rtol=0, atol=3e-3)


def test_the_discretisation_holds_the_input_over_a_step():
    """A million small Euler steps of the paper's equation agree with the one exact step."""
    order, window, pieces = 4, 10.0, 2**20
    i = torch.arange(order, dtype=torch.float64)
    row, column = i[:, None], i[None]
    sign = torch.where(row < column, -1.0, (-1.0) ** (row - column + 1))
    euler = torch.zeros(order + 1, order + 1, dtype=torch.float64)  # of (m, u), where u stays
    euler[:order] = torch.cat([(2 * row + 1) * sign, ((2 * i + 1) * (-1.0) ** i)[:, None]], 1)
    euler = torch.eye(order + 1, dtype=torch.float64) + euler / window / pieces
    after = torch.linalg.matrix_power(euler, pieces)
    a, b = legendre(order, window)
    torch.testing.assert_close(a, after[:order, :order], rtol=0, atol=1e-5)
    torch.testing.assert_close(b, after[:order, order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_a_saved_model_loads_as_it_was(tmp_path: Path, name: str):
    torch.manual_seed(3)
    module = reference.make(name, SMALL[name]).module
    reference.save(name, SMALL[name], module, tmp_path)
    loaded = families.load(f"reference/{tmp_path}", Options())
    assert (loaded.weights, loaded.source) == ("checkpoint", f"reference/{tmp_path}")
    given = Options(checkpoint=tmp_path / reference.WEIGHTS, arguments=SMALL[name])
    other = families.load(f"reference/{name}", given)
    x = torch.randn(loaded.inputs[0].concrete(2))
    with torch.no_grad():
        assert torch.equal(loaded.module(x), module(x))
        assert torch.equal(other.module(x), module(x))


def test_two_towers_are_what_their_equations_say():
    torch.manual_seed(0)
    sizes = {"tokens": [6, 4], "features": [4, 2], "widths": [16, 8], "heads": 2, "depth": 2}
    module = reference.make("two_tower", sizes).module.double()
    video, audio = double(2, 6, 4), double(2, 4, 2)

    def attention(layer, x, read):
        def heads(tokens):
            return torch.stack(tokens.chunk(2, -1), 1)

        k, v = layer.key_value(read).chunk(2, -1)
        q, k, v = heads(layer.query(x)), heads(k), heads(v)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
        y = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        return layer.out(torch.cat(y.unbind(1), -1))

    x, y = (enter(t) + p for enter, t, p in zip(
        module.enter, (video, audio), module.position, strict=True))  # fmt: skip
    for block in module.blocks:
        halves = (block.video, block.audio)
        x, y = (t + attention(half.inner, half.norms[0](t), half.norms[0](t))
                for half, t in zip(halves, (x, y), strict=True))  # fmt: skip
        n, m = block.video.norms[1](x), block.audio.norms[1](y)
        x, y = x + attention(block.video.cross, n, m), y + attention(block.audio.cross, m, n)
        x, y = (t + half.mlp(half.norms[2](t)) for half, t in zip(halves, (x, y), strict=True))
    found = module(video, audio)
    for given, expected in zip(found, (module.leave[0](x), module.leave[1](y)), strict=True):
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)
    sum(each.square().sum() for each in found).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_image_models_say_how_an_image_is_made_their_input():
    for name in ("vision_mamba", "vim2"):
        prepare = small(name).preprocess
        assert prepare is not None
        assert (prepare.mean, prepare.std, prepare.channels) == ((0.3,), (0.35,), 1)
        assert list(prepare.size) == SMALL[name]["image_size"]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("vision_manba", {}, ["Unknown reference model", "vision_mamba", "Did you mean"]),
        ("vim2", {"width": 4}, ["Unknown argument of vim2 'width'", "widths"]),
        ("lmu", {"order": "many"}, ["--set order=many", "str", "64"]),
        ("vim2", {"widths": [8, 1.5]}, ["--set widths=1.5", "float"]),
        ("vim2", {"widths": [8]}, ["1 widths and 4 depths"]),
        ("vision_mamba", {"patch": [5, 16]}, ["(5, 16) do not fill", "(224, 224)"]),
        ("vision_mamba", {"pool": "max"}, ["'max'", "middle", "mean"]),
        ("two_tower", {"widths": [16, 10]}, ["audio", "10", "4 heads"]),
    ],
)
def test_bad_arguments_are_named(name: str, arguments: dict[str, Any], words: list[str]):
    with pytest.raises(EdgekitError) as caught:
        families.load(f"reference/{name}", Options(random_weights=True, arguments=arguments))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_model_without_weights_asks_for_them():
    with pytest.raises(EdgekitError, match="no published weights"):
        families.load("reference/lmu", Options())


def test_a_folder_that_names_no_model(tmp_path: Path):
    (tmp_path / reference.CONFIG).write_text(json.dumps({"model_type": "bamba"}))
    with pytest.raises(EdgekitError, match="does not name a reference model"):
        families.load(f"reference/{tmp_path}", Options(random_weights=True))


def test_defaults_are_of_the_kinds_that_arguments_are_checked_by():
    for member in reference._members().values():
        for field in dataclasses.fields(member.Config):
            assert isinstance(field.default, int | float | str | tuple)
            assert field.default != ()
