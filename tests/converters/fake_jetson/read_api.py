"""Write api/VERSION.json: the Python API of a TensorRT, as its own binding module describes it.

    python read_api.py TENSORRT_SO api/10.3.json

TENSORRT_SO is `tensorrt_bindings/tensorrt.so` of a wheel on PyPI (`pip download --no-deps
tensorrt-cu12-bindings==10.3.0`), imported by the Python that the wheel is for. It needs
libnvinfer, libnvonnxparser and libnvinfer_plugin only to be loaded: nothing in them is called, so
empty libraries that define the same symbols do (`nm -D --undefined-only TENSORRT_SO`).

The files here come from 10.3.0, 10.13.3.9 and 11.4.0.106. PyPI has no 8.5: 8.5.json is that of
8.6.1 without what NVIDIA/TensorRT's python/src/infer/pyCore.cpp and python/src/parsers/pyOnnx.cpp
of release 8.5.1 do not define.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

CLASSES = """
    Builder IBuilderConfig INetworkDefinition IOptimizationProfile OnnxParser ParserError Runtime
    ICudaEngine IExecutionContext ILogger IProfiler IProgressMonitor IHostMemory ITensor
    EngineInspector
""".split()
ENUMS = """
    BuilderFlag NetworkDefinitionCreationFlag TensorIOMode DataType ProfilingVerbosity
    LayerInformationFormat MemoryPoolType HardwareCompatibilityLevel
""".split()
PLAIN = {
    "typing.SupportsInt": "int",
    "typing.SupportsFloat": "float",
    "typing_extensions.Buffer": "buffer",
    "collections.abc.Sequence[": "List[",
}


def read(path: str) -> dict[str, Any]:
    """Classes with their properties ("r", "rw", "w") and calls (argument lists), and enums."""
    spec = importlib.util.spec_from_file_location("tensorrt", path)
    trt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trt)
    classes = {name: _members(getattr(trt, name)) for name in CLASSES if hasattr(trt, name)}
    enums = {name: _values(getattr(trt, name)) for name in ENUMS if hasattr(trt, name)}
    return {"classes": classes, "enums": enums}


def _members(kind: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in dir(kind):
        member = inspect.getattr_static(kind, name)
        if isinstance(member, property):
            found[name] = ("r" if member.fget else "") + ("w" if member.fset else "")
        elif name == "__init__" or not name.startswith("_"):
            signatures = _signatures(getattr(kind, name).__doc__ or "")
            if signatures:
                found[name] = signatures
    return found


def _values(kind: Any) -> dict[str, int]:
    return {name: int(value) for name, value in kind.__members__.items()}


def _signatures(text: str) -> list[str]:
    """The argument lists of all overloads, without self."""
    found = re.findall(r"^\s*(?:\d+\. )?\w+\(self: [\w.]+(?:, )?(.*)\) -> ", text, re.MULTILINE)
    for special, plain in PLAIN.items():
        found = [arguments.replace(special, plain) for arguments in found]
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(read(sys.argv[1]), indent=1) + "\n")
