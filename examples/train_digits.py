"""Train a small model on scikit-learn's digits: by default the transformer that the demo ships.

    python examples/train_digits.py
    python examples/train_digits.py --model crossvit --seed 1 --output crossvit_1
    python examples/train_digits.py --model mamba --seed 1 --output mamba_1

The first writes examples/digits_vit/. Each is a folder of config.json and model.safetensors:
``vit`` and ``crossvit`` in timm's format, named ``timm/FOLDER``; ``mamba``, which reads an image
row by row, is our Vision Mamba, named ``reference/FOLDER``. A model sees the training split of
examples/digits.py only.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from digits import load_images, splits
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from edgekit.families import reference, torchvision

HERE = Path(__file__).parent
MEAN, STD = 0.3, 0.35
#: Models that timm has: an architecture, and what makes it small.
TIMM = {
    "vit": (
        "vit_tiny_patch16_224",
        {
            "img_size": 32,
            "patch_size": 4,
            "in_chans": 1,
            "num_classes": 10,
            "embed_dim": 96,
            "depth": 4,
            "num_heads": 3,
        },
    ),
    "crossvit": (
        "crossvit_tiny_240",
        {
            "img_size": 32,
            "img_scale": [1.0, 0.75],
            "patch_size": [4, 6],
            "in_chans": 1,
            "num_classes": 10,
            "embed_dim": [48, 96],
            "depth": [[1, 2, 0], [1, 2, 0]],
            "num_heads": [3, 3],
            "mlp_ratio": [4, 4, 1],
        },
    ),
}
#: Ours: a row of pixels is a token.
MAMBA = {
    "image_size": [32, 32],
    "patch": [1, 32],
    "classes": 10,
    "width": 64,
    "depth": 2,
    "state": 8,
    "pool": "mean",
    "mean": [MEAN],
    "std": [STD],
}
EPOCHS = {"vit": 100, "crossvit": 60, "mamba": 40}


def main(name: str, output: Path, epochs: int, seed: int) -> None:
    """Train, report accuracy on the evaluation split, and write the folder."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    images, labels = load_images()
    training, _, evaluation = splits(labels)
    model = make_model(name)
    x, y = prepared(images), torch.from_numpy(labels)
    start = time.perf_counter()
    train(model, x[training], y[training], epochs)
    model.eval()
    with torch.inference_mode():
        right = (model(x[evaluation]).argmax(1) == y[evaluation]).sum().item()
    save(name, model, output)
    sys.stdout.write(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{len(training)} training images, {time.perf_counter() - start:.0f} s\n"
        f"accuracy on {len(evaluation)} held-out images: {right / len(evaluation):.2%}\n"
    )


def make_model(name: str) -> nn.Module:
    """The untrained model."""
    if name == "mamba":
        return reference.make("vision_mamba", MAMBA).module
    torchvision.repair()
    import timm

    architecture, arguments = TIMM[name]
    model: nn.Module = timm.create_model(architecture, **arguments)
    return model


def prepared(images: np.ndarray) -> Tensor:
    """Grey images (n, 8, 8) as the model's input (n, 1, 32, 32), as edgekit will do it."""
    big = [Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in images]
    values = torch.from_numpy(np.stack([np.asarray(image) for image in big])).float() / 255
    return ((values - MEAN) / STD)[:, None]


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, batch: int = 64) -> None:
    """AdamW, one-cycle learning rate, random warps."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x) - batch + 1, batch):
            chosen = order[start : start + batch]
            loss = F.cross_entropy(model(warped(x[chosen])), y[chosen], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        sys.stderr.write(f"epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}\n")


def warped(x: Tensor) -> Tensor:
    """Each image turned by up to 12 degrees, scaled and moved by up to a tenth, by chance."""
    n = len(x)
    angle = (torch.rand(n) * 2 - 1) * math.radians(12)
    scale = 1 + (torch.rand(n) * 2 - 1) * 0.1
    shift = (torch.rand(n, 2) * 2 - 1) * 0.2
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack(
        [
            torch.stack([cosine, -sine, shift[:, 0]], 1),
            torch.stack([sine, cosine, shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def save(name: str, model: nn.Module, folder: Path) -> None:
    """The weights and the configuration, of timm's models with the preprocessing."""
    if name == "mamba":
        reference.save("vision_mamba", MAMBA, model, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    text = json.dumps(timm_config(name), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def timm_config(name: str) -> dict[str, Any]:
    """What timm's own folder format says of a model."""
    architecture, arguments = TIMM[name]
    return {
        "architecture": architecture,
        "num_classes": arguments["num_classes"],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [1, 32, 32],
            "mean": [MEAN],
            "std": [STD],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": arguments["num_classes"],
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=EPOCHS, default="vit")
    parser.add_argument("--output", type=Path, help="folder; examples/digits_MODEL if not given")
    parser.add_argument("--epochs", type=int, help=f"if not given: {EPOCHS}")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    name = given.model
    folder = given.output or HERE / f"digits_{name}"
    main(name, folder, EPOCHS[name] if given.epochs is None else given.epochs, given.seed)
