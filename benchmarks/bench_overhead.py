"""What our timing adds to a runtime's own, and how often its intervals hold what they should.

    python benchmarks/bench_overhead.py --markdown docs/benchmarks.md          # five minutes

Everything is compared with itself, in turns, so it can be run on a busy machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.files import write_text
from edgekit.latency import Plan, Settings, bench, compare, median_interval
from edgekit.latency.benchmark import PAIRED_LEAST, PAIRED_LOADS
from edgekit.latency.comparison import UNDISTURBED, in_turns
from edgekit.latency.inputs import Taken
from edgekit.latency.plan import Limits
from edgekit.latency.timing import timed
from edgekit.machine import Watch, environment
from edgekit.pipeline import load
from edgekit.progress import enable, say
from edgekit.recipe import Recipe
from edgekit.single import convert
from edgekit.table import plain_table, show

sys.path.insert(0, str(Path(__file__).parent))

import page

if TYPE_CHECKING:
    from edgekit.targets.runtimes import Arrays

SCRIPT = "benchmarks/bench_overhead.py"
RESULT = Path(__file__).parent / "results" / "bench_overhead.json"
ROOT = Path(__file__).parents[1]
#: Name of the row -> recipe.
MODELS: dict[str, dict[str, Any]] = {
    "ViT for digits, INT8": {"model": f"timm/{ROOT / 'examples/digits_vit'}", "precision": "int8"},
    "ViT for digits": {"model": f"timm/{ROOT / 'examples/digits_vit'}"},
    "DeiT-Ti": {"model": "timm/deit_tiny_patch16_224", "random_weights": True},
}
SUBJECT = "ViT for digits"
TRIES, TRY_SECONDS = 20, 4.0
#: Seconds of one run of the timing loop, of all runs of a model, and groups of these.
BLOCK, SECONDS, GROUPS = 0.005, 30.0, 12
#: Seconds for which the machine is only watched.
WATCHED = 10.0
#: What a run gives: seconds a call by the clock that is reported, and of the processor.
Times = tuple[float, float]
Block = Callable[[int], Times]
#: The least share of the tries that must hold 1.
WANTED = 18


def made(name: str, folder: Path) -> Path:
    """A model as an ONNX file for the CPU."""
    out = folder / f"{name.replace(' ', '_')}.onnx"
    fields = {**MODELS[name], "targets": ("cpu",), "random_calibration": True, "samples": 8}
    convert(Recipe.check(fields, SCRIPT), out)
    return out


def inputs_of(artifact: Path) -> Arrays:
    """Random numbers."""
    with load("onnxruntime", artifact, 1) as session:
        return Taken(artifact.name, session.batch, session.inputs, strict=False).random()


def overhead(artifact: Path) -> dict[str, Any]:
    """Our loop by a bare loop over the runtime's own call, in runs that take turns.

    Both use one session, so that only the loop differs. ``reported`` is the mean latency that we
    report by the bare loop's time a call; ``loop`` is the processor time of the calling thread in
    our loop by that in the bare one. Of each group of runs the lower deciles are compared, as
    other work only lengthens a run.
    """
    inputs = inputs_of(artifact)
    with load("onnxruntime", artifact, 1) as session:
        run = session._session.run  # type: ignore[attr-defined]
        bare = lambda count: _bare(lambda: run(None, inputs), count)  # noqa: E731
        ours = lambda count: _ours(lambda: session.infer(inputs), count)  # noqa: E731
        count = max(1, round(BLOCK / bare(20)[0]))
        chance = random.Random(0)
        groups = [_group((bare, ours), count, chance) for _ in range(GROUPS)]
    reported, loop, bare_s = np.array(groups).T
    return {
        "ms": float(np.median(bare_s)) * 1e3,
        "calls": count,
        "reported": _percent(reported),
        "loop": _percent(loop),
    }


def _group(
    blocks: tuple[Block, Block], count: int, chance: random.Random
) -> tuple[float, float, float]:
    """Reported and loop's time by the bare loop's, and the bare loop's seconds a call."""
    taken: tuple[list[Times], list[Times]] = ([], [])
    end = time.perf_counter() + SECONDS / GROUPS
    while time.perf_counter() < end:
        for side in chance.choice(((0, 1, 1, 0), (1, 0, 0, 1))):
            taken[side].append(blocks[side](count))
    bare, ours = (np.quantile(np.array(each), UNDISTURBED, axis=0) for each in taken)
    return float(ours[0] / bare[0]), float(ours[1] / bare[1]), float(bare[0])


