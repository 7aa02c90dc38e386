"""The on-device kit: a folder that builds, checks and times the engine on the device itself.

A Jetson's engine can be built only on that Jetson. The kit holds the ONNX model, ``run.pyz``
(with the package ``kit``, shipped with edgekit), ``kit.json`` and a ``README.txt`` with the
equal ``trtexec`` command. Whoever makes a bundle adds ``reference.npz``: arrays named
``input/<name>`` and ``output/<name>``, batch first; those of a streaming model are whole sequences,
(batch, tokens, ...), and not its states. ``read_result`` reads what comes back.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipapp
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit import files
from edgekit.converters import Artifact, tensorrt
from edgekit.converters.kit.build import SPARSE, shapes_of
from edgekit.converters.kit.files import digest
from edgekit.converters.kit.main import SCHEMA_VERSION
from edgekit.converters.kit_facts import kit_facts, version
from edgekit.errors import EdgekitError
from edgekit.targets import Target

if TYPE_CHECKING:
    import onnx

NAME = "on_device"
RUNTIME = None
ACCEPTS = "onnx"
REQUIRES = {"tensorrt_rtx": "tensorrt-rtx"}

#: The first TensorRT whose ONNX parser takes LayerNormalization.
NORMALIZATION_SINCE = (8, 6)

README = """\
{title}: on-device kit
{line}
Made for {system}, TensorRT {version}.
Copy this folder to the device and run there, in it:

    python3 run.pyz

It builds the engine (engine.plan), compares its outputs with reference.npz, measures its
latency and writes result.json. It needs what JetPack installs: Python 3.8 or later, NumPy
and TensorRT. Exit code: 0 passed, 1 outputs differ too much, 2 it could not be done.
For stable numbers choose the power mode first ({power}): sudo nvpmodel -m ID; sudo jetson_clocks

    python3 run.pyz --check               only say whether this device fits
    python3 run.pyz --profile             time each layer as well
    python3 run.pyz --mode single-stream  1,024 queries and 60 s at least, as MLPerf's
    python3 run.pyz --background          go on when the terminal closes; --follow shows it

The same engine by TensorRT's own tool, in one line:

    {trtexec}

