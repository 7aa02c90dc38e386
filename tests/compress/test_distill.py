"""Distill: the error falls, a stopped run ends as one that was not, and bad requests say why."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from edgekit import families
from edgekit.compress import Context, apply, describe, parse, structure
from edgekit.compress.distill import Distill
from edgekit.compress.distillation import material, trainer
from edgekit.compress.distillation.teacher import teaching
from edgekit.compress.measure import relative_error
from edgekit.data import open_data
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.model import Input, Model

PIXELS, LABELS = load_digits(return_X_y=True)
IMAGES = np.kron((PIXELS / 8 - 1).reshape(-1, 1, 8, 8), np.ones((4, 4))).astype(np.float32)
ALL = ("logits", "features", "attention", "labels:0.5")


@pytest.fixture(scope="module")
def teacher(digits_model):
    model = families.load(f"timm/{digits_model}", Options())
    with torch.no_grad():  # Outputs that depend on the image more than at random.
        model.module.head.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def data(teacher):
    return open_data({"x": IMAGES[:96], "labels": LABELS[:96]}, teacher.inputs, None)


@pytest.fixture(scope="module")
def unseen(teacher):
    return open_data({"x": IMAGES[900:960]}, teacher.inputs, None)


@pytest.fixture
def student(teacher):
    made = structure.copied(teacher)
    del made.module.blocks[1]
    return made


def narrow(digits_model):
    """A student of another width and of one block."""
    return families.load(
        f"timm/{digits_model}",
        Options(random_weights=True, arguments={"embed_dim": 24, "depth": 1, "num_heads": 2}),
    )


def values(model):
    return {name: value.clone() for name, value in structure.tensors(model.module).items()}


def equal(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def distance(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("losses", [("logits",), ("mse",), ALL[:3]], ids=["logits", "mse", "all"])
def test_a_student_comes_nearer_on_samples_it_has_not_seen(losses, teacher, student, data, unseen):
    before, theirs = values(student), values(teacher)
    made = apply(
        Distill(steps=40, batch_size=16, rate=2e-3, losses=losses), student,
        Context(training=data, teacher=teacher),
    )  # fmt: skip
    error = relative_error(teacher, student, unseen)
    assert relative_error(teacher, made, unseen) < error / 2
    assert equal(values(student), before)
    assert equal(values(teacher), theirs)
    assert not made.module.training
    assert structure.origin(made.module.blocks[0]) == "blocks.0"


def test_labels_are_learned():
    module = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    student = Model(module.eval(), (Input("input", (1, 1, 32, 32)),), ("y",), "net")
    data = open_data({"input": IMAGES[:600], "labels": LABELS[:600]}, student.inputs, None)
    made = apply(Distill(steps=60, rate=1e-2, losses=("labels",)), student, Context(data=data))
    with torch.no_grad():
        given = made.module(torch.from_numpy(IMAGES[900:1100])).argmax(1).numpy()
    assert (given == LABELS[900:1100]).mean() > 0.7


def test_a_student_of_another_width_learns_layer_by_layer(digits_model, teacher, data, unseen):
    student = narrow(digits_model)
    losses = ("logits", "features:0.5", "attention:0.5")
    made = apply(
        Distill(steps=60, batch_size=32, rate=3e-3, losses=losses), student,
        Context(training=data, teacher=teacher),
    )  # fmt: skip
    assert relative_error(teacher, made, unseen) < relative_error(teacher, student, unseen) / 2
    assert made.module.state_dict().keys() == student.module.state_dict().keys()


def test_blocks_learn_alone_before_the_whole(teacher, student, data):
    """A damaged block is repaired from what its teacher is given and gives."""
    damaged = structure.copied(teacher)
    with torch.no_grad():
        for weight in damaged.module.blocks[0].mlp.parameters():
            weight.mul_(0.5)
    options = Distill(steps=1, rate=1e-3, layerwise_steps=60, batch_size=32)
    made = apply(options, damaged, Context(training=data, teacher=teacher))
    x = torch.from_numpy(IMAGES[900:940])
    with torch.no_grad():
        tokens = teacher.module.patch_embed(x)
        wanted = teacher.module.blocks[0](tokens)
        errors = [
            float((m.module.blocks[0](tokens) - wanted).square().mean()) for m in (damaged, made)
        ]
    assert errors[1] < errors[0] / 4


def test_what_was_trained_is_saved_and_made_again(teacher, student, data, digits_model):
    made = apply(Distill(steps=2), student, Context(training=data, teacher=teacher))
    described = json.loads(json.dumps(structure.describe(teacher.module, made.module)))
    fresh = families.load(f"timm/{digits_model}", Options(random_weights=True)).module
    restored = structure.restore(fresh, described)
    structure.load(restored, values(made), "here")
    x = torch.from_numpy(IMAGES[:4])
    with torch.no_grad():
        assert torch.equal(restored.eval()(x), made.module(x))


STOPPED = {
    "logits": ({"losses": ("logits", "labels")}, 3),
    "at once": ({"losses": ("mse",)}, 1),
    "every loss, narrow": ({"losses": ALL, "average": 0.9, "accumulate": 2}, 3),
    "among the layers": ({"layerwise_steps": 4, "precision": "bf16"}, 3),
    "after the layers": ({"layerwise_steps": 4, "losses": ("logits", "features")}, 4),
    "behind the layers": ({"layerwise_steps": 4, "average": 0.5}, 7),
}


@pytest.mark.parametrize(("options", "stop"), STOPPED.values(), ids=STOPPED.keys())
def test_a_stopped_run_ends_as_one_that_was_not(
    options, stop, teacher, student, data, digits_model, tmp_path, monkeypatch
):
    if "attention" in options.get("losses", ()):
        student = narrow(digits_model)
    step = Distill(steps=5, batch_size=24, checkpoint_every=2, **options)
    context = Context(training=data, teacher=teacher, seed=3)
    whole = values(apply(step, student, context))
    kept = dataclasses.replace(context, folder=tmp_path)
    taken = []

    def counted(run, number, real=trainer._Run._step):
        if len(taken) == stop:
            raise KeyboardInterrupt
        taken.append(number)
        return real(run, number)

    monkeypatch.setattr(trainer._Run, "_step", counted)
    with pytest.raises(KeyboardInterrupt):
        apply(step, student, kept)
    stop = taken.clear()
    assert equal(values(apply(step, student, kept)), whole)
    assert 0 < len(taken) <= 5 + step.layerwise_steps
    taken.clear()
    assert equal(values(apply(step, student, kept)), whole)  # What is done is not done again.
    assert taken == []


def test_a_checkpoint_of_another_request_is_left_alone(teacher, student, data, tmp_path):
    context = Context(training=data, teacher=teacher, folder=tmp_path)
    apply(Distill(steps=2), student, context)
    fresh = apply(Distill(steps=3), student, dataclasses.replace(context, folder=None))
    assert equal(values(apply(Distill(steps=3), student, context)), values(fresh))
    (tmp_path / "distill.pt").write_bytes(b"damaged")
    assert equal(values(apply(Distill(steps=3), student, context)), values(fresh))


def test_another_seed_is_another_order(teacher, student, data):
    made = [
        values(
            apply(Distill(steps=2, batch_size=8), student, Context(data, teacher=teacher, seed=s))
        )
        for s in (0, 0, 1)
    ]
    assert equal(made[0], made[1])
    assert not equal(made[0], made[2])


def test_parts_of_a_batch_and_answers_asked_anew_change_nothing(
    teacher, student, data, monkeypatch
):
    context = Context(training=data, teacher=teacher)
    step = Distill(steps=9, batch_size=24, losses=("logits", "features"))
    wanted = values(apply(step, student, context))
    parts = values(apply(dataclasses.replace(step, accumulate=5), student, context))
    assert distance(wanted, parts) < 1e-5
    monkeypatch.setattr(material, "ROOM", 0)
    assert distance(wanted, values(apply(step, student, context))) < 1e-5


def test_sparse_weights_stay_sparse(teacher, data):
    student = structure.copied(teacher)
    weight = student.module.blocks[0].mlp.fc1.weight
    with torch.no_grad():
        groups = weight.view(-1, 4)
        groups.scatter_(1, groups.abs().topk(2, dim=1, largest=False).indices, 0.0)
    zero = weight == 0
    step = Distill(steps=10, rate=1e-2, losses=("logits", "features"))
    made = apply(step, student, Context(training=data, teacher=teacher))
    trained = made.module.blocks[0].mlp.fc1.weight
    assert torch.equal(trained == 0, zero)
    assert (trained != weight)[~zero].float().mean() > 0.9
    assert (made.module.blocks[0].mlp.fc2.weight != 0).all()


def test_a_loss_that_is_not_finite_names_the_step_and_leaves_the_last_state(
    teacher, student, data, tmp_path
):
    context = Context(training=data, teacher=teacher, folder=tmp_path)
    step = Distill(steps=50, rate=1e9, losses=("mse",), checkpoint_every=1)
    with pytest.raises(EdgekitError, match=r"diverged at step \d+ of 50") as caught:
        apply(step, student, context)
    assert "rate" in caught.value.fix
    assert str(tmp_path) in caught.value.why
    state = torch.load(tmp_path / "distill.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["weights"].values())


def test_a_teacher_by_name(teacher, digits_model, student, data):
    folder = Path(digits_model)
    named = Distill(steps=2, batch_size=8, teacher=f"timm/{folder}")
    source = families.load(f"timm/{folder}", Options())
    wanted = values(apply(dataclasses.replace(named, teacher=None), student,
                          Context(training=data, teacher=source)))  # fmt: skip
    assert equal(values(apply(named, student, Context(training=data, teacher=teacher))), wanted)


def test_a_teacher_that_wants_its_images_otherwise(teacher):
    white = dataclasses.replace(teacher.preprocess, mean=(0.25,), std=(2.0,))
    other = dataclasses.replace(teacher, preprocess=white)
    pixels = torch.rand(3, 1, 32, 32, dtype=torch.float64)
    mean, std = teacher.preprocess.mean[0], teacher.preprocess.std[0]
    module = structure.copied(teacher).module.double()
    told = teaching(other, teacher, module)({"x": (pixels - mean) / std})
    with torch.no_grad():
        assert torch.allclose(told[0], module((pixels - 0.25) / 2), atol=1e-12)


def test_features_need_no_equal_outputs(teacher, student, data):
    step = Distill(steps=2, losses=("features",))
    step.requires(student, Context(training=data, teacher=other_classes(teacher)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"temperature": 0}, "temperature is 0"),
        ({"average": 1.0}, "average is 1"),
        ({"layerwise_steps": -1}, "layerwise_steps is -1"),
        ({"accumulate": 65}, "65 parts"),
        ({"losses": ()}, "losses are"),
        ({"losses": ("logit",)}, "'logit' is not a loss"),
        ({"losses": ("logits:x",)}, "'logits:x' is not a loss"),
        ({"losses": ("logits", "kl")}, "losses are"),
        ({"losses": ("labels", "labels")}, "'labels' is not a loss"),
        ({"teacher_checkpoint": Path("w.safetensors")}, "without a teacher"),
    ],
)
def test_bad_options_say_why(options, message):
    with pytest.raises(EdgekitError, match=message):
        Distill(**options)


def test_options_of_a_recipe_and_of_a_flag():
    step = parse("distill:steps=200,losses=[logits,labels:0.5],precision=bf16")
    assert step == Distill(steps=200, losses=("logits", "labels:0.5"), precision="bf16")
    assert parse(describe(step)) == step
    with pytest.raises(EdgekitError, match="precision is not right"):
        parse({"distill": {"precision": "int8"}})


def other_classes(teacher):
    made = structure.copied(teacher)
    made.module.head = nn.Linear(48, 7)
    return made


@pytest.mark.parametrize(
    ("options", "context", "message"),
    [
        ({}, {"training": None}, "no data"),
        ({}, {"teacher": other_classes}, "outputs do not fit"),
        ({"losses": ("labels",)}, {"training": "unlabelled"}, "has no labels"),
        ({"losses": ("labels",)}, {"training": "far"}, "not classes of this model"),
        ({"precision": "fp16"}, {}, "fp16"),
        ({"teacher": "timm/no_such_model"}, {}, "no_such_model"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(
    options, context, message, teacher, student, data
):
    held = {"training": data, "teacher": teacher}
    made = {
        "unlabelled": open_data({"x": IMAGES[:8]}, teacher.inputs, None),
        "far": open_data({"x": IMAGES[:8], "labels": np.arange(8) + 9}, teacher.inputs, None),
    }
    for name, value in context.items():
        held[name] = value(teacher) if callable(value) else made.get(value)
    with pytest.raises(EdgekitError, match=message):
        Distill(**options).requires(student, Context(**held))


def test_a_teacher_of_other_samples_does_not_fit(student, data, digits_model):
    larger = families.load(
        f"timm/{digits_model}", Options(random_weights=True, arguments={"img_size": 64})
    )
    with pytest.raises(EdgekitError, match="does not take the student's samples"):
        Distill().requires(student, Context(training=data, teacher=larger))


def test_a_narrow_block_cannot_be_trained_alone(teacher, data, digits_model):
    with pytest.raises(EdgekitError, match="alone"):
        Distill(layerwise_steps=2).requires(
            narrow(digits_model), Context(training=data, teacher=teacher)
        )


def test_a_model_without_blocks_has_no_features():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model = Model(module.eval(), (Input("input", (1, 4)),), ("y",), "net")
    data = open_data(np.zeros((4, 4), np.float32), model.inputs, None)
    with pytest.raises(EdgekitError, match="no blocks"):
        Distill(losses=("features",)).requires(model, Context(training=data))
    made = apply(Distill(steps=2), model, Context(training=data))
    assert made.history == ("distill:steps=2",)


PROCESS = """
import sys, numpy as np, torch
from torch import nn
from edgekit.compress import Context, apply
from edgekit.compress.distill import Distill
from edgekit.data import open_data
from edgekit.model import Input, Model
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 12)
    def forward(self, x):
        return x + torch.tanh(self.linear(x))
