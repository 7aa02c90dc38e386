"""Every family, whole and in a stream: exported once, equal to its source at any length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from edgekit import families
from edgekit.families import Options
from edgekit.model import Dim, Graph, Model, run_module

LENGTHS = (1, 7, 33)
PIECES = (13, 1, 1, 5, 1, 11, 1)
#: Families whose attention is all that carries anything, which is why they have a fixed length.
PLAIN = ("llama", "mistral", "qwen3_moe")
#: Whole, the others are run as they are: what their streams need of an export is the same.
EXPORTED = ("jamba", "mamba2")


def tokens(length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, tiny.VOCABULARY, (1, length), generator=generator)


def source(model: Model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.module(input_ids=ids)[0]


def close(ours: np.ndarray, theirs: torch.Tensor) -> None:
    assert np.abs(ours - theirs.numpy()).max() < 1e-5 * float(theirs.abs().max())


def streamed(graph: Graph, ids: torch.Tensor, pieces: tuple[int, ...]) -> np.ndarray:
    """The outputs of one call after another, the states carried."""
    module = graph.exported.module(check_guards=False)
    states: dict[str, np.ndarray] = {}
    outputs, start = [], 0
    for piece in pieces:
        given = {"input_ids": ids[:, start : start + piece].numpy(), **states}
        result = run_module(module, graph.complete(given), graph.outputs)
        states = {state.name: result[state.output] for state in graph.states}
        outputs.append(result["logits"])
        start += piece
    return np.concatenate(outputs, 1)


def carries(graph: Graph) -> bool:
    """Whether an operator of ours is in the graph, and no question about its sizes."""
    targets = {str(node.target) for node in graph.exported.graph.nodes}
    assert "aten._assert_scalar.default" not in targets
    return any(target.startswith(("edgekit.", "aten.conv1d")) for target in targets)


@pytest.mark.parametrize("name", sorted(tiny.TINY.keys() - set(PLAIN)))
def test_a_recurrent_family_takes_any_length(name: str, tmp_path: Path) -> None:
    model = families.load(f"transformers/{tiny.save(name, tmp_path)}", Options())
    assert isinstance(model.inputs[0].shape[1], Dim)
    assert not model.states
    assert model.traced is not None
    module: torch.nn.Module = model.traced
    if name in EXPORTED:
        graph = model.export()
        assert carries(graph)
        module = graph.exported.module(check_guards=False)
    for length in LENGTHS:
        ids = tokens(length)
        ours = run_module(module, {"input_ids": ids.numpy()}, model.outputs)["logits"]
        close(ours, source(model, ids))
    early, first = tokens(LENGTHS[-1]), -4 if name == "lfm3" else 0  # which sees no further
    early[0, first] = 3 + (early[0, first] - 2) % 60
    change = source(model, early)[0, -1] - source(model, tokens(LENGTHS[-1]))[0, -1]
    assert float(change.abs().max()) > 1e-3  # so the comparison is one of the recurrence, too


@pytest.mark.parametrize("name", sorted(tiny.TINY))
def test_a_stream_equals_one_long_pass(name: str, tmp_path: Path) -> None:
    options = Options(mode="stream")
    model = families.load(f"transformers/{tiny.save(name, tmp_path)}", options)
    assert model.states
    graph = model.export()
    assert carries(graph)
    assert graph.outputs == ("logits", *(state.output for state in model.states))
    ids = tokens(sum(PIECES))
    close(streamed(graph, ids, PIECES), source(model, ids))
