"""transformers' ``preprocessor_config.json`` in edgekit's terms, read as plain JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.model import Preprocess
from edgekit.progress import say

FILE = "preprocessor_config.json"

#: Processors that only resize, crop, scale and normalise, as their JSON says. Others have steps
#: in their code (Levit's 256/224, ConvNeXT's crop_pct, padding, BGR), which we don't guess.
PLAIN = {"Beit", "Bit", "CLIP", "DeiT", "MobileNetV1", "MobileNetV2", "Pvt", "Siglip", "ViT"}
#: Those that take a bare number as the shorter edge; the others take it as height and width.
SHORTER_EDGE = {"Bit", "CLIP", "MobileNetV1", "MobileNetV2", "Siglip"}
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def read(folder: Path) -> Preprocess | None:
    """How images are prepared, or None where the file is absent or says more than we can.

    Raises:
        EdgekitError: the file is not a JSON object.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise EdgekitError(
            f"{path} is not a JSON object.", str(error), "Download it again."
        ) from error
    edges, size = _edges(config), _size(config)
    reason = _beyond(config)
    if reason or edges is None or size is None:
        say(f"{path}: {reason or 'its size is not fixed'}; no image folder can be used.")
        return None
    return _preprocess(config, edges, size)


def _kind(config: dict[str, Any]) -> str:
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    return re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(name))


def _beyond(config: dict[str, Any]) -> str:
    """Why Preprocess cannot express it; empty where it can."""
    if _kind(config) not in PLAIN:
        return f"the processor {_kind(config) or 'without a name'!r} is not one that edgekit knows"
    if not config.get("do_resize", True) or config.get("resample") not in RESAMPLE:
        return "it does not resize in a way that edgekit knows"
    if config.get("do_pad"):
        return "it pads"
    if config.get("do_normalize", True) and not (
        config.get("image_mean") and config.get("image_std")
    ):
        return "image_mean or image_std is absent"
    return ""


def _edges(config: dict[str, Any]) -> int | tuple[int, int] | None:
    """What the image is resized to: its shorter edge, or (height, width)."""
    size = config.get("size")
    if isinstance(size, int):
        return size if _kind(config) in SHORTER_EDGE else (size, size)
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return size["height"], size["width"]
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    return None


def _size(config: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) that the model gets."""
    if not config.get("do_center_crop"):
        edges = _edges(config)
        return edges if isinstance(edges, tuple) else None
    crop = config.get("crop_size")
    if isinstance(crop, int):
        return crop, crop
    if isinstance(crop, dict) and {"height", "width"} <= crop.keys():
        return crop["height"], crop["width"]
    return None


def _preprocess(
    config: dict[str, Any], edges: int | tuple[int, int], size: tuple[int, int]
) -> Preprocess:
    """The file says (pixel * factor - mean) / std, we say (pixel / 255 - mean) / std."""
    normalize = config.get("do_normalize", True)
    mean = config["image_mean"] if normalize else [0.0] * 3
    std = config["image_std"] if normalize else [1.0] * 3
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    return Preprocess(
        size=size,
        resize=edges,
        interpolation=RESAMPLE[config["resample"]],
        mean=tuple(value / (255 * factor) for value in mean),
        std=tuple(value / (255 * factor) for value in std),
        channels=len(mean),
    )
