"""Does an fp32 softmax inside fp16 attention cost TensorRT its fused kernel?

    python benchmarks/attention_memory.py

Builds TensorRT-RTX engines (no GPU needed) of one attention block with 12 heads of 64, and
prints their activation memory: linear in the length where the attention is fused, quadratic
where it is not. Writes benchmarks/results/attention_memory.json.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from edgekit import targets
from edgekit.converters import onnx, tensorrt
from edgekit.machine import environment
from edgekit.model import Input, Model
from edgekit.table import plain_table, show

FORMS = {
    "fp16": "everything in fp16",
    "softmax": "softmax in fp32 (what edgekit writes)",
    "scores": "query times key in fp32 too",
}
LENGTHS = (512, 1024, 2048)
HEADS, WIDTH = 12, 768


class Attention(nn.Module):
    """Self-attention in fp16, with one of FORMS inside."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(x).reshape(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        query = query * (WIDTH // HEADS) ** -0.5
        if self.form == "scores":
            scores = query.float() @ key.float().transpose(-2, -1)
        else:
            scores = query @ key.transpose(-2, -1)
        wide = scores if self.form == "fp16" else scores.float()
        mixed = wide.softmax(-1).half() @ value
        return self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))


def activation_memory(form: str, length: int, folder: Path) -> int:
    """Bytes of activations of the engine for SM 8.9."""
    torch.manual_seed(0)
    target = targets.load("rtx-4090")
    inputs = (Input("x", (1, length, WIDTH), "float16"),)
    graph = Model(Attention(form).half(), inputs, ("y",), form).export()
    onnx.convert(graph, folder / "model.onnx", target)
    made = tensorrt.convert(folder / "model.onnx", folder / "engine.plan", target)
    return int(made.details["activation_bytes"])


def main() -> None:
    """Measure, print, write."""
    found: dict[str, dict[int, int]] = {}
    for form in FORMS:
        for length in LENGTHS:
            with tempfile.TemporaryDirectory() as folder:
                found.setdefault(form, {})[length] = activation_memory(form, length, Path(folder))
    rows = [
        (FORMS[form], *(f"{memory[length] / 2**20:.1f}" for length in LENGTHS))
        for form, memory in found.items()
    ]
    columns = ("attention", *(f"length {length}" for length in LENGTHS))
    show(plain_table("Activation memory of a TensorRT-RTX engine, MiB", columns, rows))
    out = Path(__file__).parent / "results" / "attention_memory.json"
    report = {"schema_version": 1, "environment": environment(), "bytes": found}
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    Console(stderr=True).print(f"Written to {out}")


if __name__ == "__main__":
    main()
