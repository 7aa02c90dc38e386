"""diffusers' dual-stream transformers: small ones of every class, and every way to be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small
import torch

from edgekit import families
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.families.torchvision import repair
from edgekit.model import Graph, Input, Model
from edgekit.work import export

repair()
diffusers = pytest.importorskip("diffusers")

NAMES = list(small.SMALL)
#: One block of each kind.
SHALLOW: dict[str, dict[str, Any]] = {
    name: {"num_layers": 1} for name in ("qwen_image", "sd3", "ltx2")
} | {
    "flux": {"num_layers": 1, "num_single_layers": 1},
    "hidream": {"num_layers": 1, "num_single_layers": 1, "llama_layers": [0, 2]},
}


def load(name: str, folder: Path, **options: Any) -> Model:
    home, sizes = small.write(name, folder)
    arguments = {**sizes, **options.pop("arguments", {})}
    options = {"random_weights": True, **options}
    return families.load(f"diffusers/{home}", Options(arguments=arguments, **options))


def noise(model: Model, batch: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {spec.name: torch.randn(batch, *spec.shape[1:]) for spec in model.inputs}


def saved(name: str, folder: Path, **options: Any) -> Any:
    """diffusers' own model, saved to the folder."""
    config = {k: v for k, v in small.SMALL[name][0].items() if k != "_class_name"}
    torch.manual_seed(0)
    own = getattr(diffusers, small.SMALL[name][0]["_class_name"])(**config).eval()
    own.save_pretrained(folder, **options)
    return own


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("small")
    return {name: load(name, folder, arguments=SHALLOW[name]) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_random_weights(name: str, loaded: dict[str, Model]) -> None:
    model = loaded[name]
    assert model.weights == "random"
    assert model.outputs == (("video", "audio") if name == "ltx2" else ("sample",))
    assert type(model.module.get_submodule("model")).__name__ == small.SMALL[name][0]["_class_name"]
    with torch.no_grad():
        results = model.module(**noise(model))
    first = results[0] if isinstance(results, tuple) else results
    assert first.shape == model.inputs[0].shape
    assert first.abs().max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_is_exported_is_the_model(name: str, loaded: dict[str, Model]) -> None:
    """Through all rewrites, and with no operator that a backend chokes on."""
    model = loaded[name]
    graph = export(model)
    feed = {key: value.numpy() for key, value in noise(model).items()}
    with torch.no_grad():
        results = model.module(**noise(model))
    expected = results if isinstance(results, tuple) else (results,)
    for got, wanted in zip(graph.run(feed).values(), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=2e-6)
    for node in computed(graph):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            assert not value.is_complex(), node
            assert value.dtype != torch.float64, node
        if str(node.target).startswith("aten.squeeze"):
            assert value.dim() < node.args[0].meta["val"].dim(), node


def computed(graph: Graph) -> set[torch.fx.Node]:
    """The nodes that the outputs depend on."""
    found: set[torch.fx.Node] = set()
    waiting = [graph.exported.graph.output_node()]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def test_flux_is_called_as_its_pipeline_calls_it(loaded: dict[str, Model]) -> None:
    model = loaded["flux"]
    given = noise(model)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    image = torch.stack([torch.zeros(4, 4), rows, columns], -1).reshape(16, 3)
    with torch.no_grad():
        ours = model.module(**given)
        own = model.module.get_submodule("model")
        theirs = own(**given, img_ids=image, txt_ids=torch.zeros(8, 3)).sample
    assert torch.equal(ours, theirs)


def test_hidream_takes_llamas_states_batch_first(loaded: dict[str, Model]) -> None:
    model = loaded["hidream"]
    given = noise(model, batch=2)
    with torch.no_grad():
        ours = model.module(**given)
        states = given.pop("encoder_hidden_states_llama3").transpose(0, 1)
        own = model.module.get_submodule("model")
        theirs = own(**given, encoder_hidden_states_llama3=states).sample
    assert torch.equal(ours, theirs)


def test_dense_experts_equal_routed_ones(tmp_path: Path) -> None:
    model = load("hidream", tmp_path)
    assert model.traced is not None
    given = {name: value.double() for name, value in noise(model, batch=2).items()}
    with torch.no_grad():
        routed = model.module.double()(**given)
        dense = model.traced.double()(**given)
    torch.testing.assert_close(dense, routed, rtol=1e-12, atol=1e-12)
    own = model.module.get_submodule("model")
    assert not any("moe_infer" in vars(module) for module in own.modules()), "put back"


@pytest.mark.parametrize("size", ["10GB", "500KB"])
def test_weights_of_one_file_and_of_shards(size: str, tmp_path: Path) -> None:
    own = saved("flux", tmp_path / "flux", max_shard_size=size)
    index = tmp_path / "flux" / "diffusion_pytorch_model.safetensors.index.json"
    assert index.exists() == (size == "500KB")
    model = families.load(f"diffusers/{tmp_path / 'flux'}", Options(arguments=small.GRID))
    assert model.weights == "checkpoint"
    for key, value in own.state_dict().items():
        assert torch.equal(model.module.get_submodule("model").state_dict()[key], value)


def test_a_pipelines_folder(tmp_path: Path) -> None:
    saved("sd3", tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text("{}")
    model = families.load(f"diffusers/{tmp_path}", Options())
    assert model.inputs[1].shape == (1, 333, 48)
    assert model.weights == "checkpoint"


def test_half_precision_checkpoints_become_float32(tmp_path: Path) -> None:
    saved("sd3", tmp_path)
    own = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path).half()
    own.save_pretrained(tmp_path)
    model = families.load(f"diffusers/{tmp_path}", Options(arguments={"text_tokens": 8}))
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}


