"""Single steps of the flow, for artifacts that stand alone: convert, verify, bench, inspect."""

from __future__ import annotations

import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.bundle import MANIFEST, Bundle, Row
from edgekit.drift import Drift, Tolerance, compare, tolerance_for
from edgekit.errors import EdgekitError
from edgekit.find import find, names
from edgekit.pipeline import SUFFIX
from edgekit.recipe import Recipe
from edgekit.targets.runtimes import runtime_for
from edgekit.whole import opened

if TYPE_CHECKING:
    from edgekit.converters.on_device import DeviceResult
    from edgekit.latency import Plan
    from edgekit.quantize.spiking.report import Spikes
    from edgekit.targets.runtimes import Arrays
    from edgekit.work import Work


#: An entry of the reference of a model that computes levels; others lack it.
DISCRETE = "discrete"


@dataclass(frozen=True)
class Summary:
    """What ``inspect`` says of a model.

    Attributes:
        operations: multiply-accumulates of one sample's matrix products and convolutions.
        sites: modules that INT8 would quantize.
    """

    source: str
    weights: str
    parameters: int
    operations: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    preprocess: dict[str, Any] | None
    sites: tuple[str, ...]


def format_of(path: Path, making: bool = False) -> str:
    """The converter that makes artifacts with this path's suffix.

    Raises:
        EdgekitError: none does, or there is nothing at the path and it is not being made.
    """
    if not path.exists() and not making:
        raise EdgekitError(f"{path} does not exist.", "", f"Check the path; this is {Path.cwd()}.")
    known = {Path(find("converters", name).NAME).suffix: name for name in names("converters")}
    known.pop("", None)  # a folder without a suffix may be anything
    suffix = Path(path.stem).suffix if path.suffix == SUFFIX else path.suffix
    if suffix not in known:
        raise EdgekitError(
            f"{path} does not name an artifact.",
            f"Its suffix is {suffix!r}.",
            f"Use one of {', '.join(sorted(known))}.",
        )
    return known[suffix]


def runtime_of(bundle: Bundle, row: Row) -> str | None:
    """What runs a row's artifact; None if only the device can."""
    return runtime_for(bundle.manifest.targets[row.target]["runtime"], row.format)


def inspect(recipe: Recipe) -> Summary:
    """Load a model and count; nothing is converted."""
    from edgekit.compress.measure import operations
    from edgekit.edit import Editor
    from edgekit.quantize.sites import find_sites
    from edgekit.source import load_model
    from edgekit.work import export

    model = load_model(recipe)
    sites = find_sites(Editor(export(model)), recipe.exclude)
    return Summary(
        source=model.source,
        weights=model.weights,
        parameters=sum(p.numel() for p in model.module.parameters()),
        operations=operations(model),
        inputs=tuple(str(spec) for spec in model.inputs),
        outputs=model.outputs,
        preprocess=asdict(model.preprocess) if model.preprocess else None,
        sites=tuple(site.module for site in sites if site.kind == "weight"),
    )


def count_spikes(recipe: Recipe, data: Path, samples: int) -> tuple[Spikes, list[dict[str, Any]]]:
    """Count a spiking model's spikes, and measure its engine.

    Args:
        data: what it runs on: a folder of images, .npz, ...
        samples: of the data, at most.

    Returns:
        The counts, and the latency on this machine of its fp32 ONNX file, as a bundle has it.

    Raises:
        EdgekitError: bad input, or no unit or neuron in the model.
    """
    from edgekit import targets
    from edgekit.latency import Settings, time_artifact
    from edgekit.quantize.spiking.report import count
    from edgekit.work import Work

    if recipe.mode == "stream":
        raise EdgekitError(
            f"{recipe.model} is asked for as a stream.",
            "Spikes are counted over whole sequences.",
            "Drop --mode stream.",
        )
    only = {
        **{"precision": "fp32", "exclude": (), "scales": None, "qat": None, "targets": ("cpu",)},
        **{"split_streams": False, "evaluation": data, "evaluation_samples": samples},
    }
    work = Work(recipe.model_copy(update=only))
    found = count(work.graph, work.batches, recipe.model)
    settings = Settings(work.batches[0], recipe.warmup, recipe.iterations, recipe.seconds)
    with tempfile.TemporaryDirectory() as folder:
        artifact = work.artifact(targets.load("cpu"), "onnx", Path(folder), None)
        return found, time_artifact(artifact, "onnxruntime", settings)


@dataclass(frozen=True)
class Checked:
    """One artifact's check.

    Attributes:
        status: ``verified``, ``built, not run: ...`` or ``drift: ...``.
        drift: None where nothing ran.
    """

    artifact: str
    status: str
    ok: bool
    drift: Drift | None


