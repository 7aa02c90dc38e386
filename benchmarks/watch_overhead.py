"""What watching the machine costs what is timed on it.

    python benchmarks/watch_overhead.py [--root DIR] [--rounds 40]

A model (ONNX Runtime, one thread) is timed in turns with and without ``Watch``, so that what else
the machine does hits both alike; printed is the median ratio with its 95% interval. Then what one
sample costs: the thread's own CPU time, and with it the share of one core at the usual rate.

Without --root a tree of plain files stands for the machine's sensors: as many as a Jetson AGX
Orin has, which is more than most. Reading a plain file costs what reading sysfs costs in Python;
what a real sensor's bus adds is waiting, in which other threads run. Writes
benchmarks/results/watch_overhead.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from edgekit.converters.kit.sampler import INTERVAL
from edgekit.latency.interval import median_interval
from edgekit.machine import Watch, environment

#: Samples whose CPU time is taken, one after another.
SAMPLES = 300


def tree(root: Path) -> None:
    """Sensors of an AGX Orin: 12 cores, GPU, 12 zones, 12 cooling devices, 4 rails."""
    files = {"proc/stat": "cpu 1 0 1 8 0 0 0 0", "proc/self/stat": "1 (a) R" + " 0" * 20}
    for core in range(12):
        policy = f"sys/devices/system/cpu/cpufreq/policy{core}"
        for name in ("cur", "min", "max"):
            files[f"{policy}/scaling_{name}_freq"] = "1510400"
    for name in ("cur", "min", "max"):
        files[f"sys/class/devfreq/17000000.gpu/{name}_freq"] = "1300500000"
    for zone in range(12):
        files[f"sys/class/thermal/thermal_zone{zone}/type"] = f"zone{zone}-thermal"
        files[f"sys/class/thermal/thermal_zone{zone}/temp"] = "50000"
        files[f"sys/class/thermal/cooling_device{zone}/type"] = f"part{zone}-throttle-alert"
        files[f"sys/class/thermal/cooling_device{zone}/cur_state"] = "0"
    for rail in range(4):
        chip = f"sys/bus/i2c/drivers/ina3221/1-004{rail // 3}/hwmon/hwmon{rail // 3}"
        channel = rail % 3 + 1
        files[f"{chip}/in{channel}_label"] = f"RAIL{rail}"
        files[f"{chip}/in{channel}_input"] = files[f"{chip}/curr{channel}_input"] = "5000"
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")


def workload() -> Callable[[], Any]:
    """About two milliseconds of matrix products in ONNX Runtime, on one thread."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    shape = (256, 256)
    weight = np.eye(256, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x" if k == 0 else f"y{k}", "w"], [f"y{k + 1}"])
        for k in range(8)
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y8")]
    held = onnx.numpy_helper.from_array(weight, "w")
    graph = helper.make_graph(nodes, "products", value[:1], value[1:], [held])
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    given = {"x": np.ones(shape, np.float32)}
    return lambda: session.run(None, given)


def block(call: Callable[[], Any], root: str | None, seconds: float) -> float:
    """The mean time of a call in ``seconds`` of calls, watched or not."""
    with nullcontext() if root is None else Watch(root):
        start, count = time.perf_counter(), 0
        while (taken := time.perf_counter() - start) < seconds:
            call()
            count += 1
    return taken / count


def sample_cost(root: str) -> float:
    """Seconds of CPU that one sample takes."""
    with Watch(root, interval=3600) as watch:
        start = time.thread_time()
        for _ in range(SAMPLES):
            watch.sample()
        return (time.thread_time() - start) / SAMPLES


def measure(root: str, rounds: int, seconds: float) -> dict[str, Any]:
    """The ratio of watched to not watched, and what a sample costs."""
    call = workload()
    block(call, None, seconds)
    ratios = []
    for number in range(rounds):
        order = (root, None) if number % 2 == 0 else (None, root)
        taken = {each: block(call, each, seconds) for each in order}
        ratios.append(taken[root] / taken[None])
    low, ratio, high = median_interval(np.array(ratios))
    cpu = sample_cost(root)
    return {
        "rounds": rounds,
        "seconds_a_block": seconds,
        "interval_s": INTERVAL,
        "ratio": {"low": low, "median": ratio, "high": high},
        "sample_cpu_us": cpu * 1e6,
        "share_of_a_core": cpu / INTERVAL,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", help="a machine's / instead of the tree of plain files")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each block")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree(Path(folder))
        found = measure(options.root or folder, options.rounds, options.seconds)
    path = Path(__file__).with_name("results") / "watch_overhead.json"
    report = {"schema_version": 1, "environment": environment(), **found}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    ratio = found["ratio"]
    Console().print(
        f"Watched / not watched: {ratio['median']:.4f} ({ratio['low']:.4f} to {ratio['high']:.4f}, "
        f"95%), {found['rounds']} rounds. One sample: {found['sample_cpu_us']:.0f} us of CPU, "
        f"{found['share_of_a_core']:.2%} of a core at one every {INTERVAL} s."
    )


if __name__ == "__main__":
    main()
