"""Commands that make something: a bundle, one artifact, a compressed model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import show
from edgekit.cli.options import (
    Batch,
    BatchSize,
    Calibration,
    Checkpoint,
    Context,
    Effort,
    Evaluation,
    EvaluationSamples,
    Exclude,
    Granularity,
    Inputs,
    Iterations,
    Json,
    Method,
    Mode,
    Model,
    Partial,
    Passes,
    Precision,
    Qat,
    Random,
    RandomData,
    Samples,
    Scales,
    Seconds,
    Seed,
    Set,
    SplitStreams,
    StreamStarts,
    Targets,
    Training,
    Warmup,
    recipe_from,
)
from edgekit.errors import CheckFailed


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
    mode: Mode = None,
    context: Context = None,
    split_streams: SplitStreams = None,
    stream_start: StreamStarts = None,
    pass_: Passes = None,
    training: Training = None,
    qat: Qat = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    samples: Samples = None,
    evaluation_samples: EvaluationSamples = None,
    batch_size: BatchSize = None,
    method: Method = None,
    effort: Effort = None,
    granularity: Granularity = None,
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

    recipe = recipe_from(locals())
    try:
        made = flow.build(recipe, output)
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on where this one stopped.", err=True)
        raise typer.Exit(130) from None
    if as_json:
        show.dump(made.manifest.model_dump(mode="json"))
    else:
        show.bundle(made)
    failed = [row for row in made.manifest.rows if not row.ok]
    if failed:
        raise CheckFailed(
            f"{output} is marked failed.",
            "; ".join(f"{row.target} {row.format}: {row.status}" for row in failed),
        )


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
    mode: Mode = None,
    context: Context = None,
    split_streams: SplitStreams = None,
    stream_start: StreamStarts = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    samples: Samples = None,
    evaluation_samples: EvaluationSamples = None,
    batch_size: BatchSize = None,
    method: Method = None,
    effort: Effort = None,
    granularity: Granularity = None,
    seed: Seed = None,
    random_calibration: RandomData = None,
    scales: Scales = None,
    exclude: Exclude = None,
) -> None:
    """Make one artifact, checked against the source."""
    from edgekit import single

    values = {**locals(), "target": [target]}
    show.checks([single.convert(recipe_from(values), output)])


def compress(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The compressed model's folder.")],
    pass_: Passes = None,
    target: Targets = None,
    precision: Precision = None,
    checkpoint: Checkpoint = None,
    random_weights: Random = None,
    allow_partial: Partial = None,
    set_: Set = None,
    input_: Inputs = None,
    batch: Batch = None,
    training: Training = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    samples: Samples = None,
    evaluation_samples: EvaluationSamples = None,
    seed: Seed = None,
    random_calibration: RandomData = None,
    warmup: Warmup = None,
    iterations: Iterations = None,
    seconds: Seconds = None,
    as_json: Json = False,
) -> None:
    """Make a model smaller by passes, in PyTorch; `compressed/FOLDER` then names the result."""
    from edgekit import compression

    recipe = recipe_from(locals())
    try:
        stages = compression.compress(recipe, output)
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on where this one stopped.", err=True)
        raise typer.Exit(130) from None
    if not compression.first():
        return
    if as_json:
        show.dump([asdict(stage) for stage in stages])
        return
    show.stages(f"{recipe.model}, compressed", [asdict(stage) for stage in stages])
    typer.echo(f"edgekit build compressed/{output} --target T -o BUNDLE makes its engines.")
