"""Models in ONNX files: real exports, what they are called, data for them, and bad files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekit import families
from edgekit.edit import Editor
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.families import onnx as family
from edgekit.model import BATCH, Input, Model, Preprocess
from edgekit.quantize.sites import find_sites
from edgekit.recipe import Recipe
from edgekit.work import Work

FAST = "--samples 8 --warmup 0 --iterations 5 --seconds 0.01".split()
RANDOM = np.random.default_rng(3)


class ConvNet(nn.Module):
    """Convolutions with batch norm, pools, an upsampling and a padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Hardswish())
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(nn.functional.relu(self.stem(x)), 3, 2, 1)
        up = nn.functional.interpolate(self.body(x), scale_factor=2.0, mode="bilinear")
        x = self.norm(x) + nn.functional.pad(nn.functional.avg_pool2d(up, 2), (0, 0))
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """Embeddings with positions, attention under a mask, a head that is computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(11, 16), nn.Embedding(12, 16)
        self.norm = nn.LayerNorm(16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.arange(ids.shape[1]).expand(ids.shape[0], -1)
        x = self.norm(self.word(ids) + self.place(places))
        split = [f(x).reshape(*x.shape[:2], 2, 8).transpose(1, 2) for f in self.qkv]
        scores = split[0] @ split[1].transpose(-1, -2) / 8**0.5
        scores = scores.masked_fill(mask[:, None, None] == 0, -1e9)
        x = x + (scores.softmax(-1) @ split[2]).transpose(1, 2).reshape(x.shape)
        return self.out(x), x[:, 0]

    @property
    def qkv(self) -> tuple[nn.Module, ...]:
        return self.query, self.key, self.value


def timm_model(name: str, **options: Any) -> nn.Module:
    from edgekit.families.torchvision import repair

    repair()
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=5, **options)


def vit() -> nn.Module:
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    return timm_model("vit_tiny_patch16_224", **small)


def crossvit() -> nn.Module:
    pair = {"embed_dim": (16, 24), "depth": ((1, 1, 0),), "num_heads": (2, 2)}
    return timm_model("crossvit_9_240", img_size=48, img_scale=(1.0, 1.0), **pair)


def poolformer() -> nn.Module:
    timm_model("vit_tiny_patch16_224", depth=1)  # makes timm importable
    from timm.models.metaformer import GroupNorm1, MetaFormer, Pooling

    widths = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 5}
    return MetaFormer(token_mixers=Pooling, norm_layers=GroupNorm1, **widths)


def image(size: int) -> Callable[[int], tuple[torch.Tensor, ...]]:
    return lambda batch: (torch.rand(batch, 3, size, size),)


def tokens(batch: int) -> tuple[torch.Tensor, ...]:
    return torch.randint(0, 11, (batch, 6)), torch.tensor([[1, 1, 1, 1, 0, 0]] * batch)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[torch.Tensor, ...]]]] = {
    "vit": (vit, image(16)),
    "crossvit": (crossvit, image(48)),
    "poolformer": (poolformer, image(32)),
    "convnet": (ConvNet, image(16)),
    "tokens": (Tokens, tokens),
}
#: exporter, opset, dynamic batch; the old exporter writes attention from opset 14 on.
FORMS = [
    *((name, "new", 18, name != "crossvit") for name in MODELS),
    *((name, "new", 20, False) for name in ("vit", "tokens")),
    *((name, "old", 17, False) for name in MODELS),
    ("vit", "old", 14, True),
    *((name, "old", 13, True) for name in ("poolformer", "convnet", "tokens")),
]


def write(path: Path, name: str, exporter: str, opset: int, dynamic: bool) -> Path:
    """A model with drawn weights (equal ones would be merged), as torch's exporters write it."""
    torch.manual_seed(0)
    make, example = MODELS[name]
    module = make().eval()
    for tensor in module.parameters():
        nn.init.normal_(tensor, std=0.2)
    inputs = example(2 if dynamic else 1)
    names = ["ids", "mask"] if len(inputs) == 2 else ["x"]
    options: dict[str, Any] = {"input_names": names, "opset_version": opset, "verbose": False}
    if dynamic and exporter == "new":
        options["dynamic_shapes"] = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    elif dynamic:
        options["dynamic_axes"] = {name: {0: "batch"} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, str(path), dynamo=exporter == "new", **options)
    return path


