"""Runs one torch artifact for benchmarks/quantize.py: a JSON line of work in, a JSON line out.

    VENV/bin/python inductor_serve.py ARTIFACT THREADS eager|compiled

``{"inputs": NPZ, "outputs": NPZ}`` runs every sample with a batch of one; ``{"inputs": NPZ,
"calls": N}`` times calls on the first sample and answers their milliseconds.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._inductor.config
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer
import torchao.quantization.quant_api  # noqa: F401 - both register what artifacts hold

warnings.filterwarnings("ignore")


def main(artifact: Path, threads: int, mode: str) -> None:
    """Answer lines until there are no more."""
    torch.set_num_threads(threads)
    torch._inductor.config.freezing = True
    module = torch.export.load(artifact).module()
    run = torch.compile(module) if mode == "compiled" else module
    for line in sys.stdin:
        with torch.inference_mode():
            answer = answered(run, json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def answered(run: Any, work: dict[str, Any]) -> dict[str, Any]:
    """Do one line of work."""
    arrays = {name: torch.from_numpy(v) for name, v in np.load(work["inputs"]).items()}
    if "calls" in work:
        first = {name: values[:1] for name, values in arrays.items()}
        return {"ms": [timed(run, first) for _ in range(work["calls"])]}
    size = len(next(iter(arrays.values())))
    found = [run(**{name: v[i : i + 1] for name, v in arrays.items()}) for i in range(size)]
    np.savez(work["outputs"], logits=torch.cat(found).numpy())
    return {"samples": size}


def timed(run: Any, inputs: dict[str, torch.Tensor]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    run(**inputs)
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
