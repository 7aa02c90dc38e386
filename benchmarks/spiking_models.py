"""The models of benchmarks/spiking.py: the digits ViT, and a PoolFormer that is trained here.

    python benchmarks/spiking_models.py --seed 1 --output out/benchmarks/poolformer_1

The PoolFormer (W. Yu et al., "MetaFormer Is Actually What You Need for Vision", CVPR 2022) is
timm's, with two stages of two blocks: 230 thousand parameters. timm's own names fix its widths, so
it comes from a factory: ``spiking_models:poolformer`` and its weights as a checkpoint. It learns
from the images, warps and schedule of examples/train_digits.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import digits_models
import torch
import train_digits  # digits_models puts examples/ on the path
from safetensors.torch import save_file
from torch import nn

from edgekit.families import torchvision
from edgekit.model import Input, Model, Preprocess
from edgekit.progress import say

MODELS = ("vit", "poolformer")
EPOCHS = 30
WIDTHS, DEPTHS = (48, 96), (2, 2)
#: At 1e-5, timm's start, 30 epochs would leave the blocks nearly unused.
LAYER_SCALE = 0.1
FACTORY = "spiking_models:poolformer"


def poolformer() -> Model:
    """The PoolFormer with random weights, as a factory gives it. Input ``x`` (1, 1, 32, 32)."""
    size = (32, 32)
    prepared = Preprocess(size, 32, "bicubic", (train_digits.MEAN,), (train_digits.STD,), 1)
    inputs = (Input("x", (1, 1, *size)),)
    return Model(_module().eval(), inputs, ("logits",), FACTORY, preprocess=prepared)


def _module() -> nn.Module:
    torchvision.repair()
    from timm.layers import GroupNorm1
    from timm.models.metaformer import MetaFormer

    return MetaFormer(
        in_chans=1,
        num_classes=10,
        depths=DEPTHS,
        dims=WIDTHS,
        downsample_norm=None,
        mlp_act=nn.GELU,
        mlp_bias=True,
        norm_layers=GroupNorm1,
        layer_scale_init_values=LAYER_SCALE,
        res_scale_init_values=None,
        use_mlp_head=False,
    )


def source(model: str, seed: int, folder: Path) -> dict[str, Any]:
    """A trained model, as fields of a recipe; trained here if it is not yet.

    Args:
        model: one of ``MODELS``.
        folder: where trained models are kept.
    """
    if model != "poolformer":
        return {"model": digits_models.trained(model, seed, folder)}
    weights = folder / f"poolformer_{seed}" / "model.safetensors"
    if not weights.exists():
        say(f"Training poolformer with seed {seed}")
        train(seed, weights.parent, EPOCHS)
    return {"model": FACTORY, "checkpoint": weights}


def train(seed: int, output: Path, epochs: int) -> str:
    """Train a PoolFormer, write its weights, and say how it went."""
    pixels, labels = digits_models.load_images()
    training, _, evaluation = digits_models.splits(labels)
    x, y = digits_models.prepared(pixels), torch.from_numpy(labels)
    start = time.perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = _module()
        train_digits.train(module, x[training], y[training], epochs)
    module.eval()
    with torch.inference_mode():
        right = (module(x[evaluation]).argmax(1) == y[evaluation]).sum().item()
    output.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, output / "model.safetensors")
    return (
        f"{sum(p.numel() for p in module.parameters()):,} parameters, "
        f"{len(training)} training images, {time.perf_counter() - start:.0f} s\n"
        f"accuracy on {len(evaluation)} held-out images: {right / len(evaluation):.2%}\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write(train(given.seed, given.output, given.epochs))
