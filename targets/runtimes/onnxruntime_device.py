"""What ONNX Runtime's providers for NVIDIA GPUs have in common: no runtime of its own.

Asked for a provider that cannot start, ONNX Runtime runs the model on the CPU and says so in its
log only. Here that is an error, and so is a provider that takes no node; nodes that it leaves to
another are named.

Inputs are copied to the device before a call and outputs back after it, so that ``device_times``
tells the copies from the computing. Times are the host's, each up to where the device is done.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
from collections import Counter
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.progress import say
from edgekit.targets.runtimes import Arrays
from edgekit.targets.runtimes.onnxruntime import Session, numpy_name

#: What ONNX Runtime calls an NVIDIA GPU, whichever provider runs on it.
DEVICE = "cuda"
#: How to get the providers that are part of ONNX Runtime: both packages are the same import.
GPU_PACKAGE = "pip uninstall -y onnxruntime; pip install 'onnxruntime-gpu[cuda,cudnn]'"


def no_gpu() -> str:
    """Why nothing can run on a GPU here, or ``""``."""
    from edgekit.converters.kit.cuda import cuda_available

    return "" if cuda_available() else "no GPU"


def built_without(provider: str) -> str:
    """Why a provider that is part of ONNX Runtime cannot run here, with the remedy, or ``""``."""
    import onnxruntime

    if provider in onnxruntime.get_available_providers():
        return no_gpu()
    return f"this onnxruntime has no {provider} (to get it: {GPU_PACKAGE})"


def briefly(why: str) -> str:
    """A reason without its remedy, as for a table.

    >>> briefly("no such provider (to get it: pip install it)")
    'no such provider'
    """
    return why.partition(" (")[0]


def require(why: str, name: str, provider: str) -> None:
    """Raise if a provider is unavailable.

    Raises:
        EdgekitError: it is, for the reason ``why``.
    """
    if why:
        fix = "Run it on a machine with an NVIDIA GPU." if why == "no GPU" else ""
        raise EdgekitError(f"{name} cannot be run in {provider}.", f"{why}.", fix)


def open_session(
    artifact: Path | bytes,
    name: str,
    options: Any,
    providers: list[tuple[str, dict[str, str]]],
    fix: str = "",
) -> Any:
    """A session of the first of ``providers``; the others take what it leaves.

    Args:
        artifact: an ONNX file, or its bytes.
        name: of the file, for messages.
        options: onnxruntime.SessionOptions.
        providers: ONNX Runtime's names with their options; none where ``options`` have the
            provider already.
        fix: what to do where the provider's libraries are missing.

    Raises:
        EdgekitError: ONNX Runtime refuses the file.
    """
    import onnxruntime

    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    model = artifact if isinstance(artifact, bytes) else str(artifact)
    try:
        # Without its fall-back, which prints to stdout and takes the CPU.
        return onnxruntime.InferenceSession(
            model, options, providers=providers or None, enable_fallback=0
        )
    except Exception as error:
        raise EdgekitError(f"ONNX Runtime cannot load {name}.", str(error).strip(), fix) from error


def check_provider(session: Any, provider: str, name: str, fix: str) -> None:
    """Make sure that a session runs in its provider, and say what it leaves to others.

    Raises:
        EdgekitError: the provider did not start, or takes no node of the model.
    """
    taken = session.get_providers()
    if provider not in taken:
        raise EdgekitError(
            f"{name} cannot be run in {provider}.",
            f"It did not start, and ONNX Runtime took {' and '.join(taken)} instead; the reason "
            "is in ONNX Runtime's log above, mostly a library that is missing or of another "
            "version.",
            fix,
        )
    counts: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        operators = (node.op_type for node in part.get_nodes())
        counts.setdefault(part.ep_name, Counter()).update(operators)
    own = counts.pop(provider, Counter())
    if not own and counts:
        raise EdgekitError(
            f"{name} cannot be run in {provider}.",
            f"It takes none of the model's nodes: {_listed(counts)}.",
            "Run it in the onnxruntime runtime, which is the CPU.",
        )
    if counts:
        say(f"{provider} takes {own.total()} nodes of {name}, and leaves {_listed(counts)}")


def _listed(counts: dict[str, Counter[str]]) -> str:
    return "; ".join(
        f"{found.total()} to {provider} "
        f"({', '.join(f'{n} {operator}' for operator, n in found.most_common())})"
        for provider, found in counts.items()
    )


def preload(*modules: str) -> None:
    """Load the GPU libraries that pip installed: ONNX Runtime finds only those of the system.

    Args:
        modules: Python packages that load theirs when they are imported.
    """
    import onnxruntime

    for module in modules:
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        onnxruntime.preload_dlls()
    if printed.getvalue().strip():
        say(printed.getvalue().strip())


class DeviceSession(Session):
    """An open ONNX file whose inputs and outputs are in a device's memory."""

    def __init__(self, session: Any, device: str = DEVICE) -> None:
        super().__init__(session)
        self._device = device
        self._binding = session.io_binding()
        self._dtypes = {value.name: numpy_name(value.type) for value in session.get_inputs()}
        self._held: dict[str, Any] = {}
        self._times: dict[str, float] = {}

    def close(self) -> None:
        """Free the session and what is held on the device."""
        self._held.clear()
        self._binding = None
        super().close()

    def device_times(self) -> dict[str, float]:
        """Milliseconds of the last call: ``to_device``, ``compute``, ``to_host``."""
        return dict(self._times)

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first, in host memory."""
        given = {name: str(value.dtype) for name, value in inputs.items()}
        if given != self._dtypes:  # a value's bytes are copied as they are, whatever their type
            raise EdgekitError(
                "ONNX Runtime cannot run the model.",
                f"It takes {_typed(self._dtypes)}; it was given {_typed(given)}.",
            )
        try:
            self._bind(inputs)
            start = time.perf_counter()
            for name, value in inputs.items():
                self._held[name].update_inplace(value)
            self._binding.synchronize_inputs()
            copied = time.perf_counter()
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
            computed = time.perf_counter()
            outputs = self._binding.copy_outputs_to_cpu()
            end = time.perf_counter()
        except Exception as error:
            raise EdgekitError("ONNX Runtime cannot run the model.", str(error)) from error
        spans = (copied - start, computed - copied, end - computed)
        parts = ("to_device", "compute", "to_host")
        self._times = {part: span * 1e3 for part, span in zip(parts, spans, strict=True)}
        return dict(zip(self._names, outputs, strict=True))

    def _bind(self, inputs: Arrays) -> None:
        """Memory for the inputs, kept as long as their shapes stay; for outputs, any size."""
        from onnxruntime import OrtValue

        for name, value in inputs.items():
            held = self._held.get(name)
            if held is None or list(held.shape()) != list(value.shape):
                held = OrtValue.ortvalue_from_shape_and_type(
                    list(value.shape), value.dtype, self._device, 0
                )
                self._held[name] = held
                self._binding.bind_ortvalue_input(name, held)
        # The memory of the last call's outputs fits only outputs of the same shapes.
        self._binding.clear_binding_outputs()
        for name in self._names:
            self._binding.bind_output(name, self._device, 0)


def _typed(dtypes: dict[str, str]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in dtypes.items()) or "nothing"
