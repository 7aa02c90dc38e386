"""Plan: what ``edgekit bench`` is asked to measure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgekit.errors import EdgekitError

Mode = Literal["latency", "single-stream", "throughput"]
#: MLPerf Inference's rules for its single-stream scenario.
QUERIES, SINGLE_STREAM_SECONDS = 1024, 60.0


@dataclass(frozen=True)
class Limits:
    """When to stop; what is None is the mode's own.

    Attributes:
        warmup: untimed calls first.
        iterations: timed calls at most; in single-stream mode at least (1,024, as MLPerf).
        seconds: stop after this long (3, 10 for a comparison); in single-stream mode not before
            (60, as MLPerf).
    """

    warmup: int = 10
    iterations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("iterations", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise EdgekitError(f"{name} must be more than 0, not {value}.")


@dataclass(frozen=True)
class Plan:
    """What to measure of an artifact, and how.

    Attributes:
        runtimes: of ``targets/runtimes``, or ``torch`` and ``torch.compile`` for a bundle's
            source; none is the target's own.
        threads: of the runtimes that compute on the CPU; none is one and all cores.
        batches: samples a call; none is the artifact's own, and in throughput mode those that pay.
        shapes: of inputs, ``NAME:1x3x224x224`` or several with commas between, one a measurement;
            inputs that are not named follow by the sizes that they share.
        streams: calls in flight, in throughput mode.
        profile: also measure layers, where the runtime tells.
    """

    runtimes: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    shapes: tuple[str, ...] = ()
    streams: tuple[int, ...] = ()
    mode: Mode = "latency"
    limits: Limits = Limits()
    profile: bool = False

    def __post_init__(self) -> None:
        for name in ("threads", "batches", "streams"):
            if any(number < 1 for number in getattr(self, name)):
                raise EdgekitError(f"{name} must be at least 1, not {min(getattr(self, name))}.")
        if self.batches and self.shapes:
            raise EdgekitError(
                "Batches and shapes are both given.",
                "A shape's first size is the batch.",
                "Give one of the two.",
            )
        if self.streams and self.mode != "throughput":
            raise EdgekitError(
                f"Streams have no meaning in {self.mode} mode.",
                "It makes one call after another.",
                "Ask for --mode throughput.",
            )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = asdict(self)
        return {**fields.pop("limits"), **fields}


def parse_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """``x:1x3x8x8,mask:1x8`` by name.

    Raises:
        EdgekitError: the text has another form.

    >>> parse_shapes("ids:1x128,mask:1x128")
    {'ids': (1, 128), 'mask': (1, 128)}
    """
    found = {}
    for part in text.split(","):
        name, _, sizes = part.strip().rpartition(":")
        numbers = sizes.split("x")
        if not name or not all(size.isdigit() and int(size) for size in numbers):
            raise EdgekitError(f"--shape {text!r} is not a shape.", "", "Write NAME:1x3x224x224.")
        found[name] = tuple(int(size) for size in numbers)
    return found
