"""Data: every kind that is taken, and every way it can be wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from edgekit.data import Dataset, open_data, random_data
from edgekit.data.images import load_image
from edgekit.errors import EdgekitError
from edgekit.model import BATCH, Dim, Input, Preprocess

GREY = Preprocess((32, 32), 32, "bicubic", (0.5,), (0.5,), channels=1)
RGB = Preprocess((48, 48), 54, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGE = (Input("x", (1, 1, 32, 32)),)
PAIR = (Input("a", (1, 2)), Input("b", (BATCH, 3), "int64"))


def photo(path: Path, width: int = 90, height: int = 70, mode: str = "RGB") -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def pairs(count: int = 5) -> dict[str, Any]:
    return {
        "a": np.arange(2 * count, dtype=np.float32).reshape(count, 2),
        "b": np.arange(3 * count).reshape(count, 3),
        "labels": np.arange(count),
    }


# Image folders


def test_a_folder_of_classes_gives_images_and_labels(digits_folder: Path) -> None:
    data = open_data(digits_folder, IMAGE, GREY)
    samples = list(data)
    assert len(data) == len(samples) == 300
    assert data.origin == str(digits_folder)
    assert data.labels is not None
    assert set(data.labels) == set(range(10))
    assert samples[0]["x"].shape == (1, 32, 32)
    assert samples[0]["x"].dtype == np.float32
    assert -1 <= min(s["x"].min() for s in samples) < -0.9
    assert 1 >= max(s["x"].max() for s in samples) > 0.9


def test_integer_class_names_are_the_labels_and_others_their_places(tmp_path: Path) -> None:
    for names, expected in (("2", "10"), (2, 10)), (("cat", "10"), (1, 0)):
        folder = tmp_path / names[0]
        for name in names:
            (folder / name).mkdir(parents=True)
            photo(folder / name / "a.png")
        labels = open_data(folder, (Input("x", (1, 3, 48, 48)),), RGB).labels
        assert labels is not None
        assert sorted(labels) == sorted(expected)


def test_a_flat_folder_has_no_labels_and_other_files_are_left_out(tmp_path: Path) -> None:
    photo(tmp_path / "a.PNG")
    photo(tmp_path / "b.jpg")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    data = open_data(str(tmp_path), (Input("x", (1, 3, 48, 48)),), RGB)
    assert data.labels is None
    assert len(list(data)) == 2


def test_images_are_read_only_when_asked_for(digits_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(digits_folder / "3", tmp_path / "3")
    data = open_data(tmp_path, IMAGE, GREY)
    shutil.rmtree(tmp_path / "3")
    with pytest.raises(EdgekitError, match="cannot be read"):
        next(iter(data))


def test_the_fingerprint_of_a_folder_follows_its_files(digits_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(digits_folder, folder)
    first = open_data(folder, IMAGE, GREY).fingerprint
    assert open_data(folder, IMAGE, GREY).fingerprint == first
    file = next((folder / "0").iterdir())
    os.utime(file, ns=(0, 0))
    touched = open_data(folder, IMAGE, GREY).fingerprint
    file.unlink()
    assert len({first, touched, open_data(folder, IMAGE, GREY).fingerprint}) == 3


@pytest.mark.parametrize("content", [b"", b"not an image", "cut"])
def test_an_unreadable_image_is_named_with_its_index(tmp_path: Path, content: bytes | str) -> None:
    photo(tmp_path / "a.png")
    broken = photo(tmp_path / "b.png")
    whole = broken.read_bytes()
    broken.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    data = open_data(tmp_path, (Input("x", (1, 3, 48, 48)),), RGB)
    with pytest.raises(EdgekitError, match=r"b\.png \(index 1\)") as error:
        list(data)
    assert ("is empty" in str(error.value)) == (content == b"")


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="holds no images"):
        open_data(tmp_path, IMAGE, GREY)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(EdgekitError, match=r"holds no images.*\n.*1 entries"):
        open_data(tmp_path, IMAGE, GREY)
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    photo(tmp_path / "cat" / "a.png")
    with pytest.raises(EdgekitError, match=r"dog holds no images"):
        open_data(tmp_path, IMAGE, GREY)
    photo(tmp_path / "b.png")
    with pytest.raises(EdgekitError, match="mixes two layouts"):
        open_data(tmp_path, IMAGE, GREY)


def test_images_need_a_model_that_takes_them(digits_folder: Path) -> None:
    with pytest.raises(EdgekitError, match=r"preprocessor_config\.json"):
        open_data(digits_folder, IMAGE, None)
    for inputs in (PAIR, (Input("x", (1, 3, 32, 32)),), (Input("x", (1, 1, 32, 32), "int64"),)):
        with pytest.raises(EdgekitError, match="cannot be fed"):
            open_data(digits_folder, inputs, GREY)


def test_sixteen_bit_images_are_refused_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(EdgekitError, match="more than 8 bits"):
        list(open_data(tmp_path, IMAGE, GREY))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("preprocess", [GREY, RGB])
def test_every_colour_mode_becomes_the_models(
    tmp_path: Path, mode: str, preprocess: Preprocess
) -> None:
    file = photo(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), mode=mode)
    assert load_image(file, preprocess).shape == (preprocess.channels, *preprocess.size)


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, :40] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees: the left becomes the top
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    exact = Preprocess((20, 10), (20, 10), "nearest", (0.0,), (1.0,), channels=1)
    image = load_image(tmp_path / "a.png", exact)[0]
    assert image[:10].min() == 1
    assert image[10:].max() == 0


def test_a_small_image_is_padded_with_black(tmp_path: Path) -> None:
    Image.new("L", (10, 10), 255).save(tmp_path / "a.png")
    image = load_image(
        tmp_path / "a.png", Preprocess((14, 14), 10, "nearest", (0.0,), (1.0,), channels=1)
    )[0]
    assert image.sum() == 100
    assert image[2:12, 2:12].min() == 1


@pytest.mark.parametrize(("width", "height"), [(90, 70), (70, 91), (48, 48), (301, 47), (33, 20)])
@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_preprocessing_equals_timms(
    tmp_path: Path, width: int, height: int, mode: str, interpolation: str
) -> None:
    from edgekit.families.torchvision import repair

    repair()
    data = pytest.importorskip("timm.data")
    file = photo(tmp_path / "a.png", width, height)
    theirs = data.create_transform(
        (3, 48, 48),
        interpolation=interpolation,
        mean=RGB.mean,
        std=RGB.std,
        crop_pct=0.875,
        crop_mode=mode,
    )(Image.open(file).convert("RGB"))
    resize = 54 if mode == "center" else (54, 54)
    ours = load_image(file, Preprocess((48, 48), resize, interpolation, RGB.mean, RGB.std))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


# Arrays


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_by_input_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    np.savez(path, **pairs()) if suffix == ".npz" else save_file(pairs(), path)
    data = open_data(path, PAIR, None)
    assert data.labels == (0, 1, 2, 3, 4)
    assert [s["a"].tolist() for s in data] == pairs()["a"].tolist()
    assert next(iter(data))["b"].dtype == np.int64
    first = data.fingerprint
    changed = {**pairs(), "labels": np.zeros(5, dtype=np.int64)}
    np.savez(path, **changed) if suffix == ".npz" else save_file(changed, path)
    assert open_data(path, PAIR, None).fingerprint != first


def test_npy_for_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pairs()["a"])
    data = open_data(tmp_path / "x.npy", PAIR[:1], None)
    assert len(data) == 5
    assert data.labels is None
    assert next(iter(data))["a"].tolist() == [0, 1]
    with pytest.raises(EdgekitError, match="2 inputs: a, b"):
        open_data(tmp_path / "x.npy", PAIR, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": None}, "Found a; expected a, b"),
        ({"c": np.zeros(5)}, "Found a, b, c; expected a, b"),
        ({"a": np.zeros((5, 4), np.float32)}, r"a has the wrong shape.\nFound 4; expected 2"),
        ({"a": np.zeros((5, 2, 1), np.float32)}, r"Found 2x1; expected 2 "),
        ({"a": np.zeros((5, 2))}, "Found float64; expected float32"),
        ({"b": np.zeros((5, 3), np.int32)}, "Found int32; expected int64"),
        ({"a": np.zeros((4, 2), np.float32)}, "a: 4, b: 5, labels: 5"),
        ({"labels": np.zeros(5)}, "labels are not class indices"),
        ({"labels": np.zeros(4, np.int64)}, "labels: 4"),
    ],
)
def test_wrong_arrays_say_what_was_found_and_expected(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = {name: v for name, v in {**pairs(), **change}.items() if v is not None}
    np.savez(tmp_path / "data.npz", **content)
    with pytest.raises(EdgekitError, match=message) as error:
        open_data(tmp_path / "data.npz", PAIR, None)
    assert "data.npz" in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_named_with_their_index(tmp_path: Path, value: float) -> None:
    content = pairs()
    content["a"][3, 1] = value
    np.savez(tmp_path / "data.npz", **content)
    data = open_data(tmp_path / "data.npz", PAIR, None)
    with pytest.raises(EdgekitError, match=r"data\.npz, index 3: a holds NaN or infinity"):
        list(data)


def test_an_array_file_without_samples_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **pairs(0))
    with pytest.raises(EdgekitError, match=r"data\.npz is empty"):
        open_data(tmp_path / "data.npz", PAIR, None)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_corrupt_array_file_is_named(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"data{suffix}"
    content = {"a": np.zeros((500, 2), np.float32)}
    if suffix == ".npy":
        np.save(path, content["a"])
    elif suffix == ".npz":
        np.savez(path, **content)
    else:
        save_file(content, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(EdgekitError, match=rf"data\{suffix} (cannot be read|is empty)"):
        open_data(path, PAIR[:1], None)


def test_pickled_objects_in_arrays_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(EdgekitError, match=f"{name} cannot be read"):
            open_data(tmp_path / name, PAIR[:1], None)


def test_missing_and_unknown_data(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="none does not exist"):
        open_data(tmp_path / "none", PAIR, None)
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(EdgekitError, match=r"data\.csv is of an unknown kind"):
        open_data(tmp_path / "data.csv", PAIR, None)


# Python objects


def test_python_objects() -> None:
    content = pairs()
    rows = [{"a": a, "b": b} for a, b in zip(content["a"], content["b"], strict=True)]
    by_name = open_data(content, PAIR, None)
    dicts = open_data(rows, PAIR, None)
    labelled = open_data(((row, i) for i, row in enumerate(rows)), PAIR, None)
    arrays = open_data(content["a"], PAIR[:1], None)
    tensors = open_data(
        [(torch.from_numpy(a), torch.tensor(7)) for a in content["a"]], PAIR[:1], None
    )
    assert len(by_name) == len(dicts) == len(labelled) == len(arrays) == len(tensors) == 5
    assert by_name.labels == labelled.labels == (0, 1, 2, 3, 4)
    assert dicts.labels is None
    assert tensors.labels == (7,) * 5
    for data in (by_name, dicts, labelled, arrays, tensors):
        assert [s["a"].tolist() for s in data] == content["a"].tolist()
    assert open_data(by_name, PAIR, None) is by_name


def test_the_fingerprint_of_python_objects_follows_their_values() -> None:
    content = pairs()["a"]
    first = open_data(content, PAIR[:1], None).fingerprint
    assert open_data(content.copy(), PAIR[:1], None).fingerprint == first
    content[0, 0] += 1
    assert open_data(content, PAIR[:1], None).fingerprint != first


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "is empty"),
        (7, "type int cannot be used"),
        (["text"], "index 0 is not an array of numbers"),
        ([np.zeros(2, np.float32), np.zeros(3, np.float32)], "index 1: a has the wrong shape"),
        ([np.full(2, np.nan, np.float32)], "index 0: a holds NaN"),
        ([{"b": np.zeros(2, np.float32)}], "Found b; expected a"),
        ([(np.zeros(2, np.float32), 1), np.zeros(2, np.float32)], "1 of 2 are labelled"),
        ([(np.zeros(2, np.float32), 0.5)], "label is not an integer"),
        ([np.zeros((1, 2), np.float32)], "Found 1x2; expected 2 "),
    ],
)
def test_wrong_python_objects(source: Any, message: str) -> None:
    with pytest.raises(EdgekitError, match=message):
        list(open_data(source, PAIR[:1], None))


# Subsets and noise


def numbers(count: int) -> Dataset:
    samples = [(np.full(2, i, np.float32), i) for i in range(count)]
    return open_data(samples, PAIR[:1], None)


def values(data: Dataset) -> list[int]:
    return [int(sample["a"][0]) for sample in data]


def test_take_is_random_and_the_same_for_the_same_seed() -> None:
    data = numbers(50)
    one, again, other = data.take(10, seed=1), data.take(10, seed=1), data.take(10, seed=2)
    assert values(one) == values(again) != values(other)
    assert len(set(values(one))) == 10
    assert one.labels == tuple(values(one))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert values(one) != list(range(10))
    assert values(data.take(99, seed=1)) == list(range(50))
    with pytest.raises(EdgekitError, match="0 samples"):
        data.take(0, seed=1)


def test_split_is_disjoint_and_complete() -> None:
    first, rest = numbers(50).split(0.3, seed=4)
    assert (len(first), len(rest)) == (15, 35)
    assert sorted(values(first) + values(rest)) == list(range(50))
    assert rest.labels == tuple(values(rest))
    assert first.take(5, seed=0).labels == tuple(values(first.take(5, seed=0)))
    assert [len(part) for part in numbers(2).split(0.01, seed=0)] == [1, 1]


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.5), (9, 0.0), (9, 1.0)])
def test_an_impossible_split_is_refused(count: int, fraction: float) -> None:
    with pytest.raises(EdgekitError, match="cannot be split"):
        numbers(count).split(fraction, seed=0)


def test_random_data_says_so_and_repeats() -> None:
    inputs = (*PAIR, Input("c", (1, Dim("length", 1, 5, 9)), "bool"))
    data, again = random_data(inputs, 20, seed=3), random_data(inputs, 20, seed=3)
    assert data.origin == "random numbers (seed 3)"
    assert data.labels is None
    for one, two in zip(data, again, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
        assert one["a"].dtype == np.float32
        assert one["b"].dtype == np.int64
        assert one["c"].dtype == bool
        assert set(one["b"].tolist()) <= {0, 1}
    drawn = np.concatenate([sample["a"] for sample in data])
    assert 0.5 < drawn.std() < 1.5
    assert data.fingerprint == again.fingerprint != random_data(inputs, 20, seed=4).fingerprint
