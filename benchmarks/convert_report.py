"""What benchmarks/convert.py found, as claims, tables and a section of a document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.files import write_text

OURS, BASE = "edgekit int8", "edgekit fp32"
START, END = "<!-- benchmarks/convert.py -->", "<!-- end of benchmarks/convert.py -->"


def claims(case: dict[str, Any]) -> list[dict[str, Any]]:
    """What must hold of our INT8 file, against our fp32 file and each plain INT8 file."""
    results = {result["pipeline"]: result for result in case["results"]}
    mine, found = results[OURS], []
    for name in (BASE, *(n for n in results if n.startswith("plain int8"))):
        for entry in results[name]["latency"]:
            ratio = entry["ours_to_it"]["median"]
            what = f"latency ratio, {entry['threads']} threads"
            holds = ratio < 1 if name == BASE else ratio <= 1
            found.append({"against": name, "what": what, "figure": ratio, "holds": holds})
        if name == BASE:
            continue
        for what in ("cosine", "top1"):
            if mine[what] is not None:
                gain = mine[what] - results[name][what]
                found.append(
                    {"against": name, "what": f"{what} gain", "figure": gain, "holds": gain >= 0}
                )
    return found


EXPLAINED = """The plain pipeline is `torch.onnx.export(dynamo=True)`, `quant_pre_process` and \
`quantize_static` (QDQ, per-channel s8 weights; activations s8 symmetric or u8; every operator \
that it knows, or only Gemm, which are the linears), on the same calibration samples. Each \
conversion ran in its own process (repeats: {repeats}); time and peak memory (resident, above the \
imports and the loaded model) leave out our check against the source. Latency is of one sample in \
ONNX Runtime, on one / all threads; a ratio is to our fp32 file in the same of {rounds} rounds. \
Figures are medians (10th-90th percentile). Random weights and images show parity and latency, not \
accuracy."""
HEADER = ("pipeline", "convert s", "peak MB", "file MB", "cosine", "top-1", "latency ms", "ratio")


def rows(case: dict[str, Any]) -> list[tuple[str, ...]]:
    """A case's results as text, under ``HEADER``; one latency and ratio a number of threads."""
    return [
        (
            result["pipeline"],
            _text(result["seconds"], 1),
            _text(result["peak_mb"], 0),
            f"{result['size_mb']:.2f}",
            f"{result['cosine']:.5f}",
            "" if result["top1"] is None else f"{result['top1']:.2%}",
            " / ".join(f"{entry['ms']['median']:.2f}" for entry in result["latency"]),
            " / ".join(_text(entry["to_our_fp32"], 2) for entry in result["latency"]),
        )
        for result in case["results"]
    ]


def _text(found: dict[str, float], digits: int) -> str:
    low, middle, high = (f"{found[name]:.{digits}f}" for name in ("p10", "median", "p90"))
    return middle if low == high else f"{middle} ({low}-{high})"


def title(case: dict[str, Any]) -> str:
    """What was converted, with what data."""
    source = "" if case["source_top1"] is None else f"; source {case['source_top1']:.2%} top-1"
    used, judge = case["calibration"], case["judged"]
    return (
        f"{case['model']} ({case['weights']} weights): {used['samples']} samples of "
        f"{used['origin']} calibrate, {judge['samples']} of {judge['origin']} judge{source}"
    )


def failures(case: dict[str, Any]) -> list[str]:
    """The claims that do not hold, in words."""
    return [
        f"{case['case']}: {claim['what']} of {OURS} against {claim['against']} is "
        f"{claim['figure']:.4g}"
        for claim in case["claims"]
        if not claim["holds"]
    ]


def write_section(path: Path, found: dict[str, Any]) -> None:
    """Put the results between this script's marks in a Markdown file, or at its end."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2].strip("\n")
    parts = [before.strip("\n"), START, section(found), END, after]
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")


def section(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine = found["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    failed = [failure for case in found["cases"] for failure in failures(case)]
    parts = [
        "## Conversion beside the plain pipeline",
        f"Made by `{found['command']}` on {machine['cpu']}, {machine['cores']} cores, load "
        f"{machine['load_1min']} at the start; {versions}.",
        EXPLAINED.format(**found),
        *(f"### {case['case']}\n\n{title(case)}.\n\n{_table(case)}" for case in found["cases"]),
        "Claims that do not hold in this run:\n\n" + "\n".join(f"- {line}" for line in failed)
        if failed
        else "All claims hold in this run: our INT8 file is faster than our fp32 file, and at "
        "least as fast and as accurate as each INT8 file of the plain pipeline.",
    ]
    return "\n\n".join(parts)


def _table(case: dict[str, Any]) -> str:
    lines = [HEADER, ("---",) * len(HEADER), *rows(case)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
