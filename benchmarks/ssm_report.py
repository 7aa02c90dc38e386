"""What benchmarks/ssm.py found, as claims, tables and a section of a document."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.files import write_text
from edgekit.table import plain_table, show

START, END = "<!-- benchmarks/ssm.py -->", "<!-- end of benchmarks/ssm.py -->"
Found = dict[str, Any]
Rows = list[tuple[str, ...]]
EXPLAINED = """Random weights: this shows latency, memory and parity, not accuracy. Latency is of \
one sequence from ids to the scores of all its tokens, the median of some calls; peak MB is what \
the calls take beyond the loaded model. own/ours is the median of ratios of rounds in which the \
two files took turns (95% interval): above 1, ours is faster. The exponent is the slope of the \
logarithm of the time over that of the length, from 1,024 tokens on. What has a dash was not \
measured; what failed or took too long at a length is not tried at a greater one."""
HEADS = ("model", "tokens", "eager ms", "compiled ms", "own export ms", "ours ms", "own/ours")
PAPER = """On consumer GPUs, SSM-Scope reports transformers up to 1.8 times as fast at short \
lengths and state-space models up to 4 times as fast near 57,000 tokens."""
#: Where the exponent is fitted from: shorter calls are overhead.
FIT_FROM = 1024
#: What the issue that this answers asks for.
LEAST_GAIN, MOST_EXPONENT, NEAR_NATIVE = 3.0, 1.1, 1.10


def _ms(row: Found, way: str) -> float | None:
    found = row.get(way, {})
    value: float | None = found.get("ms")
    return value


def exponent(rows: list[Found], way: str) -> float | None:
    """How latency grows with length: 1 is linearly."""
    points = [(row["length"], _ms(row, way)) for row in rows if row["length"] >= FIT_FROM]
    known = [(length, ms) for length, ms in points if ms]
    if len(known) < 2:
        return None
    lengths, times = (np.log(values) for values in zip(*known, strict=True))
    return float(np.polyfit(lengths, times, 1)[0])


def crossover(ssm: list[Found], attention: list[Found]) -> float | None:
    """The length at which a model becomes faster than attention, between two measured ones."""
    pairs = [
        (a["length"], one, two)
        for a, b in zip(ssm, attention, strict=False)
        if (one := _ms(a, "run-ours")) and (two := _ms(b, "run-ours"))
    ]
    for (l0, s0, a0), (l1, s1, a1) in pairwise(pairs):
        if s0 > a0 and s1 <= a1:
            before, after = np.log(s0 / a0), np.log(s1 / a1)
            share = before / (before - after)
            return float(np.exp(np.log(l0) + share * np.log(l1 / l0)))
    return None


def by_model(found: Found) -> dict[str, list[Found]]:
    """The rows of each model, by length."""
    names = dict.fromkeys(row["model"] for row in found["rows"])
    return {name: [row for row in found["rows"] if row["model"] == name] for name in names}


def claims(found: Found) -> list[Found]:
    """Each thing that should hold, whether it does, and by which figure."""
    made = []
    for name, rows in by_model(found).items():
        gains = [
            (r["length"], 1 / r["ratio"]["ratio"]) for r in rows if "ratio" in r.get("ratio", {})
        ]
        for length, gain in gains:
            if length >= 256 and name != "attention":
                text = f"{name}, {length} tokens: ours is {gain:.2f} times as fast as own export"
                made.append({"claim": text, "holds": gain >= LEAST_GAIN})
        slope = exponent(rows, "run-ours")
        if slope is not None and name.startswith("Mamba"):
            text = f"{name}: latency grows with length to the power {slope:.2f}"
            made.append({"claim": text, "holds": slope <= MOST_EXPONENT})
        for row in rows:
            if "ratio" in row.get("native", {}):
                ratio = row["native"]["ratio"]
                text = (
                    f"{name}, {row['length']} tokens, 1 thread: without ONNX Runtime's own "
                    f"operators, as for TensorRT, {ratio:.2f} of the time with them"
                )
                made.append({"claim": text, "holds": ratio <= NEAR_NATIVE})
    for entry in found["prompt"]:
        if "failed" not in entry:
            text = (
                f"{entry['model']}: {entry['length']} tokens take {entry['peak_mb']:.0f} MB and "
                f"{entry['seconds']:.1f} s; {entry['apart']:.1e} from one pass at {entry['at']}"
            )
            made.append({"claim": text, "holds": entry["peak_mb"] < 200 and entry["apart"] < 1e-4})
    return made


def lengths_table(found: Found) -> Rows:
    """One row a model and length."""
    rows = []
    for row in found["rows"]:
        cells = [_cell(row, way) for way in ("eager", "compile", "run-own", "run-ours")]
        ratio = row.get("ratio", {})
        if "export-own" in row and "failed" in row["export-own"]:
            cells[2] = f"export: {row['export-own']['failed']}"
        gain = ""
        if "ratio" in ratio:
            gain = f"{1 / ratio['ratio']:.2f} ({1 / ratio['high']:.2f} to {1 / ratio['low']:.2f})"
        rows.append((row["model"], f"{row['length']:,}", *cells, gain))
    return rows


def _cell(row: Found, way: str) -> str:
    entry = row.get(way)
    if entry is None:
        return "-"
    if "failed" in entry:
        return str(entry["failed"])
    memory = entry["peak_mb"]
    return f"{entry['ms']:.1f}" + (f" ({memory:.0f} MB)" if memory is not None else "")


def export_table(found: Found) -> Rows:
    """One row a model: what exporting takes, and how the files grow with length."""
    rows = []
    for name, entries in by_model(found).items():
        own = [
            (e["length"], e["export-own"]) for e in entries if "nodes" in e.get("export-own", {})
        ]
        ours = entries[0]["export-ours"]
        ends = own if len(own) < 3 else [own[0], own[-1]]
        text = ", ".join(f"{o['nodes']} nodes in {o['seconds']:.0f} s at {n}" for n, o in ends)
        slopes = [exponent(entries, way) for way in ("run-own", "run-ours")]
        shown = [f"{slope:.2f}" if slope is not None else "-" for slope in slopes]
        mine = ours.get("failed") or f"{ours['nodes']} nodes in {ours['seconds']:.0f} s, any length"
        rows.append((name, f"{found['parameters'][name]:,}", text or "none", mine, *shown))
    return rows


def decode_table(found: Found) -> Rows:
    """One row a model: milliseconds a token by context."""
    contexts = sorted({entry["context"] for entry in found["decode"]})
    rows = []
    for name in dict.fromkeys(entry["model"] for entry in found["decode"]):
        entries = {e["context"]: e for e in found["decode"] if e["model"] == name}
        rows.append((name, *(_decode_cell(entries.get(context)) for context in contexts)))
    return rows


def _decode_cell(entry: Found | None) -> str:
    if entry is None:
        return "-"
    if "failed" in entry:
        return str(entry["failed"])
    return f"{entry['ms']:.2f} ms, {entry['peak_mb']:.0f} MB"


def tables(found: Found) -> list[tuple[str, tuple[str, ...], Rows]]:
    """(title, columns, rows) of all tables."""
    contexts = sorted({entry["context"] for entry in found["decode"]})
    exports = ("model", "parameters", "own export", "ours", "own exponent", "our exponent")
    return [
        (f"Latency, {found['threads']} threads", HEADS, lengths_table(found)),
        ("Exports", exports, export_table(found)),
        (
            "One token more, 1 thread, by tokens of context",
            ("model", *(f"{context:,}" for context in contexts)),
            decode_table(found),
        ),
    ]


def remarks(found: Found) -> list[str]:
    """The crossovers, and each claim with whether it holds."""
    rows = by_model(found)
    lines = []
    for name in (n for n in rows if n != "attention" and "attention" in rows):
        met = crossover(rows[name], rows["attention"])
        where = f"from about {met:,.0f} tokens on" if met else "at no measured length, or at all"
        lines.append(f"{name} is faster than attention {where}{_against(rows, name)}.")
    lines.append(PAPER)
    verdicts = [
        f"{c['claim']}: {'holds' if c['holds'] else 'DOES NOT HOLD'}." for c in found["claims"]
    ]
    return lines + verdicts


def _against(rows: dict[str, list[Found]], name: str) -> str:
    """The share of attention's time at the least and the greatest length of both."""
    times = {
        a["length"]: _ms(a, "run-ours") / _ms(b, "run-ours")
        for a, b in zip(rows[name], rows["attention"], strict=False)
        if _ms(a, "run-ours") and _ms(b, "run-ours")
    }
    ends = [f"{times[length]:.2f} of its time at {length:,}" for length in (min(times), max(times))]
    return f": {', '.join(ends)}"


def show_all(found: Found) -> None:
    """Print everything."""
    for title, columns, rows in tables(found):
        show(plain_table(title, columns, rows))
    show(plain_table("", ("",), [(line,) for line in remarks(found)]))


def write(found: Found, document: Path) -> None:
    """Put the section in place of the document's old one, or at its end."""
    machine = found["environment"]
    lines = [
        START,
        "## State-space models (`python benchmarks/ssm.py`)",
        "",
        f"{machine['cpu']}, {found['threads']} cores. {EXPLAINED}",
        "",
    ]
    for title, columns, rows in tables(found):
        lines += [f"**{title}**", "", _line(columns), _line(["---"] * len(columns))]
        lines += [*(_line(row) for row in rows), ""]
    lines += [f"- {remark}" for remark in remarks(found)] + [END]
    text, section = document.read_text(encoding="utf-8"), "\n".join(lines)
    if START in text:
        before, _, rest = text.partition(START)
        text = before + section + rest.partition(END)[2]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    write_text(document, text)


def _line(cells: Any) -> str:
    return f"| {' | '.join(str(cell) or ' ' for cell in cells)} |"