def convert(recipe: Recipe, out: Path, work: Work | None = None) -> Checked:
    """One artifact for the recipe's one target, in the format that ``out``'s suffix names.

    It takes its name only when it has been found equal to the source, or when nothing on
    this machine can run it, which the status says.

    Args:
        work: the recipe's, where there is one already.

    Raises:
        EdgekitError: bad input.
        CheckFailed: it is out of tolerance; nothing is written.
    """
    from edgekit import packages, targets
    from edgekit.work import Work

    format = format_of(out, making=True)
    target = targets.load(recipe.targets[0])
    target.require(recipe.precision)
    if recipe.split_streams != (out.suffix == SUFFIX):
        right = f"{out}{SUFFIX}" if recipe.split_streams else out.with_suffix("")
        raise EdgekitError(
            f"{out} is {'' if recipe.split_streams else 'not '}one artifact.",
            f"--split-streams makes a folder of them, whose name ends in {SUFFIX}; "
            "without it one is made.",
            f"Write -o {right}, or {'drop' if recipe.split_streams else 'add'} --split-streams.",
        )
    if format not in target.formats:
        fits = ", ".join(find("converters", name).NAME for name in target.formats)
        raise EdgekitError(f"{target.name} does not run {out.suffix} files.", f"It takes {fits}.")
    packages.require("converters", [format])
    _, status, drift = (work or Work(recipe)).single(target, format, out)
    return Checked(str(out), status, True, drift)


def verify(path: Path, reference: Path | None = None, precision: str = "fp32") -> list[Checked]:
    """Run a bundle's artifacts, or one artifact, on reference inputs and compare outputs.

    Args:
        path: a bundle, or an artifact.
        reference: a ``reference.npz``; a bundle has its own.
        precision: whose tolerance holds for a single artifact; a bundle knows its own.

    Raises:
        EdgekitError: nothing to compare with, or the file does not fit the artifact.
    """
    if (path / MANIFEST).exists():
        return _verify_bundle(Bundle.open(path))
    if reference is None:
        raise EdgekitError(
            f"There is nothing to compare {path} with.",
            "A single artifact does not know its source.",
            "Pass --reference reference.npz, from the bundle that it came in.",
        )
    runtime = find("converters", format_of(path)).RUNTIME
    arrays = load_reference(reference)
    tolerance = tolerance_for(precision, is_discrete(reference))
    return [_verify_one(path, path.name, runtime, arrays, tolerance)]


def _verify_bundle(bundle: Bundle) -> list[Checked]:
    damaged = bundle.damaged()
    checks = [Checked(name, "damaged: not what was built", False, None) for name in damaged]
    if "reference.npz" in damaged:
        return checks
    reference = load_reference(bundle.path / "reference.npz")
    precision = bundle.manifest.recipe["precision"]
    tolerance = tolerance_for(precision, is_discrete(bundle.path / "reference.npz"))
    for row in bundle.manifest.rows:
        if row.path is None:
            checks.append(Checked(f"{row.target} {row.format}", row.status, False, None))
        if row.path is None or row.path in damaged:
            continue
        runtime = runtime_of(bundle, row)
        path = bundle.path / row.path
        checks.append(_verify_one(path, row.path, runtime, reference, tolerance))
    return checks


def _verify_one(
    path: Path,
    name: str,
    runtime: str | None,
    reference: tuple[Arrays, Arrays],
    tolerance: Tolerance,
) -> Checked:
    absent = "on the device" if runtime is None else find("runtimes", runtime).unavailable()
    if absent:
        return Checked(name, f"built, not run: {absent}", True, None)
    inputs, outputs = reference
    with opened(str(runtime), path) as session:
        actual = in_batches(session, inputs)
    found = {output: value.shape for output, value in actual.items()}
    wanted = {output: value.shape for output, value in outputs.items()}
    if found != wanted:
        raise EdgekitError(
            f"{path} does not fit the reference.", f"It gives {found}; the reference has {wanted}."
        )
    drift = compare([outputs], [actual])
    failure = tolerance.failure(drift)
    return Checked(name, f"drift: {failure}" if failure else "verified", not failure, drift)


def in_batches(session: Any, inputs: Arrays) -> Arrays:
    """Outputs for many samples from a runtime that takes a batch at a time."""
    import numpy as np

    count = len(next(iter(inputs.values())))
    size = session.batch or count
    calls = [
        session.infer({name: value[start : start + size] for name, value in inputs.items()})
        for start in range(0, count, size)
    ]
    return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}


