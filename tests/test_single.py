"""verify of a model that computes levels: INT8's tolerance, in whatever precision it is."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from edgekit import single
from edgekit.bundle import MANIFEST, Bundle
from edgekit.files import sha256

FAST = ("--warmup", "0", "--iterations", "1", "--seconds", "0.01")
CODE = """
import torch
from edgekit.compress.modules.qcfs import QCFS


def make():
    torch.manual_seed(0)
    unit = QCFS(8, -1, 4, 0.25, False, "folded")
    return torch.nn.Sequential(torch.nn.Linear(4, 8), unit, torch.nn.Linear(8, 3))
"""


def moved(reference, to):
    """A reference whose outputs are off by 5 %, up and down in turn."""
    with np.load(reference) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    for name, value in held.items():
        if name.startswith("output/"):
            signs = (-1.0) ** np.arange(len(value))
            held[name] = (value * (1 + 0.05 * signs[:, None])).astype(value.dtype)
    np.savez(to, **held)
    return to


@pytest.fixture(scope="module")
def spiking(tmp_path_factory, edgekit):
    """A bundle of a model with a spiking unit in fp32; its references are off."""
    folder = tmp_path_factory.mktemp("spiking")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        (folder / "levels_for_edgekit.py").write_text(CODE)
        x = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
        np.savez(folder / "data.npz", input=x)
        made = ("levels_for_edgekit:make", "--input", "input:1x4", "-t", "cpu", "-o", "bundle")
        result = edgekit("build", *made, "--evaluation", "data.npz", *FAST)
    assert result.code == 0, result.err
    return folder / "bundle"


def test_a_bundle_knows_that_its_model_computes_levels(spiking, tmp_path):
    assert [each.status for each in single.verify(spiking)] == ["verified"]
    copied = tmp_path / "bundle"
    shutil.copytree(spiking, copied)
    reference = moved(spiking / "reference.npz", copied / "reference.npz")
    manifest = json.loads((copied / MANIFEST).read_text())
    manifest["steps"]["reference"]["files"]["reference.npz"] = sha256(reference)
    (copied / MANIFEST).write_text(json.dumps(manifest))
    assert Bundle.open(copied).damaged() == []
    (checked,) = single.verify(copied)
    assert checked.ok
    assert 0.98 < checked.drift.cosine < 0.9999


def test_so_does_the_reference_of_a_lone_artifact(spiking, tmp_path):
    artifact = spiking / "cpu" / "model.onnx"
    reference = moved(spiking / "reference.npz", tmp_path / "levels.npz")
    (checked,) = single.verify(artifact, reference, "fp16")
    assert checked.ok
    with np.load(reference) as arrays:
        plain = {name: arrays[name] for name in arrays.files if name != single.DISCRETE}
    np.savez(tmp_path / "plain.npz", **plain)
    (refused,) = single.verify(artifact, tmp_path / "plain.npz", "fp16")
    assert not refused.ok
    assert refused.drift == checked.drift
