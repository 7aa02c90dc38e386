"""benchmarks/amber.py: what it compares, and what it says of the figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import amber
import amber_model

from edgekit.compress.modules.skip import Skip


def row(seed, **errors):
    """A seed with one error for each start, after 0 steps and after 9."""
    judged = {name: {"error": error, "loss": error / 2} for name, error in errors.items()}
    starts = {name: {"0": each, "9": each} for name, each in judged.items()}
    merged = {name: {"0": judged[name], "9": judged[name]} for name in ("averaged", "copied")}
    sizes = {"whole": 8, "dropped": 4, "merged": 3}
    return {"seed": seed, "kept": [0], "teacher": {"loss": 0.0}, "parameters": sizes,
            "starts": starts, "merged": merged}  # fmt: skip


def test_claims_say_what_does_not_hold():
    rows = [
        row(0, averaged=0.1, copied=0.2, random=0.5),
        row(1, averaged=0.5, copied=0.2, random=0.5),
    ]
    found = amber.claims(rows, (9,))
    assert [each["claim"] for each in found[2:]] == [
        "after 9 steps, averaged < copied",
        "after 9 steps, copied < random",
    ]
    assert [(each["holds"], each["seeds"], each["of"]) for each in found[2:]] == [
        (False, 1, 2),
        (True, 2, 2),
    ]


def test_the_page_has_every_start_with_mean_and_range():
    rows = [
        row(0, averaged=0.1, copied=0.2, random=0.5),
        row(1, averaged=0.3, copied=0.2, random=0.5),
    ]
    text = amber.section({"rows": rows, "steps": [9], "claims": amber.claims(rows, (9,))})
    assert "| 4 of 8 blocks, averaged | 9 | 20.00 (10.00 to 30.00) |" in text
    assert "averaged < copied: does not hold (1 of 2 seeds)" in text


@pytest.fixture
def teacher():
    return amber_model.untrained(0)


def test_the_three_starts_differ_in_the_kept_blocks_alone(teacher):
    keep = (0, 2, 4, 7)
    made = {start: amber.started(start, teacher, keep, 0) for start in amber.STARTS}
    for start, model in made.items():
        blocks = model.module.model.transformer_blocks
        assert [i for i, block in enumerate(blocks) if not isinstance(block, Skip)] == list(keep)
        same = torch.equal(blocks[2].ff.net[2].weight, weight(teacher, 2))
        assert same == (start == "copied")
        assert torch.equal(model.module.model.proj_out.weight, teacher.module.model.proj_out.weight)
    mean = (weight(teacher, 2) + weight(teacher, 3)) / 2
    torch.testing.assert_close(weight(made["averaged"], 2), mean)


def weight(model, place):
    return model.module.model.transformer_blocks[place].ff.net[2].weight


def test_noise_and_velocity_lead_back_to_the_image():
    images, labels = torch.rand(5, 1, 8, 8), torch.arange(5)
    inputs, velocity = amber_model.noised(images, labels, torch.Generator().manual_seed(0))
    t = inputs["timestep"][:, None, None, None] / 1000
    torch.testing.assert_close(inputs["hidden_states"] - t * velocity, images)


def test_no_image_is_both_learnt_and_judged(teacher):
    parts = [amber_model._split(part)[0] for part in amber_model.DRAWS]
    assert sum(len(part) for part in parts) == 1797
    data, velocity = amber_model.data(teacher, "evaluation")
    assert len(data) == len(velocity) == 4 * len(parts[2])


def test_a_short_run(tmp_path, monkeypatch):
    monkeypatch.setattr(amber_model, "DRAWS", dict.fromkeys(amber_model.DRAWS, 1))
    found = amber.study(0, (2,), 2, tmp_path)
    assert len(found["kept"]) == 4
    assert found["parameters"]["merged"] < found["parameters"]["dropped"]
    assert found["starts"]["random"]["0"]["error"] > found["starts"]["copied"]["0"]["error"]
    assert set(found["merged"]) == {"averaged", "copied"}
