"""One measurement of benchmarks/ssm.py, in a process of its own: its memory is its own.

    python benchmarks/ssm_cell.py WAY FOLDER LENGTH SCRATCH THREADS

prints one line of JSON. WAY is ``eager``, ``compile``, ``export-own``, ``export-ours``,
``run-own``, ``run-ours``, ``ratio`` (ours against transformers' own export, in turns),
``native`` (our chunk form against the native operator, in turns), ``decode`` or ``prompt``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.latency import Settings, paired
from edgekit.machine import peak_memory

#: What stops a measurement: so many calls, or so many seconds, but not before two calls.
CALLS, SECONDS = 20, 6.0
#: Positions that caches hold, where there are any.
CONTEXT = 20480
#: Tokens measured after each context.
STEPS = 30


def tokens(length: int) -> np.ndarray[Any, Any]:
    """The same random words every time, (1, length)."""
    from ssm_models import WORDS

    return np.random.default_rng(0).integers(2, WORDS, (1, length))


def source(folder: Path) -> Any:
    """transformers' own model, giving logits."""
    import torch
    import transformers

    from edgekit.families import torchvision

    torchvision.repair()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.use_cache = False
    return model


def timed(call: Callable[[], object]) -> dict[str, Any]:
    """Median and least milliseconds, and the memory that the calls took at their height."""
    taken: list[float] = []
    with peak_memory() as memory:
        call()
        end = time.perf_counter() + SECONDS
        while len(taken) < 2 or (len(taken) < CALLS and time.perf_counter() < end):
            start = time.perf_counter()
            call()
            taken.append((time.perf_counter() - start) * 1e3)
    return {"ms": float(np.median(taken)), "min_ms": min(taken), "peak_mb": memory.added_mb}


def eager(folder: Path, length: int, scratch: Path, threads: int) -> dict[str, Any]:
    """transformers in PyTorch."""
    return _torch(source(folder), length, threads)


def compiled(folder: Path, length: int, scratch: Path, threads: int) -> dict[str, Any]:
    """transformers in PyTorch, compiled; the first call, which compiles, is not timed."""
    import torch

    start = time.perf_counter()
    model = torch.compile(source(folder))
    found = _torch(model, length, threads)
    return {**found, "seconds": time.perf_counter() - start}


def _torch(model: Any, length: int, threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    ids = torch.from_numpy(tokens(length))
    with torch.inference_mode():
        return timed(lambda: model(input_ids=ids))


def export_own(folder: Path, length: int, scratch: Path, threads: int) -> dict[str, Any]:
    """transformers' model by torch.onnx.export, as its user would."""
    import torch

    model, start = source(folder), time.perf_counter()
    ids = torch.from_numpy(tokens(length))
    with peak_memory() as memory:
        program = torch.onnx.export(
            model, kwargs={"input_ids": ids}, dynamo=True, opset_version=20, verbose=False
        )
        program.save(str(scratch / f"own_{length}.onnx"))
    seconds = time.perf_counter() - start
    nodes = count(scratch / f"own_{length}.onnx")
    return {"seconds": seconds, "nodes": nodes, "peak_mb": memory.added_mb}


def export_ours(folder: Path, length: int, scratch: Path, threads: int) -> dict[str, Any]:
    """edgekit, of any length, for ONNX Runtime; ``native`` also makes the file without its own
    operators.
    """
    from edgekit import targets
    from edgekit.recipe import Recipe
    from edgekit.work import Work

    recipe = Recipe(
        model=f"transformers/{folder}",
        targets=("cpu",),
        inputs=(f"input_ids:1x1..1024..{length}:int64",),
        random_calibration=True,
    )
    work = Work(recipe)
    _, start = work.model, time.perf_counter()
    with peak_memory() as memory:
        cpu = targets.load("cpu")
        work.convert(work.lower(cpu, None), "onnx", scratch / "ours.onnx", cpu)
    seconds = time.perf_counter() - start
    gpu = targets.load("rtx-4090")
    work.convert(work.lower(gpu, None), "onnx", scratch / "plain.onnx", gpu)
    nodes = count(scratch / "ours.onnx")
    return {"seconds": seconds, "nodes": nodes, "peak_mb": memory.added_mb}


def count(path: Path) -> int:
    """Nodes of a file, those of its loops among them."""
    import onnx

    def inside(graph: Any) -> int:
        attributes = [a for node in graph.node for a in node.attribute if a.HasField("g")]
        return len(graph.node) + sum(inside(a.g) for a in attributes)

    model = onnx.load(str(path), load_external_data=False)
    return inside(model.graph) + sum(len(function.node) for function in model.functions)


def run_own(folder: Path, length: int, scratch: Path, threads: int) -> dict[str, Any]:
    """transformers' own export in ONNX Runtime."""
    return _run(scratch / f"own_{length}.onnx", folder, length, threads)


def run_ours(folder: Path, length: int, scratch: Path, threads: int) -> dict[str, Any]:
    """Our export in ONNX Runtime."""
    return _run(scratch / "ours.onnx", folder, length, threads)


def _run(artifact: Path, folder: Path, length: int, threads: int) -> dict[str, Any]:
    from edgekit.find import find

    ids = tokens(length)
    with find("runtimes", "onnxruntime").open(artifact, threads) as session:
        return timed(lambda: session.infer({"input_ids": ids}))


def ratio(folder: Path, length: int, scratch: Path, threads: int) -> dict[str, Any]:
    """Our export against transformers' own, in turns, and how far their outputs are apart."""
    from edgekit.find import find

    files = scratch / "ours.onnx", scratch / f"own_{length}.onnx"
    ids = {"input_ids": tokens(length)}
    outputs = []
    for file in files:
        with find("runtimes", "onnxruntime").open(file, threads) as session:
            outputs.append(next(iter(session.infer(ids).values())))
    apart = float(np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[1]).max())
    settings = Settings(ids, 1, 40, SECONDS)
    return {**paired(*files, "onnxruntime", settings, threads).as_dict(), "apart": apart}


