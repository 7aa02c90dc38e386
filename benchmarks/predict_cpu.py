"""Measures the points of this CPU, for ``edgekit predict`` to be fitted and judged on.

    python benchmarks/predict_cpu.py

Small models of timm with random weights, in ONNX Runtime and OpenVINO, in fp32 and int8, on one
thread, one sample and eight at a time. All are timed in turns, round after round; of each the
quickest call counts, by its time on the processor and not by the clock on the wall, since others
use the machine too. (What they take of its caches and of a core's second thread still counts.) The
machine's peaks are measured likewise. Writes ``cpu.csv`` and ``cpu.toml`` in
``targets/prediction/points``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from predict_workloads import PREDICTION

from edgekit import files, targets
from edgekit.data import random_data
from edgekit.find import find
from edgekit.machine import environment, peak_memory
from edgekit.progress import say
from edgekit.recipe import Recipe
from edgekit.source import stacked
from edgekit.targets.prediction import this_cpu
from edgekit.targets.runtimes import Arrays, Runtime
from edgekit.work import Work

MODELS = (
    "resnet18",
    "mobilenetv2_100",
    "deit_tiny_patch16_224",
    "efficientnet_b0",
    "mobilevitv2_050",
    "fastvit_t8",
    "convnext_nano",
    "vit_small_patch16_224",
)
#: Those that are measured with eight samples a call, too.
BATCHED = ("resnet18", "mobilenetv2_100", "deit_tiny_patch16_224")
RUNTIMES = {"onnxruntime": "cpu", "openvino": "cpu-openvino"}
COLUMNS = "device runtime model precision batch threads milliseconds memory_mb scope left_out"
COLUMNS += " source note"


def made(model: str, precision: str, batch: int, folder: Path) -> tuple[dict[str, Path], Arrays]:
    """The artifacts that edgekit makes, by runtime, and the inputs of a call.

    They are calibrated on random numbers: their speed is the same.
    """
    fields = {"model": f"timm/{model}", "random_weights": True, "random_calibration": True}
    fields |= {"samples": 1, "effort": "quick", "precision": precision, "batch": batch}
    work = Work(Recipe.check({**fields, "batch_size": 1}, "the benchmark"))
    quantized = work.quantize() if work.recipe.scheme else None
    paths = {}
    for runtime, target in RUNTIMES.items():
        room = folder / f"{model}-{precision}-{batch}-{runtime}"
        room.mkdir()
        paths[runtime] = work.artifact(targets.load(target), "onnx", room, quantized)
    inputs = next(stacked(random_data(work.model.inputs, batch, 0), batch, batch))
    return paths, inputs


def main() -> None:
    """Measure, and write the points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of timing at most")
    minutes = parser.parse_args().minutes
    cases: dict[tuple[str, str, str, int], Timed] = {}
    with tempfile.TemporaryDirectory() as room, contextlib.ExitStack() as stack:
        for model in MODELS:
            for precision, batch in (("fp32", 1), ("int8", 1), ("fp32", 8)):
                if batch > 1 and model not in BATCHED:
                    continue
                paths, inputs = made(model, precision, batch, Path(room))
                for runtime, path in paths.items():
                    with peak_memory() as memory:
                        session = stack.enter_context(find("runtimes", runtime).open(path, 1))
                        session.infer(inputs)
                    key = (runtime, model, precision, batch)
                    cases[key] = Timed(session, inputs, memory.added_mb)
                say(f"{model} in {precision}, batch {batch}: made")
        _write(cases, _time(cases, minutes * 60))


@dataclass
class Timed:
    """A session, and the quickest of its calls, in seconds."""

    session: Runtime
    inputs: Arrays
    memory_mb: float | None
    seconds: float = float("inf")


def _time(cases: Mapping[tuple[str, str, str, int], Timed], seconds: float) -> int:
    end, rounds, now = time.perf_counter() + seconds, 0, this_cpu.clock(1)
    while time.perf_counter() < end or rounds < 3:
        for case in cases.values():
            for _ in range(2):
                start = now()
                case.session.infer(case.inputs)
                case.seconds = min(case.seconds, now() - start)
        rounds += 1
    return rounds


def _write(cases: Mapping[tuple[str, str, str, int], Timed], rounds: int) -> None:
    folder = PREDICTION / "points"
    note = f"time on the processor of the quickest of {2 * rounds} calls, in turns with all others"
    rows = []
    for (runtime, model, precision, batch), case in cases.items():
        memory = "" if case.memory_mb is None else f"{case.memory_mb:.0f}"
        row = ("cpu", runtime, model, precision, batch, 1, f"{1e3 * case.seconds:.3f}", memory)
        rows.append((*row, "device", "", "benchmarks/predict_cpu.py", note))
    with files.atomic(folder / "cpu.csv") as path, path.open("w", newline="") as lines:
        csv.writer(lines, lineterminator="\n").writerows([COLUMNS.split(), *rows])
    found = this_cpu.measure(1)
    rates = ", ".join(f"{dtype} = {rate:.4g}" for dtype, rate in found["rates"].items())
    text = f"""# Measured by benchmarks/predict_cpu.py.
cpu = "{environment()["cpu"]}"

[threads_1]
rates = {{ {rates} }}
bandwidth = {found["bandwidth"]:.4g}
floor = {found["floor"]:.3g}
"""
    files.write_text(folder / "cpu.toml", text)


if __name__ == "__main__":
    main()
