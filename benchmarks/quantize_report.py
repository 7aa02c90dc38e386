"""What benchmarks/quantize.py found, as claims, tables and a section of a document."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.files import write_text
from edgekit.table import plain_table, show

START, END = "<!-- benchmarks/quantize.py -->", "<!-- end of benchmarks/quantize.py -->"
#: Our file, and our file in fp32, by runtime.
OURS = {"onnxruntime": "edgekit W8A8", "openvino": "edgekit W8A8 OV"}
FLOAT = {"onnxruntime": "edgekit fp32", "openvino": "edgekit fp32 OV"}
#: What may be lost in top-1, as a share, by scheme.
ALLOWED = {"W8A8": 0.002, "W4A8": 0.01}
#: Megabytes that a calibration of ViT-B on 256 images may take.
MEMORY_MB = 2048
Found = dict[str, Any]

EXPLAINED = """Every pipeline starts from one fp32 source (`torch.onnx.export`; `torch.export` for \
torchao), gets the same calibration samples one by one and is judged on the same evaluation \
samples by the same code. A timed conversion ran alone in its own process; its seconds hold the \
export and leave out imports; its peak memory is what loading and quantizing add to the imports. \
Latency is of one sample, on one / all threads, host array to host array, in blocks taken in \
turns; ms are medians over rounds, and ours/it is the median of the ratios of one round of our \
W8A8 file to this file in the same runtime (Inductor is compared with our ONNX Runtime file). \
Random weights show latency, size, time and memory; their SQNR shows parity, not accuracy."""
ACCURACY = ("scheme", "pipeline")
LATENCY = ("pipeline", "runtime", "convert s", "peak MB", "file MB", "SQNR dB", "ms", "ours/it")


def claims(cases: list[Found]) -> list[Found]:
    """Each thing that must hold, whether it does, and by which figure."""
    found = []
    families = sorted({case["family"] for case in cases if case["family"]})
    for family in families:
        found += _accurate(family, [case for case in cases if case["family"] == family])
    for case in cases:
        found += _fast(case)
        if case["case"] == "vit_base_256":
            peak = case["results"][0].get("peak_mb", np.inf)
            text = f"ViT-B, {case['calibration']} images: our peak of {peak:.0f} MB is under 2 GB"
            found.append({"claim": text, "holds": bool(peak < MEMORY_MB)})
    return found


def _accurate(family: str, cases: list[Found]) -> list[Found]:
    source = float(np.mean([case["source_top1"] for case in cases]))
    found = []
    for scheme, allowed in ALLOWED.items():
        means = top1s(cases, scheme)
        mine = means.get(f"edgekit {scheme}")
        if mine is None:
            continue
        text = f"{family}: our {scheme}, {mine:.2%}, is within {allowed:.1%} of fp32, {source:.2%}"
        found.append({"claim": text, "holds": mine >= source - allowed - 1e-9})
        peers = {name: value for name, value in means.items() if not name.startswith("edgekit")}
        if peers:
            best = max(peers, key=lambda name: peers[name])
            text = f"{family}: our {scheme}, {mine:.2%}, is no worse than {best}, {peers[best]:.2%}"
            found.append({"claim": text, "holds": mine >= peers[best] - 1e-9})
    return found


def top1s(cases: list[Found], scheme: str) -> dict[str, float]:
    """Mean top-1 over the seeds, by pipeline; a pipeline that failed on one has none."""
    return {
        name: float(np.mean([row["top1"] for row in rows]))
        for name, rows in _by_name(cases).items()
        if rows[0]["scheme"] == scheme and not any(row["status"] for row in rows)
    }


def _by_name(cases: list[Found]) -> dict[str, list[Found]]:
    rows: dict[str, list[Found]] = {}
    for case in cases:
        for row in case["results"]:
            rows.setdefault(row["name"], []).append(row)
    return rows


def _fast(case: Found) -> list[Found]:
    """Our W8A8 file against our fp32 and each peer in the same runtime, and our time."""
    rows = {row["name"]: row for row in case["results"] if not row["status"]}
    found = []
    for runtime, name in OURS.items():
        if name not in rows or "latency" not in rows[name]:
            continue
        others = [r for r in rows.values() if r["runtime"] == runtime and r["name"] != name]
        for other in others:
            for threads, ratio in ratios(rows[name], other).items():
                text = f"{case['case']}, {threads} threads: {name} / {other['name']} is {ratio:.2f}"
                found.append({"claim": f"{text}, at most 1", "holds": ratio <= 1})
    mine = rows.get(OURS["onnxruntime"])
    if mine is not None and case["family"] is None:
        for other in (r for r in rows.values() if r["peer"] != "ours"):
            text = f"{case['case']}: we convert in {mine['seconds']:.1f} s, {other['name']} in "
            text += f"{other['seconds']:.1f} s"
            found.append({"claim": text, "holds": mine["seconds"] <= other["seconds"]})
    return found


def ratios(mine: Found, other: Found) -> dict[str, float]:
    """Latency of mine over the other's, the median over rounds, by number of threads."""
    return {
        threads: float(np.median(np.array(mine["latency"][threads]) / np.array(blocks)))
        for threads, blocks in other.get("latency", {}).items()
    }


def failures(found: list[Found]) -> list[str]:
    """The claims that do not hold."""
    return [f"does not hold: {claim['claim']}" for claim in found if not claim["holds"]]


