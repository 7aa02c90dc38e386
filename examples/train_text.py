"""Train a small hybrid of Mamba-2 and attention on the characters of Python's own library.

    python examples/train_text.py --output text
    edgekit build transformers/text --precision int8 --calibration text/calibration.npz \\
        --evaluation text/evaluation.npz --target cpu --output bundle
    edgekit eval bundle --data text/evaluation.npz --labels text/evaluation_next.npy \\
        --metric bits_per_token --accuracy-drop 2

The model is transformers' Bamba: three Mamba-2 layers and one of attention. It reads the sources
of the standard library's top modules, but every tenth: those judge it. The folder holds the
checkpoint as transformers writes it, windows of the text that was read to calibrate on, windows
of the text that was not to judge on, and the characters that follow there.
"""

from __future__ import annotations

import argparse
import math
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgekit.families import torchvision

#: What a token stands for: its place here; 0 is every other character.
ALPHABET = "\0\n" + "".join(map(chr, range(32, 127)))
#: Characters in a window.
LENGTH = 128
#: Every so many modules, one judges.
HELD_OUT = 10


@dataclass(frozen=True)
class Size:
    """How much is trained, and judged: windows a step, and in the files."""

    width: int = 128
    steps: int = 1000
    batch: int = 16
    calibration: int = 64
    evaluation: int = 256


QUICK = Size(width=32, steps=8, batch=4, calibration=8, evaluation=8)


def main(output: Path, seed: int, size: Size) -> None:
    """Train, report bits per character on the modules held out, and write the folder."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    training, held_out = texts()
    model = make_model(size.width)
    start = time.process_time()
    train(model, training, size)
    model.eval()
    chosen = np.random.default_rng(seed)
    calibration, _ = windows(training, size.calibration, chosen)
    evaluation, following = windows(held_out, size.evaluation, chosen)
    model.save_pretrained(output)
    np.savez(output / "calibration.npz", input_ids=calibration)
    np.savez(output / "evaluation.npz", input_ids=evaluation)
    np.save(output / "evaluation_next.npy", following)
    sys.stdout.write(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(training):,} characters "
        f"of Python {sys.version.split()[0]}'s library, {time.process_time() - start:.0f} s "
        "of processor time\n"
        f"bits per character on {evaluation.size:,} of {len(held_out):,} held-out characters: "
        f"{bits(model, evaluation, following):.3f}\n"
    )


def texts() -> tuple[np.ndarray, np.ndarray]:
    """The characters to train on and those to judge on, as tokens."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    held_out = files[::HELD_OUT]
    parts = ([file for file in files if file not in held_out], held_out)
    read = ["".join(file.read_text(encoding="utf-8") for file in part) for part in parts]
    return encode(read[0]), encode(read[1])


def encode(text: str) -> np.ndarray:
    """Text as tokens (length,) int64."""
    place = {character: index for index, character in enumerate(ALPHABET)}
    return np.array([place.get(character, 0) for character in text], np.int64)


def decode(tokens: np.ndarray) -> str:
    """Tokens as text; what the alphabet lacks comes back as U+FFFD."""
    return "".join(ALPHABET[token] for token in tokens).replace("\0", "\ufffd")


def windows(text: np.ndarray, count: int, chosen: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Random windows of a text (count, LENGTH), and the same one character later."""
    starts = chosen.integers(0, len(text) - LENGTH, count)[:, None] + np.arange(LENGTH)
    return text[starts], text[starts + 1]


def make_model(width: int) -> torch.nn.Module:
    """The untrained model."""
    torchvision.repair()
    from transformers import BambaConfig, BambaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # it advises kernels for GPUs
    logging.disable_progress_bar()
    config = BambaConfig(
        vocab_size=len(ALPHABET),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        attn_layer_indices=[2],
        num_attention_heads=4,
        num_key_value_heads=2,
        mamba_n_heads=8,
        mamba_d_head=width // 4,
        mamba_n_groups=1,
        mamba_d_state=16,
        mamba_chunk_size=32,
        max_position_embeddings=8 * LENGTH,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: torch.nn.Module = BambaForCausalLM(config)
    return model


def train(model: torch.nn.Module, text: np.ndarray, size: Size) -> None:
    """AdamW with a one-cycle learning rate, on windows drawn at random."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=size.steps)
    chosen = np.random.default_rng(torch.initial_seed())
    model.train()
    for step in range(size.steps):
        loss = cost(model, *windows(text, size.batch, chosen))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            sys.stderr.write(
                f"step {step + 1}/{size.steps}, {loss.item() / math.log(2):.3f} bits\n"
            )


def cost(model: torch.nn.Module, tokens: np.ndarray, following: np.ndarray) -> Tensor:
    """The mean cross entropy, in nats."""
    logits = model(input_ids=torch.from_numpy(tokens), use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(following).flatten()
    )


def bits(model: torch.nn.Module, tokens: np.ndarray, following: np.ndarray) -> float:
    """Bits per character, without what came before a window."""
    with torch.inference_mode():
        costs = [cost(model, tokens[i : i + 1], following[i : i + 1]) for i in range(len(tokens))]
    return float(torch.stack(costs).mean()) / math.log(2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    given = parser.parse_args()
    main(given.output, given.seed, QUICK if given.quick else Size())
