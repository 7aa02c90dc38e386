"""examples/train_text.py: what it writes is what edgekit reads, and its split leaks nothing."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgekit import evaluate, families
from edgekit.data import open_data
from edgekit.families import Options

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def trainer() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("train_text")


@pytest.fixture(scope="module")
def folder(trainer: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    trainer.main(folder, 1, trainer.QUICK)
    return folder


def test_a_seed_says_what_is_trained(
    trainer: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("same", 1), ("other", 2)):
        trainer.main(tmp_path / name, seed, trainer.QUICK)
        assert "bits per character" in capsys.readouterr().out
    first, same, other = (
        load_file(place / "model.safetensors")
        for place in (folder, tmp_path / "same", tmp_path / "other")
    )
    assert all(np.array_equal(first[key], same[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)
    for name in ("calibration.npz", "evaluation.npz", "evaluation_next.npy"):
        assert (folder / name).read_bytes() == (tmp_path / "same" / name).read_bytes()


def test_edgekit_judges_it_as_the_script_does(trainer: ModuleType, folder: Path) -> None:
    model = families.load(f"transformers/{folder}", Options())
    assert len(open_data(folder / "calibration.npz", model.inputs, None)) == 8
    report = evaluate(
        f"transformers/{folder}",
        folder / "evaluation.npz",
        ["bits_per_token"],
        labels=folder / "evaluation_next.npy",
    )
    tokens = np.load(folder / "evaluation.npz")["input_ids"]
    following = np.load(folder / "evaluation_next.npy")
    assert (tokens[:, 1:] == following[:, :-1]).all()
    found = report.rows[0].scores["bits_per_token"].value
    assert -math.log2(len(trainer.ALPHABET)) < found < 0
    assert found == pytest.approx(-trainer.bits(model.module.model, tokens, following), abs=1e-4)


def test_no_window_that_judges_was_read(trainer: ModuleType, folder: Path) -> None:
    training, held_out = (trainer.decode(part) for part in trainer.texts())
    for row in np.load(folder / "calibration.npz")["input_ids"]:
        assert trainer.decode(row) in training
    for row in np.load(folder / "evaluation.npz")["input_ids"]:
        assert trainer.decode(row) in held_out
        assert trainer.decode(row) not in training


def test_text_comes_back_but_for_characters_outside_the_alphabet(trainer: ModuleType) -> None:
    text = "def f(x):\n    return x\n"
    assert trainer.decode(trainer.encode(text)) == text
    assert trainer.decode(trainer.encode("a\tü")) == "a\ufffd\ufffd"
    assert trainer.encode(text).max() < len(trainer.ALPHABET)
