"""How much of a clip a stream has to hear, how long a frame takes it, and what it keeps in memory.

    edgekit build reference/keywords_lmuformer --mode stream --target cpu \\
        --evaluation keywords/evaluation.npz --output heard
    python examples/hear_keywords.py heard --data keywords/evaluation.npz

The bundle's model gets the frames of each clip one by one, and its answer at each is judged.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from edgekit import Session

#: Tenths of a clip that are reported.
TENTHS = range(1, 11)
#: How far below the whole clip's accuracy an earlier answer may be, in per cent.
ALLOWED = 0.5
#: Frames of one stream whose memory is watched: over three minutes of sound.
FRAMES = 20_000
#: And the frames before, in which the runtime takes what it needs.
WARMUP = 1_000

Array = np.ndarray


def main(bundle: Path, data: Path, frames: int = FRAMES) -> None:
    """Print accuracy by how much was heard, the time of a step, and how memory grew."""
    with np.load(data) as found:
        x, labels = found["x"], found["labels"]
    with Session(bundle, threads=1) as session:
        right = accuracies(heard(session, x), labels)
        session.reset()
        milliseconds, grown = long_stream(session, x, frames)
    sys.stdout.write("| heard | accuracy |\n| --- | --- |\n")
    for tenth in TENTHS:
        at = right[tenth * len(right) // 10 - 1]
        sys.stdout.write(f"| {tenth / 10:.0%} | {at:.2f}% |\n")
    enough = least(right)
    sys.stdout.write(
        f"within {ALLOWED} points of the whole clip's from {enough / len(right):.0%} of it on\n"
        f"a frame takes {milliseconds:.3f} ms (median of {frames:,}, one thread)\n"
        f"memory grew by {grown / 1024:.0f} KiB over {frames:,} frames of one stream\n"
    )


def heard(session: Session, x: Array) -> Array:
    """The logits after each frame, (clips, frames, classes), of clips (clips, frames, features)."""
    found = []
    for clip in x:
        session.reset()
        found.append([session.step(frame)[0] for frame in clip])
    return np.array(found)


def accuracies(logits: Array, labels: Array) -> Array:
    """Per cent of the clips that are heard right after each frame, (frames,)."""
    right: Array = 100 * (logits.argmax(2) == labels[:, None]).mean(0)
    return right


def least(right: Array, allowed: float = ALLOWED) -> int:
    """Frames from which on the accuracy is that of all of them, but for ``allowed`` per cent."""
    short = np.flatnonzero(right < right[-1] - allowed)
    return int(short[-1]) + 2 if len(short) else 1


def long_stream(session: Session, x: Array, frames: int) -> tuple[float, int]:
    """Median milliseconds of a frame, and bytes that the process grew by, in one long stream."""
    sound = x.reshape(-1, x.shape[2])
    process = psutil.Process()
    for frame in range(WARMUP):
        session.step(sound[frame % len(sound)])
    took = np.ones(frames)  # not zeros, whose memory is only taken as it is written to
    before = process.memory_info().rss
    for frame in range(frames):
        start = time.perf_counter()
        session.step(sound[frame % len(sound)])
        took[frame] = time.perf_counter() - start
    return 1e3 * float(np.median(took)), process.memory_info().rss - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="made with --mode stream")
    parser.add_argument("--data", type=Path, default=Path("keywords/evaluation.npz"))
    given = parser.parse_args()
    main(given.bundle, given.data)
