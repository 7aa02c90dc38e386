"""Fixtures that many tests share. Nothing in the suite may use the network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


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
