"""Every operator of ONNX that edgekit reads, against ONNX Runtime, over opsets and forms."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekit import families
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.families.onnx_graph.table import operators

F32, I64, BOOL = "float32", "int64", "bool"
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Case:
    """One node: inputs are shapes (data) or arrays (constants); None is an absent one."""

    kind: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 18
    dtype: str = F32
    outputs: int = 1

    def __str__(self) -> str:
        shown = ",".join(f"{k}={v}" for k, v in self.attributes.items() if np.ndim(v) < 2)
        return f"{self.kind}-{self.opset}-{self.dtype}-{shown}"[:60]


def case(kind: str, *inputs: Any, opset: int = 18, dtype: str = F32, outputs: int = 1, **options):
    return Case(kind, inputs, options, opset, dtype, outputs)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def scalar(value: Any, dtype: str = F32) -> np.ndarray:
    return np.array(value, dtype)


X = (2, 3, 4)
IMAGE = (1, 4, 9, 8)
UNARY = (
    "Abs Atan Ceil Cos Erf Exp Floor HardSwish Identity IsNaN IsInf Neg Relu Round Sigmoid Sign "
    "Sin Softplus Softsign Tanh Elu Selu Celu LeakyRelu HardSigmoid ThresholdedRelu Shrink Mish "
    "Sinh Asinh Cosh Tan Reciprocal GlobalMaxPool GlobalAveragePool"
).split()  # fmt: skip
REDUCE = "L1 L2 LogSumExp Max Mean Min Prod Sum SumSquare".split()
CASES = [
    *(case(kind, X) for kind in UNARY),
    *(case(kind, X, X) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")),
    *(case(kind, X, scalar(1.5)) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Less")),
    *(case(kind, scalar(1.5), X) for kind in ("Sub", "Div", "Greater", "Min")),
    *(case(kind, X, floats(3, 1)) for kind in ("GreaterOrEqual", "LessOrEqual", "PRelu")),
    *(case(kind, X, X, dtype=BOOL) for kind in ("And", "Or", "Xor", "Equal")),
    *(case(kind, X, X, dtype=I64) for kind in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    *(case(f"Reduce{kind}", X, axes=[1], opset=11) for kind in REDUCE),
    *(case(f"Reduce{kind}", X, ints(-1, 0), keepdims=0) for kind in REDUCE),
    case("Not", X, dtype=BOOL),
    case("BitwiseNot", X, dtype=I64),
    case("Div", X, ints(3), dtype=I64),
    case("Div", scalar(7, I64), ints(2, 3), opset=17),
    case("Mod", X, scalar(-3, I64), dtype=I64),
    case("Mod", X, scalar(1.25), fmod=1),
    case("Pow", X, scalar(2.0)),
    case("Pow", X, scalar(3, I64), opset=13),
    case("Gelu", X, opset=20),
    case("Gelu", X, opset=20, approximate="tanh"),
    case("Elu", X, alpha=0.4),
    case("HardSigmoid", X, alpha=1 / 6, beta=0.5),
    case("IsInf", X, detect_negative=0),
    case("Clip", X, scalar(-0.5), scalar(0.5), opset=13),
    case("Clip", X, None, scalar(0.5), opset=11),
    case("Clip", X, min=-0.5, max=0.5, opset=7),
    case("Where", np.array([True, False, True, False]), X, scalar(-1.0)),
    case("Where", X, scalar(1.0), scalar(0.0), dtype=BOOL),
    case("Cast", X, to=TensorProto.INT64),
    case("Cast", X, to=TensorProto.FLOAT, dtype=I64),
    case("Cast", X, to=TensorProto.BOOL, dtype=I64),
    case("CastLike", X, ints(1)),
    case("ReduceSum", X, ints(), noop_with_empty_axes=1),
    case("ReduceSum", X, opset=13),
    case("ReduceSum", X, ints(1), dtype=I64, opset=13),
    case("ReduceLogSum", (2, 3, 4), ints(1), dtype="positive"),
    case("Softmax", X, axis=1, opset=11),
    case("Softmax", X, opset=11),
    case("Softmax", X, axis=1, opset=13),
    case("LogSoftmax", X, opset=13),
    case("ArgMax", X, axis=1),
    case("ArgMax", X, axis=-1, keepdims=0, dtype=I64, select_last_index=1),
    case("ArgMin", X, axis=-1, keepdims=0),
    case("TopK", X, ints(2), axis=1, outputs=2, opset=11),
    case("TopK", X, ints(3), largest=0, outputs=2, opset=13),
    case("CumSum", X, scalar(1, I64)),
    case("CumSum", X, scalar(-1, I64), exclusive=1, reverse=1),
    case("LpNormalization", X, axis=1, p=2),
    case("Einsum", (2, 3, 4), (2, 4, 5), equation="bij,bjk->bik"),
    case("MatMul", (2, 3, 4), (2, 4, 5)),
    case("MatMul", (2, 3, 4), floats(4, 5)),
    case("MatMul", floats(2, 3), (2, 3, 4)),
    case("Gemm", (2, 3), floats(5, 3), floats(5), transB=1, alpha=0.5, beta=2.0),
    case("Gemm", (2, 3), floats(3, 5), floats(1), opset=11),
    case("Gemm", (2, 3), floats(3, 5), opset=11),
    case("Gemm", (3, 2), floats(3, 5), floats(2, 5), transA=1),
    case("Gemm", (2, 3), (5, 3), (5,), transB=1, alpha=0.5, beta=2.0),
    case("Reshape", X, ints(0, -1)),
    case("Reshape", X, ints(2, 2, -1), opset=14, allowzero=1),
    *(case("Flatten", X, axis=axis) for axis in (0, 1, 2, -1)),
    case("Flatten", (2,)),
    case("Transpose", X, perm=[0, 2, 1]),
    case("Transpose", X),
    case("Squeeze", (2, 1, 3, 1), axes=[1], opset=11),
    case("Squeeze", (2, 1, 3, 1), ints(-1), opset=13),
    case("Squeeze", (2, 1, 3, 1), opset=13),
    case("Unsqueeze", X, axes=[0, 4], opset=11),
    case("Unsqueeze", X, ints(-1, 1), opset=13),
    case("Expand", (2, 1, 4), ints(3, 1)),
    case("Tile", X, ints(1, 2, 3)),
    case("Concat", X, floats(2, 1, 4), axis=1),
    case("Split", X, axis=2, outputs=2, opset=11),
    case("Split", X, split=[1, 3], axis=2, outputs=2, opset=11),
    case("Split", X, ints(1, 3), axis=2, outputs=2, opset=13),
    case("Split", (2, 7), axis=-1, num_outputs=3, outputs=3, opset=18),
    case("Slice", X, starts=[1], ends=[-1], axes=[2], opset=9),
    case("Slice", X, ints(0, -2), ints(2**63 - 1, 100), ints(1, -1), ints(2, 1)),
    case("Slice", X, ints(-1), ints(-(2**63)), ints(2), ints(-1)),
    case("Slice", X, ints(3), ints(0), ints(2), ints(-2)),
    case("Slice", X, ints(1, 0), ints(2, 2)),
    case("Gather", X, scalar(-1, I64), axis=1),
    case("Gather", X, ints(2, -1), axis=1),
    case("Gather", X, np.array([[0, 2], [1, 1]]), axis=-1),
    case("Gather", floats(5, 4), X, dtype=I64),
    case("GatherElements", X, np.array([[[0, -1], [2, 1]]] * 2), axis=2),
    case("GatherND", X, np.array([[0, -1], [1, 2]])),
    case("GatherND", X, np.array([[0], [1]]), batch_dims=1),
    case("ScatterND", X, np.array([[0, 1], [1, 2]]), (2, 4)),
    case("ScatterND", X, np.array([[0, 1], [0, 1]]), (2, 4), reduction="add"),
    case("ScatterElements", X, np.array([[[0, -1]]]), floats(1, 1, 2), axis=2),
    case("ScatterElements", X, np.array([[[1, 1]]]), floats(1, 1, 2), axis=2, reduction="add"),
    case("Pad", X, ints(0, 1, 2, 0, 0, 1), scalar(1.5)),
    case("Pad", X, ints(0, -1, 0, 0, 0, 0), opset=13),
    case("Pad", X, ints(1, 2), None, ints(-1)),
    case("Pad", X, pads=[0, 1, 2, 0, 0, 1], value=0.5, opset=9),
    *(case("Pad", IMAGE, ints(0, 0, 1, 2, 0, 0, 2, 1), mode=m) for m in ("reflect", "edge")),
    case("Pad", X, ints(0, 0, 1, 0, 0, 1), mode="wrap", opset=19),
    case("Pad", X, ints(0, 1, 1, 0, 1, 1), mode="edge"),
    case("Trilu", X, scalar(1, I64)),
    case("Trilu", X, upper=0),
    case("OneHot", X, scalar(5, I64), np.array([0.5, 2], np.float32), dtype=I64),
    case("OneHot", X, ints(5), ints(0, 1), axis=1, dtype=I64),
    case("EyeLike", (3, 4), k=1),
    case("DepthToSpace", IMAGE, blocksize=2),
    case("DepthToSpace", IMAGE, blocksize=2, mode="CRD"),
    case("SpaceToDepth", (1, 4, 4, 8), blocksize=2),
    case("Dropout", X, scalar(0.5), opset=13),
    case("Dropout", X, ratio=0.5, opset=11),
    case("Conv", IMAGE, floats(6, 4, 3, 3), floats(6), strides=[2, 1], pads=[1, 1, 1, 1]),
    case("Conv", IMAGE, floats(6, 2, 3, 3), group=2, dilations=[2, 1], pads=[2, 0, 1, 1]),
    case("Conv", IMAGE, floats(4, 4, 2, 2), auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", IMAGE, floats(4, 4, 2, 2), auto_pad="SAME_LOWER"),
    case("Conv", IMAGE, floats(4, 4, 2, 2), auto_pad="VALID"),
    case("Conv", (1, 4, 9), floats(4, 4, 3), floats(4)),
    case("Conv", (1, 2, 4, 4, 4), floats(3, 2, 2, 2, 2), floats(3)),
    case("Conv", IMAGE, (2, 4, 3, 3), pads=[1, 0, 1, 0]),
    case("ConvTranspose", IMAGE, floats(4, 2, 3, 3), floats(2), strides=[2, 2]),
    case("ConvTranspose", IMAGE, floats(4, 2, 3, 3), strides=[2, 2], pads=[1, 0, 1, 1]),
    case("ConvTranspose", IMAGE, floats(4, 1, 3, 3), group=2, output_padding=[1, 1],
         strides=[2, 2], pads=[1, 1, 1, 1]),
    case("ConvTranspose", IMAGE, floats(4, 2, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    case("ConvTranspose", IMAGE, floats(4, 2, 3, 3), strides=[2, 2], output_shape=[18, 17]),
    case("ConvTranspose", (1, 4, 9), floats(4, 2, 3), floats(2), dilations=[2]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", IMAGE, kernel_shape=[3, 2], pads=[2, 0, 1, 1], dilations=[2, 1]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    case("MaxPool", (1, 4, 9), kernel_shape=[2], auto_pad="SAME_UPPER"),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    case("BatchNormalization", IMAGE, floats(4), floats(4), floats(4), abs(floats(4)) + 1),
    case("BatchNormalization", IMAGE, floats(4), floats(4), floats(4), abs(floats(4)), opset=9),
    case("InstanceNormalization", IMAGE, floats(4), floats(4), epsilon=1e-3),
    case("LayerNormalization", X, floats(4), floats(4), epsilon=1e-6),
    case("LayerNormalization", X, floats(3, 4), axis=1),
    case("LayerNormalization", X, floats(1), floats(4)),
    case("GroupNormalization", IMAGE, floats(4), floats(4), num_groups=2, opset=21),
    case("LRN", IMAGE, size=3),
    case("GridSample", (1, 2, 4, 4), (1, 3, 3, 2), mode="linear", opset=20),
    case("GridSample", (1, 2, 4, 4), (1, 3, 3, 2), mode="bilinear", opset=16, align_corners=1),
    case("RMSNormalization", X, floats(4), opset=23),
    case("Attention", (1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 4), opset=23),
    case("Upsample", IMAGE, np.array([1, 1, 2, 3], np.float32), opset=9),
    case("Upsample", IMAGE, scales=[1.0, 1.0, 2.0, 3.0], opset=7),
    case("Resize", IMAGE, np.array([1, 1, 2, 2], np.float32), opset=10),
    case("Shape", X, start=1, opset=15),
    case("Size", X),
]  # fmt: skip

SIZES = (ints(1, 4, 13, 8), ints(1, 4, 18, 4))
RESIZE = [
    *({"mode": "nearest", "coordinate_transformation_mode": c, "nearest_mode": n}
      for c in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
      for n in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")),
    *({"mode": m, "coordinate_transformation_mode": c}
      for m in ("linear", "cubic") for c in ("half_pixel", "align_corners", "pytorch_half_pixel")),
]  # fmt: skip


def build(path: Path, tested: Case) -> Path:
    """An ONNX file of one node."""
    types = {F32: TensorProto.FLOAT, I64: TensorProto.INT64, BOOL: TensorProto.BOOL}
    declared, initializers, names = [], [], []
    for place, value in enumerate(tested.inputs):
        names.append("" if value is None else f"i{place}")
        if isinstance(value, tuple):
            first = place == next(i for i, v in enumerate(tested.inputs) if isinstance(v, tuple))
            own = types.get(tested.dtype, TensorProto.FLOAT)
            kind = own if first or tested.kind != "Where" else TensorProto.FLOAT
            declared.append(helper.make_tensor_value_info(f"i{place}", kind, value))
        elif value is not None:
            initializers.append(numpy_helper.from_array(np.asarray(value), f"i{place}"))
    outputs = [f"o{place}" for place in range(tested.outputs)]
    if not declared:  # all constant: an input beside it
        declared.append(helper.make_tensor_value_info("x", TensorProto.INT64, (2,)))
    node = helper.make_node(tested.kind, names, outputs, **tested.attributes)
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    if tested.kind in ("GroupNormalization", "RMSNormalization", "Attention"):
        results = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, tested.inputs[0])
            for name in outputs
        ]
    graph = helper.make_graph([node], "one", declared, results, initializers)
    imports = [helper.make_opsetid("", tested.opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, path)
    return path


def feed(session: Any, dtype: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    makers = {
        "tensor(float)": lambda s: random.standard_normal(s).astype(np.float32),
        "tensor(int64)": lambda s: random.integers(0, 5, s),
        "tensor(bool)": lambda s: random.integers(0, 2, s).astype(bool),
    }
    made = {i.name: makers[i.type](i.shape) for i in session.get_inputs()}
    return {k: abs(v) + 0.1 for k, v in made.items()} if dtype == "positive" else made


def both(path: Path, dtype: str) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
    """(ONNX Runtime's outputs, ours) on random inputs that loading did not see."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = feed(session, dtype)
    module = families.load(str(path), Options()).module
    with torch.no_grad():
        ours = module(**{name: torch.from_numpy(value) for name, value in given.items()})
    return session.run(None, given), [torch.as_tensor(value).numpy() for value in ours]


def check(path: Path, dtype: str = F32) -> None:
    expected, actual = both(path, dtype)
    for reference, found in zip(expected, actual, strict=True):
        assert found.dtype == reference.dtype
        np.testing.assert_allclose(found, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tested", CASES, ids=str)
def test_an_operator_gives_what_onnxruntime_gives(tmp_path: Path, tested: Case) -> None:
    check(build(tmp_path / "one.onnx", tested), tested.dtype)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("options", RESIZE, ids=lambda options: "-".join(options.values()))
def test_resize_by_sizes(tmp_path: Path, options: dict[str, Any], sizes: np.ndarray) -> None:
    tested = Case("Resize", (IMAGE, None, None, sizes), options)
    check(build(tmp_path / "one.onnx", tested))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 1.3, 0.7)], ids=str)
