"""Recipe: everything a build depends on, typed. The YAML file and the flags are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.compress import Pass, entry_of, options_of, parse
from edgekit.errors import EdgekitError
from edgekit.families import is_onnx
from edgekit.find import unknown
from edgekit.progress import say
from edgekit.quantize.schemes import (
    SCHEMES,
    Effort,
    Granularity,
    Precision,
    Scheme,
    scheme_for,
)
from edgekit.targets import Target, load

Mode = Literal["whole", "stream"]
#: Of quantization-aware training, if it is not given: a model that is right already moves little.
QAT_RATE = 1e-4
_PATHS = ("checkpoint", "training", "calibration", "evaluation", "scales")


class Recipe(BaseModel):
    """What ``edgekit build`` makes.

    Attributes:
        model: ``timm/NAME``, ``transformers/FOLDER_OR_ID``, ``diffusers/FOLDER``,
            ``reference/NAME``, ``compressed/FOLDER``, ``FILE.onnx`` or ``package.module:factory``.
        targets: names of target devices; each gets a folder in the bundle. None is needed to
            inspect a model.
        precision: of the artifacts.
        checkpoint: weights; None takes the model's own.
        random_weights: skip weights; the results prove latency and parity, not accuracy.
        allow_partial: accept missing, extra or mis-shaped keys in the checkpoint.
        arguments: for the model's constructor, such as ``num_classes: 10``.
        inputs: ``name:1x3x224x224[:dtype]`` each, for a factory that does not say.
        batch: samples in one call, or ``dynamic``.
        mode: ``whole`` sequences in one call, or a ``stream``: states go in and come out with
            each call, so that one engine takes prompts and then token after token.
        context: tokens that attention remembers at most in a stream; None is 4096, or as many as
            the model knows. A state-space model remembers all it has seen in states of one size.
        split_streams: make an artifact for each stream of towers that read each other, and each
            step between two exchanges, in place of one.
        stream_starts: where streams start: name -> glob of an input or of modules; where it is
            empty, the model says, or the inputs whose streams read each other.
        passes: what is done to the model first, in order: ``{prune: {ratio: 0.5}}`` each.
        training: data that distillation learns from; the calibration data if not given.
        qat: options of a distillation that trains the quantized model, such as ``{steps: 500}``.
        calibration: data that sets the INT8 scales, and that passes measure on.
        evaluation: data that judges the artifacts; a quarter of ``calibration`` if not given.
        samples: how many of the calibration samples are used; asking for more than there are is
            an error.
        evaluation_samples: how many samples judge at most.
        seed: of every random choice.
        method: how an activation's range becomes a scale; None takes the effort's own.
        effort: which accuracy methods a quantization goes through.
        granularity: what shares a weight's scale; None takes the precision's own.
        batch_size: samples in one call of calibration; None takes ``batch``.
        random_calibration: use random numbers as data; the bundle says so.
        scales: a scale table to use in place of calibrating.
        exclude: globs over module paths that stay in float.
        warmup, iterations, seconds: of the latency measurement; it ends at the first of the
            last two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    targets: tuple[str, ...] = ()
    precision: Precision = "fp32"
    checkpoint: Path | None = None
    random_weights: bool = False
    allow_partial: bool = False
    arguments: dict[str, Any] = {}
    inputs: tuple[str, ...] = ()
    batch: Annotated[int, Field(ge=1)] | Literal["dynamic"] = 1
    mode: Mode = "whole"
    context: int | None = Field(default=None, ge=1)
    split_streams: bool = False
    stream_starts: dict[str, str] = {}
    passes: tuple[dict[str, dict[str, Any]], ...] = ()
    training: Path | None = None
    qat: dict[str, Any] | None = None
    calibration: Path | None = None
    evaluation: Path | None = None
    samples: int = Field(default=256, ge=1)
    evaluation_samples: int = Field(default=512, ge=1)
    seed: int = 0
    method: Literal["minmax", "average", "percentile", "entropy", "mse"] | None = None
    effort: Effort = "balanced"
    granularity: Granularity | None = None
    batch_size: int | None = Field(default=None, ge=1)
    random_calibration: bool = False
    scales: Path | None = None
    exclude: tuple[str, ...] = ()
    warmup: int = Field(default=10, ge=0)
    iterations: int = Field(default=100, ge=1)
    seconds: float = Field(default=3.0, gt=0)

    @classmethod
    def check(cls, fields: dict[str, Any], origin: str) -> Self:
        """A recipe from plain values.

        Raises:
            EdgekitError: an unknown or malformed field, named, with the nearest names.
        """
        for name in fields:
            if name not in cls.model_fields:
                raise unknown(f"field of {origin}", str(name), cls.model_fields)
        fields = {**fields, **_passes(fields)}
        if fields.get("stream_starts") and not fields.get("split_streams"):
            raise EdgekitError(
                f"{origin}: stream_starts has no meaning here.",
                "It says where streams start, and the model is not split by them.",
                "Add --split-streams, or drop --stream-start.",
            )
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first, *others = error.errors()
            place = first["loc"][0]
            # A field that may be of several kinds gives one message for each.
            reasons = [e["msg"] for e in (first, *others) if e["loc"][0] == place]
            raise EdgekitError(
                f"{origin}: {place} is not right.",
                f"{', or '.join(reasons)}; it is {first['input']!r}.",
                "See the fields of a recipe in docs/recipe.md.",
            ) from error

    @classmethod
    def read(cls, path: Path, overrides: dict[str, Any]) -> Self:
        """A recipe file; its paths are relative to it. ``overrides`` replace its fields.

        Raises:
            EdgekitError: missing, not YAML, or malformed.
        """
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise EdgekitError(f"The recipe {path} cannot be read.", str(error)) from error
        if not isinstance(fields, dict):
            raise EdgekitError(f"The recipe {path} is not a list of 'name: value' lines.")
        return cls.check({**beside(fields, path.parent), **overrides}, str(path))

    @property
    def steps(self) -> tuple[Pass, ...]:
        """The passes."""
        return tuple(parse(entry) for entry in self.passes)

    @property
    def scheme(self) -> Scheme | None:
        """How the precision quantizes; None for fp32 and fp16.

        Raises:
            EdgekitError: the precision cannot have this granularity.
        """
        return scheme_for(self.precision, self.granularity) if self.precision in SCHEMES else None

    def devices(self) -> list[Target]:
        """The target devices, each able to run the precision.

        Raises:
            EdgekitError: there is none, one is unknown, or one cannot run the precision.
        """
        if not self.targets:
            raise EdgekitError(
                f"{self.model} has no target.",
                "What is made depends on the device that it is for.",
                "Pass --target NAME; `edgekit targets` lists them.",
            )
        found = [load(name) for name in self.targets]
        for target in found:
            target.require(self.precision)
            if self.split_streams and "on_device" in target.formats:
                raise EdgekitError(
                    f"{target.title} takes no model that is split by streams.",
                    "Its engine is built on the device by a kit, which holds one model.",
                    "Drop --split-streams for it, or build each part with `edgekit convert "
                    "--split-streams -o model.onnx.streams` and TensorRT's trtexec.",
                )
            if self.precision in target.notes:
                say(f"{target.title}, {self.precision}: {target.notes[self.precision]}.")
        return found


def beside(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of a recipe that lies in ``folder``, their paths made to hold from here."""
    found = dict(fields)
    for name in _PATHS:
        if isinstance(found.get(name), str):
            found[name] = folder / found[name]
    model = str(found.get("model", ""))
    family, _, rest = model.partition("/")
    if is_onnx(model):
        found["model"] = str(folder / model)
    elif rest and (folder / rest).is_dir():
        found["model"] = f"{family}/{folder / rest}"
    return found


def _passes(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that hold passes, each checked and in its one form.

    Raises:
        EdgekitError: unknown pass or option, or a value of another kind.
    """
    found: dict[str, Any] = {}
    given = fields.get("passes")
    if given is not None:
        listed = given if isinstance(given, list | tuple) else [given]
        found["passes"] = tuple(entry_of(parse(entry)) for entry in listed)
    if fields.get("qat") is not None:
        options = fields["qat"]
        entry = f"distill:{options}" if isinstance(options, str) else {"distill": options}
        made = parse({"distill": {"rate": QAT_RATE} | options_of(entry)[1]})
        found["qat"] = entry_of(made)["distill"] | {"rate": getattr(made, "rate", None)}
    return found
