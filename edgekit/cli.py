"""The command line: a thin shell over flow and single."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgekit import progress
from edgekit.errors import CheckFailed, EdgekitError

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.recipe import Recipe
    from edgekit.single import Checked

app = typer.Typer(
    help="From a PyTorch checkpoint to a small, fast engine, proven equal to its source.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[
    str,
    typer.Argument(
        help="timm/NAME, transformers/FOLDER_OR_ID, package.module:factory, or RECIPE.yaml."
    ),
]
Targets = Annotated[
    list[str] | None, typer.Option("--target", "-t", help="Target device; repeat for several.")
]
Precision = Annotated[Literal["fp32", "fp16", "int8"] | None, typer.Option(help="Of artifacts.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights: .safetensors, .pt, .pth, .bin.")]
Random = Annotated[
    bool | None, typer.Option("--random-weights", help="Load no weights; proves no accuracy.")
]
Partial = Annotated[
    bool | None, typer.Option("--allow-partial", help="Accept missing or extra weights.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Constructor argument, NAME=VALUE; repeat.")
]
Inputs = Annotated[
    list[str] | None, typer.Option("--input", help="NAME:1x3x224x224[:DTYPE], for a factory.")
]
Batch = Annotated[str | None, typer.Option(help="Samples a call, or 'dynamic'.")]
Calibration = Annotated[
    Path | None, typer.Option(help="Data that sets INT8 scales: image folder, .npy, .npz, ...")
]
Evaluation = Annotated[Path | None, typer.Option(help="Data that judges the artifacts.")]
Samples = Annotated[int | None, typer.Option(help="At most so many samples of each [256].")]
Seed = Annotated[int | None, typer.Option(help="Of every random choice [0].")]
RandomData = Annotated[
    bool | None,
    typer.Option("--random-calibration", help="Random numbers as data; the bundle says so."),
]
Scales = Annotated[Path | None, typer.Option(help="Scale table to use instead of calibrating.")]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Modules that stay in float (glob); repeat.")
]
Warmup = Annotated[int | None, typer.Option(help="Untimed calls first [10].")]
Iterations = Annotated[int | None, typer.Option(help="Timed calls at most [100].")]
Seconds = Annotated[float | None, typer.Option(help="Stop timing after this long [3].")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def build(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle's folder.")],
    target: Targets = None,
    precision: Precision = None,
    checkpoint: Checkpoint = None,
    random_weights: Random = None,
    allow_partial: Partial = None,
    set_: Set = None,
    input_: Inputs = None,
    batch: Batch = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    samples: Samples = None,
    seed: Seed = None,
    random_calibration: RandomData = None,
    scales: Scales = None,
    exclude: Exclude = None,
    warmup: Warmup = None,
    iterations: Iterations = None,
    seconds: Seconds = None,
    as_json: Json = False,
) -> None:
    """Convert for every target, check against the source, measure: make a bundle."""
    from edgekit import flow

    recipe = _recipe(locals())
    try:
        made = flow.build(recipe, output)
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on where this one stopped.", err=True)
        raise typer.Exit(130) from None
    if as_json:
        _print(made.manifest.model_dump(mode="json"))
    else:
        _show_bundle(made)
    failed = [row for row in made.manifest.rows if not row.ok]
    if failed:
        raise CheckFailed(
            f"{output} is marked failed.",
            "; ".join(f"{row.target} {row.format}: {row.status}" for row in failed),
        )


@app.command()
def convert(
    model: Model,
    target: Annotated[str, typer.Option("--target", "-t", help="Target device.")],
    output: Annotated[Path, typer.Option("--output", "-o", help=".onnx, .plan or .mlpackage.")],
    precision: Precision = None,
    checkpoint: Checkpoint = None,
    random_weights: Random = None,
    allow_partial: Partial = None,
    set_: Set = None,
    input_: Inputs = None,
    batch: Batch = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    samples: Samples = None,
    seed: Seed = None,
    random_calibration: RandomData = None,
    scales: Scales = None,
    exclude: Exclude = None,
) -> None:
    """Make one artifact, checked against the source."""
    from edgekit import single

    values = {**locals(), "target": [target]}
    _show_checks([single.convert(_recipe(values), output)])


@app.command()
def inspect(
    model: Model,
    checkpoint: Checkpoint = None,
    random_weights: Random = None,
    allow_partial: Partial = None,
    set_: Set = None,
    input_: Inputs = None,
    as_json: Json = False,
) -> None:
    """Describe a model, or a bundle."""
    from edgekit import single
    from edgekit.bundle import MANIFEST, Bundle

    if (Path(model) / MANIFEST).exists():
        made = Bundle.open(Path(model))
        if as_json:
            _print(made.manifest.model_dump(mode="json"))
        else:
            _show_bundle(made)
        return
    _print_fields(asdict(single.inspect(_recipe(locals()))), as_json)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A bundle, or an artifact.")],
    reference: Annotated[Path | None, typer.Option(help="reference.npz, for an artifact.")] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Whose tolerance, for an artifact.")
    ] = "fp32",
    as_json: Json = False,
) -> None:
    """Run artifacts on reference inputs and compare outputs with the source's."""
    from edgekit import single

    checks = single.verify(path, reference, precision)
    if as_json:
        _print([asdict(check) for check in checks])
    else:
        _show_checks(checks)
    failed = [check for check in checks if not check.ok]
    if failed:
        why = "; ".join(f"{check.artifact}: {check.status}" for check in failed)
        raise CheckFailed(f"{path} did not pass.", why)


