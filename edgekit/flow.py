"""Flow: the only place that sequences work. Everything else does one thing when asked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import bundle as bundles
from edgekit import files, packages
from edgekit.bundle import Bundle, Draft, Manifest, Row
from edgekit.compression import kept_beside
from edgekit.errors import EdgekitError
from edgekit.find import find
from edgekit.latency import Settings, paired, thread_choices, time_artifact, time_source
from edgekit.machine import environment
from edgekit.progress import say, stage
from edgekit.quantize.schemes import SCHEMES
from edgekit.recipe import Recipe
from edgekit.single import DISCRETE
from edgekit.targets import Target
from edgekit.targets.runtimes import runtime_for
from edgekit.work import Work

if TYPE_CHECKING:
    from edgekit.model import Graph
    from edgekit.quantize.calibrate import Store
    from edgekit.quantize.post_training import Quantized

#: Samples kept in reference.npz, for checks on the device.
REFERENCE_SAMPLES = 16
SCALES = "scales.json"
COMPRESSED = "compressed"
#: The status of a measurement that ``measure=False`` left out.
NOT_ASKED = "not run: not asked for"
#: Fields of a recipe that decide which samples are used.
_DRAWN = ("samples", "evaluation_samples", "seed", "random_calibration")


def build(
    recipe: Recipe,
    out: Path,
    calibration: Iterable[Any] | None = None,
    evaluation: Iterable[Any] | None = None,
    like: Iterable[Path] = (),
    measure: bool = True,
) -> Bundle:
    """Make a bundle: convert for every target, check against the source, measure.

    A killed build goes on where it stopped; a finished one, asked for again, returns at once;
    changed inputs redo only what depends on them.

    Args:
        recipe: what to make.
        out: the bundle's folder.
        calibration, evaluation: samples as Python iterables, in place of the recipe's paths.
        like: other bundles; what they have of the same inputs is copied, not made again.
        measure: time the artifacts that can be run here. The same build, measured later, does
            nothing else.

    Raises:
        EdgekitError: bad input, or something missing; nothing is left at ``out``.
    """
    targets = recipe.devices()
    for target in targets:
        packages.require("converters", target.formats)
    work = Work(recipe, calibration, evaluation)
    facts = _facts(work)
    whole = _request(recipe, facts)
    request = whole if measure else files.digest([whole, NOT_ASKED])
    if (out / bundles.MANIFEST).exists():
        made = Bundle.open(out)
        if made.manifest.request in (whole, request) and not made.damaged():
            say(f"{out} is up to date.")
            return made
    work.keep = kept_beside(out)
    with Draft(out, like) as draft:
        made = _Build(work, draft, facts, measure).run(targets, request)
    shutil.rmtree(work.keep, ignore_errors=True)
    return made


def request(recipe: Recipe) -> str:
    """What the bundle of a recipe is known by: a digest of all that it depends on.

    Raises:
        EdgekitError: a file that the recipe names is not there, or it names no data.
    """
    return _request(recipe, _facts(Work(recipe)))


def _facts(work: Work) -> dict[str, Any]:
    return {**work.fingerprint(), "edgekit": version("edgekit"), "torch": version("torch")}


def _request(recipe: Recipe, facts: dict[str, Any]) -> str:
    return files.digest([recipe.model_dump(mode="json"), facts])


class _Build:
    """One run of ``build``: its steps, in order."""

    def __init__(self, work: Work, draft: Draft, facts: dict[str, Any], measure: bool) -> None:
        recipe = work.recipe
        self.work, self.draft, self.recipe, self.measure = work, draft, recipe, measure
        self.used: set[str] = set()
        # What steps depend on: all of them on the source; some on data, one on each kind.
        fields = (
            "model arguments inputs batch mode context random_weights allow_partial passes".split()
        )
        shown = recipe.model_dump(mode="json")
        of_data = ("calibration", "evaluation")
        self.source = {name: shown[name] for name in fields}
        self.source |= {name: fact for name, fact in facts.items() if name not in of_data}
        drawn = {name: shown[name] for name in _DRAWN}
        drawn["split"] = "evaluation" not in facts and recipe.scheme is not None
        judged_on = facts.get("evaluation", facts.get("calibration"))
        self.judging = {**self.source, **drawn, "data": judged_on}
        self.calibrating = {**self.source, **drawn, "data": facts.get("calibration", judged_on)}

    def run(self, targets: list[Target], request: str) -> Bundle:
        """All steps, then the manifest."""
        stages = self._compressed()
        reference = self._step("reference", self.judging, self._reference, "reference.npz")
        quantized, scales, calibration = self._quantized()
        rows = [row for target in targets for row in self._target(target, quantized, scales)]
        timed = any("latency_ms" in entry for row in rows for entry in row.latency)
        # A stream's calls have no counterpart in the source, which takes whole sequences.
        baseline = self._baseline() if timed and self.recipe.mode == "whole" else []
        manifest = Manifest(
            status="ok" if all(row.ok for row in rows) else "failed",
            request=request,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            recipe=self.recipe.model_dump(mode="json"),
            model={**reference["model"], "stages": stages},
            data={
                **reference["data"],
                **calibration,
                "random": self.recipe.random_calibration,
            },
            targets={target.name: target.model_dump(mode="json") for target in targets},
            versions=environment()["versions"],
            environment=environment(),
            baseline=baseline,
            rows=rows,
            steps={},
        )
        return self.draft.finish(manifest, self.used)

    def _step(
        self, name: str, inputs: dict[str, Any], run: Any, produces: str | None = None
    ) -> dict[str, Any]:
        self.used.add(name)
        return self.draft.step(name, inputs, run, produces).result

    def _compressed(self) -> list[dict[str, Any]]:
        """The recipe's passes; the model that they give is kept in the bundle."""
        if not self.recipe.passes:
            return []
        from edgekit import compression

        work = self.work
        inputs = {
            **self.calibrating,
            "judging": self.judging["data"],
            "target": self.recipe.targets[0],
        }

        def run(out: Path) -> dict[str, Any]:
            made = compression.run(work, work.keep)
            compression.save(work, made, out)
            return {"stages": [asdict(stage) for stage in made.stages]}

        found = self._step("compress", inputs, run, COMPRESSED)
        work.model = compression.load(work, self.draft.path / COMPRESSED).model
        return list(found["stages"])

    def _reference(self, out: Path) -> dict[str, Any]:
        """Inputs and the source's outputs, for checks where the source is not."""
        import numpy as np

        work = self.work
        calls = max(1, REFERENCE_SAMPLES // len(next(iter(work.batches[-1].values()))))
        arrays: dict[str, Any] = {}
        for kind, calls_of in (("input", work.batches), ("output", work.expected)):
            for name in calls_of[0]:
                arrays[f"{kind}/{name}"] = np.concatenate([c[name] for c in calls_of[:calls]])
        if work.graph.discrete:
            arrays[DISCRETE] = np.array(True)
        with out.open("wb") as stream:
            np.savez(stream, **arrays)
        judge = work.datasets[1]
        data = {"judged_on": judge.origin, "judged_samples": len(judge)}
        return {"model": _describe(work), "data": data}

    def _quantized(self) -> tuple[Quantized | None, str, dict[str, Any]]:
        """The scales, saved in the bundle, their digest, and what they were made of."""
        from edgekit.quantize.calibrate import Store
        from edgekit.quantize.post_training import Quantized

        if self.recipe.scheme is None:
            return None, "", {}
        shown = self.recipe.model_dump(mode="json")
        how = ("precision", "granularity", "method", "effort", "batch_size", "exclude", "qat")
        inputs = {**self.calibrating, **{name: shown[name] for name in how}}
        store = Store(self.draft.path / ".calibration.npz", files.digest(inputs))
        found = self._step("calibrate", inputs, lambda out: self._quantize(out, store), SCALES)
        path = self.draft.path / SCALES
        self.work.made = Quantized.load(path)
        return self.work.made, files.sha256(path), found

    def _quantize(self, out: Path, store: Store) -> dict[str, Any]:
        made = self.work.quantize(store)
        made.save(out)
        return {"calibrated_on": made.table.data, "calibration_samples": made.table.samples}

    def _target(self, target: Target, quantized: Quantized | None, scales: str) -> list[Row]:
        """Convert, check and measure for one target; a failure is a row, not an end."""
        lowered: list[Graph] = []

        def graph() -> Graph:
            if not lowered:
                lowered.append(self.work.lower(target, quantized))
            return lowered[0]

        rows: list[Row] = []
        made: dict[str, Path] = {}
        for name in target.formats:
            try:
                rows.append(self._artifact(target, name, graph, made, scales))
            except files.NoSpace:
                raise
            except EdgekitError as error:
                say(f"{target.name}: {name} failed: {error}")
                rows.append(_failed(target, name, error))
                break
        return rows

    def _artifact(
        self, target: Target, name: str, graph: Any, made: dict[str, Path], scales: str
    ) -> Row:
        converter = find("converters", name)
        place = f"{target.name}/{self.work.named(name)}"
        accepted = made.get(converter.ACCEPTS)
        inputs = {
            **self.source,
            "target": target.model_dump(mode="json", exclude={"sources"}),
            "precision": self.recipe.precision,
            "streams": [self.recipe.split_streams, self.recipe.stream_starts],
            "scales": scales,
            "accepted": files.sha256(accepted) if accepted else None,
            "packages": packages.versions(converter.REQUIRES),
        }
        reference = self.draft.path / "reference.npz"
        if converter.RUNTIME is None:
            inputs["reference"] = files.sha256(reference)

        def convert(out: Path) -> dict[str, Any]:
            source = accepted or graph()
            artifact = self.work.convert(source, name, out, target)
            if converter.RUNTIME is None:
                shutil.copy(reference, out / "reference.npz")
            return {**artifact.details, **_placement(source)}

        details = self._step(f"{target.name}/{name}", inputs, convert, place)
        made[name] = self.draft.path / place
        checked = self._checked(target, name, made[name])
        last = name == target.formats[-1]
        return Row(
            target=target.name,
            format=name,
            path=place,
            sha256=files.sha256(made[name]),
            size=files.size(made[name]),
            details=details,
            latency=self._timed(target, name, made[name]) if last and checked["ok"] else [],
            **checked,
        )

    def _checked(self, target: Target, name: str, artifact: Path) -> dict[str, Any]:
        """The fields of a row that say whether the artifact equals its source."""
        runtime = runtime_for(target.runtime, name)
        absent = "on the device" if runtime is None else find("runtimes", runtime).unavailable()
        if runtime is None or absent:
            return {"status": f"built, not run: {absent}", "ok": True}
        inputs = {**self.judging, "artifact": files.sha256(artifact), "runtime": runtime}

        def run(_: Path) -> dict[str, Any]:
            drift, top1, failure = self.work.judge(artifact, runtime)
            return {
                "status": f"drift: {failure}" if failure else "verified",
                "ok": not failure,
                "drift": drift.as_dict(),
                "top1": top1,
            }

        return self._step(f"{target.name}/{name}/verify", inputs, run)

    def _timed(self, target: Target, name: str, artifact: Path) -> list[dict[str, Any]]:
        """One entry a number of threads; an entry that only says why nothing was measured."""
        runtime = runtime_for(target.runtime, name)
        if runtime is None:
            return [{"runtime": target.runtime, "status": "not run: on the device"}]
        absent = find("runtimes", runtime).untimed()
        if absent:
            return [{"runtime": runtime, "status": f"not run: {absent}"}]
        if not self.measure:
            return [{"runtime": runtime, "status": NOT_ASKED}]

        def run(_: Path) -> dict[str, Any]:
            with stage(f"{target.name}: measuring {artifact.name}"):
                return {"entries": time_artifact(artifact, runtime, self._settings())}

        inputs = {"artifact": files.sha256(artifact), **self._measured()}
        entries = self._step(f"{target.name}/{name}/bench", inputs, run)["entries"]
        compared = self._to_float(target, name, artifact, runtime) if self.recipe.scheme else {}
        return [{**entry, **_compared(entry, compared)} for entry in entries]

    def _to_float(
        self, target: Target, name: str, artifact: Path, runtime: str
    ) -> dict[str, dict[str, Any]]:
        """How long a quantized artifact takes against its float counterpart, by threads."""

        def run(_: Path) -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                counterpart = self.work.artifact(target, name, Path(folder), None)
                with stage(f"{target.name}: comparing with {target.float_dtype}"):
                    return {
                        str(threads): {
                            **paired(
                                artifact, counterpart, runtime, self._settings(), threads
                            ).as_dict(),
                            "float": target.float_dtype,
                        }
                        for threads in thread_choices(runtime)
                    }

        inputs = {**self.source, "artifact": files.sha256(artifact), **self._measured()}
        return self._step(f"{target.name}/{name}/to_float", inputs, run)

    def _baseline(self) -> list[dict[str, Any]]:
        """The source in PyTorch on this machine, eagerly and compiled."""

        def run(_: Path) -> dict[str, Any]:
            with stage("Measuring the source in PyTorch"):
                return {"entries": time_source(self.work.original, self._settings())}

        entries = self._step("baseline", {**self.source, **self._measured()}, run)["entries"]
        return list(entries)

    def _settings(self) -> Settings:
        recipe = self.recipe
        return Settings(self.work.batches[0], recipe.warmup, recipe.iterations, recipe.seconds)

    def _measured(self) -> dict[str, Any]:
        shown = self.recipe.model_dump(mode="json")
        settings = {name: shown[name] for name in ("warmup", "iterations", "seconds")}
        machine = environment()
        return {**settings, **{name: machine[name] for name in ("cpu", "cores", "versions")}}


def _compared(entry: dict[str, Any], compared: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a measurement gains by a comparison on as many threads."""
    found = compared.get(str(entry.get("threads")))
    if found is None or entry.get("phase") == "prefill":
        return {}
    return {"to_float": {name: found[name] for name in ("ratio", "low", "high", "float")}}


def _failed(target: Target, name: str, error: EdgekitError) -> Row:
    return Row(
        target=target.name,
        format=name,
        path=None,
        sha256=None,
        size=None,
        status=" ".join(f"failed: {error.what} {error.why}".split()),
        ok=False,
    )


def _placement(source: Graph | Path) -> dict[str, Any]:
    """How much of a graph is quantized; nothing for what is made of another artifact."""
    from edgekit.quantize.place import count_quantized, kept_float

    if isinstance(source, Path) or source.precision not in SCHEMES:
        return {}
    return {"quantized_modules": count_quantized(source), "kept_float": list(kept_float(source))}


def _describe(work: Work) -> dict[str, Any]:
    """What the manifest says of the model."""
    model = work.model
    return {
        "source": model.source,
        "weights": model.weights,
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "inputs": [asdict(spec) for spec in model.inputs],
        "outputs": list(model.outputs),
        "states": [asdict(spec) for spec in model.states],
        "preprocess": asdict(model.preprocess) if model.preprocess else None,
        "history": list(model.history),
        "top1": work.top1(work.expected),
    }
