"""What Reparameterize folds in timm's models, and what that is worth beside converters' folding.

    python benchmarks/reparameterize.py --markdown docs/compress-benchmarks.md    # ten minutes

Random weights and random statistics of the batch norms, so that a wrong fold would show. Every
result goes to ONNX and is compared with the source in ONNX Runtime. Two models are also timed
there, source against result, in turns: converters fold the norms of the source too, so the ratio
is what the branches cost. A model's figures are kept as they are found, and not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgekit import families, targets
from edgekit.compress import Context, apply
from edgekit.compress.measure import parameters
from edgekit.compress.reparameterize import Reparameterize
from edgekit.files import write_text
from edgekit.find import find
from edgekit.latency import Settings, paired
from edgekit.machine import environment
from edgekit.model import run_module
from edgekit.progress import enable, say
from edgekit.table import plain_table, show
from edgekit.work import export

sys.path.insert(0, str(Path(__file__).parent))

import page

if TYPE_CHECKING:
    from edgekit.model import Model

SCRIPT = "benchmarks/reparameterize.py"
RESULT = Path(__file__).parent / "results" / "reparameterize.json"
MODELS = (
    "fastvit_t8",
    "mobileone_s0",
    "repvgg_a0",
    "repvit_m0_9",
    "levit_128s",
    "nextvit_small",
    "efficientvit_m0",
    "ghostnetv2_100",
)
TIMED = MODELS[:2]
#: Of the largest output.
LIMIT = 1e-5
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
NORMS = (nn.modules.batchnorm._BatchNorm,)
COLUMNS = (
    "model", "layers", "batch norms", "modules", "parameters", "difference, PyTorch", "difference, "
    "ONNX Runtime", "ms before", "ms after", "after / before",
)  # fmt: skip


def row(name: str) -> dict[str, Any]:
    """Sizes before and after, how far the outputs are apart, and for two the latency."""
    model = families.load(f"timm/{name}", families.Options(random_weights=True))
    trained_alike(model.module)
    made = apply(Reparameterize(), model, Context())
    shape = model.inputs[0].concrete()
    call = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    expected = run_module(model.module, call, model.outputs)
    found: dict[str, Any] = {"model": name, "before": sizes(model), "after": sizes(made)}
    found["difference"] = far(expected, run_module(made.module, call, made.outputs))
    with tempfile.TemporaryDirectory() as folder:
        after = onnx(made, Path(folder) / "after.onnx")
        with find("runtimes", "onnxruntime").open(after, 1) as session:
            found["onnx_difference"] = far(expected, session.infer(call))
        if name in TIMED:
            before = onnx(model, Path(folder) / "before.onnx")
            settings = Settings(call, iterations=60, seconds=30)
            ratio = paired(after, before, "onnxruntime", settings, 1).as_dict()
            found["latency"] = {**ratio, "convolutions": [convolutions(p) for p in (before, after)]}
    return found


def trained_alike(module: nn.Module) -> None:
    """Statistics and gains of batch norms as after training: none is 0 or 1."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, NORMS):
            nn.init.normal_(norm.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)


def sizes(model: Model) -> dict[str, int]:
    """What a module holds."""
    held = list(model.module.modules())
    return {
        "layers": sum(isinstance(each, LAYERS) for each in held),
        "batch norms": sum(isinstance(each, NORMS) for each in held),
        "modules": len(held),
        "parameters": parameters(model.module),
    }


def far(expected: dict[str, Any], found: dict[str, Any]) -> float:
    """The largest difference over the largest output."""
    return max(float(np.abs(found[n] - v).max() / np.abs(v).max()) for n, v in expected.items())


def onnx(model: Model, path: Path) -> Path:
    """The model as an ONNX file, as ``edgekit convert`` makes it for cpu."""
    find("converters", "onnx").convert(export(model), path, targets.load("cpu"))
    return path


def convolutions(path: Path) -> int:
    """Convolutions in an ONNX file."""
    import onnx as library

    return sum(n.op_type == "Conv" for n in library.load(path, load_external_data=False).graph.node)


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Equal outputs, and no model grew."""
    found = []
    for each in rows:
        most = max(each["difference"], each["onnx_difference"])
        text = f"{each['model']}: outputs differ by {most:.0e}, at most {LIMIT:.0e}"
        found.append({"claim": text, "holds": most <= LIMIT})
        before, after = each["before"], each["after"]
        smaller = all(after[what] <= before[what] for what in before)
        found.append({"claim": f"{each['model']}: nothing grew", "holds": smaller})
    return found


def cells(each: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    counted = [f"{each['before'][what]:,} → {each['after'][what]:,}" for what in each["before"]]
    timed = each.get("latency")
    times = ("", "", "") if timed is None else (
        f"{timed['second_ms']:.2f}", f"{timed['first_ms']:.2f}",
        f"{timed['ratio']:.2f} ({timed['low']:.2f} to {timed['high']:.2f})",
    )  # fmt: skip
    differences = (f"{each['difference']:.0e}", f"{each['onnx_difference']:.0e}")
    return (each["model"], *counted, *differences, *times)


def section(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    failed = [claim["claim"] for claim in found["claims"] if not claim["holds"]]
    timed = [each for each in found["rows"] if "latency" in each]
    counts = "; ".join(
        "{}: {} → {}".format(each["model"], *each["latency"]["convolutions"]) for each in timed
    )
    parts = [
        f"## Reparameterized models (`python {SCRIPT}`)",
        "Random weights; a difference is of the largest output; ms of "
        "one image in ONNX Runtime on one thread, the two files in turns, the median ratio with "
        "its 95% interval.",
        page.table(COLUMNS, [cells(each) for each in found["rows"]]),
        f"Convolutions in the ONNX files, source → result: {counts}. The converters fold the "
        "source's norms too; the branches are what they leave."
        if counts
        else "",
        "Does not hold: " + "; ".join(failed) + "." if failed else "",
    ]
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    """Make every model once, save and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--again", action="store_true", help="also what has figures")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    enable()
    held = json.loads(options.output.read_text())["rows"] if options.output.exists() else []
    rows = {each["model"]: each for each in held}
    for name in options.models:
        if options.again or name not in rows:
            say(name)
            rows[name] = row(name)
        ordered = [rows[each] for each in MODELS if each in rows]
        found = {
            "schema_version": 1,
            "command": f"python {SCRIPT}",
            "environment": environment(),
            "rows": ordered,
            "claims": claims(ordered),
        }
        write_text(options.output, json.dumps(found, indent=1))
    show(plain_table("", COLUMNS, [cells(each) for each in found["rows"]]))
    if options.markdown:
        page.write_section(options.markdown, SCRIPT, section(found))


if __name__ == "__main__":
    main()
