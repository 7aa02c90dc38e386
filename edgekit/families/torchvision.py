"""One repair: torchvision's compiled operators that do not load beside this torch.

PyPI's torchvision beside a CPU torch from another index cannot load its ``_C`` library, and
``import torchvision`` then fails with "operator torchvision::nms does not exist", and with it
``import timm`` and most of transformers. Both need only torchvision's Python part, which is
content once the two schemas that it annotates exist.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.progress import say

if TYPE_CHECKING:
    import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def repair() -> torch.library.Library | None:
    """Make ``import torchvision`` work where its operators are broken; elsewhere do nothing.

    Returns:
        the registration, which lives as long as this cache does, or None.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _operators_load(Path(spec.origin).parent):
        return None
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + SCHEMA)  # type: ignore[no-untyped-call]
    say("torchvision's compiled operators do not load here; only their schemas are registered.")
    return library


def _operators_load(folder: Path) -> bool:
    """Try what torchvision itself tries when it is imported."""
    import torch

    for library in [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]:
        try:
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return True
    return False
