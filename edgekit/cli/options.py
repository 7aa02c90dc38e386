"""Options that commands share, and the recipe that they describe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgekit.errors import EdgekitError
from edgekit.quantize import schemes

if TYPE_CHECKING:
    from edgekit.recipe import Recipe

Model = Annotated[
    str,
    typer.Argument(
        help="timm/NAME, transformers/FOLDER_OR_ID, diffusers/FOLDER, reference/NAME, "
        "compressed/FOLDER, FILE.onnx, package.module:factory, or RECIPE.yaml."
    ),
]
Targets = Annotated[
    list[str] | None, typer.Option("--target", "-t", help="Target device; repeat for several.")
]
Precision = Annotated[
    schemes.Precision | None,
    typer.Option(help="Of artifacts."),
]
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
    list[str] | None,
    typer.Option("--input", help="NAME:1x3x224x224[:DTYPE]; 1..128..512 varies."),
]
Batch = Annotated[str | None, typer.Option(help="Samples a call, or 'dynamic'.")]
Mode = Annotated[
    Literal["whole", "stream"] | None,
    typer.Option(help="Whole sequences, or a stream with states [whole]."),
]
Context = Annotated[
    int | None, typer.Option(help="Tokens that attention remembers in a stream [4096].", min=1)
]
SplitStreams = Annotated[
    bool | None,
    typer.Option("--split-streams", help="An artifact a stream and step, not one for all."),
]
StreamStarts = Annotated[
    list[str] | None,
    typer.Option("--stream-start", help="NAME=GLOB of an input or modules; repeat."),
]
Passes = Annotated[
    list[str] | None,
    typer.Option("--pass", help="Done to the model first: NAME[:OPTION=VALUE,...]; repeat."),
]
Training = Annotated[
    Path | None, typer.Option(help="Data that distillation learns from [the calibration data].")
]
Qat = Annotated[
    str | None,
    typer.Option(help="Train the quantized model: options of distill, such as 'steps=500'."),
]
Calibration = Annotated[
    Path | None, typer.Option(help="Data that sets INT8 scales: image folder, .npy, .npz, ...")
]
Evaluation = Annotated[Path | None, typer.Option(help="Data that judges the artifacts.")]
Samples = Annotated[int | None, typer.Option(help="Calibrate on at most so many [256].")]
EvaluationSamples = Annotated[int | None, typer.Option(help="Judge on at most so many [512].")]
Seed = Annotated[int | None, typer.Option(help="Of every random choice [0].")]
RandomData = Annotated[
    bool | None,
    typer.Option("--random-calibration", help="Random numbers as data; the bundle says so."),
]
Scales = Annotated[Path | None, typer.Option(help="Scale table to use instead of calibrating.")]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Modules that stay in float (glob); repeat.")
]
Method = Annotated[
    Literal["minmax", "average", "percentile", "entropy", "mse"] | None,
    typer.Option(help="How an activation's range becomes a scale [the effort's own]."),
]
Effort = Annotated[
    Literal["quick", "balanced", "best"] | None,
    typer.Option(help="How much is done for accuracy [balanced]."),
]
Granularity = Annotated[
    Literal["tensor", "channel", "group32", "group64", "group128"] | None,
    typer.Option(help="What shares a weight's scale [the precision's own]."),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Samples in one call of calibration [as --batch].", min=1)
]
Warmup = Annotated[int | None, typer.Option(help="Untimed calls first [10].")]
Iterations = Annotated[int | None, typer.Option(help="Timed calls at most [100].")]
Seconds = Annotated[float | None, typer.Option(help="Stop timing after this long [3].")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def recipe_from(values: dict[str, Any]) -> Recipe:
    """The recipe that a command's flags describe; flags override a recipe file."""
    from edgekit.recipe import Recipe

    fields = recipe_fields(values)
    model = str(fields["model"])
    if model.endswith((".yaml", ".yml")):
        del fields["model"]
        return Recipe.read(Path(model), fields)
    return Recipe.check(fields, "the command")


def recipe_fields(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that a command's flags give."""
    from edgekit.recipe import Recipe

    names = {"target": "targets", "set_": "arguments", "input_": "inputs", "pass_": "passes"}
    names["stream_start"] = "stream_starts"
    fields = {names.get(name, name): value for name, value in values.items()}
    fields = {n: v for n, v in fields.items() if n in Recipe.model_fields and v is not None}
    if "arguments" in fields:
        fields["arguments"] = dict(_assignment(text) for text in fields["arguments"])
    if "stream_starts" in fields:
        pairs = (_pair("--stream-start", text) for text in fields["stream_starts"])
        fields["stream_starts"] = dict(pairs)
    if str(fields.get("batch", "")).isdigit():
        fields["batch"] = int(fields["batch"])
    return fields


def _assignment(text: str) -> tuple[str, Any]:
    import yaml

    name, value = _pair("--set", text)
    return name, yaml.safe_load(value)


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise EdgekitError(f"{flag} {text!r} is not NAME=VALUE.")
    return name, value