def _ours(call: Callable[[], object], count: int) -> Times:
    """Seconds a call that are reported, and of the processor in the loop."""
    call()
    begun = time.thread_time()
    times = timed(call, 0, count, 1e9)
    return sum(times) / count, (time.thread_time() - begun) / count


def _bare(call: Callable[[], object], count: int) -> Times:
    """The same of nothing but calls. The first, in caches that the other left, counts for none."""
    call()
    begun, start = time.thread_time(), time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count, (time.thread_time() - begun) / count


def watching() -> float:
    """Percent of one core that watching the machine takes."""
    with Watch():
        start, begun = time.process_time(), time.perf_counter()
        time.sleep(WATCHED)
        used = time.process_time() - start
        return 100 * used / (time.perf_counter() - begun)


def _percent(ratios: np.ndarray[Any, Any]) -> dict[str, float]:
    """How much more than 1, with the median's interval, in percent."""
    low, middle, high = ((value - 1) * 100 for value in median_interval(ratios))
    return {"low": low, "percent": middle, "high": high}


def itself(artifact: Path, tries: int) -> list[dict[str, Any]]:
    """The same artifact compared with itself, as ``edgekit bench --paired`` does."""
    settings = Settings(inputs_of(artifact), 10, 10**6, TRY_SECONDS)
    opens = lambda: load("onnxruntime", artifact, 1)  # noqa: E731
    rows = []
    for number in range(tries):
        ratio = in_turns(opens, opens, settings, 1, PAIRED_LOADS, PAIRED_LEAST)
        holds = ratio.low <= 1 <= ratio.high
        say(f"try {number + 1}: {ratio.ratio:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]")
        rows.append({**ratio.as_dict(), "holds": holds})
    return rows


def one_load(artifact: Path, tries: int) -> list[dict[str, Any]]:
    """The same for as long in one load each: as many stretches of turns, nothing loaded anew."""
    settings = Settings(inputs_of(artifact), 10, 10**6, TRY_SECONDS)
    rows = []
    for _ in range(tries):
        first, second = (load("onnxruntime", artifact, 1) for _ in range(2))
        with first, second:
            kept = [lambda s=session: contextlib.nullcontext(s) for session in (first, second)]
            ratio = in_turns(kept[0], kept[1], settings, 1, PAIRED_LOADS, PAIRED_LEAST)
        rows.append({**ratio.as_dict(), "holds": ratio.low <= 1 <= ratio.high})
    return rows


def apart(artifact: Path, tries: int) -> list[dict[str, Any]]:
    """The same artifact measured twice, and the two reports compared."""
    plan = Plan(threads=(1,), limits=Limits(seconds=1.0, iterations=1000))
    rows = []
    for _ in range(tries):
        (row,) = compare(bench(artifact, plan), bench(artifact, plan))["rows"]
        figures = {name: row[name] for name in ("ratio", "low", "high", "verdict")}
        claimed = row["verdict"] in ("faster", "slower")
        rows.append({**figures, "doubts": row["doubts"], "holds": not claimed})
    return rows


def coverage(count: int = 100, runs: int = 2000) -> list[dict[str, float]]:
    """How often the median's 95% interval holds it, for values that come in bursts.

    Values are exp of an autoregression of first order, of one call's correlation with the next.
    """
    generator = np.random.default_rng(0)
    rows = []
    for correlation in (0.0, 0.5, 0.8):
        held = np.zeros(2)
        for _ in range(runs):
            values = np.array(list(_bursts(generator, correlation, count)))
            ours, plain = median_interval(values), median_interval(generator.permutation(values))
            held += [low <= 1 <= high for low, _, high in (ours, plain)]
        rows.append(
            {"correlation": correlation, "ours": held[0] / runs, "independent": held[1] / runs}
        )
    return rows


def _bursts(generator: np.random.Generator, correlation: float, count: int) -> Iterator[float]:
    noise = generator.standard_normal(count)
    value = generator.standard_normal()
    for fresh in noise:
        value = correlation * value + (1 - correlation**2) ** 0.5 * fresh
        yield float(np.exp(value))


def claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was to be shown, and whether it holds."""
    rows = []
    for name, row in found["overhead"].items():
        added = row["loop"]
        claim = f"{name}: the loop adds {added['percent']:.2f}%, at most {added['high']:.2f}%"
        rows.append({"claim": f"{claim} (under 1%)", "holds": added["high"] < 1})
    held, tries = sum(row["holds"] for row in found["itself"]), len(found["itself"])
    claim = f"the paired ratio of an artifact with itself holds 1 in {held} of {tries} tries"
    rows.append({"claim": claim, "holds": held * TRIES >= WANTED * tries})
    return rows


def overhead_table(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Percent that our loop adds, with its interval."""
    return [
        (
            name,
            f"{row['ms']:.3f}",
            _interval(row["reported"]),
            _interval(row["loop"]),
        )
        for name, row in found["overhead"].items()
    ]


def _interval(row: dict[str, float]) -> str:
    return f"{row['percent']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def tries_table(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """How often each way of comparing an artifact with itself says that nothing differs."""
    names = {
        "itself": f"in turns, {PAIRED_LOADS} loads (edgekit bench --paired)",
        "one_load": "in turns, one load",
        "apart": "two runs, compared (edgekit bench --compare)",
    }
    rows = []
    for key, name in names.items():
        tries = found[key]
        held = sum(row["holds"] for row in tries)
        off = max(abs(row["ratio"] - 1) for row in tries) * 100
        width = float(np.median([row["high"] - row["low"] for row in tries])) * 100
        rows.append((name, f"{held} of {len(tries)}", f"{off:.1f}", f"{width:.1f}"))
    return rows


OVERHEAD = ("model", "ms a call", "reported latency, % more", "the loop, % more")
TRIED = ("the same file against itself", "no difference claimed", "furthest off, %", "interval, %")
COVERED = ("correlation of neighbours", "ours", "as if independent")


def section(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine = found["environment"]
    covered = [
        (f"{r['correlation']:.1f}", f"{r['ours']:.1%}", f"{r['independent']:.1%}")
        for r in found["coverage"]
    ]
    verdicts = [f"{c['claim']}: {'holds' if c['holds'] else 'does not hold'}."
                for c in found["claims"]]  # fmt: skip
    return "\n\n".join(
        [
            f"## What measuring adds, and how sure it is (`python {SCRIPT}`)",
            f"On {machine['cpu']}, {machine['cores']} cores, load {machine['load_1min']} at the "
            "start; ONNX Runtime on one thread. The machine did other work meanwhile: everything "
            "is compared with itself, in turns.",
            "Our loop against a bare loop over the runtime's own call in the same session, in "
            "turns (95% intervals): the mean latency that is reported, and the processor time of "
            f"the loop. Watching the machine meanwhile takes {found['watching']:.2f}% of one core.",
            page.table(OVERHEAD, overhead_table(found)),
            f"{SUBJECT}, compared with itself for {TRY_SECONDS:g} s a try. One load of a file is "
            "not as fast as the next, however long both are timed; `--paired` loads both anew. "
            "Of two separate runs, those count that claim a difference and have no doubt of it.",
            page.table(TRIED, tries_table(found)),
            "How often the 95% interval of the median of 100 calls holds it, if calls come in "
            "bursts (simulated, 2,000 runs):",
            page.table(COVERED, covered),
            "\n".join(f"- {verdict}" for verdict in verdicts),
        ]
    )


def main() -> None:
    """Measure, save and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tries", type=int, default=TRIES)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    enable()
    found: dict[str, Any] = {
        "schema_version": 1,
        "command": f"python {SCRIPT}",
        "environment": environment(),
        "overhead": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        artifacts = {name: made(name, Path(folder)) for name in MODELS}
        for name, artifact in artifacts.items():
            say(f"Overhead: {name}")
            found["overhead"][name] = overhead(artifact)
        subject = artifacts[SUBJECT]
        found["watching"] = watching()
        found["itself"] = itself(subject, options.tries)
        found["one_load"] = one_load(subject, options.tries)
        found["apart"] = apart(subject, options.tries)
    found["coverage"] = coverage()
    found["claims"] = claims(found)
    write_text(options.output, json.dumps(found, indent=1))
    show(plain_table("Overhead", OVERHEAD, overhead_table(found)))
    show(plain_table("The same file twice", TRIED, tries_table(found)))
    if options.markdown:
        page.write_section(options.markdown, SCRIPT, section(found))


if __name__ == "__main__":
    main()