def accuracy(cases: list[Found]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: top-1 (its mean over the seeds, and each) and mean SQNR of each model."""
    trained = [case for case in cases if case["family"]]
    families = list(dict.fromkeys(case["family"] for case in trained))
    groups = {f: [case for case in trained if case["family"] == f] for f in families}
    header = (*ACCURACY, *(f"{f} {what}" for f in families for what in ("top-1", "SQNR dB")))
    source = [(_mean([case["source_top1"] for case in groups[f]]), "") for f in families]
    rows = [("fp32", "the source", *(text for pair in source for text in pair))]
    named = {f: _by_name(groups[f]) for f in families}
    for name in dict.fromkeys(name for group in named.values() for name in group):
        pairs = [_accuracy_of(named[f].get(name, [])) for f in families]
        if any(text for pair in pairs for text in pair):
            scheme = next(group[name][0]["scheme"] for group in named.values() if name in group)
            rows.append((scheme, name, *(text for pair in pairs for text in pair)))
    return header, rows


def _accuracy_of(rows: list[Found]) -> tuple[str, str]:
    good = [row for row in rows if not row["status"]]
    if not good:
        return "", ""
    return _mean([r["top1"] for r in good]), f"{np.mean([r['sqnr_db'] for r in good]):.1f}"


def _mean(values: list[float]) -> str:
    each = ", ".join(f"{value * 100:.2f}" for value in values)
    return f"{np.mean(values) * 100:.2f}" + (f" ({each})" if len(values) > 1 else "")


def latency(case: Found) -> list[tuple[str, ...]]:
    """A case's results under ``LATENCY``."""
    rows = {row["name"]: row for row in case["results"]}
    return [_latency_row(row, rows) for row in case["results"] if not row["status"]]


def _latency_row(row: Found, rows: dict[str, Found]) -> tuple[str, ...]:
    mine = rows.get(OURS.get(row["runtime"], OURS["onnxruntime"]), {})
    taken = row.get("latency", {})
    compared = ratios(mine, row) if "latency" in mine else {}
    return (
        row["name"],
        row["runtime"],
        f"{row['seconds']:.1f}",
        f"{row['peak_mb']:.0f}",
        f"{row['size_mb']:.2f}",
        f"{row['sqnr_db']:.1f}",
        " / ".join(f"{np.median(blocks):.2f}" for blocks in taken.values()),
        " / ".join(f"{ratio:.2f}" for ratio in compared.values()),
    )


def refusals(cases: Iterable[Found]) -> list[str]:
    """What could not be made or run, once each, with the reason."""
    lines: dict[str, list[str]] = {}
    for case in cases:
        for row in case["results"]:
            if row["status"]:
                reason = " ".join(f"{row['name']}: {row['status']}".split())
                lines.setdefault(reason, []).append(case["case"])
    return [f"{reason} ({', '.join(names)})" for reason, names in lines.items()]


def title(case: Found) -> str:
    """What was converted, with what data."""
    return (
        f"{case['case']}: {case['model']}, {case['weights']} weights, {case['calibration']} "
        f"samples calibrate, {case['judged']} judge; export {case['onnx_s']:.1f} s"
    )


def show_all(found: Found) -> None:
    """Print every table, and what failed."""
    cases = found["cases"]
    if any(case["family"] for case in cases):
        header, rows = accuracy(cases)
        show(plain_table("Accuracy", header, rows))
    for case in cases:
        if case["family"] is None:
            show(plain_table(title(case), LATENCY, latency(case)))


def write_section(path: Path, found: Found) -> None:
    """Put the results between this script's marks in a Markdown file, or at its end."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Quantization\n"
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2].strip("\n")
    parts = [before.strip("\n"), START, section(found), END, after]
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")


def section(found: Found) -> str:
    """The results as Markdown."""
    machine, cases = found["environment"], found["cases"]
    failed, refused = failures(found["claims"]), refusals(cases)
    parts = [
        "## Quantization beside its peers",
        f"Made by `{found['command']}` on {machine['cpu']}, {machine['cores']} cores, load "
        f"{machine['load_1min']} at the start; {_versions(found)}.",
        EXPLAINED,
        f"### Accuracy\n\n{_table(*accuracy(cases))}" if _trained(cases) else "",
        *(
            f"### {case['case']}\n\n{title(case)}.\n\n{_table(LATENCY, latency(case))}"
            for case in cases
            if case["family"] is None
        ),
        "What could not be made or run:\n\n" + _bullets(refused) if refused else "",
        f"Claims that do not hold in this run, of {len(found['claims'])}:\n\n" + _bullets(failed)
        if failed
        else f"All {len(found['claims'])} claims hold in this run.",
    ]
    return "\n\n".join(part for part in parts if part)


def _trained(cases: list[Found]) -> bool:
    return any(case["family"] for case in cases)


def _versions(found: Found) -> str:
    ours = [f"{name} {version}" for name, version in found["environment"]["versions"].items()]
    wanted = "onnxruntime nncf openvino nvidia-modelopt torchao optimum optimum-onnx torch".split()
    peers = [
        f"{peer} with " + " ".join(f"{name} {pins[name]}" for name in wanted if name in pins)
        for peer, pins in found["pins"].items()
    ]
    return ", ".join(ours) + "; " + "; ".join(peers)


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
