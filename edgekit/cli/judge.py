"""Commands that judge what was made: verify, evaluate, and the result of a device."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import show
from edgekit.cli.options import Checkpoint, Inputs, Json, Partial, Random, Set, recipe_from
from edgekit.errors import CheckFailed, EdgekitError
from edgekit.quantize import schemes

if TYPE_CHECKING:
    from edgekit.evaluation.scores import Report
    from edgekit.recipe import Recipe


def verify(
    path: Annotated[Path, typer.Argument(help="A bundle, or an artifact.")],
    reference: Annotated[Path | None, typer.Option(help="reference.npz, for an artifact.")] = None,
    precision: Annotated[
        schemes.Precision, typer.Option(help="Whose tolerance, for an artifact.")
    ] = "fp32",
    as_json: Json = False,
) -> None:
    """Run artifacts on reference inputs and compare outputs with the source's."""
    from edgekit import single

    checks = single.verify(path, reference, precision)
    if as_json:
        show.dump([asdict(check) for check in checks])
    else:
        show.checks(checks)
    failed = [check for check in checks if not check.ok]
    if failed:
        why = "; ".join(f"{check.artifact}: {check.status}" for check in failed)
        raise CheckFailed(f"{path} did not pass.", why)


def evaluate(
    subject: Annotated[str, typer.Argument(help="A bundle, an artifact or a model.")],
    data: Annotated[Path, typer.Option(help="What to judge on: image folder, .npz, ...")],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Name, package.module:function or file.py:function; repeat."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The source, if moved.")
    ] = None,
    checkpoint: Checkpoint = None,
    random_weights: Random = None,
    allow_partial: Partial = None,
    set_: Set = None,
    input_: Inputs = None,
    labels: Annotated[Path | None, typer.Option(help="One row a sample, .npy.")] = None,
    samples: Annotated[int | None, typer.Option(help="So many at random [all].", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of that choice.")] = 0,
    batch: Annotated[
        int | None, typer.Option(help="Samples a call, of what takes any number.", min=1)
    ] = None,
    accuracy_drop: Annotated[
        float | None, typer.Option(help="Fail if more points below the source.", min=0)
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Report, .json.")] = None,
    as_json: Json = False,
) -> None:
    """Judge the source and every artifact on the same samples by the same metrics."""
    from edgekit import evaluation

    judged, source = _subject(locals())
    report = evaluation.evaluate(judged, data, metric or (), source, samples, seed, batch, labels)
    if output is not None:
        show.save(asdict(report), output)
    if as_json:
        show.dump(asdict(report))
    else:
        show.report(report)
    _check(report, accuracy_drop)


def _subject(values: dict[str, Any]) -> tuple[str | Recipe, Recipe | None]:
    """What to evaluate, and its source where that was given."""
    from edgekit.evaluation.subject import is_made

    subject, model = values["subject"], values["model"]
    names = ("checkpoint", "random_weights", "allow_partial", "set_", "input_")
    flags = {name: values[name] for name in names}
    if not is_made(subject):
        if model is not None:
            raise EdgekitError(
                f"{subject} is no bundle or artifact, so it has no --model.",
                "",
                "Check the path, or drop --model.",
            )
        return recipe_from({**flags, "model": subject}), None
    if model is not None:
        return subject, recipe_from({**flags, "model": model})
    if any(value is not None for value in flags.values()):
        raise EdgekitError(
            f"How the source of {subject} is made was given, but not the source.",
            "",
            "Pass --model MODEL too.",
        )
    return subject, None


def _check(report: Report, accuracy_drop: float | None) -> None:
    """Raise where an artifact failed, or is worse than was allowed."""
    reasons = [f"{row.artifact} {row.status}" for row in report.rows if row.failed]
    if accuracy_drop is not None:
        reasons += report.worse(accuracy_drop)
    if reasons:
        raise CheckFailed(f"{report.subject} did not pass.", "; ".join(reasons))


def result(
    bundle: Annotated[Path, typer.Argument(help="The bundle that holds the kit.")],
    result: Annotated[Path, typer.Argument(help="result.json, written on the device.")],
) -> None:
    """Read a device's result back into its bundle."""
    from edgekit import single

    show.bundle(single.read_back(bundle, result))
