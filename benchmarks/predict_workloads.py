"""Counts what the models of published and measured latencies compute.

    python benchmarks/predict_workloads.py [MODEL ...]

Writes ``targets/prediction/workloads/MODEL.json``: the groups of one sample, equal ones together.
Models are made on torch's meta device, without weights: timm's by name, YOLO from ``yolo.py``,
reference models as ``reference/NAME``, and OWL-ViT's image encoder from transformers.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from edgekit import families, files
from edgekit.model import Input, Model
from edgekit.targets.prediction.counting import groups
from edgekit.targets.prediction.groups import merged, to_rows
from edgekit.targets.prediction.shapes import exported

HERE = Path(__file__).parent
PREDICTION = HERE.parent / "targets" / "prediction"


def yolo(name: str) -> Model:
    """A detector at 640 x 640."""
    sys.path.insert(0, str(HERE))
    try:
        import yolo as networks
    finally:
        sys.path.pop(0)
    return Model(networks.make(name), (Input("images", (1, 3, 640, 640)),), ("boxes",), name)


def owl_vit(name: str) -> Model:
    """The image encoder of OWL-ViT B/32 at 768 x 768, of one hidden state alone."""
    from transformers import OwlViTVisionConfig, OwlViTVisionModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = OwlViTVisionModel(OwlViTVisionConfig(image_size=768, patch_size=32))

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.model(pixel_values=pixel_values).last_hidden_state
            return found

    inputs = (Input("pixel_values", (1, 3, 768, 768)),)
    return Model(Encoder().eval(), inputs, ("hidden",), name)


def timm_model(name: str) -> Model:
    """As timm makes it; FastViT in the form that it runs in, its branches merged."""
    model = families.outline(f"timm/{name}", families.Options())
    if name.startswith("fastvit"):
        from timm.utils.model import reparameterize_model

        module = reparameterize_model(model.module)
        return Model(module.eval(), model.inputs, model.outputs, model.source)
    return model


def outline(name: str) -> Model:
    """The model of that name on the meta device."""
    with torch.device("meta"):
        for start, make in MAKERS.items():
            if name.startswith(start):
                return make(name)
        return timm_model(name)


MAKERS: dict[str, Callable[[str], Model]] = {
    "YOLO": yolo,
    "owlvit": owl_vit,
    "reference/": lambda name: families.outline(name, families.Options()),
}


def names() -> list[str]:
    """The models of all points that are used."""
    found = set()
    for path in sorted((PREDICTION / "points").glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as lines:
            found |= {row["model"] for row in csv.DictReader(lines) if not row["left_out"]}
    return sorted(found)


def place(name: str) -> Path:
    """Where a model's groups are stored."""
    return PREDICTION / "workloads" / f"{name.replace('/', '.')}.json"


def main() -> None:
    """Count every model that is asked for, or whose groups are not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    asked = parser.parse_args().models
    for name in asked or [name for name in names() if not place(name).exists()]:
        graph = exported(outline(name), 1)
        found = merged(groups(graph))
        text = json.dumps({"model": name, **to_rows(found)}, separators=(",", ":"))
        files.write_text(place(name), text.replace("],[", "],\n[") + "\n")
        sys.stdout.write(f"{name}: {len(found)} kinds of group\n")


if __name__ == "__main__":
    main()