Engines are not portable: build one for each device and each TensorRT version.
"""


class DeviceResult(BaseModel):
    """What ``run.pyz`` found on a device.

    Attributes:
        status: ``passed``, ``failed`` (the outputs differ too much) or ``built, not run: ...``.
        model_sha256: of the model that was built.
        device: name, machine, python, l4t, jetpack, power_mode, power_modes, driver, gpu (name,
            compute_capability) and target (edgekit's name of the device, None if unknown).
        tensorrt: the version that built and ran it.
        build: facts of the build: build_seconds, engine_bytes, reused, ...
        warnings: in what the device is not what the kit was made for.
        drift: by output: max_abs, cosine and top1, each None if it is not finite.
        cold: load_ms (file to ready engine) and first_ms (first call), of a new process.
        timing: by kind of call (``call``, or ``prefill`` and ``step`` of a streaming model):
            batch, mode, warmup, iterations, seconds, throughput (samples a second), latency_ms
            with Avg P50 P90 P95 P99 Min Max Std from host to host, spread (Std by Avg), device_ms
            (GPU times of to_device, compute, to_host), energy, watch and doubts.
        device_memory_mb: peak mebibytes of GPU memory, None if the device does not say.
        profile: whole_ms, profiled_ms and layers: name, operator, class, module, milliseconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[3]
    status: Literal["passed", "failed", "built, not run: no CUDA device"]
    model_sha256: str
    target: str
    precision: str
    device: dict[str, Any]
    tensorrt: str
    build: dict[str, Any]
    warnings: tuple[str, ...]
    tolerance: dict[str, float]
    drift: dict[str, dict[str, float | None]] | None
    cold: dict[str, float] | None
    timing: dict[str, dict[str, Any]] | None
    device_memory_mb: float | None
    profile: dict[str, Any] | None


def convert(source: Path, out: Path, target: Target) -> Artifact:
    """Make the kit's folder; it is complete or not there.

    Args:
        source: an ONNX file. TensorRT-RTX's parser must take it, as the device's will.
        out: the folder to write; it is replaced if it exists.
        target: the device.

    Returns:
        The artifact. Its details: model_sha256, precision, tensorrt (the device's version),
        trtexec (the equal command).

    Raises:
        EdgekitError: the model cannot be read or parsed, or its opset is above the device's.
    """
    tensorrt.check(source)
    model = _load(source, target)
    with files.atomic(out) as room:
        room.mkdir()
        _pack_script(room / "run.pyz")
        copied = _copy_model(model, source, room)
        facts = kit_facts(model, target, source.parent)
        facts["model"] = {"files": copied, "sha256": digest([room / name for name in copied])}
        (room / "kit.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        (room / "README.txt").write_text(_readme(facts, target), encoding="utf-8")
    details = {
        "model_sha256": facts["model"]["sha256"],
        "precision": facts["precision"],
        "tensorrt": target.runtime_version,
        "trtexec": trtexec(facts),
    }
    return Artifact("on_device", out, details)


def read_result(path: Path, kits: Mapping[str, str]) -> DeviceResult:
    """Read the ``result.json`` that a kit wrote on its device.

    Args:
        path: the file.
        kits: target -> model_sha256 of the kits that it may come from.

    Raises:
        EdgekitError: unreadable, of another schema version, or about another model.
    """
    again = "Run run.pyz of this bundle's on_device folder on the device again."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["schema_version"] if isinstance(content, dict) else None
    except (OSError, ValueError, KeyError) as error:
        raise EdgekitError(f"{path} is not a device result.", repr(error), again) from error
    if found != SCHEMA_VERSION:
        why = f"Its schema_version is {found!r}; this edgekit reads {SCHEMA_VERSION}."
        raise EdgekitError(f"{path} cannot be read.", why, again)
    try:
        result = DeviceResult(**content)
    except (ValidationError, TypeError) as error:
        raise EdgekitError(f"{path} is not a device result.", str(error), again) from error
    if kits.get(result.target) != result.model_sha256:
        held = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in kits.items()) or "no kit"
        why = f"It is about {result.target} {result.model_sha256[:12]}; the bundle holds {held}."
        raise EdgekitError(f"{path} is the result of another model.", why, again)
    return result


def trtexec(facts: dict[str, Any]) -> str:
    """The ``trtexec`` command that builds and times the engine of ``kit.json`` on its device."""
    major = version(facts["tensorrt"])[0]
    options = ["--onnx=model.onnx", "--saveEngine=engine.plan"]
    if major == 10:  # 11 has only strongly typed networks, 8 has none
        options.append("--stronglyTyped")
    if SPARSE in facts["flags"]:
        options.append("--sparsity=enable")
    if major < 10:
        options += [f"--{flag.lower()}" for flag in facts["flags"] if flag != SPARSE]
    dynamic = shapes_of(facts["inputs"], facts["dims"])
    for place, kind in enumerate(("min", "opt", "max")):
        if dynamic:
            given = ",".join(f"{name}:{_by_x(shapes[place])}" for name, shapes in dynamic.items())
            options.append(f"--{kind}Shapes={given}")
    options += ["--warmUp=500", "--iterations=100", "--percentile=50,90,95,99"]
    return " ".join(["/usr/src/tensorrt/bin/trtexec", *options])


def _by_x(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)


def _load(source: Path, target: Target) -> onnx.ModelProto:
    """The model without its external data, if the device's parser knows its opset."""
    import onnx

    model = onnx.load(source, load_external_data=False)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if target.opset is not None and opset > target.opset:
        raise EdgekitError(
            f"{source} has opset {opset}.",
            f"{target.title} ({target.system}) takes opset {target.opset} at most.",
            f"Export it again for {target.name}.",
        )
    if version(target.runtime_version) < NORMALIZATION_SINCE:
        _refuse(model, "LayerNormalization", source, target)
    return model


def _refuse(model: onnx.ModelProto, operator: str, source: Path, target: Target) -> None:
    """Raise if the model has an operator that our parser takes and the device's does not."""
    found = [node.name for node in model.graph.node if node.op_type == operator]
    if found:
        raise EdgekitError(
            f"{source} has {operator} ({', '.join(found[:5])}), {len(found)} time(s).",
            f"TensorRT {target.runtime_version} of {target.title} has no such operator.",
            "Write it as ReduceMean, Sub, Mul, Sqrt and Div before the export.",
        )


def _pack_script(out: Path) -> None:
    """The kit as one file that Python runs: a zip archive of its plain source."""
    kit = Path(__file__).with_name("kit")
    with tempfile.TemporaryDirectory() as room:
        inside = Path(room) / "kit"
        inside.mkdir()
        for file in kit.glob("*.py"):
            shutil.copy(file, inside / file.name)
        (inside / "run.py").rename(Path(room) / "__main__.py")
        zipapp.create_archive(room, out)


def _copy_model(model: onnx.ModelProto, source: Path, folder: Path) -> list[str]:
    """Copy the ONNX file as model.onnx and its external data. Returns their names."""
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    tensors = [t for t in model.graph.initializer if uses_external_data(t)]
    data = sorted({ExternalDataInfo(tensor).location for tensor in tensors})
    for name in data:
        if Path(name).name != name:
            why = f"It keeps weights in {name}, outside its own folder."
            raise EdgekitError(f"{source} cannot be copied.", why, "Save it with its data beside.")
        shutil.copy(source.with_name(name), folder / name)
    shutil.copy(source, folder / "model.onnx")
    return ["model.onnx", *data]


def _readme(facts: dict[str, Any], target: Target) -> str:
    return README.format(
        title=target.title,
        line="=" * len(f"{target.title}: on-device kit"),
        system=target.system,
        version=target.runtime_version,
        power=", ".join(target.power_modes) or "see nvpmodel -q",
        trtexec=trtexec(facts),
    )
