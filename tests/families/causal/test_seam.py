"""What becomes of a causal model: its inputs and states, and every way that it is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from edgekit import families
from edgekit.edit import Editor
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.model import Dim, Input, Model
from edgekit.quantize.sites import find_sites

transformers = pytest.importorskip("transformers")

LENGTH = Dim("length", 1, 8, 64)
MASKED = (Input("input_ids", (1, LENGTH), "int64"), Input("attention_mask", (1, LENGTH), "int64"))


def load(name: str, folder: Path, **options: Any) -> Model:
    return families.load(f"transformers/{tiny.save(name, folder)}", Options(**options))


def ids(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, tiny.VOCABULARY, (batch, length))


def operators(model: Model) -> set[str]:
    return {str(node.target) for node in model.export().exported.graph.nodes}


# Inputs and states.


def test_the_length_is_any_that_the_model_has_positions_for(tmp_path: Path) -> None:
    assert load("mamba", tmp_path).inputs[0].shape == (1, Dim("length", 1, 128, 2048))
    assert load("jamba", tmp_path).inputs[0].shape == (1, Dim("length", 1, 128, 512))
    short = load("bamba", tmp_path, arguments={"max_position_embeddings": 100}, mode="stream")
    assert short.inputs[0].shape == (1, Dim("length", 1, 64, 100))
    assert Dim("past", 0, 100, 100) in short.states[2].shape


def test_a_plain_decoder_is_as_it_was_unless_its_length_varies(tmp_path: Path) -> None:
    plain = load("llama", tmp_path)
    assert plain.inputs == (Input("input_ids", (1, 128), "int64"),)
    assert plain.traced is None
    ranged = load("llama", tmp_path, inputs=(Input("input_ids", (1, LENGTH), "int64"),))
    assert ranged.traced is not None
    assert "edgekit.causal_attention.default" in operators(ranged)


def test_states_have_the_shapes_of_the_operators(tmp_path: Path) -> None:
    jamba = {state.name: state.shape for state in load("jamba", tmp_path, mode="stream").states}
    past = Dim("past", 0, 256, 512)
    assert jamba == {
        "conv_0": (1, 64, 3),
        "scan_0": (1, 8, 64),
        "key_1": (1, 2, past, 8),
        "value_1": (1, 2, past, 8),
        "conv_2": (1, 64, 3),
        "scan_2": (1, 8, 64),
    }
    griffin = {s.name: s for s in load("recurrent_gemma", tmp_path, mode="stream").states}
    assert griffin["key_2"].shape == (1, 2, Dim("window_5", 0, 5, 5), 8)
    assert griffin["position"].dtype == "int64"  # its keys do not tell


def test_the_source_stays_untouched_and_shares_its_parameters(tmp_path: Path) -> None:
    model = load("mamba", tmp_path, mode="stream")
    assert model.traced is not None
    ours, theirs = (dict(m.named_parameters()) for m in (model.traced, model.module))
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)


def test_any_batch_streams(tmp_path: Path) -> None:
    model = load("recurrent_gemma", tmp_path, mode="stream").with_batch("dynamic")
    graph, tokens = model.export(), ids(3, 9)
    first = graph.run({"input_ids": tokens[:, :5]})
    states = {state.name: first[state.output] for state in model.states}
    second = graph.run({"input_ids": tokens[:, 5:], **states})
    with torch.no_grad():
        expected = model.module(input_ids=torch.from_numpy(tokens))[0].numpy()
    ours = np.concatenate([first["logits"], second["logits"]], 1)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_one_token_at_a_time_is_a_length_too(tmp_path: Path) -> None:
    one = (Input("input_ids", (1, 1), "int64"),)
    model = load("lfm2_moe", tmp_path, mode="stream", inputs=one)
    graph, tokens = model.export(), ids(1, 6)
    states: dict[str, np.ndarray] = {}
    outputs = []
    for at in range(tokens.shape[1]):
        result = graph.run({"input_ids": tokens[:, at : at + 1], **states})
        states = {state.name: result[state.output] for state in model.states}
        outputs.append(result["logits"])
    with torch.no_grad():
        expected = model.module(input_ids=torch.from_numpy(tokens))[0].numpy()
    np.testing.assert_allclose(np.concatenate(outputs, 1), expected, atol=2e-5)


def test_padding_is_honoured_by_transformers_own_attention(tmp_path: Path) -> None:
    model = load("bamba", tmp_path, inputs=MASKED)
    graph = model.export()
    mask = np.ones((1, 9), np.int64)
    mask[0, :3] = 0
    given = {"input_ids": ids(1, 9), "attention_mask": mask}
    with torch.no_grad():
        expected, unmasked = (
            model.module(**{k: torch.from_numpy(given[k]) for k in names})[0].numpy()[:, 3:]
            for names in (given, ["input_ids"])
        )
    np.testing.assert_allclose(graph.run(given)["logits"][:, 3:], expected, atol=2e-5)
    assert np.abs(expected - unmasked).max() > 1e-2


def test_layers_whose_weights_a_mixer_uses_itself_are_sites(tmp_path: Path) -> None:
    graph = load("mamba", tmp_path).export()
    mixer = "model.backbone.layers.0.mixer"
    modules = {site.module for site in find_sites(Editor(graph))}
    assert {f"{mixer}.{layer}" for layer in ("conv1d", "dt_proj", "x_proj")} <= modules


# Refusals.


def test_a_stream_of_no_decoder(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(EdgekitError, match="BertForMaskedLM is not a causal decoder"):
        families.load(f"transformers/{tmp_path}", Options(mode="stream"))


def test_a_stream_with_other_inputs_or_attention_than_ours(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="streamed with the input attention_mask"):
        load("mamba2", tmp_path, mode="stream", inputs=MASKED)
    with pytest.raises(EdgekitError, match="streamed with attn_implementation=eager"):
        load("llama", tmp_path, mode="stream", arguments={"attn_implementation": "eager"})


def test_a_stream_of_one_answer_a_sequence(tmp_path: Path) -> None:
    folder = tiny.save("jamba", tmp_path)
    change(folder, architectures=["JambaForSequenceClassification"])
    with pytest.raises(EdgekitError, match="one for a sequence, not one for each token"):
        families.load(f"transformers/{folder}", Options(mode="stream", random_weights=True))


def test_attention_that_the_operator_has_not(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    config = transformers.Gemma2Config(**sizes, **heads, max_position_embeddings=64)
    transformers.Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    source = f"transformers/{tmp_path}"
    with pytest.raises(EdgekitError, match=r"softcap in layer 0 \(Gemma2Attention\)"):
        families.load(source, Options(mode="stream"))
    assert families.load(source, Options()).traced is None


def test_a_recurrence_that_is_not_ours(tmp_path: Path) -> None:
    config = transformers.RwkvConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32
    )
    transformers.RwkvForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(EdgekitError, match="has a recurrence that edgekit does not know"):
        families.load(f"transformers/{tmp_path}", Options())


def test_a_recurrence_over_other_inputs_than_tokens(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="cannot take the input inputs_embeds"):
        load("mamba", tmp_path, inputs=(Input("inputs_embeds", (1, 4, 32)),))


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_layer_types_of_another_number_than_layers(tmp_path: Path) -> None:
    folder = tiny.save("granitemoehybrid", tmp_path)
    change(folder, layer_types=["mamba", "attention", "mamba"])
    with pytest.raises(EdgekitError, match=r"number of `layer_types` \(3\)") as error:
        families.load(f"transformers/{folder}", Options())
    assert "Check config.json" in str(error.value)


@pytest.mark.parametrize("name", ["granitemoehybrid", "nemotron_h"])
def test_layer_types_of_another_checkpoint(name: str, tmp_path: Path) -> None:
    folder = tiny.save(name, tmp_path)
    types = {
        "granitemoehybrid": {"layer_types": ["mamba", "mamba"]},
        "nemotron_h": {"layers_block_type": ["attention", "moe", "mamba"]},
    }
    change(folder, **types[name])
    with pytest.raises(EdgekitError, match="layers of other types than the configuration") as error:
        families.load(f"transformers/{folder}", Options())
    assert re.search(r"Layer \d should have \w+\.\w+.* and the checkpoint has", str(error.value))