def make(seed, depth):
    torch.manual_seed(seed)
    module = nn.Sequential(*[Block() for _ in range(depth)], nn.Linear(12, 3))
    blocks = nn.Sequential(nn.Sequential(*list(module)[:-1]), module[-1])
    return Model(blocks.eval(), (Input("input", (1, 12)),), ("y",), "net")
x = np.random.default_rng(0).standard_normal((31, 12)).astype(np.float32)
teacher, student = make(0, 4), make(1, 2)
data = open_data({"input": x}, teacher.inputs, None)
from pathlib import Path
step = Distill(steps=12, batch_size=10, rate=1e-2, losses=("logits", "features"),
               layerwise_steps=4, accumulate=2, checkpoint_every=5)
made = apply(step, student, Context(training=data, teacher=teacher, folder=Path(sys.argv[1])))
torch.save(made.module.state_dict(), Path(sys.argv[1]) / f"{sys.argv[2]}.pt")
"""


def test_two_processes_train_what_one_does(tmp_path, monkeypatch):
    """With the environment that torchrun gives its processes."""
    script = tmp_path / "train.py"
    script.write_text(PROCESS)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "two"), rank],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "one"), "alone"])
    runpy.run_path(str(script))
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    alone, first, second = (
        torch.load(tmp_path / name, weights_only=True)
        for name in ("one/alone.pt", "two/0.pt", "two/1.pt")
    )
    assert equal(first, second)
    assert distance(alone, first) < 1e-6
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["0.pt", "1.pt", "distill.pt"]
