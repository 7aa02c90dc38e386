"""Our conversion beside the plain pipeline, in one run: time, memory, latency, accuracy.

    python examples/digits.py
    python benchmarks/convert.py --markdown docs/benchmarks.md

The plain pipeline is torch.onnx.export(dynamo=True), onnxruntime's quant_pre_process and its
quantize_static (QDQ, per-channel s8 weights), on the same calibration samples as ours.

- A conversion runs in a process of its own. Its time and its peak memory begin after the
  imports, the model and the list of samples, all alike for every pipeline, are loaded.
- Latencies are taken in turns: in every round each file has a block of calls, and a ratio is
  of two blocks of the same round. Figures are medians, with the 10th and 90th percentile.
- Models with random weights and random images show parity and latency, never accuracy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from convert_report import BASE, HEADER, OURS, claims, failures, rows, title, write_section

from edgekit import targets
from edgekit.data import Dataset
from edgekit.drift import compare
from edgekit.errors import EdgekitError
from edgekit.files import write_text
from edgekit.find import find
from edgekit.machine import environment, peak_memory, thread_counts
from edgekit.recipe import Recipe
from edgekit.table import plain_table, show
from edgekit.work import Work

DIGITS = Path("examples/digits")
RANDOM = {"random_weights": True, "random_calibration": True, "samples": 32}
#: What each case is, as fields of a recipe.
CASES: dict[str, dict[str, Any]] = {
    "digits_vit": {
        "model": "timm/examples/digits_vit",
        "calibration": DIGITS / "calibration",
        "evaluation": DIGITS / "evaluation",
        "evaluation_samples": 360,
    },
    "deit_tiny": {"model": "timm/deit_tiny_patch16_224", **RANDOM},
    "crossvit_tiny": {"model": "timm/crossvit_tiny_240", **RANDOM},
}
OPSET = 20
#: Calls in one block of a round; the first only wakes the threads up.
CALLS = 6


@dataclass(frozen=True)
class Effort:
    """How much is measured: repeated conversions, and rounds of latency."""

    cases: tuple[str, ...]
    repeats: int
    rounds: int


FULL = Effort(tuple(CASES), repeats=3, rounds=30)
QUICK = Effort(("digits_vit",), repeats=1, rounds=10)


def ours(precision: str) -> Callable[[Work, Path], None]:
    """edgekit's conversion to one ONNX file, without its check against the source."""

    def convert(work: Work, out: Path) -> None:
        target = targets.load("cpu")
        quantized = work.quantize() if precision == "int8" else None
        work.convert(work.lower(target, quantized), "onnx", out, target)

    return convert


def plain_fp32(work: Work, out: Path) -> None:
    """torch.onnx.export alone."""
    import torch

    model = work.model
    torch.onnx.export(
        model.module,
        kwargs={spec.name: torch.zeros(spec.concrete()) for spec in model.inputs},
        f=str(out),
        input_names=[spec.name for spec in model.inputs],
        output_names=list(model.outputs),
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )


def plain_int8(activations: str, operators: tuple[str, ...] = ()) -> Callable[[Work, Path], None]:
    """torch.onnx.export, quant_pre_process, quantize_static; no operators are all of them."""

    def convert(work: Work, out: Path) -> None:
        from onnxruntime import quantization

        kinds = {"s8": quantization.QuantType.QInt8, "u8": quantization.QuantType.QUInt8}
        exported, prepared = (out.with_name(f"{out.stem}.{s}.onnx") for s in ("fp32", "prepared"))
        plain_fp32(work, exported)
        quantization.quant_pre_process(str(exported), str(prepared))
        quantization.quantize_static(
            str(prepared),
            str(out),
            _Reader(work.datasets[0]),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(operators) or None,
            per_channel=True,
            activation_type=kinds[activations],
            weight_type=quantization.QuantType.QInt8,
            extra_options={"ActivationSymmetric": activations == "s8", "WeightSymmetric": True},
        )

    return convert


class _Reader:
    """A calibration set as onnxruntime reads it: one sample a call, with a batch of one."""

    def __init__(self, data: Dataset) -> None:
        self._samples = iter(data)

    def get_next(self) -> dict[str, Any] | None:
        """The next sample, or None."""
        sample = next(self._samples, None)
        return None if sample is None else {name: value[None] for name, value in sample.items()}


PIPELINES: dict[str, Callable[[Work, Path], None]] = {
    "edgekit fp32": ours("fp32"),
    "edgekit int8": ours("int8"),
    "plain fp32": plain_fp32,
    "plain int8 s8": plain_int8("s8"),
    "plain int8 u8": plain_int8("u8"),
    "plain int8 s8 gemm": plain_int8("s8", ("Gemm",)),
    "plain int8 u8 gemm": plain_int8("u8", ("Gemm",)),
}


def work_of(case: str, pipeline: str) -> Work:
    """The case as edgekit's work; also the source of model and samples for the plain pipeline."""
    precision = "int8" if "int8" in pipeline else "fp32"
    return Work(Recipe.check({"targets": ("cpu",), "precision": precision, **CASES[case]}, case))