def distance(path: Path, model: Model, batch: int) -> float:
    """The greatest difference of the exported graph to ONNX Runtime on new inputs."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    example = MODELS[path.stem][1](batch)
    given = {spec.name: value.numpy() for spec, value in zip(model.inputs, example, strict=True)}
    found = model.export().run(given)
    expected = session.run(list(model.outputs), given)
    return max(
        float(np.abs(found[name] - value).max())
        for name, value in zip(model.outputs, expected, strict=True)
    )


@pytest.fixture(scope="session")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT with a dynamic batch from torch's exporter."""
    return write(tmp_path_factory.mktemp("onnx") / "vit.onnx", "vit", "new", 18, True)


@pytest.mark.parametrize(("name", "exporter", "opset", "dynamic"), FORMS)
def test_a_model_gives_what_onnxruntime_gives(
    tmp_path: Path, name: str, exporter: str, opset: int, dynamic: bool
) -> None:
    path = write(tmp_path / f"{name}.onnx", name, exporter, opset, dynamic)
    model = families.load(str(path), Options())
    assert model.weights == "checkpoint"
    assert {spec.shape[0] for spec in model.inputs} == {BATCH if dynamic else 1}
    assert distance(path, model, 3 if dynamic else 1) < 1e-4


@pytest.mark.parametrize("exporter", ["new", "old"])
def test_layers_are_called_as_in_the_code(tmp_path: Path, vit_file: Path, exporter: str) -> None:
    new = exporter == "new"
    path = vit_file if new else write(tmp_path / "vit.onnx", "vit", "old", 17, False)
    model = families.load(str(path), Options())
    sites = find_sites(Editor(model.with_batch(1).export()))
    assert {site.module for site in sites} == {
        "patch_embed.proj",
        "blocks.0.attn.qkv",
        "blocks.0.attn.proj",
        "blocks.0.mlp.fc1",
        "blocks.0.mlp.fc2",
        "head",
    }
    if new:  # with a fixed batch, the old exporter's class token is folded
        found = {name: value.shape for name, value in model.module.named_parameters()}
        assert found == {name: value.shape for name, value in vit().named_parameters()}


def one(path: Path, nodes: list[Any], inputs: list[Any], constants: dict[str, Any]) -> Path:
    """A file of some nodes, whose output is y."""
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])
    stored = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "one", inputs, [output], stored)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def floats(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def weight(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def product(path: Path, *more: Any, shape: tuple[int | str, ...] = ("n", 4)) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "fc.weight"], ["z" if more else "y"]), *more]
    return one(path, nodes, [floats("x", *shape)], {"fc.weight": weight(4, 3), "b": weight(3)})


def test_a_product_and_a_sum_become_one_layer(tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx", helper.make_node("Add", ["b", "z"], ["y"]))
    model = families.load(str(path), Options())
    assert {name: tuple(v.shape) for name, v in model.module.named_parameters()} == {
        "fc.weight": (3, 4),
        "fc.bias": (3,),
    }
    calls = [str(node.target) for node in Editor(model.export()).calls()]
    assert calls == ["aten.linear.default"]


def test_a_product_that_is_used_twice_keeps_its_value(tmp_path: Path) -> None:
    added = helper.make_node("Add", ["z", "b"], ["s"])
    path = product(tmp_path / "m.onnx", added, helper.make_node("Mul", ["s", "z"], ["y"]))
    model = families.load(str(path), Options())
    x = weight(2, 4)
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]
    (found,) = model.module(torch.from_numpy(x))
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_weight_that_is_shared_is_one_parameter(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="/first/fc/MatMul"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="/second/fc/MatMul"),
    ]
    path = one(tmp_path / "m.onnx", nodes, [floats("x", 1, 4)], {"w": weight(4, 4)})
    module = families.load(str(path), Options()).module
    assert sum(p.numel() for p in module.parameters()) == 16
    assert {name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)} == {
        "first.fc",
        "second.fc",
    }