@app.command()
def bench(
    path: Annotated[Path, typer.Argument(help="A bundle, or an artifact.")],
    reference: Annotated[
        Path | None, typer.Option(help="reference.npz, whose inputs to use.")
    ] = None,
    warmup: Annotated[int, typer.Option(help="Untimed calls first.", min=0)] = 10,
    iterations: Annotated[int, typer.Option(help="Timed calls at most.", min=1)] = 100,
    seconds: Annotated[float, typer.Option(help="Stop timing after this long.")] = 3.0,
    as_json: Json = False,
) -> None:
    """Measure latency on this machine."""
    from edgekit import single, table
    from edgekit.latency import Settings

    report = single.bench(path, reference, Settings({}, warmup, iterations, seconds))
    if as_json:
        _print(report)
        return
    for result in report["results"]:
        table.show(table.latency_table(f"{result['artifact']}, ms", result["entries"]))


@app.command()
def result(
    bundle: Annotated[Path, typer.Argument(help="The bundle that holds the kit.")],
    result: Annotated[Path, typer.Argument(help="result.json, written on the device.")],
) -> None:
    """Read a device's result back into its bundle."""
    from edgekit import single

    _show_bundle(single.read_back(bundle, result))


@app.command()
def targets(
    name: Annotated[str | None, typer.Argument(help="Show one device's facts.")] = None,
    as_json: Json = False,
) -> None:
    """List the devices that edgekit knows."""
    from edgekit import table
    from edgekit import targets as known

    if name is not None:
        _print_fields(known.load(name).model_dump(mode="json"), as_json)
        return
    found = [known.load(each) for each in known.names()]
    if as_json:
        _print([target.model_dump(mode="json") for target in found])
        return
    rows = [
        (t.name, t.title, t.runtime, ", ".join(t.dtypes), t.system or t.deployment or "")
        for t in found
    ]
    columns = ("target", "device", "runtime", "dtypes", "system")
    table.show(table.plain_table("Targets", columns, rows))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, and what can be built, verified and run here."""
    from edgekit import table
    from edgekit.doctor import doctor as examine

    found = examine()
    if as_json:
        _print(asdict(found))
        return
    rows = [
        (a.target, a.build or "yes", a.verify or "yes", a.run or "yes") for a in found.abilities
    ]
    installed = [(name, version) for name, version in found.installed.items()]
    installed += [(name, "not installed") for name in found.missing]
    table.show(table.plain_table("Packages", ("package", "version"), installed))
    table.show(table.plain_table("Targets", ("target", "build", "verify", "run"), rows))
    if found.install:
        typer.echo(f"To install what is missing: {found.install}")


def main() -> None:
    """The entry point: errors become their exit codes, never a traceback."""
    progress.enable()
    try:
        app()
    except EdgekitError as error:
        typer.secho(f"Error: {error}", err=True, fg="red")
        sys.exit(error.exit_code)


def _recipe(values: dict[str, Any]) -> Recipe:
    """The recipe that a command's flags describe; flags override a recipe file."""
    from edgekit.recipe import Recipe

    names = {"target": "targets", "set_": "arguments", "input_": "inputs"}
    fields = {names.get(name, name): value for name, value in values.items()}
    fields = {n: v for n, v in fields.items() if n in Recipe.model_fields and v is not None}
    if "arguments" in fields:
        fields["arguments"] = dict(_assignment(text) for text in fields["arguments"])
    if str(fields.get("batch", "")).isdigit():
        fields["batch"] = int(fields["batch"])
    model = str(fields["model"])
    if model.endswith((".yaml", ".yml")):
        del fields["model"]
        return Recipe.read(Path(model), fields)
    return Recipe.check(fields, "the command")


def _assignment(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise EdgekitError(f"--set {text!r} is not NAME=VALUE.")
    return name, yaml.safe_load(value)


def _print(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, default=str))


def _print_fields(fields: dict[str, Any], as_json: bool) -> None:
    from edgekit import table

    if as_json:
        _print(fields)
        return
    rows = [(name, _text(value)) for name, value in fields.items() if value not in (None, "", {})]
    table.show(table.plain_table(str(fields.get("source", "")), ("", ""), rows))


def _text(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return "\n".join(str(item) for item in value)
    if isinstance(value, dict):
        return "\n".join(f"{name}: {item}" for name, item in value.items())
    return str(value)


def _show_bundle(bundle: Bundle) -> None:
    from edgekit import table

    table.show(table.bundle_table(bundle))
    if bundle.manifest.baseline:
        table.show(table.latency_table("The source here, ms", bundle.manifest.baseline))
    typer.echo(f"Bundle: {bundle.path}")


def _show_checks(checks: list[Checked]) -> None:
    from edgekit import table

    rows = [
        (c.artifact, c.status, "" if c.drift is None else table.drift_text(c.drift.as_dict()))
        for c in checks
    ]
    table.show(table.plain_table("Checks", ("artifact", "status", "drift"), rows))