def load_reference(path: Path) -> tuple[Arrays, Arrays]:
    """Inputs and outputs by name from a ``reference.npz``.

    Raises:
        EdgekitError: it is missing, or not such a file.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            content = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise EdgekitError(
            f"{path} cannot be read as a reference.",
            str(error),
            "Take the reference.npz of a bundle.",
        ) from error
    sides = [
        {n.removeprefix(f"{side}/"): v for n, v in content.items() if n.startswith(f"{side}/")}
        for side in ("input", "output")
    ]
    if not all(sides):
        raise EdgekitError(
            f"{path} is not a reference.",
            "It lacks arrays named input/NAME and output/NAME.",
            "Take the reference.npz of a bundle.",
        )
    return sides[0], sides[1]


def is_discrete(reference: Path) -> bool:
    """Whether a ``reference.npz`` is of a model that computes levels; see ``drift``."""
    import numpy as np

    with np.load(reference, allow_pickle=False) as arrays:
        return DISCRETE in arrays.files


def bench(
    path: Path | str,
    plan: Plan | None = None,
    reference: Path | None = None,
    target: str | None = None,
    against: Path | str | None = None,
) -> dict[str, Any]:
    """Measure a bundle's artifacts, or one artifact, on this machine.

    Args:
        path: a bundle or an artifact.
        plan: runtimes, threads, batches, shapes, mode...; None is the latency of each artifact
            in its target's runtime.
        reference: whose samples are the inputs; a bundle has its own, and an ONNX file alone is
            fed random numbers, which the report says.
        target: only this target's artifacts, of a bundle.
        against: another bundle or artifact to compare with, in turns: the rows are ratios.

    Returns:
        A report for JSON; see ``edgekit.latency.benchmark``.

    Raises:
        EdgekitError: there is nothing to measure, or an artifact doesn't take such calls.
    """
    from edgekit import latency

    if against is None:
        return latency.bench(path, plan, reference, target)
    return latency.bench_paired(path, against, plan, reference, target)


def read_back(bundle_path: Path, result_path: Path) -> Bundle:
    """Put what a kit found on its device into the bundle's manifest.

    Raises:
        EdgekitError: no such bundle or result, or one of another model.
    """
    from edgekit.converters.on_device import read_result

    bundle = Bundle.open(bundle_path)
    kits = {row.target: row for row in bundle.manifest.rows if row.format == "on_device"}
    found = read_result(
        result_path, {t: str(r.details.get("model_sha256")) for t, r in kits.items()}
    )
    worst = min((found.drift or {}).values(), key=lambda d: d["cosine"] or 0, default=None)
    row = kits[found.target].model_copy(
        update={
            "status": {"passed": "verified on the device"}.get(found.status, found.status),
            "ok": found.status != "failed",
            "drift": worst,
            "latency": _device_latency(found),
        }
    )
    return bundle.with_row(row)


#: What an entry takes over as it is from the kit's figures of a kind of call.
_TAKEN = ("mode", "batch", "spread", "device_ms", "energy", "watch", "doubts", "p90_at_most_ms")


def _device_latency(found: DeviceResult) -> list[dict[str, Any]]:
    """An entry for each kind of call that the kit timed, as those of latency measured here."""
    entry = {"runtime": f"tensorrt {found.tensorrt}", "device": found.device}
    entries = []
    for kind, timing in (found.timing or {}).items():
        figures = {name.lower(): value for name, value in timing["latency_ms"].items()}
        figures |= {name: timing[name] for name in ("throughput", "iterations", "warmup")}
        phase = {} if kind == "call" else {"phase": kind}
        measured = {
            "status": "measured",
            "latency_ms": figures,
            "peak_memory_mb": None,
            "device_memory_mb": found.device_memory_mb,
            **{name: timing[name] for name in _TAKEN if name in timing},
        }
        entries.append({**entry, **phase, **measured})
    if not entries:
        return [{**entry, "status": found.status}]
    # The cold start and the profile are of the first kind of call.
    entries[0] |= {"cold": found.cold, **_device_profile(found)}
    return entries


def _device_profile(found: DeviceResult) -> dict[str, Any]:
    """Where a call spends its time, by class and module; the layers stay in result.json."""
    from edgekit.profiling import Layer, Profile

    if found.profile is None:
        return {}
    layers = tuple(
        Layer(row["name"], row["operator"], row["module"], row["milliseconds"], row["class"])
        for row in found.profile["layers"]
    )
    whole, profiled = found.profile["whole_ms"], found.profile["profiled_ms"]
    told = Profile(f"tensorrt {found.tensorrt}", layers, whole, profiled).as_dict()
    del told["layers"]
    return {"profile": told}