def test_shapes_leave_no_trace_in_the_graph(tmp_path: Path) -> None:
    """Range, ConstantOfShape, NonZero and arithmetic on a shape are done beforehand."""
    constants = {"zero": np.array([0]), "one": np.array([1]), "w": weight(1, 4)}
    constants |= {"start": np.array(0), "step": np.array(1), "axis": np.array(1)}
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "axis"], ["width"]),
        helper.make_node("Range", ["start", "width", "step"], ["r"]),
        helper.make_node("ConstantOfShape", ["one"], ["f"]),
        helper.make_node("NonZero", ["r"], ["nz"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Mul", ["n", "one"], ["n1"]),
        helper.make_node("Concat", ["n1", "one"], ["target"], axis=0),
        helper.make_node("Expand", ["w", "target"], ["e"]),
        helper.make_node("Add", ["x", "e"], ["t"]),
        helper.make_node("Squeeze", ["nz", "zero"], ["places"]),
        helper.make_node("Gather", ["t", "places"], ["g"], axis=1),
        helper.make_node("Add", ["g", "f"], ["y"]),
    ]
    path = one(tmp_path / "m.onnx", nodes, [floats("x", "n", 4)], constants)
    model = families.load(str(path), Options())
    graph = model.export()
    calls = {str(node.target) for node in Editor(graph).calls()}
    assert calls <= {"aten.sym_size.int", "aten.expand.default", "aten.add.Tensor",
                     "aten.index_select.default", "aten.clone.default"}  # fmt: skip
    x = weight(5, 4)
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]
    np.testing.assert_allclose(graph.run({"x": x})["y"], expected, rtol=1e-6)


def test_weights_beside_the_file_count(tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx")
    plain = family.fingerprint(path)
    stored = onnx.load(str(path))
    onnx.save(stored, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert families.load(str(path), Options()).outputs == ("y",)
    before = family.fingerprint(path)
    assert len(before) == len(plain) + 1
    content = bytearray((tmp_path / "w.bin").read_bytes())
    content[0] ^= 1
    (tmp_path / "w.bin").write_bytes(content)
    assert family.fingerprint(path) != before
    (tmp_path / "w.bin").unlink()
    with pytest.raises(EdgekitError, match="not a valid ONNX model"):
        families.load(str(path), Options())


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    model = families.load(str(product(tmp_path / "m.onnx", shape=(2, 4))), Options())
    assert model.inputs == (Input("x", (2, 4)),)
    with pytest.raises(EdgekitError, match="fixes the batch of input x to 2"):
        model.with_batch(3).module(torch.zeros(3, 4))


def test_a_name_that_no_parameter_can_have_is_changed(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["input.1", "w"], ["y"])
    path = one(tmp_path / "m.onnx", [node], [floats("input.1", "n", 4)], {"w": weight(4, 3)})
    model = families.load(str(path), Options())
    assert model.inputs[0].name == "input_1"
    assert model.export().run({"input_1": weight(2, 4)})["y"].shape == (2, 3)


def test_a_dynamic_dimension_is_fixed_by_an_input(tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx", shape=("n", "tokens", 4))
    with pytest.raises(EdgekitError, match="--input x:1x128x4:float32"):
        families.load(str(path), Options())
    model = families.load(str(path), Options(inputs=(Input("x", (1, 7, 4)),)))
    assert model.inputs == (Input("x", (BATCH, 7, 4)),)
    for wrong in (Input("x", (1, 7, 5)), Input("x", (1, 7, 4), "int64"), Input("x", (1, 4))):
        with pytest.raises(EdgekitError, match="does not fit"):
            families.load(str(path), Options(inputs=(wrong,)))
    with pytest.raises(EdgekitError, match="Unknown input") as error:
        families.load(str(path), Options(inputs=(Input("X", (1, 7, 4)),)))
    assert "edgekit knows: x" in error.value.why


def picture(path: Path) -> str:
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]),
             helper.make_node("Flatten", ["p"], ["y"])]  # fmt: skip
    return str(one(path, nodes, [floats("x", "n", 3, 8, 12)], {}))


def test_images_are_prepared_as_set_says(tmp_path: Path) -> None:
    source = picture(tmp_path / "m.onnx")
    assert families.load(source, Options()).preprocess is None
    said = {"mean": [0.1, 0.2, 0.3], "std": 0.5, "resize": 16, "interpolation": "bicubic"}
    assert families.load(source, Options(arguments=said)).preprocess == Preprocess(
        (8, 12), 16, "bicubic", (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), 3
    )
    short = families.load(source, Options(arguments={"mean": 0, "std": 1})).preprocess
    assert short == Preprocess((8, 12), (8, 12), "bilinear", (0.0,) * 3, (1.0,) * 3, 3)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"mean": 0.5}, "--set std is missing"),
        ({"mean": [0.5, 0.5], "std": 1}, "--set mean is not right"),
        ({"mean": "a", "std": 1}, "--set mean is not right"),
        ({"mean": 0, "std": [1, 0, 1]}, "--set std holds a zero"),
        ({"mean": 0, "std": 1, "interpolation": "cubic"}, "Unknown interpolation"),
        ({"mean": 0, "std": 1, "resize": [1, 2, 3]}, "--set resize"),
        ({"num_classes": 3}, "Unknown --set argument"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgekitError, match=message):
        families.load(picture(tmp_path / "m.onnx"), Options(arguments=said))


