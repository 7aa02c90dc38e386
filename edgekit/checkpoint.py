"""Checkpoints: from a file that a stranger may have written to weights in a module.

Nothing here runs code from a file: safetensors holds none, and pickles are read with
``weights_only=True``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.progress import say

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

#: Where a folder keeps its weights: the first of these that is there.
FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
#: Where training scripts nest the weights. Averaged weights first: they are what is evaluated.
NESTS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
)
#: Added to every key by DistributedDataParallel and torch.compile.
WRAPPERS = ("module.", "_orig_mod.")
RESAVE = (
    "Re-save it as safetensors where it was made: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
)


def load_state(path: Path) -> State:
    """The weights in a file, or in a folder as transformers and timm write it.

    Takes ``.safetensors``, ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` and folders with one of
    those or a sharded index. Finds weights nested under ``model``, ``state_dict``, ``ema``...
    and strips the prefixes of wrappers from all keys; both are said.

    Returns:
        key -> tensor on the CPU, in the file's own dtype.

    Raises:
        EdgekitError: missing, truncated or unknown file, a pickle that needs code, or a file
            that holds no state dict.
    """
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise EdgekitError(
            f"Checkpoint {path} does not exist.", "", "Check the path given to --checkpoint."
        )
    if path.stat().st_size == 0:
        raise EdgekitError(f"Checkpoint {path} is empty.", "", "Copy or download it again.")
    return _unwrap(_state_dict(_read(path), path), path)


def apply(module: torch.nn.Module, state: State, source: str, allow_partial: bool) -> None:
    """Copy a state dict into a module, cast to the module's dtypes.

    Args:
        source: the checkpoint, as errors should call it.
        allow_partial: load what fits; what is missing keeps its present values.

    Raises:
        EdgekitError: keys are missing, extra or of another shape (all three are listed), or
            with ``allow_partial`` no key fits.
    """
    own = _tensors(module)
    extra = [key for key in state if key not in own]
    misshaped = {
        key: (tuple(value.shape), tuple(own[key].shape))
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    }
    fitting = {k: v for k, v in state.items() if k in own and k not in misshaped}
    missing = _missing(own, state)
    if (missing or extra or misshaped) and not (allow_partial and fitting):
        raise misfit(source, type(module).__name__, missing, extra, misshaped)
    module.load_state_dict(fitting, strict=False)
    if missing or extra or misshaped:
        say(f"{source}: {len(fitting)} of {len(own)} tensors loaded (--allow-partial).")


def misfit(
    source: str,
    model: str,
    missing: Collection[str],
    extra: Collection[str],
    misshaped: Mapping[str, tuple[Sequence[int], Sequence[int]]],
) -> EdgekitError:
    """The error for a checkpoint that is not of this model.

    Args:
        misshaped: key -> (shape in the checkpoint, shape in the model).
    """
    shapes = [f"{k} {tuple(a)}, model {tuple(b)}" for k, (a, b) in sorted(misshaped.items())]
    groups = {"missing": missing, "not in the model": extra, "of another shape": shapes}
    return EdgekitError(
        f"Checkpoint {source} does not fit {model}.",
        "\n".join(f"{len(v)} {name}: {_some(v)}" for name, v in groups.items() if v),
        "Check the architecture and its arguments (such as --set num_classes=10), or pass "
        "--allow-partial to load only what fits.",
    )


def _in_folder(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise EdgekitError(
        f"Folder {folder} holds no weights.",
        f"None of {', '.join(FOLDER_FILES)} is there.",
        "Give the file itself with --checkpoint.",
    )


def _read(path: Path) -> Any:
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLES:
        return _read_pickle(path)
    raise EdgekitError(
        f"Checkpoint {path} is of an unknown kind.",
        f"edgekit reads .safetensors, {', '.join(PICKLES)} and sharded folders.",
        "Save the weights as safetensors: safetensors.torch.save_file(model.state_dict(), ...).",
    )


def _read_shards(index: Path) -> State:
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EdgekitError(
            f"{index} is not an index of shards.",
            f"It should hold a JSON object with 'weight_map' ({error}).",
            "Download it again.",
        ) from error
    state: State = {}
    for name in shards:
        shard = index.parent / Path(name).name
        if not shard.is_file():
            raise EdgekitError(
                f"Shard {shard} does not exist.",
                f"{index.name} lists {len(shards)} shards.",
                "Download it again, beside the others.",
            )
        state |= _state_dict(_read(shard), shard)
    return state


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: State = load_file(path)
    except (SafetensorError, OSError) as error:
        raise EdgekitError(
            f"Checkpoint {path} is truncated or is not a safetensors file.",
            f"safetensors says: {error} (the file has {path.stat().st_size} bytes).",
            "Copy or download it again.",
        ) from error
    return state


def _read_pickle(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch raise almost anything
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise _unreadable(path, error) from error
        raise EdgekitError(
            f"Checkpoint {path} is a pickle that needs code, and is not loaded.",
            f"It asks for {refused[1]}; to load a stranger's pickle is to run its code.",
            RESAVE,
        ) from error


def _unreadable(path: Path, error: Exception) -> EdgekitError:
    # Before this mark stands only advice to load the file without care.
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return EdgekitError(
        f"Checkpoint {path} is truncated or is not a PyTorch weight file.",
        f"torch says: {reason[0] if reason else type(error).__name__}",
        f"Copy or download it again. {RESAVE}",
    )


def _state_dict(content: Any, path: Path) -> State:
    """The state dict itself, wherever the file keeps it."""
    import torch

    if isinstance(content, Mapping):
        nests = [key for key in NESTS if isinstance(content.get(key), Mapping)]
        if nests:
            others = f" (also there: {', '.join(nests[1:])})" if nests[1:] else ""
            say(f"{path}: weights are taken from {nests[0]!r}{others}.")
            return _state_dict(content[nests[0]], path)
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return dict(content)
    keys = f" with keys {_some([str(k) for k in content])}" if isinstance(content, Mapping) else ""
    raise EdgekitError(
        f"Checkpoint {path} holds no state dict.",
        f"Found a {type(content).__name__}{keys}; expected names mapped to tensors, at the top "
        f"or under {', '.join(NESTS)}.",
        "Save model.state_dict() alone.",
    )


def _unwrap(state: State, path: Path) -> State:
    for prefix in WRAPPERS * 2:  # either may be inside the other
        if all(key.startswith(prefix) for key in state):
            say(f"{path}: the prefix {prefix!r} is taken off all keys.")
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _tensors(module: torch.nn.Module) -> State:
    import torch

    every = module.state_dict(keep_vars=True)
    return {key: value for key, value in every.items() if isinstance(value, torch.Tensor)}


def _missing(own: State, state: State) -> list[str]:
    """Keys that the checkpoint should give and does not.

    A tied tensor counts as given when any of its names is; ``num_batches_tracked`` plays no
    part in evaluation and old checkpoints lack it.
    """
    given = {id(own[key]) for key in state if key in own}
    return [
        key
        for key, value in own.items()
        if key not in state and id(value) not in given and not key.endswith("num_batches_tracked")
    ]


def _some(items: Collection[str], limit: int = 8) -> str:
    """The first few, and how many more there are."""
    shown = list(items)[:limit]
    rest = len(items) - len(shown)
    return ", ".join(shown) + (f", and {rest} more" if rest else "")
