"""The evaluator: MIL's operators against PyTorch and coremltools, and MIL's types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.converters import coreml
from edgekit.converters.mil import Evaluator
from edgekit.converters.mil_ops import table
from edgekit.errors import EdgekitError
from edgekit.model import Input, Model
from edgekit.targets import Target

TARGET = Target(
    name="phone",
    title="A phone",
    runtime="coreml",
    formats=("coreml",),
    dtypes=("fp32", "fp16"),
    float_dtype="fp16",
    deployment="iOS17",
    sources={},
)


Functions = dict[str, Callable[[Tensor], Tensor]]


class Together(nn.Module):
    """One output a function."""

    def __init__(self, functions: Functions) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(x) for function in self.functions.values())


_seeded = torch.Generator().manual_seed(0)
_kernel = torch.randn(8, 2, 3, 3, generator=_seeded)
_transposed = torch.randn(4, 3, 2, 2, generator=_seeded)
_index = torch.tensor([[2, 0], [1, 1]])

#: On images: each is one output of one package.
IMAGE: Functions = {
    "conv": lambda x: F.conv2d(x, _kernel, stride=2, padding=(1, 2), groups=2),
    "dilated": lambda x: F.conv2d(x, _kernel, dilation=2, padding=2, groups=2),
    "same": lambda x: F.conv2d(x, _kernel, padding="same", groups=2),
    "transposed": lambda x: F.conv_transpose2d(x, _transposed, stride=2, padding=1),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "ceil_pool": lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool_inside": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "global_pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "batch_norm": lambda x: F.batch_norm(x, torch.ones(4), torch.full((4,), 2.0)),
    "group_norm": lambda x: F.group_norm(x, 2),
    "instance_norm": lambda x: F.instance_norm(x),
    "channel_norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,)),
    "normalize": lambda x: F.normalize(x, dim=1),
    "bilinear": lambda x: F.interpolate(x, (12, 4), mode="bilinear"),
    "corners": lambda x: F.interpolate(x, (9, 5), mode="bilinear", align_corners=True),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "fold": lambda x: F.fold(F.unfold(x, 3, padding=1, stride=2), (6, 9), 3, padding=1, stride=2),
    "fold_uneven": lambda x: F.fold(F.unfold(x, 2, stride=2), (6, 9), 2, stride=2),
    "shuffle": lambda x: F.pixel_shuffle(x, 2),
    "reflect": lambda x: F.pad(x, (2, 1, 3, 0), mode="reflect"),
    "replicate": lambda x: F.pad(x, (2, 1, 3, 0), mode="replicate"),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3), value=0.5),
    "roll": lambda x: x.roll((2, -1), (2, 3)),
    "slice": lambda x: x[:, 1:3, ::2, -4:],
    "flip": lambda x: x.flip(3),
}
#: The same on matrices.
MATRIX: Functions = {
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "matmul": lambda x: x @ x.mT,
    "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x),
    "gather": lambda x: x[:, _index],
    "along": lambda x: x.gather(1, (x[:, :2] > 0).long()),
    "topk": lambda x: x.topk(3, dim=-1).values,
    "argmax": lambda x: x.argmax(-1).float(),
    "cumsum": lambda x: x.cumsum(1),
    "variance": lambda x: x.var(1),
    "norm": lambda x: x.norm(dim=2),
    "logsumexp": lambda x: x.logsumexp(1),
    "triangle": lambda x: x.tril(-1) + x.triu(2),
    "where": lambda x: torch.where(x > 0, x, -2 * x),
    "mask": lambda x: x.masked_fill(x < 0, -5.0),
    "stack": lambda x: torch.stack([x, x * 2], 1),
    "tile": lambda x: x.repeat(1, 2, 1),
    "split": lambda x: torch.cat(x.split([1, 4], 1)[::-1], 1),
    "activations": lambda x: F.silu(x) + F.elu(x) + F.softplus(x) + F.leaky_relu(x, 0.1),
    "hard": lambda x: F.hardswish(x) + F.hardtanh(x) + F.relu(x),
    "gates": lambda x: F.mish(x) + F.hardsigmoid(x) + F.relu6(x) + F.gelu(x) + x.erf(),
    "powers": lambda x: x.abs().pow(1.5) + x.abs().add(1).rsqrt() + x.exp().log1p(),
    "remainder": lambda x: torch.remainder(x, 0.7) + torch.floor(x) + torch.round(x),
}


def _package(module: Together, shape: tuple[int, ...], path: Path) -> Path:
    names = tuple(module.functions)
    graph = Model(module.eval(), (Input("x", shape),), names, "case").export()
    return coreml.convert(graph, path / "m.mlpackage", TARGET).path


def _x(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


Results = dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What the evaluator and PyTorch make of every function."""
    pairs: Results = {}
    for functions, shape in ((IMAGE, (2, 4, 6, 9)), (MATRIX, (3, 5, 6))):
        package = _package(Together(functions), shape, tmp_path_factory.mktemp("package"))
        got = Evaluator(package).run({"x": _x(shape)})
        with torch.no_grad():
            want = {name: f(torch.from_numpy(_x(shape))) for name, f in functions.items()}
        pairs |= {name: (got[name], want[name].numpy()) for name in functions}
    return pairs