def test_arguments_of_images_need_an_image(tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx")
    with pytest.raises(EdgekitError, match="no meaning"):
        families.load(str(path), Options(arguments={"mean": 0, "std": 1}))


@pytest.mark.parametrize("options", [Options(random_weights=True), Options(checkpoint=Path("w"))])
def test_a_file_has_its_own_weights(tmp_path: Path, options: Options) -> None:
    with pytest.raises(EdgekitError, match="holds its weights"):
        families.load(str(product(tmp_path / "m.onnx")), options)


def branch() -> Any:
    then = helper.make_graph([helper.make_node("Identity", ["x"], ["t"])], "a", [], [floats("t")])
    return helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=then)


REFUSED = {
    "quantized already.*DequantizeLinear": helper.make_node(
        "DequantizeLinear", ["q", "s"], ["y"], name="dq"
    ),
    "control flow: If": branch(),
    "does not read: com.microsoft.BiasGelu": helper.make_node(
        "BiasGelu", ["x", "x"], ["y"], domain="com.microsoft"
    ),
    r"does not read: Det \(volume\)": helper.make_node("Det", ["x"], ["y"], name="volume"),
    "training mode": helper.make_node(
        "BatchNormalization", ["x", "v", "v", "v", "v"], ["y", "m", "n"], training_mode=1
    ),
    "Reshape depends on data": helper.make_node("Reshape", ["x", "ids"], ["y"]),
    "edgekit reads opset": None,
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, message: str) -> None:
    node = REFUSED[message] or helper.make_node("Relu", ["x"], ["y"])
    constants = {"q": np.zeros((4, 4), np.int8), "s": np.float32(1), "c": np.array(True)}
    constants["v"] = np.ones(4, np.float32)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [2])
    path = one(tmp_path / "m.onnx", [node], [floats("x", 4, 4), ids], constants)
    if REFUSED[message] is None:
        old = onnx.load(str(path))
        old.opset_import[0].version = 6
        onnx.save(old, path)
    with pytest.raises(EdgekitError, match=message):
        families.load(str(path), Options())


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="does not exist"):
        families.load(str(tmp_path / "absent.onnx"), Options())
    (tmp_path / "noise.onnx").write_bytes(b"no model at all")
    with pytest.raises(EdgekitError, match="not a valid ONNX model"):
        families.load(str(tmp_path / "noise.onnx"), Options())


def test_a_wrong_reading_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.families.onnx_graph import layers

    right = layers.linear
    monkeypatch.setattr(
        layers, "linear", lambda weight, bias: right(nn.Parameter(weight * 1.01), bias)
    )
    with pytest.raises(EdgekitError, match=r"does not read .* rightly"):
        families.load(str(product(tmp_path / "m.onnx")), Options())


def test_a_path_in_a_recipe_is_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: sub/m.onnx\n")
    assert Recipe.read(tmp_path / "r.yaml", {}).model == str(tmp_path / "sub" / "m.onnx")


def test_a_folder_called_like_a_family_is_no_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm").mkdir()
    product(tmp_path / "timm" / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert families.load("timm/m.onnx", Options()).source == "timm/m.onnx"


def test_a_file_is_built_in_int8_once(
    tmp_path: Path, vit_file: Path, edgekit: Callable[..., Any]
) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=RANDOM.random((12, 3, 16, 16), np.float32))
    request = ("build", vit_file, "-t", "cpu", "--precision", "int8", "--calibration", data, *FAST)
    out = tmp_path / "bundle"
    ran = edgekit(*request, "-o", out)
    assert ran.code == 0, ran.err
    made = onnx.load(str(out / "cpu" / "model.onnx"))
    assert "DequantizeLinear" in {node.op_type for node in made.graph.node}
    before = (out / "manifest.json").read_text()
    assert edgekit(*request, "-o", out).code == 0
    assert (out / "manifest.json").read_text() == before


def test_what_is_made_depends_on_the_files_contents(tmp_path: Path) -> None:
    recipe = Recipe(model=str(product(tmp_path / "m.onnx")), random_calibration=True)
    before = Work(recipe).fingerprint()
    assert Work(recipe).fingerprint() == before
    product(tmp_path / "m.onnx")
    assert Work(recipe).fingerprint() != before


def test_a_file_is_inspected(vit_file: Path, edgekit: Callable[..., Any]) -> None:
    ran = edgekit("inspect", vit_file)
    assert ran.code == 0, ran.err
    assert "blocks.0.attn.qkv" in ran.out
