"""This CPU: the peaks of the machine that runs this, measured in a few seconds and kept.

The target ``cpu`` is whatever machine runs it, so its file states no peaks. The rates are those of
ONNX Runtime's own product of matrices, the bandwidth that of a copy (bytes read and written), and
the floor what one of many tiny operators takes. The best of several tries counts, and of one thread
its time on the processor: what else runs there matters little.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.progress import stage
from edgekit.targets.prediction.machine import Machine

#: Rows, columns and terms of the product; bytes of the copy; operators of the chain.
PRODUCT, COPY, CHAIN = 1024, 1 << 26, 200
SECONDS, LEAST, OPSET = 1.0, 5, 20
#: Of what is kept: how it was measured, and seconds after which it is measured once more.
METHOD, AGE = 1, 24 * 3600.0


def machine(name: str, threads: int) -> Machine:
    """Measured here, or as it was when it was measured last on this machine."""
    import onnxruntime

    from edgekit.machine import environment

    key = f"{environment().get('cpu')} {onnxruntime.__version__} {threads} {METHOD}"
    path = _folder() / f"cpu-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    found = _known(path)
    if found is None or time.time() - path.stat().st_mtime > AGE:
        found = _kept(path, _better(found, {"key": key, **measure(threads)}))
    return Machine(name, found["rates"], found["bandwidth"], floor=found["floor"])


def _known(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _better(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """The best of both: what was measured beside other work is too low, never too high."""
    if old is None:
        return new
    rates = {dtype: max(rate, old["rates"][dtype]) for dtype, rate in new["rates"].items()}
    bandwidth = max(new["bandwidth"], old["bandwidth"])
    floor = min(new["floor"], old["floor"])
    return {**new, "rates": rates, "bandwidth": bandwidth, "floor": floor}


def measure(threads: int) -> dict[str, Any]:
    """``rates`` by dtype, ``bandwidth`` and ``floor``, as in ``Machine``."""
    with stage(f"Measuring this CPU's peaks on {threads} thread{'s' if threads > 1 else ''}"):
        operations = 2.0 * PRODUCT**3
        single = operations / _best(_runs(_product(), threads), threads)
        eight = operations / _best(_runs(_integer_product(), threads), threads)
        floor = _best(_runs(_chain(), threads), threads) / CHAIN
        # 4-bit weights are multiplied in float.
        rates = {"fp32": single, "int8": eight}
        return {"rates": rates, "bandwidth": _bandwidth(threads), "floor": floor}


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgekit"


def _kept(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Keep what was measured; where nothing can be written it is measured each time."""
    from edgekit import files

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(found))
    except OSError:
        return found
    return found


def clock(threads: int) -> Callable[[], float]:
    """What times a call: of one thread its own time on the processor, which others take none of."""
    return time.process_time if threads == 1 else time.perf_counter


def _best(run: Callable[[], object], threads: int) -> float:
    """Seconds of the quickest of many calls."""
    now = clock(threads)
    end, best, calls = time.perf_counter() + SECONDS, float("inf"), 0
    while calls < LEAST or time.perf_counter() < end:
        calls += 1
        start = now()
        run()
        best = min(best, now() - start)
    return best


def _runs(model: bytes, threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    spec = session.get_inputs()[0]
    dtype = np.uint8 if "uint8" in spec.type else np.float32
    given = {spec.name: np.ones(spec.shape, dtype)}
    return lambda: session.run(None, given)


def _product() -> bytes:
    weight = np.random.default_rng(0).standard_normal((PRODUCT, PRODUCT)).astype(np.float32)
    return _model([("MatMul", ["x", "w"])], {"w": weight}, (PRODUCT, PRODUCT), "FLOAT")


def _integer_product() -> bytes:
    weight = np.random.default_rng(0).integers(-127, 128, (PRODUCT, PRODUCT), np.int8)
    scale = np.array(0.01, np.float32)
    stored = {"s": scale, "w": weight, "zx": np.array(128, np.uint8), "zw": np.array(0, np.int8)}
    names = ["x", "s", "zx", "w", "s", "zw", "s", "zx"]
    return _model([("QLinearMatMul", names)], stored, (PRODUCT, PRODUCT), "UINT8")


def _chain() -> bytes:
    steps = [("Sigmoid" if i % 2 else "Tanh", [f"v{i}" if i else "x"]) for i in range(CHAIN)]
    return _model(steps, {}, (1, 16), "FLOAT")


def _model(
    steps: list[tuple[str, list[str]]],
    stored: dict[str, np.ndarray[Any, Any]],
    shape: tuple[int, int],
    dtype: str,
) -> bytes:
    """An ONNX file of operators, each reading what it names, ``v1``, ``v2``... being results."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node(operator, names, [f"v{place + 1}"])
        for place, (operator, names) in enumerate(steps)
    ]
    kind = getattr(TensorProto, dtype)
    graph = helper.make_graph(
        nodes,
        "peaks",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(f"v{len(steps)}", kind, shape)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    made: bytes = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    return made


def _bandwidth(threads: int) -> float:
    """Bytes a second that a copy reads and writes."""
    source = np.ones(COPY // 4, np.float32)
    made = np.zeros_like(source) + 1  # pages are given on the first write
    pairs = list(zip(np.array_split(made, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs)), threads)
    return 2.0 * COPY / seconds
