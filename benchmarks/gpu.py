"""What a machine with an NVIDIA GPU shows of a bundle: parity with its reference, and latency.

    python benchmarks/gpu.py demo another_bundle      # writes benchmarks/results/gpu-DEVICE.json

For each bundle: the source in PyTorch, eager and compiled, in fp32 and fp16; its ONNX files in
ONNX Runtime's CUDA and TensorRT providers; and its TensorRT engines, built anew where they are for
another compute capability. What the machine lacks is a row that says so. Sequence models are also
run at the lengths given by --lengths. ``--device cpu`` tries all of it that needs no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import Bundle
from edgekit.drift import compare
from edgekit.errors import EdgekitError
from edgekit.files import write_text
from edgekit.find import find
from edgekit.latency import measure
from edgekit.machine import environment
from edgekit.model import Model
from edgekit.progress import say
from edgekit.recipe import Recipe
from edgekit.single import load_reference
from edgekit.source import load_model
from edgekit.table import plain_table, show
from edgekit.whole import opened

RESULTS = Path(__file__).parent / "results"
#: The runtimes of ONNX files.
ONNX = {
    "cpu": ("onnxruntime",),
    "cuda": ("onnxruntime_cuda", "onnxruntime_tensorrt", "onnxruntime_tensorrt_rtx"),
}
Arrays = dict[str, np.ndarray[Any, Any]]
Infer = Callable[[Arrays], Arrays]


@dataclasses.dataclass(frozen=True)
class Case:
    """A bundle on a device: its source, and inputs and outputs to hold results against."""

    bundle: Bundle
    model: Model
    inputs: Arrays
    outputs: Arrays
    device: str

    @property
    def calls(self) -> list[Arrays]:
        """The reference inputs one sample at a time."""
        count = len(next(iter(self.inputs.values())))
        return [{n: v[i : i + 1] for n, v in self.inputs.items()} for i in range(count)]


def open_case(path: Path, device: str) -> Case:
    """A bundle, its source and its reference."""
    bundle = Bundle.open(path)
    model = load_model(Recipe.model_validate(bundle.manifest.recipe))
    inputs, outputs = load_reference(path / "reference.npz")
    return Case(bundle, model, inputs, outputs, device)


def rows(case: Case, lengths: list[int]) -> Iterator[dict[str, Any]]:
    """One row a way of running it, and a length where it takes several."""
    for name, way in ways(case):
        row: dict[str, Any] = {"bundle": str(case.bundle.path), "way": name}
        say(f"{case.bundle.path}: {name}")
        try:
            infer = way()
            yield {**row, **judged(case, infer), **timed(infer, case.calls[0])}
            for length in lengths:
                yield {**row, "length": length, **timed(infer, longer(case, length))}
        except (EdgekitError, RuntimeError, ImportError) as error:
            yield {**row, "status": f"not run: {' '.join(str(error).split())[:200]}"}


def ways(case: Case) -> Iterator[tuple[str, Callable[[], Infer]]]:
    """(name, what opens it), each to be tried by itself."""
    for dtype in ("float32", "float16"):
        for name, compiled in (("torch eager", False), ("torch.compile", True)):
            yield f"{name} {dtype}", lambda d=dtype, c=compiled: in_torch(case, d, c)
    for row in case.bundle.manifest.rows:
        if row.path is None:
            continue
        path = case.bundle.path / row.path
        if row.format == "onnx":
            for runtime in ONNX[case.device]:
                yield f"{runtime} {row.path}", lambda p=path, r=runtime: opened(r, p).infer
        elif row.format == "tensorrt":
            yield f"tensorrt {row.path}", lambda p=path, t=row.target: in_tensorrt(case, p, t)


def in_torch(case: Case, dtype: str, compiled: bool) -> Infer:
    """The source in PyTorch on the device."""
    import torch

    kind = getattr(torch, dtype)
    module = case.model.module.to(case.device, kind)
    called = torch.compile(module) if compiled else module

    def infer(inputs: Arrays) -> Arrays:
        given = {name: torch.from_numpy(value).to(case.device) for name, value in inputs.items()}
        with torch.inference_mode():
            result = called(
                **{n: v.to(kind) if v.is_floating_point() else v for n, v in given.items()}
            )
        found = (result,) if isinstance(result, torch.Tensor) else result
        return {n: v.float().cpu().numpy() for n, v in zip(case.model.outputs, found, strict=True)}

    return infer


def in_tensorrt(case: Case, path: Path, target: str) -> Infer:
    """An engine, built anew for this GPU where it is another's."""
    from edgekit import targets
    from edgekit.converters.kit.cuda import Cuda
    from edgekit.converters.kit.problem import Problem

    try:
        cuda = Cuda()
    except Problem as problem:
        raise EdgekitError(problem.what, problem.why) from problem
    capability = cuda.capability
    cuda.close()
    known = targets.load(target)
    if known.compute_capability != capability:
        other = known.model_copy(update={"compute_capability": capability})
        built = Path(tempfile.mkdtemp()) / "engine.plan"
        find("converters", "tensorrt").convert(path.with_name("model.onnx"), built, other)
        path = built
    return opened("tensorrt", path).infer


def judged(case: Case, infer: Infer) -> dict[str, Any]:
    """How far the outputs are from the reference's."""
    found = [infer(call) for call in case.calls]
    joined = {name: np.concatenate([call[name] for call in found]) for name in case.outputs}
    drift = compare([case.outputs], [joined])
    return {"cosine": drift.cosine, "max_abs": drift.max_abs}


def timed(infer: Infer, inputs: Arrays) -> dict[str, Any]:
    """Milliseconds a call, from host arrays to host arrays."""
    found = measure(lambda: infer(inputs), warmup=5, iterations=100, seconds=5)
    return {"status": "measured", "p50_ms": found.p50, "p90_ms": found.p90}


def longer(case: Case, length: int) -> Arrays:
    """The first sample repeated along its second axis to so many steps."""
    first = case.calls[0]
    return {name: np.resize(value, (1, length, *value.shape[2:])) for name, value in first.items()}


def device_name(device: str) -> str:
    """What the device is called."""
    if device == "cpu":
        return str(environment()["cpu"])
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("No CUDA device is visible to PyTorch. --device cpu needs none.")
    return str(torch.cuda.get_device_name())


def main() -> None:
    """Measure, save and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--lengths", nargs="*", type=int, default=[], help="of sequence models")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    name = device_name(options.device)
    found = [
        row
        for path in options.bundles
        for row in rows(open_case(path, options.device), options.lengths)
    ]
    report = {"schema_version": 1, "device": name, "environment": environment(), "rows": found}
    out = options.output or RESULTS / f"gpu-{name.lower().replace(' ', '-')}.json"
    write_text(out, json.dumps(report, indent=1))
    heads = ("bundle", "way", "length", "status", "p50_ms", "cosine")
    show(plain_table(name, heads, [tuple(str(r.get(h, "")) for h in heads) for r in found]))


if __name__ == "__main__":
    main()
