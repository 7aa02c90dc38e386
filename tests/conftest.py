"""Fixtures that many tests share. Nothing in the suite may use the network."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# torch.compile takes seconds a build; latency/test_artifacts.py turns it on where that is tested.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
# Two threads on a tiny model cost a hundred times one, where other work shares the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: Flags for a build that measures hardly at all.
FAST = (
    "--samples",
    "16",
    "--evaluation-samples",
    "16",
    "--warmup",
    "0",
    "--iterations",
    "10",
    "--seconds",
    "0.01",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that no core is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


def run_command(*arguments: object) -> Ran:
    """The real command line, in this process: loading torch anew takes seconds."""
    from edgekit import cli, progress

    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        patch.object(sys, "argv", ["edgekit", *map(str, arguments)]),
        patch.object(progress, "_enabled", False),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session", autouse=True)
def _one_core() -> Iterator[None]:
    """Measure on one thread, for the same reason."""
    with patch("edgekit.machine.cores", return_value=1):
        yield


@pytest.fixture(scope="session")
def edgekit() -> Callable[..., Ran]:
    """``edgekit("build", ...)`` gives its exit code, stdout and stderr."""
    return run_command


@pytest.fixture(scope="session")
def digits_request(digits_model: Path, digits_folder: Path) -> tuple[str, ...]:
    """The model, data and speed of a quick INT8 build; targets and output are left out."""
    model = ("build", f"timm/{digits_model}", "--precision", "int8")
    return (*model, "--calibration", str(digits_folder), *FAST)


@pytest.fixture(scope="session")
def cpu_bundle(tmp_path_factory: pytest.TempPathFactory, digits_request: tuple[str, ...]) -> Path:
    """A bundle for cpu in INT8. Do not change it: copy it."""
    out = tmp_path_factory.mktemp("cpu") / "bundle"
    assert run_command(*digits_request, "-t", "cpu", "-o", out).code == 0
    return out


@pytest.fixture(scope="session")
def whole_bundle(
    tmp_path_factory: pytest.TempPathFactory, digits_request: tuple[str, ...]
) -> tuple[Path, Ran]:
    """A bundle for one device of each runtime in INT8, and how it went. Do not change it."""
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("coremltools")
    out = tmp_path_factory.mktemp("whole") / "bundle"
    devices = ("cpu", "rtx-4090", "jetson-orin-nano-super", "iphone-15-pro")
    flags = [flag for device in devices for flag in ("-t", device)]
    return out, run_command(*digits_request, *flags, "-o", out)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 real digits as 8x8 grey PNG files, one folder a class (0 to 9)."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if index == 300:
            break
        (folder / str(label)).mkdir(exist_ok=True)
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
        image.save(folder / str(label) / f"{index:04}.png")
    return folder


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained ViT for 32x32 grey images and 10 classes, in timm's folder format."""
    import torch

    from edgekit.families.torchvision import repair

    repair()
    import timm

    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        num_classes=10,
        in_chans=1,
    )
    folder = tmp_path_factory.mktemp("digits_model")
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return folder
