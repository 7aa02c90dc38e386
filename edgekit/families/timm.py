"""timm: an architecture's name, or a folder in timm's own format.

A folder holds ``config.json`` (architecture, model_args, pretrained_cfg) beside its weights, as
``timm.models.save_for_hf`` writes it. Image size, mean, std and the rest come from that
configuration, or from the architecture's own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import checkpoint
from edgekit.errors import EdgekitError
from edgekit.families import Options, probe
from edgekit.find import unknown
from edgekit.model import Input, Model, Preprocess
from edgekit.progress import say

if TYPE_CHECKING:
    import torch

REQUIRES = {"timm": "timm"}
OWN_WEIGHTS = "Pass --checkpoint FILE with its weights, or --random-weights."


def load(name: str, options: Options) -> Model:
    """A timm model. Its input is ``x`` (1, channels, height, width), its output ``logits``.

    Args:
        name: an architecture, with its tag or without (``vit_tiny_patch16_224.augreg_in21k``),
            or a folder.

    Raises:
        EdgekitError: unknown architecture (the nearest are named), wrong arguments, a
            checkpoint of another model, or weights that cannot be had here.
    """
    source = f"timm/{name}"
    module, weights = _weighted(name, options)
    config = _data_config(module, source, options.inputs)
    spec = options.inputs[0] if options.inputs else Input("x", (1, *config["input_size"]))
    outputs = probe.tensors(probe.run(module, (spec,), source), source)
    many = len(outputs) > 1
    names = tuple(f"logits_{i}" for i in range(len(outputs))) if many else ("logits",)
    prepared = _preprocess(config, source)
    streams = _streams(module)
    return Model(module.eval(), (spec,), names, source, weights, prepared, streams=streams)


def _streams(module: torch.nn.Module) -> tuple[tuple[str, str], ...]:
    """Where CrossViT's branches start, which all read one image; no other model has any."""
    if type(module).__name__ != "CrossVit":
        return ()
    count = len(module.get_submodule("patch_embed")._modules)
    return tuple((f"branch{i}", f"patch_embed.{i}") for i in range(count))


def _weighted(name: str, options: Options) -> tuple[torch.nn.Module, str]:
    """The module with its weights, and where those came from."""
    folder = Path(name).expanduser()
    local = (folder / "config.json").is_file()
    if not local:
        _check_name(name)
    full_name = f"local-dir:{folder}" if local else name
    if options.random_weights:
        return _create(full_name, options, pretrained=False), "random"
    path = options.checkpoint or (folder if local else None)
    if path is None:
        return _create(full_name, options, pretrained=True), "pretrained"
    state = checkpoint.load_state(path)
    module = _create(full_name, options, pretrained=False)
    checkpoint.apply(module, state, str(path), options.allow_partial)
    return module, "checkpoint"


def _check_name(name: str) -> None:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        if Path(name).is_dir() or "/" in name:
            raise EdgekitError(
                f"timm/{name} is not a folder in timm's format.",
                f"{Path(name) / 'config.json'} does not exist.",
                "Save the model with timm.models.save_for_hf(model, FOLDER, "
                "safe_serialization=True), or give an architecture and --checkpoint.",
            )
        error = unknown("timm architecture", name, timm.list_models())
        raise EdgekitError(error.what, f"timm has {len(timm.list_models())} others.", error.fix)


def _create(name: str, options: Options, pretrained: bool) -> torch.nn.Module:
    import timm

    if pretrained:
        _check_head(name, options)
    try:
        module: torch.nn.Module = timm.create_model(
            name, pretrained=pretrained, **options.arguments
        )
    except Exception as error:
        what = f"timm/{name} cannot be made."
        fix = "Check its --set arguments."
        if pretrained:
            what = f"The pretrained weights of timm/{name} cannot be had."
            fix = OWN_WEIGHTS
        raise probe.failed(what, error, fix) from error
    return module


def _check_head(name: str, options: Options) -> None:
    """timm leaves a head of another size at random without a word; we don't."""
    import timm

    config = timm.get_pretrained_cfg(name)
    asked = options.arguments.get("num_classes")
    if config is None or not config.has_weights:
        raise EdgekitError(f"timm/{name} has no published weights.", "", OWN_WEIGHTS)
    if asked not in (None, config.num_classes) and not options.allow_partial:
        raise EdgekitError(
            f"The pretrained weights of timm/{name} have no head of {asked} classes.",
            f"They have {config.num_classes}; the new head would be random.",
            "Pass --checkpoint FILE with a trained head, or --allow-partial to accept that.",
        )


def _data_config(module: torch.nn.Module, source: str, inputs: tuple[Input, ...]) -> dict[str, Any]:
    """timm's own account of how images are prepared for this module."""
    import timm

    sizes = [i.shape[1:] for i in inputs if len(i.shape) == 4]
    if inputs and (len(inputs) != 1 or inputs[0].name != "x" or not sizes):
        raise EdgekitError(
            f"{source} cannot take the inputs {', '.join(i.name for i in inputs)}.",
            "A timm model takes one image.",
            "Write --input x:1x3xHEIGHTxWIDTH.",
        )
    try:
        config: dict[str, Any] = timm.data.resolve_input_data_config(
            module, args={"input_size": sizes[0]} if sizes else {}
        )
    except (ValueError, TypeError) as error:
        raise EdgekitError(
            f"{source} does not take x:{'x'.join(map(str, inputs[0].shape))}.",
            f"timm says: {error}",
            "Sizes must be numbers; a fixed size is changed with --set img_size=256.",
        ) from error
    return config


def _preprocess(config: dict[str, Any], source: str) -> Preprocess | None:
    """timm's evaluation transform in our terms, or None where it cannot be said in them."""
    channels, height, width = config["input_size"]
    mode = config["crop_mode"]
    resize: int | tuple[int, int]
    resize = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
    if mode == "center" and height == width:
        resize = resize[0]
    elif mode != "squash":
        say(f"{source}: no image folder can be used (crop mode {mode!r} at {height}x{width}).")
        return None
    return Preprocess(
        size=(height, width),
        resize=resize,
        interpolation=config["interpolation"],
        mean=_each(config["mean"], channels),
        std=_each(config["std"], channels),
        channels=channels,
    )


def _each(values: Any, channels: int) -> tuple[float, ...]:
    """One value a channel; timm lets one stand for all."""
    found = tuple(float(value) for value in values)
    return found * channels if len(found) == 1 else found
