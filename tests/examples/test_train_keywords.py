"""The keyword examples: what is spoken, what is trained on it, and what a stream hears of it."""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgekit import Recipe, Session, families, single
from edgekit.families import Options

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODELS = ("lmuformer", "spiking")
EPOCHS = 2

speaks = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def _script(name: str) -> Iterator[ModuleType]:
    """A script, which finds its neighbours in its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module(name)


@pytest.fixture(scope="module")
def speaker() -> Iterator[ModuleType]:
    yield from _script("keywords")


@pytest.fixture(scope="module")
def trainer() -> Iterator[ModuleType]:
    yield from _script("train_keywords")


@pytest.fixture(scope="module")
def hearer() -> Iterator[ModuleType]:
    yield from _script("hear_keywords")


@pytest.fixture(scope="module")
def data(speaker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keywords")
    speaker.write(folder, speaker.QUICK)
    return folder


@pytest.fixture(scope="module", params=MODELS)
def trained(
    request: pytest.FixtureRequest,
    trainer: ModuleType,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    trainer.main(request.param, folder, data, EPOCHS, 0)
    return folder


@pytest.fixture(scope="module")
def stream(trained: Path, data: Path) -> Path:
    """The model as an artifact that takes frames."""
    path = trained / "stream.onnx"
    recipe = Recipe(
        model=f"reference/{trained}",
        targets=["cpu"],
        mode="stream",
        evaluation=data / "evaluation.npz",
        evaluation_samples=4,
    )
    assert single.convert(recipe, path).status == "verified"
    return path


@speaks
def test_a_seed_says_what_is_spoken(speaker: ModuleType, data: Path, tmp_path: Path) -> None:
    size = speaker.Size(training=1, copies=2, evaluation=1, calibration=5)
    for name, seed in (("first", 1), ("same", 1), ("other", 2)):
        speaker.write(tmp_path / name, size, seed)
    for name in ("training.npz", "calibration.npz", "evaluation.npz"):
        first, same, other = (
            np.load(tmp_path / folder / name)["x"] for folder in ("first", "same", "other")
        )
        np.testing.assert_array_equal(first, same)
        assert not np.array_equal(first, other)


@speaks
def test_clips_are_standard_frames_of_every_word(speaker: ModuleType, data: Path) -> None:
    training, evaluation = (np.load(data / f"{name}.npz") for name in ("training", "evaluation"))
    size, words = speaker.QUICK, len(speaker.WORDS)
    assert training["x"].shape == (size.training * size.copies * words, 98, 40)
    assert set(np.bincount(training["labels"])) == {size.training * size.copies}
    assert set(np.bincount(evaluation["labels"])) == {size.evaluation}
    np.testing.assert_allclose(training["x"].mean((0, 1)), 0, atol=1e-3)
    np.testing.assert_allclose(training["x"].std((0, 1)), 1, atol=1e-3)
    chosen = np.load(data / "calibration.npz")["x"]
    assert len(chosen) == size.calibration
    assert all((training["x"] == clip).all((1, 2)).any() for clip in chosen)


def test_voices_that_judge_do_not_train(
    speaker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def spoken(word: str, voice: str, speed: int, pitch: int) -> np.ndarray:
        heard.append(voice)
        return np.full(100, 0.5)

    monkeypatch.setattr(speaker, "spoken", spoken)
    speaker.write(tmp_path, speaker.Size(training=5, copies=1, evaluation=5, calibration=1))
    training, judging = (
        {voice.partition("+")[2] for voice in part} for part in (heard[:50], heard[50:])
    )
    assert len(judging) > 1
    assert not training & judging


def test_words_begin_early(speaker: ModuleType) -> None:
    random = np.random.default_rng(0)
    clips = [speaker.placed(np.ones(2000), random) for _ in range(20)]
    loud = [np.flatnonzero(np.abs(clip) > 0.5 * np.abs(clip).max())[0] for clip in clips]
    assert max(loud) <= speaker.LEAD * speaker.RATE + 1
    assert np.std(loud) > 0


def test_without_espeak_a_line_says_what_to_install(
    speaker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^espeak-ng is not installed: apt-get install espeak-ng"):
        speaker.write(tmp_path / "keywords")


def test_a_tone_sounds_when_it_is_heard_in_a_band_of_its_pitch(speaker: ModuleType) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(speaker.RATE // 4) / speaker.RATE)
    clip = np.zeros(speaker.HOP * (speaker.FRAMES - 1) + speaker.FRAME)
    clip[: len(tone)] = tone
    power = speaker.frames(clip)
    band = power[5].argmax()
    assert speaker.mel_bands()[round(1000 / speaker.RATE * 1024), band] > 0.3
    assert power[:24, band].min() > power[27:, band].max()


def test_a_clip_is_moved_but_not_made(trainer: ModuleType) -> None:
    torch.manual_seed(0)
    x = torch.arange(98.0)[None, :, None] + 1000 * torch.arange(40.0)
    moved = trainer.moved(x.repeat(8, 1, 1))
    assert set(moved.unique().tolist()) <= set(x.unique().tolist())
    assert (moved[:, 1:] >= moved[:, :-1]).all()
    assert len(moved.unique(dim=0)) > 1
    masked = trainer.masked(x.repeat(8, 1, 1) + 1)
    assert 0 < (masked == 0).float().mean() < 0.3
    assert (masked[masked != 0] >= 1).all()


@speaks
def test_a_seed_says_what_is_trained(
    trainer: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("first", 1), ("same", 1), ("other", 2)):
        trainer.main("lmuformer", tmp_path / name, data, EPOCHS, seed)
        assert re.search(r"accuracy on 20 clips of other voices: [\d.]+%", capsys.readouterr().out)
    first, same, other = (
        load_file(tmp_path / name / "model.safetensors") for name in ("first", "same", "other")
    )
    assert all(np.array_equal(first[key], same[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)


@speaks
def test_edgekit_loads_what_was_trained(trainer: ModuleType, trained: Path, data: Path) -> None:
    model = families.load(f"reference/{trained}", Options())
    assert model.weights == "checkpoint"
    x, y = trainer.clips(data / "evaluation.npz")
    with torch.inference_mode():
        right = (model.module(x).argmax(1) == y).double().mean().item()
    assert trainer.accuracy(model.module, x, y) == right


@speaks
def test_a_stream_that_heard_all_of_a_clip_says_what_the_whole_model_says(
    hearer: ModuleType, trainer: ModuleType, trained: Path, stream: Path, data: Path
) -> None:
    x, labels = trainer.clips(data / "evaluation.npz")
    module = families.load(f"reference/{trained}", Options()).module
    with Session(stream, threads=1) as session:
        logits = hearer.heard(session, x.numpy()[:8])
    with torch.inference_mode():
        whole = module(x[:8]).numpy()
        half = module(x[:8, :49]).numpy()
    np.testing.assert_allclose(logits[:, -1], whole, atol=1e-3)
    np.testing.assert_allclose(logits[:, 48], half, atol=1e-3)
    assert not np.allclose(logits[:, -1], logits[:, 48], atol=1e-3)
    right = hearer.accuracies(logits, labels.numpy()[:8])
    assert right[-1] == 100 * (whole.argmax(1) == labels.numpy()[:8]).mean()


@speaks
def test_the_table_has_every_tenth(
    hearer: ModuleType, stream: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hearer.main(stream, data / "evaluation.npz", frames=50)
    out = capsys.readouterr().out
    rows = re.findall(r"^\| (\d+)% \| ([\d.]+)% \|$", out, re.M)
    assert [int(heard) for heard, _ in rows] == list(range(10, 101, 10))
    assert re.search(r"a frame takes [\d.]+ ms", out)
    assert re.search(r"memory grew by -?\d+ KiB over 50 frames of one stream", out)


@pytest.mark.parametrize(
    ("right", "frames"),
    [
        ([10.0, 50.0, 97.5, 98.0], 3),
        ([10.0, 98.0, 50.0, 98.0], 4),
        ([98.0, 98.0, 98.0, 98.0], 1),
        ([10.0, 20.0, 30.0, 98.0], 4),
    ],
)
def test_enough_is_where_accuracy_stays(
    hearer: ModuleType, right: list[float], frames: int
) -> None:
    assert hearer.least(np.array(right)) == frames


def test_a_transformer_is_as_large_as_its_width_says(trainer: ModuleType) -> None:
    small, large = (trainer.make_model("transformer", width) for width in (16, 32))
    count = trainer.measure.parameters
    assert 2 < count(large.module) / count(small.module) < 4
    blocks = 12 * 16 * 16 * 98 * 4 + 2 * 98 * 98 * 16 * 4
    assert trainer.operations(small) == 98 * 40 * 16 + blocks + 16 * 10


def test_the_memory_is_counted_too(trainer: ModuleType) -> None:
    model = trainer.make_model("lmuformer", 0)
    memory = 98 * 16 * 16 * (16 + 1)
    assert trainer.operations(model) == trainer.measure.operations(model) + memory
