"""Real images for the demo: scikit-learn's digits, split in three, never mixed.

    python examples/digits.py

Writes the two splits that the shipped model never saw, one folder a class:
examples/digits/calibration (10% of 1,797 images) and examples/digits/evaluation (20%).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

FOLDER = Path(__file__).parent / "digits"


def load_images() -> tuple[np.ndarray, np.ndarray]:
    """Grey images (n, 8, 8) in 0..255, and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    return np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels


def splits(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the training, calibration and evaluation images: 70%, 10%, 20%."""
    rest, evaluation = train_test_split(
        np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels
    )
    training, calibration = train_test_split(
        rest, test_size=1 / 8, random_state=0, stratify=labels[rest]
    )
    return training, calibration, evaluation


def write(folder: Path) -> None:
    """Write the calibration and evaluation images as PNG files, one folder a class."""
    images, labels = load_images()
    _, calibration, evaluation = splits(labels)
    for name, chosen in (("calibration", calibration), ("evaluation", evaluation)):
        for index in chosen:
            place = folder / name / str(labels[index])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index]).save(place / f"{index:04d}.png")


if __name__ == "__main__":
    write(FOLDER)
