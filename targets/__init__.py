"""Targets: one TOML of facts per device, each fact with its source. No code per device."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit.errors import EdgekitError
from edgekit.find import unknown
from edgekit.quantize.schemes import SCHEMES, Precision


class Target(BaseModel):
    """What edgekit knows about a device.

    Attributes:
        name: the file's name, as typed on the command line.
        title: the device's full name.
        runtime: what runs there: ``onnxruntime``, ``openvino``, ``tensorrt_rtx``, ``tensorrt``,
            ``coreml`` or ``nir``.
        formats: the converters' names whose artifacts a bundle for it holds, in order.
        dtypes: the number formats its hardware and runtime execute.
        float_dtype: the float type around INT8 operators: ``fp32`` or ``fp16``.
        opset: the highest ONNX opset its runtime takes, or None where ONNX is not used.
        compute_capability: NVIDIA's SM, such as ``8.9``.
        deployment: the least Core ML version, such as ``iOS17``.
        runtime_version: of the system software named in ``system``.
        memory_gb: memory the model can use, in GB.
        bandwidth_gb_s: peak memory bandwidth, in GB/s.
        cores: streaming multiprocessors of a GPU, over which a kernel's results are spread.
        cache_mb: of a GPU's last cache, in 10**6 bytes.
        clock_mhz: of the GPU, at which the peaks hold; of the Neural Engine it is not published.
        peak: dense peak rates by dtype, in 10**12 operations a second.
        power_modes: names of the power modes the peaks hold for.
        notes: precision -> what a user of it should know on this device.
        sources: fact -> where it was read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    runtime: Literal["onnxruntime", "openvino", "tensorrt_rtx", "tensorrt", "coreml", "nir"]
    formats: tuple[str, ...]
    dtypes: tuple[str, ...]
    float_dtype: Literal["fp32", "fp16"]
    opset: int | None = None
    compute_capability: str | None = None
    deployment: str | None = None
    system: str = ""
    runtime_version: str = ""
    memory_gb: float | None = None
    bandwidth_gb_s: float | None = None
    cores: int | None = None
    clock_mhz: float | None = None
    cache_mb: float | None = None
    peak: dict[str, float] = {}
    power_modes: tuple[str, ...] = ()
    notes: dict[str, str] = {}
    sources: dict[str, str]

    def require(self, precision: str) -> None:
        """Raise unless the device runs this precision.

        Raises:
            EdgekitError: it does not; the message names those that it does.
        """
        if not self._runs(precision):
            able = [p for p in get_args(Precision) if self._runs(p)]
            raise EdgekitError(
                f"{self.title} cannot run {precision}.",
                f"{self.name} runs {', '.join(self.dtypes)} ({self.sources['dtypes']}).",
                f"Choose --precision {' or '.join(able)}.",
            )

    def _runs(self, precision: str) -> bool:
        scheme = SCHEMES.get(precision)
        return set((precision,) if scheme is None else scheme.dtypes) <= set(self.dtypes)


def names() -> list[str]:
    """Names of all targets, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.toml"))


def load(name: str) -> Target:
    """The target of that name.

    Raises:
        EdgekitError: unknown (the nearest names are given), or its file is malformed.
    """
    if name not in names():
        raise unknown("target", name, names())
    path = Path(__file__).with_name(f"{name}.toml")
    try:
        return Target(name=name, **tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise EdgekitError(f"Target file {path} is malformed.", str(error)) from error