def test_sizes_come_from_the_configuration_and_from_set(tmp_path: Path) -> None:
    model = load("sd3", tmp_path, arguments={"num_layers": 1, "height": 4})
    assert model.inputs[0] == Input("hidden_states", (1, 4, 4, 8))
    blocks: Any = model.module.get_submodule("model.transformer_blocks")
    assert len(blocks) == 1


def test_an_input_replaces_that_of_its_name_or_is_added(tmp_path: Path) -> None:
    given = (
        Input("encoder_hidden_states_mask", (1, 5), "int64"),
        Input("encoder_hidden_states", (1, 5, 48)),
    )
    model = load("qwen_image", tmp_path, inputs=given)
    assert [spec.name for spec in model.inputs] == [
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_hidden_states_mask",
    ]
    given = noise(model) | {"encoder_hidden_states_mask": torch.tensor([[1, 1, 1, 0, 0]])}
    with torch.no_grad():
        masked = model.module(**given)
        given["encoder_hidden_states"][:, 3:] = 9.0
        assert torch.allclose(model.module(**given), masked, atol=1e-5)


def test_ltx23_takes_a_sigma(tmp_path: Path) -> None:
    newer = {"cross_attn_mod": True, "audio_cross_attn_mod": True, "use_prompt_embeddings": False}
    model = load("ltx2", tmp_path, arguments={**newer, "rope_type": "interleaved"})
    assert model.inputs[-1] == Input("sigma", (1,))
    assert [spec.shape[-1] for spec in model.inputs[2:4]] == [64, 32]


def _written(folder: Path, **changes: Any) -> str:
    home, _ = small.write("flux", folder)
    config = json.loads((home / "config.json").read_text())
    (home / "config.json").write_text(json.dumps({**config, **changes}))
    return f"diffusers/{home}"


def _fails(source: str, **options: Any) -> EdgekitError:
    with pytest.raises(EdgekitError) as caught:
        families.load(source, Options(**options))
    return caught.value


def test_an_unknown_class_names_the_known(tmp_path: Path) -> None:
    error = _fails(_written(tmp_path, _class_name="FluxTransformer3DModel"), random_weights=True)
    assert "SD3Transformer2DModel" in error.why
    assert "FluxTransformer2DModel" in error.fix


def test_a_folder_without_a_transformer(tmp_path: Path) -> None:
    assert "transformer/config.json" in _fails(f"diffusers/{tmp_path}").why


def test_a_configuration_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert "JSON" in _fails(f"diffusers/{tmp_path}").why


def test_missing_weights_say_how_to_go_on(tmp_path: Path) -> None:
    assert "--random-weights" in _fails(_written(tmp_path), arguments=small.GRID).fix


def test_a_checkpoint_of_another_shape(tmp_path: Path) -> None:
    saved("flux", tmp_path)
    error = _fails(f"diffusers/{tmp_path}", arguments={**small.GRID, "in_channels": 32})
    assert "x_embedder.weight (64, 16), model (64, 32)" in error.why


def test_an_unknown_argument_names_the_nearest(tmp_path: Path) -> None:
    source = _written(tmp_path)
    error = _fails(source, random_weights=True, arguments={"hight": 4})
    assert "height" in error.fix


def test_a_configuration_that_cannot_be_made(tmp_path: Path) -> None:
    error = _fails(_written(tmp_path, num_layers="two"), random_weights=True)
    assert "cannot be made" in error.what


def test_an_input_that_the_class_does_not_take(tmp_path: Path) -> None:
    given = (Input("hidden_state", (1, 16, 16)),)
    error = _fails(_written(tmp_path), random_weights=True, inputs=given, arguments=small.GRID)
    assert "hidden_states" in error.fix