@pytest.mark.parametrize("name", [*IMAGE, *MATRIX])
def test_operators_equal_pytorch(name: str, results: Results) -> None:
    got, want = results[name]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_lstm_equals_pytorch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(6, 5, bidirectional=True, batch_first=True)
    graph = Model(_First(layer).eval(), (Input("x", (2, 4, 6)),), ("y",), "lstm").export()
    package = coreml.convert(graph, tmp_path / "m.mlpackage", TARGET).path
    x = {"x": _x((2, 4, 6))}
    np.testing.assert_allclose(Evaluator(package).run(x)["y"], graph.run(x)["y"], atol=1e-6)


class _First(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.layer(x)[0]
        return first


#: MIL operators that coremltools can compute itself, with parameters to compute them on.
_a, _b = _x((2, 3, 4)), _x((2, 3, 4))[::-1].copy()
INFERRED: dict[str, list[dict[str, Any]]] = {
    **{name: [{"x": _a}] for name in "abs atan ceil cos erf exp exp2 floor round".split()},
    **{name: [{"x": _a}] for name in "relu relu6 sigmoid sign sin softsign square tan".split()},
    **{name: [{"x": _a}] for name in "softplus tanh sinh cosh".split()},
    **{name: [{"x": abs(_a) / 4}] for name in "acos asin atanh sqrt rsqrt log inverse".split()},
    **{name: [{"x": _a, "y": _b}] for name in "add sub mul maximum minimum mod".split()},
    **{name: [{"x": _a, "y": _b}] for name in "real_div floor_div less greater_equal".split()},
    **{
        f"reduce_{name}": [{"x": abs(_a)}, {"x": abs(_a), "axes": [0, -1], "keep_dims": True}]
        for name in "sum mean max min prod l1_norm l2_norm sum_square log_sum".split()
    },
    "reduce_argmax": [{"x": _a, "axis": 1}],
    "clip": [{"x": _a, "alpha": -0.5, "beta": 0.5}],
    "clamped_relu": [{"x": _a, "alpha": 0.2, "beta": 0.5}],
    "elu": [{"x": _a, "alpha": 0.7}],
    "leaky_relu": [{"x": _a, "alpha": 0.7}],
    "linear_activation": [{"x": _a, "alpha": 0.7, "beta": 0.1}],
    "scaled_tanh": [{"x": _a, "alpha": 0.7, "beta": 0.1}],
    "sigmoid_hard": [{"x": _a, "alpha": 0.7, "beta": 0.1}],
    "thresholded_relu": [{"x": _a, "alpha": 0.3}],
    "threshold": [{"x": _a, "alpha": 0.3}],
    "gelu": [
        {"x": _a, "mode": mode} for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")
    ],
    "slice_by_index": [
        {"x": _a, "begin": [0, -1, 3], "end": [2, 0, 0], "stride": [1, -1, -2]},
        {
            "x": _a,
            "begin": [1, 0, 1],
            "end": [0, 2, 0],
            "end_mask": [False, False, True],
            "squeeze_mask": [True, False, False],
        },
    ],
    "slice_by_size": [{"x": _a, "begin": [0, 1, 2], "size": [-1, 2, 1]}],
    "gather": [
        {"x": _a, "indices": np.int32([[1, 0]]), "axis": 1},
        {"x": _a, "indices": np.int32([[1, 0], [2, 3]]), "axis": 2, "batch_dims": 1},
    ],
    "gather_along_axis": [{"x": _a, "indices": np.ones((2, 1, 4), np.int32), "axis": 1}],
    "band_part": [{"x": _a, "lower": 1, "upper": 0}],
    "expand_dims": [{"x": _a, "axes": [0, -1]}],
    "pad": [{"x": _a, "pad": [1, 2, 3, 1], "mode": "reflect"}],
    "tile": [{"x": _a, "reps": [1, 2, 1]}],
    "flatten2d": [{"x": _a, "axis": 2}],
    "quantize": [
        {"input": _a, "scale": 0.1, "zero_point": np.int8(3), "output_dtype": "int8"},
        {"input": _a, "scale": _a[0, :, 0] ** 2 + 0.01, "axis": 1, "output_dtype": "uint8"},
    ],
}


@pytest.mark.parametrize("name", INFERRED)
def test_operators_equal_coremltools(name: str) -> None:
    for parameters in INFERRED[name]:
        (got, want) = _both(name, parameters)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def _both(name: str, parameters: dict[str, Any]) -> tuple[Any, Any]:
    """What our table and coremltools' own inference make of the same parameters."""
    from coremltools.converters.mil import Builder as mb

    results = []

    @mb.program(input_specs=[mb.TensorSpec((1,))], opset_version=ct.target.iOS17)  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        results.append(getattr(mb, name)(**parameters).val)
        return mb.identity(x=x)

    tensors = {
        key: torch.as_tensor(value) if isinstance(value, np.ndarray) else value
        for key, value in parameters.items()
    }
    return table()[name](**tensors).numpy(), results[0]


def test_cumsum_runs_backwards_and_leaves_out() -> None:
    x = torch.tensor([1.0, 2.0, 4.0])
    assert table()["cumsum"](x, reverse=True).tolist() == [7, 6, 4]
    assert table()["cumsum"](x, exclusive=True).tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("mode", "want"),
    [
        ("STRICT_ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
        ("ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
        ("DEFAULT", [0, 0.4, 0.8, 1, 1]),
        ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("UNALIGN_CORNERS", [0, 0.1, 0.5, 0.9, 1]),
    ],
)
def test_sampling_modes_are_as_documented(mode: str, want: list[float]) -> None:
    """The example in MIL's reference: elements 0 and 1 resampled to five."""
    x = torch.tensor([0.0, 1.0]).reshape(1, 1, 2)
    got = table()["resize_bilinear"](x, 1, 5, sampling_mode=mode)
    np.testing.assert_allclose(got.flatten(), want, atol=1e-6)


def _program(body: Callable[[Any, Any], Any], path: Path, dtype: Any = None) -> Path:
    """A package made of MIL directly; its input is x, (4,)."""
    from coremltools.converters.mil import Builder as mb

    spec = mb.TensorSpec((4,), dtype=dtype)

    @mb.program(input_specs=[spec], opset_version=ct.target.iOS17)  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        return body(mb, x)

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    model.save(str(path / "p.mlpackage"))
    return path / "p.mlpackage"


def test_float16_is_rounded_after_each_operator(tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import types

    def body(mb: Any, x: Any) -> Any:
        total = mb.add(x=x, y=np.float16(2048.0), name="total")
        return mb.sub(x=mb.mul(x=total, y=np.float16(32), name="big"), y=total, name="y")

    evaluator = Evaluator(_program(body, tmp_path, types.fp16))
    x = np.array([0.4, 1.0, 3.0, -2048], np.float16)
    values = evaluator.run_all({"x": x})
    total = x + np.float16(2048)
    np.testing.assert_array_equal(values["total"], total)
    assert values["total"].dtype == np.float16
    assert values["total"][0] == 2048
    assert np.isinf(values["big"][2])  # above 65504
    np.testing.assert_array_equal(list(values)[-1], "y")


def test_a_lacking_operator_is_named(tmp_path: Path) -> None:
    def body(mb: Any, x: Any) -> Any:
        return mb.add(x=x, y=mb.random_normal(shape=[4]), name="y")

    with pytest.raises(EdgekitError, match="lacks the operators random_normal"):
        Evaluator(_program(body, tmp_path))


def test_constants_may_be_outputs(tmp_path: Path) -> None:
    def body(mb: Any, x: Any) -> Any:
        return mb.relu(x=x, name="y"), mb.const(val=np.float32([3, 4]), name="c")

    outputs = Evaluator(_program(body, tmp_path)).run({"x": np.float32([-1, 0, 1, 2])})
    assert outputs["c"].tolist() == [3, 4]
    assert outputs["y"].tolist() == [0, 0, 1, 2]


def test_run_all_finds_where_two_packages_part(tmp_path: Path) -> None:
    def function(x: Tensor) -> Tensor:
        return F.softmax(F.relu(x @ x.mT) * 3, -1)

    evaluator = Evaluator(_package(Together({"y": function}), (1, 4, 4), tmp_path))
    x = {"x": _x((1, 4, 4))}
    values = evaluator.run_all(x)
    np.testing.assert_array_equal(values["y"], evaluator.run(x)["y"])
    assert [name for name in values if "relu" in name]
    assert len(values) == 4


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "It takes x; given: none"),
        ({"z": np.zeros((1, 4), np.float32)}, "It takes x; given: z"),
        ({"x": np.zeros((1, 5), np.float32)}, r"declares \(1, 4\); got \(1, 5\)"),
    ],
)
def test_wrong_inputs_are_errors(
    inputs: dict[str, np.ndarray[Any, Any]], message: str, tmp_path: Path
) -> None:
    evaluator = Evaluator(_package(Together({"y": torch.relu}), (1, 4), tmp_path))
    with pytest.raises(EdgekitError, match=message):
        evaluator.run(inputs)


def test_a_folder_that_is_no_package_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="cannot be read as a Core ML program"):
        Evaluator(tmp_path)
