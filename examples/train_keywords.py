"""Train a small model that hears ten words: LMUFormer, its spiking form, or a transformer.

    python examples/train_keywords.py --model lmuformer --output keywords_lmuformer
    python examples/train_keywords.py --model spiking --output keywords_spiking
    python examples/train_keywords.py --model transformer --width 16

The first two write folders of config.json and model.safetensors, named ``reference/FOLDER``. The
transformer is there to compare with, and is not saved:

    e[t] = P x[t] + p[t]          p is learned, P makes ``width`` channels of a frame's features
    4 times: e = e + attention(norm(e)),  e = e + mixer(norm(e))
    logits = head(norm(mean of e over t))

The clips are those of examples/keywords.py, which are spoken first if they are not there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import keywords
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.compress import measure
from edgekit.families import reference
from edgekit.model import Input, Model

#: Arguments of the reference models.
LMUFORMER = {
    "lmuformer": {"features": keywords.BANDS, "window": keywords.FRAMES},
    "spiking": {"features": keywords.BANDS, "window": keywords.FRAMES, "neuron": "plif"},
}
EPOCHS = {"lmuformer": 28, "spiking": 28, "transformer": 28}
RATES = {"lmuformer": 6e-3, "spiking": 6e-3, "transformer": 3e-3}
BATCH = 128
#: Frames of the shortest clips that a stream is trained on: it is to answer before the last.
LEAST = 40


class Block(nn.Module):
    """Attention and a mixer, each behind a norm and added, (b, length, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.enter, self.leave = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mixer = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        parts = self.enter(self.first(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        x = x + self.leave(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.mixer(self.second(x))
        return y


class Transformer(nn.Module):
    """Frames (b, 98, 40) to logits (b, 10), as the file says."""

    def __init__(self, width: int, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(keywords.BANDS, width)
        self.places = nn.Parameter(0.02 * torch.randn(keywords.FRAMES, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(keywords.WORDS))

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        y = self.blocks(self.embed(x) + self.places)
        logits: Tensor = self.head(self.norm(y.mean(1)))
        return logits


def main(
    name: str, output: Path | None, data: Path, epochs: int, seed: int, width: int = 32
) -> float:
    """Train, report the size and the accuracy on the evaluation clips, and write the folder.

    Returns:
        The accuracy.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    x, y = clips(data / "training.npz")
    model = make_model(name, width)
    start = time.process_time()
    least = LEAST if name in LMUFORMER else keywords.FRAMES
    train(model.module, x, y, epochs, RATES[name], least)
    model.module.eval()
    if output and name in LMUFORMER:
        reference.save("lmuformer", LMUFORMER[name], model.module, output)
    judged, labels = clips(data / "evaluation.npz")
    right = accuracy(model.module, judged, labels)
    sys.stdout.write(
        f"{measure.parameters(model.module):,} parameters, {operations(model):,} "
        f"multiply-accumulates a clip, {len(x)} training clips, "
        f"{time.process_time() - start:.0f} s of processor time\n"
        f"accuracy on {len(judged)} clips of other voices: {right:.2%}\n"
    )
    return right


def clips(path: Path) -> tuple[Tensor, Tensor]:
    """Frames (clips, 98, 40) and labels (clips,) of a file."""
    with np.load(path) as found:
        return torch.from_numpy(found["x"]), torch.from_numpy(found["labels"])


def make_model(name: str, width: int) -> Model:
    """The untrained model; ``width`` is of the transformer."""
    if name in LMUFORMER:
        return reference.make("lmuformer", LMUFORMER[name])
    spec = Input("x", (1, keywords.FRAMES, keywords.BANDS))
    return Model(Transformer(width).eval(), (spec,), ("logits",), "")


def operations(model: Model) -> int:
    """Multiply-accumulates of a clip, with those of a memory that goes frame by frame.

    A and B are constants of the memory, which is no product with weights that torch would count.
    """
    memories = [m for m in model.module.modules() if hasattr(m, "A")]
    steps = sum(
        keywords.FRAMES * m.A.shape[0] * (m.A.shape[1] + 1) * m.enter.linear.out_features
        for m in memories
    )
    return measure.operations(model) + steps


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, rate: float, least: int) -> None:
    """AdamW with a one-cycle learning rate, on clips that are moved and masked.

    Args:
        least: frames; those of a batch end at ``least`` or later, by chance.
    """
    batch = min(BATCH, len(x))
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x) - batch + 1, batch):
            chosen = order[start : start + batch]
            heard = int(torch.randint(least, x.shape[1] + 1, ()))
            logits = model(masked(moved(x[chosen]))[:, :heard])
            loss = F.cross_entropy(logits, y[chosen], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        sys.stderr.write(f"epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}\n")


def moved(x: Tensor, frames: int = 6, bands: int = 2) -> Tensor:
    """Each clip earlier or later, and higher or lower, by chance; its edges are repeated."""
    time_places, band_places = (
        (torch.arange(size) + torch.randint(-most, most + 1, (len(x), 1))).clamp(0, size - 1)
        for size, most in ((x.shape[1], frames), (x.shape[2], bands))
    )
    clip = torch.arange(len(x))[:, None, None]
    return x[clip, time_places[:, :, None], band_places[:, None]]


def masked(x: Tensor, frames: int = 12, bands: int = 6) -> Tensor:
    """A stretch of frames and one of bands of each clip are made the mean (Park et al., 2019)."""
    for axis, most in ((1, frames), (2, bands)):
        size = x.shape[axis]
        wide = torch.randint(0, most + 1, (len(x), 1))
        first = (torch.rand(len(x), 1) * (size - wide + 1)).long()
        place = torch.arange(size)
        hidden = (place >= first) & (place < first + wide)
        x = x.masked_fill(hidden.unsqueeze(3 - axis), 0.0)
    return x


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The part of the clips that it hears right."""
    with torch.inference_mode():
        heard = torch.cat([model(part).argmax(1) for part in x.split(BATCH)])
    return (heard == y).double().mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=EPOCHS, default="lmuformer")
    parser.add_argument("--output", type=Path, help="folder to write; the transformer writes none")
    parser.add_argument("--data", type=Path, default=Path("keywords"), help="folder of the clips")
    parser.add_argument("--epochs", type=int, help=f"if not given: {EPOCHS}")
    parser.add_argument("--width", type=int, default=32, help="of the transformer")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    name = given.model
    if name in LMUFORMER and given.output is None:
        parser.error(f"--model {name} needs --output FOLDER")
    keywords.write(given.data)
    epochs = EPOCHS[name] if given.epochs is None else given.epochs
    main(name, given.output, given.data, epochs, given.seed, given.width)
