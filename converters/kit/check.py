"""Whether this device can build and run the kit: found out before anything is built.

Only the standard library is needed for it, since NumPy or TensorRT may be what is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple, Sequence

from .build import load_tensorrt, make_builder, make_log
from .cuda import Cuda
from .device import device_facts
from .files import check_model
from .problem import Problem

#: The least Python, and the least NumPy: Ubuntu 20.04's, on JetPack 5.
PYTHON, NUMPY = (3, 8), (1, 17)
#: The first compute capability that runs a precision, where TensorRT itself does not tell: FP16 and
#: INT8 arithmetic by NVIDIA's CUDA programming guide, the others by TensorRT's support matrix.
RUNS_SINCE = {
    "fp16": (5, 3),
    "int8": (6, 1),
    "bf16": (8, 0),
    "int4": (8, 0),
    "fp8": (8, 9),
    "fp4": (10, 0),
}
#: What TensorRT's Builder calls the question whether the GPU runs a precision, before version 11.
ASKED = {"fp16": "platform_has_fast_fp16", "int8": "platform_has_fast_int8"}
#: TensorRT's name of the types that not every version has.
TYPES = {"bf16": "BF16", "int4": "INT4", "fp8": "FP8", "fp4": "FP4"}
#: Bytes that a build writes beside the engine, and what it takes of the model's size at most.
SPARE, TIMES = 64 << 20, 2

FITS, NOTE, UNFIT = "fits", "note", "does not fit"


class Finding(NamedTuple):
    """One thing that was looked at: whether it fits, what there is, what to do if it doesn't."""

    subject: str
    status: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.subject}: {self.found}"
        line = line if self.status == FITS else f"{line} ({self.status})"
        return f"{line}\n    {self.fix}" if self.fix else line


