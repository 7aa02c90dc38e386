"""The command that measures: latency, throughput and comparisons on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgekit.cli import show
from edgekit.cli.options import Json
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.latency import Plan


def bench(
    path: Annotated[
        Path | None, typer.Argument(help="A bundle, or an .onnx, .plan or .mlpackage.")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="The target's own; or torch, torch.compile (a bundle's source); repeat."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Only its artifacts, of a bundle.")
    ] = None,
    threads: Annotated[
        str | None, typer.Option(help="Such as 1,4 [one and all cores].", metavar="N,...")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="Such as 1,4,8 [the artifact's own].", metavar="N,...")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="NAME:1x128[,NAME:...], a measurement each; repeat.")
    ] = None,
    mode: Annotated[
        Literal["latency", "single-stream", "throughput"],
        typer.Option(help="single-stream is as MLPerf's; throughput has several calls in flight."),
    ] = "latency",
    streams: Annotated[
        str | None, typer.Option(help="Calls in flight, such as 1,2,4.", metavar="N,...")
    ] = None,
    paired: Annotated[
        Path | None, typer.Option(help="Compare with this one, in turns: a ratio, with 95%.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Compare two reports: BEFORE AFTER.")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Time each layer too.")] = False,
    reference: Annotated[
        Path | None, typer.Option(help="reference.npz, whose inputs to use.")
    ] = None,
    warmup: Annotated[int, typer.Option(help="Untimed calls first.", min=0)] = 10,
    iterations: Annotated[
        int | None,
        typer.Option(help="Timed calls at most [100]; in single-stream at least [1024].", min=1),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="Stop after this long [3, paired 10]; in single-stream not before [60]."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Report, .json.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Report as CSV.")] = None,
    pytest_benchmark: Annotated[
        Path | None, typer.Option(help="Report for pytest-benchmark compare.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure latency, throughput, memory and energy on this machine, or compare."""
    given = dict(locals())
    if compare is not None:
        _compare(compare, given)
        return
    if path is None:
        raise EdgekitError("There is nothing to measure.", "", "Give a bundle or an artifact.")
    _refuse(paired is not None and mode != "latency", "--paired", f"in {mode} mode")
    _refuse(paired is not None and profile, "--profile", "with --paired")
    from edgekit import latency

    plan = _plan(given)
    if paired is None:
        report = latency.bench(path, plan, reference, target)
    else:
        report = latency.bench_paired(path, paired, plan, reference, target)
    _write(report, output, csv, pytest_benchmark)
    if as_json:
        show.dump(report)
        return
    from edgekit import table
    from edgekit.latency.tables import report_table

    table.show(report_table(report))


def _compare(reports: tuple[Path, Path], given: dict[str, Any]) -> None:
    """Print how two reports differ."""
    from edgekit import table
    from edgekit.latency import compare, read_report
    from edgekit.latency.tables import comparison_table

    for name in ("path", "paired", "csv", "pytest_benchmark"):
        flag = f"--{name.replace('_', '-')}" if name != "path" else str(given["path"])
        _refuse(given[name] is not None, flag, "with --compare, which reads two reports")
    found = compare(read_report(reports[0]), read_report(reports[1]))
    if given["output"] is not None:
        show.save(found, given["output"])
    if given["as_json"]:
        show.dump(found)
    else:
        table.show(comparison_table(found))


def _plan(given: dict[str, Any]) -> Plan:
    from edgekit.latency import Plan
    from edgekit.latency.plan import Limits

    return Plan(
        runtimes=tuple(given["runtime"] or ()),
        threads=_numbers("--threads", given["threads"]),
        batches=_numbers("--batch", given["batch"]),
        shapes=tuple(given["shape"] or ()),
        streams=_numbers("--streams", given["streams"]),
        mode=given["mode"],
        limits=Limits(given["warmup"], given["iterations"], given["seconds"]),
        profile=given["profile"],
    )


def _numbers(flag: str, text: str | None) -> tuple[int, ...]:
    """``1,4,8``."""
    parts = [] if text is None else text.split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise EdgekitError(f"{flag} {text!r} is not a list of numbers.", "", "Write 1,4,8.")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _refuse(wrong: bool, flag: str, where: str) -> None:
    if wrong:
        raise EdgekitError(f"{flag} has no meaning {where}.", "", "Drop one of the two.")


def _write(
    report: dict[str, Any], output: Path | None, csv: Path | None, pytest_benchmark: Path | None
) -> None:
    """The report in each form that was asked for."""
    from edgekit import files
    from edgekit.latency.export import to_csv, to_pytest_benchmark

    if output is not None:
        files.write_text(output, json.dumps(report, indent=1, default=str))
    if csv is not None:
        files.write_text(csv, to_csv(report))
    if pytest_benchmark is not None:
        files.write_text(pytest_benchmark, to_pytest_benchmark(report))
