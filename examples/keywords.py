"""Ten words, spoken by espeak-ng: accents, voices, speeds, pitches and noise.

    apt-get install espeak-ng
    python examples/keywords.py --output keywords

writes ``training.npz`` and ``evaluation.npz`` (``x``: log-mel frames (clips, 98, 40), ``labels``)
and ``calibration.npz``, some of the training clips. A clip is a second: 98 frames of 25 ms, one
every 10 ms, and its word begins in the first 0.2 seconds. Voices that judge do not train.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import wave
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
RATE = 22050
FRAME, HOP, BANDS = 551, 220, 40
FRAMES = 98
#: The most seconds before a word.
LEAD = 0.2
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-gbclan", "en-gb-x-rp")
#: How a voice sounds; the last only judge, and the others only train.
VOICES = (
    *("m1", "m2", "m3", "m4", "m5", "m8", "f1", "f2", "f3", "Andy", "Annie", "Denis", "Diogo"),
    *("Gene", "Henrique", "Jacky", "Lee", "Mario", "Michael", "anika", "belinda", "edward"),
    *("m6", "m7", "f4", "f5", "linda", "steph", "john", "benjamin"),
)
JUDGING_VOICES = 8


@dataclass(frozen=True)
class Size:
    """How much is spoken: takes of each word in training and in evaluation, and their copies."""

    training: int = 200
    copies: int = 4
    evaluation: int = 180
    calibration: int = 200


QUICK = Size(training=3, copies=2, evaluation=2, calibration=20)
Array = np.ndarray


def write(folder: Path, size: Size = Size(), seed: int = 0) -> None:
    """Speak and write the three files, unless they are there.

    Raises:
        SystemExit: espeak-ng is not installed, or lacks a voice.
    """
    if (folder / "evaluation.npz").exists():
        return
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    x, labels = clips(VOICES[:-JUDGING_VOICES], size.training, size.copies, random)
    mean, std = x.mean((0, 1)), x.std((0, 1))
    x = (x - mean) / std
    np.savez(folder / "training.npz", x=x, labels=labels)
    chosen = random.permutation(len(x))[: size.calibration]
    np.savez(folder / "calibration.npz", x=x[chosen], labels=labels[chosen])
    x, labels = clips(VOICES[-JUDGING_VOICES:], size.evaluation, 1, random)
    np.savez(folder / "evaluation.npz", x=(x - mean) / std, labels=labels)


def clips(
    voices: tuple[str, ...], takes: int, copies: int, random: np.random.Generator
) -> tuple[Array, Array]:
    """Frames (clips, 98, 40) and labels: ``takes`` of each word, each placed ``copies`` times."""
    found, labels = [], []
    for take in range(takes):
        for label, word in enumerate(WORDS):
            voice = f"{random.choice(ACCENTS)}+{random.choice(voices)}"
            speed, pitch = int(random.integers(120, 200)), int(random.integers(25, 76))
            sound = spoken(word, voice, speed, pitch)
            for _ in range(copies):
                found.append(frames(placed(sound, random)))
                labels.append(label)
        if (take + 1) % 50 == 0:
            sys.stderr.write(f"spoken {take + 1} of {takes} takes\n")
    return np.stack(found).astype(np.float32), np.array(labels)


def spoken(word: str, voice: str, speed: int, pitch: int) -> Array:
    """A word as espeak-ng says it, in [-1, 1], without silence around it.

    Args:
        voice: such as ``en-us+f2``.
        speed: words a minute.
        pitch: 0 to 99.
    """
    options = ["-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    try:
        made = subprocess.run(["espeak-ng", *options], capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise SystemExit("espeak-ng is not installed: apt-get install espeak-ng") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"espeak-ng: {error.stderr.decode().strip()}") from None
    with wave.open(io.BytesIO(made)) as file:
        sound = np.frombuffer(file.readframes(len(made)), np.int16) / 32768
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    return sound[loud[0] : loud[-1] + 1]


def placed(sound: Array, random: np.random.Generator) -> Array:
    """A second that begins with the word, louder or softer, and noise 5 to 25 dB below it."""
    length = HOP * (FRAMES - 1) + FRAME
    clip, sound = np.zeros(length), sound[:length]
    start = random.integers(0, min(int(LEAD * RATE), length - len(sound)) + 1)
    clip[start : start + len(sound)] = sound * random.uniform(0.3, 1.0)
    power = np.square(clip).sum() / len(sound)
    noise = random.standard_normal(length)
    if random.random() < 0.5:  # half of it has less power in higher pitches, as rooms have
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(spectrum / np.sqrt(1 + np.arange(len(spectrum))), length)
    level = np.sqrt(power / np.square(noise).mean()) * 10 ** (-random.uniform(5, 25) / 20)
    return clip + level * noise


def frames(clip: Array) -> Array:
    """Logarithms of the power in each mel band, (98, 40)."""
    cut = np.lib.stride_tricks.sliding_window_view(clip, FRAME)[::HOP]
    power = np.abs(np.fft.rfft(cut * np.hanning(FRAME), 1024)) ** 2
    return np.log(power @ mel_bands() + 1e-6)


@cache
def mel_bands(bins: int = 513, low: float = 60.0, high: float = 8000.0) -> Array:
    """Triangles of equal width in mel, 2595 log10(1 + f / 700); (bins, bands)."""
    edges = np.linspace(*(2595 * np.log10(1 + f / 700) for f in (low, high)), BANDS + 2)
    edges = 700 * (10 ** (edges / 2595) - 1)
    places = np.linspace(0, RATE / 2, bins)[:, None]
    rising = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rising, falling), 0, None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("keywords"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.output, seed=given.seed)