class Check:
    """What a device has, against what a kit needs.

    Attributes:
        findings: one for each subject: files, Python, NumPy, disk, TensorRT, GPU, precision.
        gpu: name and compute capability; None where there is none.
        known: edgekit's name of this device; None if it is none that the kit knows.
    """

    def __init__(self, folder: Path, kit: dict[str, Any], options: Any) -> None:
        self._kit, self._options = kit, options
        self.findings: list[Finding] = []
        self.device: dict[str, Any] = device_facts()
        self._why_no_gpu = self._no_gpu_fix = ""
        self.gpu = self._look_for_gpu()
        self.known = self._known()
        self.device.update(gpu=self.gpu, target=self.known and self.known["name"])
        self._files(folder)
        self._python()
        self._disk(folder)
        trt = self._tensorrt()
        self._gpu(trt)
        if trt is not None:
            self._version(trt)
            if self.gpu is not None:
                self._precision(trt)

    @property
    def fits(self) -> bool:
        """Whether nothing is in the way."""
        return all(finding.status != UNFIT for finding in self.findings)

    def require(self) -> None:
        """Raise unless it fits."""
        bad = [finding for finding in self.findings if finding.status == UNFIT]
        if bad:
            raise Problem(
                "This device cannot run the kit; nothing was built.",
                "\n".join(f"{finding.subject}: {finding.found}" for finding in bad),
                "\n".join(dict.fromkeys(finding.fix for finding in bad if finding.fix)),
            )

    def notes(self) -> list[str]:
        """What the figures may depend on, though it fits."""
        return [f"{f.subject}: {f.found}" for f in self.findings if f.status == NOTE]

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema_version": self._kit["schema_version"],
            "fits": self.fits,
            "target": self._kit["target"]["name"],
            "device": self.device,
            "findings": [finding._asdict() for finding in self.findings],
        }

    def _add(self, subject: str, fits: bool | str, found: str, fix: str = "") -> None:
        status = fits if isinstance(fits, str) else (FITS if fits else UNFIT)
        self.findings.append(Finding(subject, status, found, fix if status != FITS else ""))

    def _look_for_gpu(self) -> dict[str, str] | None:
        try:
            cuda = Cuda()
        except Problem as problem:
            self._why_no_gpu = f"{problem.what} {problem.why}"
            self._no_gpu_fix = problem.fix
            return None
        try:
            return {"name": cuda.name, "compute_capability": cuda.capability}
        finally:
            cuda.close()

    def _known(self) -> dict[str, Any] | None:
        """The target whose GPU this is and whose name says most of what the device says of itself.

        The kit's own target counts where others are named as well.
        """
        if self.gpu is None:
            return None
        told = " ".join([str(self.device["name"]), self.gpu["name"]]).lower()
        best, most = None, 0
        for target in [self._kit["target"], *self._kit["devices"]]:
            words = re.findall(r"[a-z]+|\d{4}", target["name"].replace("jetson", ""))
            same = target["compute_capability"] == self.gpu["compute_capability"]
            named = sum(re.search(rf"\b{word}\b", told) is not None for word in words)
            if same and named > most:
                best, most = target, named
        return best

    def _files(self, folder: Path) -> None:
        try:
            check_model(folder, self._kit)
        except Problem as problem:
            self._add("Files", False, f"{problem.what} {problem.why}".strip(), problem.fix)
            return
        there = (folder / "reference.npz").is_file()
        text = "model and reference are there" if there else "reference.npz is missing"
        self._add("Files", there, text, "Copy the whole kit again.")

    def _python(self) -> None:
        fix = f"Run it with Python {PYTHON[0]}.{PYTHON[1]} or later."
        self._add("Python", sys.version_info >= PYTHON, platform.python_version(), fix)
        fix = f"{sys.executable} -m pip install numpy, or sudo apt install python3-numpy"
        try:
            version = str(importlib.import_module("numpy").__version__)
        except ImportError as error:
            self._add("NumPy", False, str(error), fix)
        else:
            self._add("NumPy", _numbers(version) >= NUMPY, version, fix)

    def _disk(self, folder: Path) -> None:
        files = [folder / name for name in self._kit["model"]["files"]]
        model = sum(file.stat().st_size for file in files if file.is_file())
        needed, free = model * TIMES + SPARE, shutil.disk_usage(str(folder)).free
        found = f"{free / 1e6:.0f} MB free, a build needs {needed / 1e6:.0f} MB"
        fix = f"Free {(needed - free) / 1e6:.0f} MB on the disk of {folder}."
        self._add("Disk", free >= needed, found, fix)

    def _tensorrt(self) -> Any:
        try:
            return load_tensorrt("tensorrt", "tensorrt_rtx")
        except Problem as problem:
            self._add("TensorRT", False, f"{problem.what} {problem.why}", problem.fix)
        except (ImportError, OSError) as error:
            fix = f"Install it again: {self._kit['target']['system']} has it."
            self._add("TensorRT", False, f"It cannot be loaded: {error}", fix)
        return None

    def _version(self, trt: Any) -> None:
        """The same major version, and not older than what the kit was made for."""
        found, made = trt.__version__, self._kit["tensorrt"]
        if trt.__name__ != "tensorrt":
            self._add("TensorRT", NOTE, f"{trt.__name__} {found}; the kit is made for {made}")
        elif f"{found}.".startswith(f"{made}."):
            self._add("TensorRT", True, found)
        elif _takes(found, made):
            self._add("TensorRT", NOTE, f"{found}; the kit is made for {made}")
        elif self._options.any_version:
            self._add("TensorRT", NOTE, f"{found}; the kit is made for {made} (--any-version)")
        else:
            older = _numbers(found) < _numbers(made)
            why = f"{'older than' if older else 'another major version than'} the kit's {made}"
            self._add("TensorRT", False, f"{found}, {why}", self._version_fix(found))

    def _version_fix(self, found: str) -> str:
        here = self.gpu and self.gpu["compute_capability"]
        others = [
            target["name"]
            for target in self._kit["devices"]
            if target["compute_capability"] == here and _takes(found, target["tensorrt"])
        ]
        system = self._kit["target"]["system"]
        fix = _make(others) if others else f"Install {system} on the device"
        return f"{fix}; or try this TensorRT as it is: --any-version."

    def _gpu(self, trt: Any) -> None:
        """The GPU that the kit is made for, or that it is to be built for."""
        wanted, chosen = self._kit["target"]["compute_capability"], self._options.compute_capability
        if self.gpu is None:
            if trt is not None and trt.__name__ == "tensorrt_rtx" and chosen is not None:
                self._add("GPU", NOTE, f"{self._why_no_gpu} It is built for {chosen}, and not run.")
            else:
                self._add("GPU", False, self._why_no_gpu, self._no_gpu_fix)
            return
        found = f"{self.gpu['name']}, compute capability {self.gpu['compute_capability']}"
        if self.known is not None and self.known["name"] != self._kit["target"]["name"]:
            found += f": this is {self.known['title']} ({self.known['name']})"
        if self.gpu["compute_capability"] == wanted:
            other = self.known is not None and self.known["name"] != self._kit["target"]["name"]
            self._add("GPU", NOTE if other else FITS, found)
        elif self._options.any_gpu:
            self._add("GPU", NOTE, f"{found}; the kit is made for {wanted} (--any-gpu)")
        else:
            self._add("GPU", False, f"{found}; the kit is made for {wanted}", self._gpu_fix())

    def _gpu_fix(self) -> str:
        here = self.gpu and self.gpu["compute_capability"]
        alike = [t["name"] for t in self._kit["devices"] if t["compute_capability"] == here]
        names = [self.known["name"]] if self.known is not None else alike
        return f"{_make(names)}; or try this kit as it is: --any-gpu."

    def _precision(self, trt: Any) -> None:
        """Whether TensorRT and the GPU run every number format of the graph."""
        kinds = self._kit["dtypes"]
        told = self._told(trt, [*kinds, "fp16"])
        reasons = {kind: self._why_not(trt, kind, told) for kind in [*kinds, "fp16"]}
        bad = [reason for kind, reason in reasons.items() if kind in kinds and reason]
        name = self.known["name"] if self.known else self._kit["target"]["name"]
        other = "fp32" if reasons["fp16"] else "fp16"
        fix = f"{_make([name])} --precision {other}"
        self._add("Precision", not bad, "; ".join(bad) or ", ".join(kinds), fix)

    def _told(self, trt: Any, kinds: Sequence[str]) -> dict[str, bool]:
        """What TensorRT itself says of whether the GPU runs a precision, before version 11."""
        asked = [k for k in kinds if k in ASKED and hasattr(trt.Builder, ASKED[k])]
        if not asked:
            return {}
        builder = make_builder(trt, make_log(trt, lambda text: None))
        return {kind: bool(getattr(builder, ASKED[kind])) for kind in asked}

    def _why_not(self, trt: Any, kind: str, told: dict[str, bool]) -> str:
        """Why a number format does not run here, or ``""``."""
        if kind in TYPES and not hasattr(trt.DataType, TYPES[kind]):
            return f"TensorRT {trt.__version__} has no {kind}"
        here = self.gpu["compute_capability"] if self.gpu else "0"
        able = told.get(kind, _numbers(here) >= RUNS_SINCE.get(kind, (0,)))
        return "" if able else f"compute capability {here} does not run {kind}"


def _make(targets: Sequence[str]) -> str:
    """The command that makes a kit for a device, where edgekit knows it."""
    if not targets:
        return "edgekit knows no device with this GPU, so it makes no kit for it"
    names = " or ".join(targets)
    return f"Make a kit for it, where the model is: edgekit build ... --target {names}"


def _takes(found: str, made: str) -> bool:
    """Whether a TensorRT takes a kit that was made for another: the same major, and not older."""
    a, b = _numbers(found), _numbers(made)
    return a[0] == b[0] and a[: len(b)] >= b


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
