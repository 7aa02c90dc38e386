"""The digits models of examples/train_digits.py, and the digits as arrays for training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from edgekit.progress import say

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from digits import FOLDER, load_images, splits, write  # noqa: E402
from train_digits import EPOCHS, prepared, warped  # noqa: E402

#: Models that the script trains, and the seeds that benchmarks are judged over.
MODELS, SEEDS = tuple(EPOCHS), (0, 1, 2)


def trained(model: str, seed: int, folder: Path) -> str:
    """The source of a trained model, such as ``timm/FOLDER``; trained here if it is not yet.

    The checkpoint in examples/ stands for the first seed of the ViT.

    Args:
        model: one of ``MODELS``.
        folder: where trained models are kept: ``vit_1``, ``mamba_0``...
    """
    place = folder / f"{model}_{seed}"
    if (model, seed) == ("vit", 0):
        place = EXAMPLES / "digits_vit"
    if not (place / "model.safetensors").exists():
        say(f"Training {model} with seed {seed}")
        script = str(EXAMPLES / "train_digits.py")
        command = [sys.executable, script, "--model", model, "--seed", str(seed)]
        subprocess.run([*command, "--output", str(place)], check=True, stderr=subprocess.DEVNULL)
    return f"{'reference' if model == 'mamba' else 'timm'}/{place}"


def images() -> tuple[Path, Path]:
    """The folders of calibration and evaluation images, written if they are not there yet."""
    if not (FOLDER / "evaluation").is_dir():
        write(FOLDER)
    return FOLDER / "calibration", FOLDER / "evaluation"


def training(folder: Path, copies: int, seed: int = 0) -> Path:
    """The training images, each warped ``copies`` times, as a file of samples with labels.

    Evaluation images are not among them.
    """
    path = folder / f"training_{copies}_{seed}.npz"
    if not path.exists():
        pixels, labels = load_images()
        chosen = splits(labels)[0]
        x = prepared(pixels[chosen])
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            x = torch.cat([warped(x) for _ in range(copies)])
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, x=x.numpy(), labels=np.tile(labels[chosen], copies))
    return path
