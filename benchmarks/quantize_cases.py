"""What benchmarks/quantize.py compares: pipelines, and models with their data."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import install

from edgekit.errors import EdgekitError
from edgekit.progress import say

SUFFIX = {"onnxruntime": ".onnx", "openvino": ".xml", "inductor": ".pt2"}


@dataclass(frozen=True)
class Pipeline:
    """One way to a quantized file.

    Attributes:
        name: in the tables.
        peer: its module and its pins in benchmarks/peers.
        variant: which of the module's variants.
        scheme: ``fp32``, ``W8A8`` or ``W4A8``.
        runtime: what runs the file.
        trained: whether it runs on the trained models, for accuracy.
        timed: whether it runs on the models with random weights, for latency.
    """

    name: str
    peer: str
    variant: str
    scheme: str = "W8A8"
    runtime: str = "onnxruntime"
    trained: bool = True
    timed: bool = True

    @property
    def file(self) -> str:
        """The artifact's file name; OpenVINO reads our ONNX as it is."""
        suffix = ".onnx" if self.peer == "ours" else SUFFIX[self.runtime]
        return f"{self.name.replace(' ', '_')}{suffix}"


PIPELINES = (
    Pipeline("edgekit fp32", "ours", "fp32", "fp32", trained=False),
    Pipeline("edgekit W8A8", "ours", "W8A8"),
    Pipeline("edgekit W8A8 quick", "ours", "W8A8 quick", timed=False),
    Pipeline("edgekit W8A8 best", "ours", "W8A8 best", timed=False),
    Pipeline("ORT u8 all", "ort", "u8 all"),
    Pipeline("ORT u8 linears", "ort", "u8 linears"),
    Pipeline("ORT s8 linears", "ort", "s8 linears"),
    Pipeline("ORT u8 entropy", "ort", "u8 entropy", timed=False),
    Pipeline("ORT u8 percentile", "ort", "u8 percentile", timed=False),
    Pipeline("Optimum all", "optimum_ort", "all", timed=False),
    Pipeline("Optimum linears", "optimum_ort", "linears"),
    Pipeline("modelopt entropy", "modelopt_onnx", "entropy"),
    Pipeline("modelopt max", "modelopt_onnx", "max", timed=False),
    Pipeline("edgekit fp32 OV", "ours", "fp32 openvino", "fp32", "openvino", trained=False),
    Pipeline("edgekit W8A8 OV", "ours", "W8A8 openvino", "W8A8", "openvino"),
    Pipeline("NNCF", "nncf_openvino", "default", "W8A8", "openvino"),
    Pipeline("NNCF accurate", "nncf_openvino", "accurate", "W8A8", "openvino", timed=False),
    Pipeline("torchao PT2E", "torchao_inductor", "static", "W8A8", "inductor"),
    Pipeline("edgekit W4A8", "ours", "W4A8", "W4A8", timed=False),
    Pipeline("edgekit W4A8 best", "ours", "W4A8 best", "W4A8", timed=False),
    Pipeline("ORT s4 linears", "ort", "s4 linears", "W4A8", timed=False),
    Pipeline("NNCF w4", "nncf_openvino", "w4", "W4A8", "openvino", timed=False),
    Pipeline("torchao dynamic", "torchao_inductor", "w4a8", "W4A8", "inductor", timed=False),
)


@dataclass(frozen=True)
class Case:
    """One model with its data.

    Attributes:
        name: of its folder, and in the tables.
        fields: of a recipe; those of a trained model are added.
        trained: the model of examples/train_digits.py and the seed.
        only: the pipelines to run, where it is not all of them.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    trained: tuple[str, int] | None = None
    only: tuple[str, ...] = ()

    @property
    def pipelines(self) -> list[Pipeline]:
        """What runs on this case."""
        wanted = [p for p in PIPELINES if (p.trained if self.trained else p.timed)]
        return [p for p in wanted if not self.only or p.name in self.only]


def _random(name: str, samples: int = 64) -> dict[str, Any]:
    return {
        "model": f"timm/{name}",
        "random_weights": True,
        "samples": samples,
    }


SEEDS = (0, 1, 2)
#: Epochs of the models that are trained here; the shipped one stands for seed 0 of the first.
EPOCHS = {"vit": 40, "crossvit": 60, "mamba": 40}
CASES = (
    *(Case(f"{m}_{seed}", trained=(m, seed)) for m in EPOCHS for seed in SEEDS),
    Case("deit_tiny", _random("deit_tiny_patch16_224")),
    Case("deit_small", _random("deit_small_patch16_224")),
    Case("crossvit_tiny", _random("crossvit_tiny_240")),
    Case("vit_base", _random("vit_base_patch16_224")),
    Case("vit_base_256", _random("vit_base_patch16_224", 256), only=("edgekit W8A8",)),
)
#: For a test of this benchmark.
QUICK = Case("quick", {"samples": 32}, ("vit", 0), ("edgekit W8A8", "ORT u8 linears"))
#: Images of the digits that calibrate.
CALIBRATED = 64
DIGITS = Path("examples/digits")


def fields_of(case: Case) -> dict[str, Any]:
    """The fields of a recipe for a case; a trained model is trained already."""
    if case.trained is None:
        return case.fields
    fields = {"samples": CALIBRATED, **case.fields}
    folder = train(case.trained)
    family = "reference" if case.trained[0] == "mamba" else "timm"
    return {"model": f"{family}/{folder}", **fields}


def train(trained: tuple[str, int]) -> Path:
    """The folder of a model of the digits, trained if it is not yet.

    Raises:
        EdgekitError: the training failed; its last lines are quoted.
    """
    model, seed = trained
    if trained == ("vit", 0):
        return Path("examples/digits_vit")
    folder = install.room() / "trained" / f"{model}_{seed}"
    if (folder / "config.json").exists():
        return folder
    say(f"Training {model}, seed {seed}")
    options = {"model": model, "seed": seed, "output": folder, "epochs": EPOCHS[model]}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "examples/train_digits.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgekitError(f"{model} cannot be trained.", done.stderr[-1000:])
    return folder
