"""Functions in each other's place: for one call, of any family, and put back whatever happens."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch

from edgekit.errors import EdgekitError
from edgekit.families.causal import swap, trace
from edgekit.families.causal.cache import Cache


def names(model: Any) -> dict[str, Any]:
    """Everything that a swap could have left behind."""
    file = sys.modules[type(model).__module__]
    mixers = {f"{i}": dict(m.__dict__) for i, m in enumerate(model.modules())}
    config = model.config
    chosen = (config._attn_implementation, config._experts_implementation)
    return {**vars(file), **mixers, "chosen": chosen}


@pytest.mark.parametrize("name", ["jamba", "recurrent_gemma"])
def test_everything_is_put_back_even_after_an_error(name: str) -> None:
    model = tiny.make(name)
    before = names(model)
    ids = torch.zeros(1, 3, dtype=torch.int64)
    trace.run(model, ids, Cache())
    assert names(model) == before
    with pytest.raises(RuntimeError, match="size"):
        trace.run(model, ids, Cache({"conv_0": torch.zeros(1, 5, 3)}))
    assert names(model) == before


def test_a_new_family_that_calls_the_same_functions_works_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file, which edgekit never heard of, has a mixer and its function."""
    from transformers.models.mamba import modeling_mamba as known

    model = tiny.make("mamba")
    ids = torch.arange(3, 10)[None]
    with torch.no_grad():
        expected = model(ids).logits
    source = Path(known.__file__).read_text().replace("Mamba", "Novel")
    path = tmp_path / "modeling_novel.py"
    path.write_text(source.replace("NovelConfig", "MambaConfig"))
    file = ModuleType("transformers.models.mamba.modeling_novel")
    file.__file__, file.__package__ = str(path), known.__package__
    monkeypatch.setitem(sys.modules, file.__name__, file)
    exec(compile(path.read_text(), path, "exec"), vars(file))
    novel = vars(file)["NovelForCausalLM"](model.config).eval()
    novel.load_state_dict(model.state_dict())
    cache = Cache()
    with torch.no_grad():
        ours = trace.run(novel, ids, cache).logits
    torch.testing.assert_close(ours, expected)
    assert list(cache.after) == ["conv_0", "scan_0", "conv_1", "scan_1"]


def test_a_recurrence_of_another_function_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.make("mamba")
    monkeypatch.setattr(swap.Opaque, "NAMES", ("causal_conv1d_fn",))
    with pytest.raises(EdgekitError, match="Layer 0 has a recurrence that edgekit does not know"):
        trace.run(model, torch.zeros(1, 2, dtype=torch.int64), Cache())