def native(folder: Path, length: int, scratch: Path, threads: int) -> dict[str, Any]:
    """Our form without ONNX Runtime's own operators against that with them, in turns."""
    files = scratch / "plain.onnx", scratch / "ours.onnx"
    settings = Settings({"input_ids": tokens(length)}, 1, 40, SECONDS)
    return paired(*files, "onnxruntime", settings, threads).as_dict()


def stream(folder: Path, scratch: Path, length: int) -> Path:
    """A streaming artifact, made if it is not there."""
    from edgekit import targets
    from edgekit.recipe import Recipe
    from edgekit.work import Work

    made = scratch / "stream.onnx"
    if not made.exists():
        recipe = Recipe(
            model=f"transformers/{folder}",
            targets=("cpu",),
            inputs=("input_ids:1x1..64..256:int64",),
            mode="stream",
            context=CONTEXT,
            random_calibration=True,
        )
        work, cpu = Work(recipe), targets.load("cpu")
        work.convert(work.lower(cpu, None), "onnx", made, cpu)
    return made


def decode(folder: Path, length: int, scratch: Path, threads: int) -> dict[str, Any]:
    """Milliseconds a token after a context of so many, and what it takes beyond loading."""
    from edgekit import Session

    words = tokens(length + STEPS + 3)[0]
    with Session(stream(folder, scratch, length), threads=threads) as session:
        session.prefill(words[:8])
        session.reset()
        with peak_memory() as memory:
            session.prefill(words[:length])
            taken = []
            for word in words[length:]:
                start = time.perf_counter()
                session.step(word)
                taken.append(time.perf_counter() - start)
    ms = np.array(taken[3:]) * 1e3
    return {"ms": float(np.median(ms)), "min_ms": float(ms.min()), "peak_mb": memory.added_mb}


def prompt(folder: Path, length: int, scratch: Path, threads: int) -> dict[str, Any]:
    """A long prompt by pieces: seconds, memory beyond loading, and against one pass at 16K."""
    from edgekit import Session
    from edgekit.find import find

    words, part = tokens(length)[0], min(length, 16384)
    with Session(stream(folder, scratch, length), threads=threads) as session:
        session.prefill(words[:8])
        session.reset()
        start = time.perf_counter()
        with peak_memory() as memory:
            middle = session.prefill(words[:part])
            session.prefill(words[part:]) if length > part else None
        seconds = time.perf_counter() - start
    with find("runtimes", "onnxruntime").open(scratch / "ours.onnx", threads) as whole:
        passed = next(iter(whole.infer({"input_ids": words[None, :part]}).values()))[:, -1]
    apart = float(np.abs(middle - passed).max() / np.abs(passed).max())
    return {"seconds": seconds, "peak_mb": memory.added_mb, "apart": apart, "at": part}


WAYS: dict[str, Callable[[Path, int, Path, int], dict[str, Any]]] = {
    "eager": eager,
    "compile": compiled,
    "export-own": export_own,
    "export-ours": export_ours,
    "run-own": run_own,
    "run-ours": run_ours,
    "ratio": ratio,
    "native": native,
    "decode": decode,
    "prompt": prompt,
}


def main() -> None:
    """Measure what the arguments say."""
    way, folder, length, scratch, threads = sys.argv[1:]
    found = WAYS[way](Path(folder), int(length), Path(scratch), int(threads))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