def convert_here(case: str, pipeline: str, out: Path) -> dict[str, float]:
    """One conversion in this process: seconds, and megabytes above the loaded model.

    Raises:
        EdgekitError: this system does not tell a process its peak memory.
    """
    import onnxruntime.quantization  # noqa: F401 - loaded for every pipeline, before the clock
    import onnxscript  # noqa: F401
    import torch.onnx  # noqa: F401

    work = work_of(case, pipeline)
    _ = work.model, work.datasets
    with peak_memory() as memory:
        start = time.perf_counter()
        PIPELINES[pipeline](work, out)
        seconds = time.perf_counter() - start
    if memory.added_mb is None:
        raise EdgekitError("Peak memory is unknown here.", "It needs Linux's /proc.", "Use Linux.")
    return {"seconds": seconds, "peak_mb": memory.added_mb}


def convert_apart(case: str, pipeline: str, out: Path) -> dict[str, Any]:
    """``convert_here`` in a process of its own.

    Raises:
        EdgekitError: the process failed; its last lines are quoted.
    """
    report = out.with_suffix(".json")
    request = json.dumps([case, pipeline, str(out), str(report)])
    command = [sys.executable, __file__, "--child", request]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgekitError(f"{pipeline} failed on {case}.", done.stderr[-2000:])
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def take_turns(
    files: dict[str, Path], inputs: dict[str, Any], threads: int, rounds: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Milliseconds a call: for each file one median a round, files in a new order each round."""
    names = list(files)
    blocks: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        runtime = find("runtimes", "onnxruntime")
        sessions = {n: stack.enter_context(runtime.open(files[n], threads)) for n in names}
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                blocks[name].append(_block(sessions[name], inputs))
    return {name: np.array(values) for name, values in blocks.items()}


def _block(session: Any, inputs: dict[str, Any]) -> float:
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        session.infer(inputs)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:])) * 1e3


def spread(values: Any) -> dict[str, float]:
    """The median, and the 10th and 90th percentile."""
    low, middle, high = (float(v) for v in np.percentile(values, (10, 50, 90)))
    return {"median": middle, "p10": low, "p90": high}


def measure(case: str, effort: Effort, folder: Path) -> dict[str, Any]:
    """All pipelines on one case."""
    folder.mkdir()
    files = {name: folder / f"{name.replace(' ', '_')}.onnx" for name in PIPELINES}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in PIPELINES}
    for _ in range(effort.repeats):
        for name, path in files.items():
            runs[name].append(convert_apart(case, name, path))
    work = work_of(case, OURS)
    calibration, judge = work.datasets
    turns = {
        threads: take_turns(files, work.batches[0], threads, effort.rounds)
        for threads in thread_counts()
    }
    return {
        "case": case,
        "model": work.recipe.model,
        "weights": work.model.weights,
        "calibration": {"origin": calibration.origin, "samples": len(calibration)},
        "judged": {"origin": judge.origin, "samples": len(judge)},
        "source_top1": work.top1(work.expected),
        "results": [
            {
                "pipeline": name,
                "seconds": spread([run["seconds"] for run in runs[name]]),
                "peak_mb": spread([run["peak_mb"] for run in runs[name]]),
                "size_mb": path.stat().st_size / 1e6,
                **judged(work, path),
                "latency": [latency(name, threads, taken) for threads, taken in turns.items()],
            }
            for name, path in files.items()
        ],
    }


def judged(work: Work, path: Path) -> dict[str, Any]:
    """Distance from the source, and share of correct labels where there are any."""
    outputs = work.run(path, "onnxruntime")
    drift = compare(work.expected, outputs)
    return {"cosine": drift.cosine, "sqnr_db": drift.sqnr_db, "top1": work.top1(outputs)}


def latency(name: str, threads: int, taken: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Of one file: milliseconds, and ratios of the same round."""
    return {
        "threads": threads,
        "ms": spread(taken[name]),
        "to_our_fp32": spread(taken[name] / taken[BASE]),
        "ours_to_it": spread(taken[OURS] / taken[name]),
    }


def main(effort: Effort, output: Path, markdown: Path | None) -> bool:
    """Measure, print and write; whether every claim holds."""
    if not DIGITS.is_dir():
        raise EdgekitError(f"{DIGITS} does not exist.", "", "Run: python examples/digits.py")
    found: dict[str, Any] = {
        "schema_version": 1,
        "command": " ".join(["python", *sys.argv]),
        **asdict(effort),
        "environment": environment(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        found["cases"] = [measure(case, effort, Path(scratch) / case) for case in effort.cases]
    for case in found["cases"]:
        case["claims"] = claims(case)
        show(plain_table(title(case), HEADER, rows(case)))
    failed = [failure for case in found["cases"] for failure in failures(case)]
    sys.stdout.write("\n".join(failed or ["Every claim holds."]) + "\n")
    write_text(output, json.dumps(found, indent=1) + "\n")
    if markdown is not None:
        write_section(markdown, found)
    return not failed


def child(request: str) -> None:
    """One conversion, as ``convert_apart`` asks for it."""
    case, pipeline, out, report = json.loads(request)
    Path(report).write_text(json.dumps(convert_here(case, pipeline, Path(out))), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="digits only, once, fewer rounds")
    parser.add_argument("--repeats", type=int, help="conversions by each pipeline")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/convert.json"))
    parser.add_argument("--markdown", type=Path, help="write the section of this file, too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child)
    else:
        effort = QUICK if given.quick else FULL
        effort = replace(effort, repeats=given.repeats or effort.repeats)
        sys.exit(not main(effort, given.output, given.markdown))
