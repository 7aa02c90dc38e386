"""Train the small vision transformer that the demo ships, on scikit-learn's digits.

    python examples/train_digits.py

Writes examples/digits_vit/ in timm's folder format: config.json and model.safetensors. The
model sees the training split of examples/digits.py only.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from digits import load_images, splits
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from edgekit.families import torchvision

HERE = Path(__file__).parent
ARCHITECTURE = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 32,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 3,
}
MEAN, STD = 0.3, 0.35


def main(epochs: int, seed: int) -> None:
    """Train, report accuracy on the evaluation split, and write the folders."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    images, labels = load_images()
    training, _, evaluation = splits(labels)
    model = make_model()
    x, y = prepared(images), torch.from_numpy(labels)
    start = time.perf_counter()
    train(model, x[training], y[training], epochs)
    model.eval()
    with torch.inference_mode():
        right = (model(x[evaluation]).argmax(1) == y[evaluation]).sum().item()
    save(model, HERE / "digits_vit")
    sys.stdout.write(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{len(training)} training images, {time.perf_counter() - start:.0f} s\n"
        f"accuracy on {len(evaluation)} held-out images: {right / len(evaluation):.2%}\n"
    )


def make_model() -> nn.Module:
    """The untrained model."""
    torchvision.repair()
    import timm

    model: nn.Module = timm.create_model(ARCHITECTURE, **ARGUMENTS)
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


def save(model: nn.Module, folder: Path) -> None:
    """In timm's own folder format, with the preprocessing that the model needs."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": ARGUMENTS["num_classes"],
        "model_args": ARGUMENTS,
        "pretrained_cfg": {
            "input_size": [1, 32, 32],
            "mean": [MEAN],
            "std": [STD],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": ARGUMENTS["num_classes"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.seed)