def test_resize_by_scales(tmp_path: Path, mode: str, scales: tuple[float, ...]) -> None:
    tested = Case("Resize", (IMAGE, None, np.array(scales, np.float32)), {"mode": mode})
    check(build(tmp_path / "one.onnx", tested))


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
        {"mode": "cubic", "cubic_coeff_a": -0.5},
        {"mode": "cubic", "exclude_outside": 1},
        {"mode": "nearest", "keep_aspect_ratio_policy": "not_larger"},
    ],
    ids=str,
)
def test_a_resize_that_torch_cannot_do_is_refused(tmp_path: Path, options: dict) -> None:
    path = build(tmp_path / "one.onnx", Case("Resize", (IMAGE, None, None, SIZES[0]), options))
    with pytest.raises(EdgekitError, match="form of Resize"):
        families.load(str(path), Options())


def test_every_operator_of_the_table_is_tested() -> None:
    tested = {tested.kind for tested in CASES} | {"Resize"}
    # Computed in chains that the tests of whole graphs hold, or torch's own names for a case here.
    elsewhere = {"Range", "ConstantOfShape", "NonZero", "Log", "Sqrt", "Swish", "BitShift"}
    elsewhere |= {"Acos", "Acosh", "Asin", "Atanh"}
    assert set(operators()) - tested <= elsewhere
