"""A small MMDiT (Stable Diffusion 3's, in diffusers) that draws digits, and what it is judged on.

Flow matching: between an image x and noise e, x_t = (1 - t) x + t e, and the model learns the
velocity e - x from x_t, t and the class, which is its text.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekit import interrupt
from edgekit.data import Dataset, open_data
from edgekit.families.diffusion import sd3
from edgekit.families.torchvision import repair
from edgekit.model import Model
from edgekit.progress import track

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from digits import load_images, splits

BLOCKS, WIDTH, HEADS = 8, 48, 3
WORDS, WORD = 4, 16
BATCH, RATE = 64, 2e-3
#: Noises and times that each image is seen with by a student, and when judging.
DRAWS = {"training": 6, "calibration": 4, "evaluation": 4}


def untrained(seed: int) -> Model:
    """The model with random weights."""
    repair()
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(seed)
    own = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=1,
        out_channels=1,
        num_layers=BLOCKS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=WORD,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=10,
        pos_embed_max_size=4,
    )
    sizes = {**sd3.sizes(own.config), "text_tokens": WORDS}
    inputs = sd3.inputs(own.config, sizes)
    return Model(sd3.Call(own, sizes).eval(), inputs, sd3.OUTPUTS, "MMDiT", "random")


def trained(seed: int, steps: int, folder: Path) -> Model:
    """The model after so many steps of flow matching; trained if it is not yet in the folder."""
    model, path = untrained(seed), folder / f"teacher_{seed}_{steps}.safetensors"
    if path.exists():
        model.module.load_state_dict(load_file(path))
        return model
    images, labels = _split("training")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.module.parameters(), RATE)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for _ in track(range(steps), f"Training the model of seed {seed}"):
        interrupt.check()
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        inputs, velocity = noised(images[chosen], labels[chosen], generator)
        loss = nn.functional.mse_loss(model.module.train()(**inputs), velocity)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
        optimizer.step()
        rate.step()
    model.module.eval()
    save_file(model.module.state_dict(), path)
    return model


def noised(
    images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The model's inputs at random times, and the velocities there."""
    t = torch.rand(len(images), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    at = t[:, None, None, None]
    words = torch.randn(10, WORDS, WORD, generator=torch.Generator().manual_seed(0))
    inputs = {
        "hidden_states": (1 - at) * images + at * noise,
        "encoder_hidden_states": words[labels],
        "pooled_projections": nn.functional.one_hot(labels, 10).float(),
        "timestep": 1000 * t,
    }
    return inputs, noise - images


def data(model: Model, part: str) -> tuple[Dataset, torch.Tensor]:
    """Samples of a part of the digits, the same for every seed, and their velocities."""
    images, labels = _split(part)
    generator = torch.Generator().manual_seed(1)
    images, labels = (each.repeat_interleave(DRAWS[part], 0) for each in (images, labels))
    inputs, velocity = noised(images, labels, generator)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    return open_data(arrays, model.inputs, None), velocity


def _split(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 1, 8, 8) from -1 to 1 and their classes; no image is in two parts."""
    pixels, labels = load_images()
    names = ("training", "calibration", "evaluation")
    chosen = splits(labels)[names.index(part)]
    images = pixels[chosen, None].astype(np.float32) / 127.5 - 1
    return torch.from_numpy(images), torch.from_numpy(labels[chosen].astype(np.int64))
