"""Checkpoints, good ones and every kind of bad one."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgekit import checkpoint
from edgekit.errors import EdgekitError


def net() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {key: torch.rand_like(v.float()).to(v.dtype) for key, v in net().state_dict().items()}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(checkpoint, "say", lines.append)
    return lines


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.safetensors"])
def test_reads_each_format(tmp_path: Path, state: dict[str, torch.Tensor], name: str) -> None:
    path = tmp_path / name
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    assert same(checkpoint.load_state(path), state)


@pytest.mark.parametrize("key", checkpoint.NESTS)
def test_finds_nested_weights_and_says_so(
    tmp_path: Path, state: dict[str, torch.Tensor], said: list[str], key: str
) -> None:
    torch.save({key: OrderedDict(state), "epoch": 3}, tmp_path / "w.pt")
    assert same(checkpoint.load_state(tmp_path / "w.pt"), state)
    assert repr(key) in said[0]


def test_averaged_weights_come_first_and_the_others_are_said(
    tmp_path: Path, state: dict[str, torch.Tensor], said: list[str]
) -> None:
    other = {key: value + 1 for key, value in state.items()}
    torch.save({"model": other, "model_ema": state}, tmp_path / "w.pt")
    assert same(checkpoint.load_state(tmp_path / "w.pt"), state)
    assert "also there: model" in said[0]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_strips_the_prefixes_of_wrappers(
    tmp_path: Path, state: dict[str, torch.Tensor], said: list[str], prefix: str
) -> None:
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "w.pt")
    assert same(checkpoint.load_state(tmp_path / "w.pt"), state)
    assert "prefix" in said[0]


def test_keeps_a_prefix_that_not_all_keys_have(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    mixed = {"module.a": state["0.weight"], "b": state["0.bias"]}
    save_file(mixed, tmp_path / "w.safetensors")
    assert same(checkpoint.load_state(tmp_path / "w.safetensors"), mixed)


def test_reads_sharded_folders(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    parts = {"a.safetensors": ["0.weight"], "b.safetensors": [k for k in state if k != "0.weight"]}
    for name, keys in parts.items():
        save_file({key: state[key] for key in keys}, tmp_path / name)
    weight_map = {key: name for name, keys in parts.items() for key in keys}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert same(checkpoint.load_state(tmp_path), state)

    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(EdgekitError, match=r"Shard .*b\.safetensors does not exist"):
        checkpoint.load_state(tmp_path)
    index.write_text("[1]")
    with pytest.raises(EdgekitError, match="not an index of shards"):
        checkpoint.load_state(tmp_path)


def test_reads_nothing_outside_the_folder(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EdgekitError, match="does not exist"):
        checkpoint.load_state(folder)


def test_a_truncated_safetensors_is_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EdgekitError, match=r"w\.safetensors is truncated"):
        checkpoint.load_state(path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_a_truncated_pickle_is_named(
    tmp_path: Path, state: dict[str, torch.Tensor], keep: float
) -> None:
    path = tmp_path / "w.pt"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(EdgekitError, match=r"w\.pt is truncated"):
        checkpoint.load_state(path)


@pytest.mark.parametrize("content", [b"not a checkpoint at all", b"\x00" * 100])
def test_garbage_is_named(tmp_path: Path, content: bytes) -> None:
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EdgekitError, match=name):
            checkpoint.load_state(tmp_path / name)


class Harmful:
    """Its pickle makes a file when it is loaded without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, (str(self.mark),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_a_pickle_of_a_protocol_that_torch_does_not_read_is_refused(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "w.pt"
    path.write_bytes(pickle.dumps({"a": Harmful(mark)}, protocol=4))
    with pytest.raises(EdgekitError, match=r"w\.pt is truncated or is not") as error:
        checkpoint.load_state(path)
    assert "weights_only" not in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize("save", ["zip", "legacy", "bare"])
def test_a_pickle_with_code_is_refused_and_its_global_named(tmp_path: Path, save: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "w.pt"
    if save == "bare":
        path.write_bytes(pickle.dumps({"a": Harmful(mark)}, protocol=2))
    else:
        torch.save({"a": Harmful(mark)}, path, _use_new_zipfile_serialization=save == "zip")
    with pytest.raises(EdgekitError, match=r"(?s)is not loaded.*mkdir.*safetensors"):
        checkpoint.load_state(path)
    assert not mark.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "w.pt")
    with pytest.raises(EdgekitError, match=r"Sequential"):
        checkpoint.load_state(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"a": torch.ones(1), "b": 2}])
def test_what_is_not_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(EdgekitError, match="holds no state dict"):
        checkpoint.load_state(tmp_path / "w.pt")


def test_missing_empty_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match=r"none\.pt does not exist"):
        checkpoint.load_state(tmp_path / "none.pt")
    (tmp_path / "w.pt").touch()
    with pytest.raises(EdgekitError, match=r"w\.pt is empty"):
        checkpoint.load_state(tmp_path / "w.pt")
    (tmp_path / "w.h5").write_bytes(b"1")
    with pytest.raises(EdgekitError, match="unknown kind"):
        checkpoint.load_state(tmp_path / "w.h5")
    (tmp_path / "folder").mkdir()
    with pytest.raises(EdgekitError, match="holds no weights"):
        checkpoint.load_state(tmp_path / "folder")


def test_apply_copies_every_tensor(state: dict[str, torch.Tensor]) -> None:
    module = net()
    checkpoint.apply(module, state, "w.pt", allow_partial=False)
    assert same(dict(module.state_dict()), state)


def test_apply_lists_missing_extra_and_misshaped_keys(state: dict[str, torch.Tensor]) -> None:
    module, bad = net(), dict(state)
    del bad["0.bias"]
    bad["head.weight"] = torch.ones(2)
    bad["0.weight"] = torch.ones(5, 3)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(EdgekitError) as error:
        checkpoint.apply(module, bad, "w.pt", allow_partial=False)
    text = str(error.value)
    assert "1 missing: 0.bias" in text
    assert "1 not in the model: head.weight" in text
    assert "1 of another shape: 0.weight (5, 3), model (4, 3)" in text
    assert "--allow-partial" in text
    assert same(dict(module.state_dict()), before)


def test_apply_partial_loads_what_fits(state: dict[str, torch.Tensor], said: list[str]) -> None:
    module, bad = net(), dict(state)
    bad["0.weight"] = torch.ones(5, 3)
    kept = module[0].weight.clone()
    checkpoint.apply(module, bad, "w.pt", allow_partial=True)
    assert torch.equal(module[0].weight, kept)
    assert torch.equal(module[0].bias, state["0.bias"])
    assert "6 of 7" in said[0]


def test_apply_partial_with_nothing_that_fits_is_still_an_error() -> None:
    with pytest.raises(EdgekitError, match="does not fit"):
        checkpoint.apply(net(), {"x": torch.ones(1)}, "w.pt", allow_partial=True)


def test_long_lists_are_cut() -> None:
    error = checkpoint.misfit("w", "Net", [f"k{i}" for i in range(100)], [], {})
    assert "100 missing: k0," in str(error)
    assert "and 92 more" in str(error)


def test_a_tied_tensor_is_needed_once() -> None:
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight
    state = dict(module.state_dict())
    del state["b.weight"]
    checkpoint.apply(module, state, "w", allow_partial=False)
    del state["a.weight"]
    with pytest.raises(EdgekitError, match="2 missing"):
        checkpoint.apply(module, state, "w", allow_partial=False)
