"""Machine: what of a device the roofline rests on, from a target's facts or from measuring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.errors import EdgekitError
from edgekit.quantize.schemes import SCHEMES
from edgekit.targets import Target

#: Bytes of one number; 4-bit weights come with a 16-bit scale for 32 of them.
BYTES = {"fp32": 4.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5 + 2 / 32}
#: From this compute capability on, TensorRT multiplies fp32 as TF32, at half of fp16's rate.
TF32_SINCE = 8.0


@dataclass(frozen=True)
class Runtime:
    """How a runtime turns a graph into kernels.

    Attributes:
        name: of the runtime, or of those that are alike.
        fuses: whether what is computed number by number is done in the kernel before it.
        attention: float types in which attention is one kernel that keeps no scores.
        integers: whether quantized layers hand integers to each other.
        loops: whether a recurrence is a loop over its steps, not products of all of them.
    """

    name: str
    fuses: bool = True
    attention: tuple[str, ...] = ()
    integers: bool = True
    loops: bool = False


RUNTIMES = {
    "tensorrt": Runtime("tensorrt", attention=("fp16",)),
    "tensorrt_8": Runtime("tensorrt"),
    "coreml": Runtime("coreml", attention=("fp16",)),
    "onnxruntime": Runtime("onnxruntime", integers=False, loops=True),
    "openvino": Runtime("openvino", loops=True),
    "torch_amp": Runtime("torch_amp", fuses=False, attention=("fp16",), integers=False),
}
#: Runtimes that are predicted as another is, since no point is of theirs.
AS = {"tensorrt_rtx": "tensorrt"}


@dataclass(frozen=True)
class Machine:
    """A device as the roofline sees it.

    Attributes:
        name: the target's.
        rates: operations a second by dtype; ``tf32`` where fp32 is multiplied so.
        bandwidth: bytes a second.
        cores: streaming multiprocessors of a GPU, or None: work is then not counted in tiles.
        cache: bytes of its last cache; 0 where that is not known.
        clock: cycles a second, for what a kernel costs beside its work.
        floor: seconds that a kernel costs, where that was measured.
    """

    name: str
    rates: Mapping[str, float]
    bandwidth: float
    cores: int | None = None
    clock: float = 1e9
    cache: float = 0.0
    floor: float | None = None

    def rate(self, dtype: str, title: str) -> float:
        """Operations a second.

        Raises:
            EdgekitError: it is not known.
        """
        if dtype not in self.rates:
            raise missing(title, f"its peak rate in {dtype} (peak.{dtype})")
        return self.rates[dtype]


def machine_of(target: Target) -> Machine:
    """From the facts of a target.

    Raises:
        EdgekitError: a fact that is needed is not stated.
    """
    if not target.peak:
        raise missing(target.title, "any of its peak rates (peak)")
    if target.bandwidth_gb_s is None:
        raise missing(target.title, "its bandwidth (bandwidth_gb_s)")
    rates = {dtype: rate * 1e12 for dtype, rate in target.peak.items()}
    if float(target.compute_capability or 0) >= TF32_SINCE and "fp16" in rates:
        rates["fp32"] = max(rates["fp16"] / 2, rates.get("fp32", 0.0))
    return Machine(
        name=target.name,
        rates=rates,
        bandwidth=target.bandwidth_gb_s * 1e9,
        cores=target.cores,
        clock=(target.clock_mhz or 1000) * 1e6,
        cache=(target.cache_mb or 0) * 1e6,
    )


def multiplies_tf32(target: Target) -> bool:
    """Whether fp32 is multiplied in tensor cores."""
    return float(target.compute_capability or 0) >= TF32_SINCE


def missing(title: str, fact: str) -> EdgekitError:
    """The error for a device of which too little is known."""
    return EdgekitError(
        f"The latency of {title} can be neither measured nor predicted here.",
        f"Its file does not state {fact}.",
        "Add the fact, with its source, to the target's file; or measure on the device with "
        "`edgekit bench` or the on-device kit.",
    )


@dataclass(frozen=True)
class Numbers:
    """Which numbers a precision computes with and stores.

    Attributes:
        float: around what is quantized: ``fp32`` or ``fp16``.
        compute: of a quantized layer's products.
        weight: of a quantized layer's weights.
        activation: of what passes between quantized layers.
    """

    float: str
    compute: str
    weight: str
    activation: str

    @classmethod
    def of(cls, precision: str, float_dtype: str) -> Numbers:
        """Of a precision on a device with this float type around integers.

        >>> Numbers.of("w4a16", "fp16")
        Numbers(float='fp16', compute='fp16', weight='int4', activation='fp16')
        """
        scheme = SCHEMES.get(precision)
        if scheme is None:
            return cls(precision, precision, precision, precision)
        compute = scheme.activation or float_dtype
        # No kernel multiplies 8-bit activations by 4-bit weights: those are stored in 8.
        weight = scheme.activation or scheme.weight
        return cls(float_dtype, compute, weight, compute)
