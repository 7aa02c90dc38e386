"""A user's own code: good factories, and every way a bad one can fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgekit import families
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.model import BATCH, Input

HEAD = "import torch\nfrom torch import nn\n"
NET = """
class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.fc = nn.Linear(3, width)
        self.example_inputs = {"x": torch.zeros(2, 3)}

    def forward(self, x):
        return self.fc(x)
"""
NUMBERS = itertools.count()
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module into the current folder and gives its name, which is new each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write_module(code: str) -> str:
        name = f"user_model_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(HEAD + code)
        return name

    return write_module


def test_a_class_with_example_inputs_and_arguments(write: Write) -> None:
    source = f"{write(NET)}:Net"
    model = families.load(source, Options(arguments={"width": 6}))
    assert model.source == source
    assert model.weights == "given"
    assert model.inputs == (Input("x", (2, 3)),)
    assert model.outputs == ("output",)
    assert not model.module.training
    with torch.inference_mode():
        assert model.module(x=torch.zeros(2, 3)).shape == (2, 6)


def test_inputs_of_the_options_come_first(write: Write) -> None:
    spec = Input("x", (BATCH, 3))
    assert families.load(f"{write(NET)}:Net", Options(inputs=(spec,))).inputs == (spec,)


def test_several_outputs_are_numbered(write: Write) -> None:
    code = NET.replace("return self.fc(x)", "return self.fc(x), x")
    model = families.load(f"{write(code)}:Net", Options())
    assert model.outputs == ("output_0", "output_1")


def test_a_factory_may_give_a_whole_model(write: Write) -> None:
    code = NET + (
        "from edgekit.model import Input, Model\n"
        "def make(name):\n"
        "    return Model(Net(), (Input('x', (1, 3)),), (name,), 'mine')\n"
    )
    source = f"{write(code)}:make"
    model = families.load(source, Options(arguments={"name": "score"}))
    assert model.outputs == ("score",)
    assert model.source == source


def test_a_checkpoint_is_loaded_and_checked(write: Write, tmp_path: Path) -> None:
    source = f"{write(NET)}:Net"
    state = {"fc.weight": torch.rand(4, 3), "fc.bias": torch.rand(4)}
    save_file(state, tmp_path / "w.safetensors")
    model = families.load(source, Options(checkpoint=tmp_path / "w.safetensors"))
    assert model.weights == "checkpoint"
    assert torch.equal(model.module.state_dict()["fc.weight"], state["fc.weight"])
    wrong = Options(checkpoint=tmp_path / "w.safetensors", arguments={"width": 5})
    with pytest.raises(EdgekitError, match=r"fc\.weight \(4, 3\), model \(5, 3\)"):
        families.load(source, wrong)


def test_errors_in_user_code_say_what_and_where(write: Write) -> None:
    name = write("def make(depth):\n    return nn.Linear(3, depth)\n")
    with pytest.raises(EdgekitError) as error:
        families.load(f"{name}:make", Options(arguments={"depth": "two"}))
    assert f"{name}:make(depth='two') failed" in str(error.value)
    assert f"{name}.py:4" in str(error.value)  # the user's line, not torch's
    assert "TypeError" in str(error.value)
    assert isinstance(error.value.__cause__, TypeError)


def test_a_module_that_breaks_on_import_says_where(write: Write) -> None:
    for code, place in (("1 / 0\n", 3), ("def broken(:\n", 3), ("import no_such_package\n", 3)):
        name = write(code)
        with pytest.raises(EdgekitError, match=rf"cannot be imported(?s:.*){name}\.py:{place}"):
            families.load(f"{name}:make", Options())


def test_names_that_are_not_there(write: Write) -> None:
    with pytest.raises(EdgekitError, match="No module named 'no_such_module'"):
        families.load("no_such_module:make", Options())
    name = write("def make():\n    pass\nSIZE = 3\n")
    with pytest.raises(EdgekitError, match=r"no 'mke'(?s:.*)make"):
        families.load(f"{name}:mke", Options())
    with pytest.raises(EdgekitError, match="cannot be called"):
        families.load(f"{name}:SIZE", Options())
    with pytest.raises(EdgekitError, match="returned a NoneType"):
        families.load(f"{name}:make", Options())


def test_unknown_inputs_must_be_given(write: Write) -> None:
    name = write("def make():\n    return nn.Linear(3, 4)\n")
    source = f"{name}:make"
    with pytest.raises(EdgekitError, match=r"--input NAME(?s:.*)example_inputs"):
        families.load(source, Options())
    model = families.load(source, Options(inputs=(Input("input", (1, 3)),)))
    assert model.outputs == ("output",)


@pytest.mark.parametrize("examples", ["{'x': 3}", "{'x': torch.tensor(1.0)}"])
def test_wrong_example_inputs_are_named(write: Write, examples: str) -> None:
    code = NET.replace('{"x": torch.zeros(2, 3)}', examples)
    with pytest.raises(EdgekitError, match=r"example_inputs\['x'\]"):
        families.load(f"{write(code)}:Net", Options())


def test_inputs_that_do_not_fit_say_where(write: Write) -> None:
    name = write(NET)
    for spec in (Input("x", (1, 7)), Input("y", (1, 3)), Input("x", (1, 3), "int64")):
        with pytest.raises(EdgekitError, match=rf"does not run on {spec.name}:1x"):
            families.load(f"{name}:Net", Options(inputs=(spec,)))
    with pytest.raises(EdgekitError, match="unknown dtype 'flaot32'"):
        families.load(f"{name}:Net", Options(inputs=(Input("x", (1, 3), "flaot32"),)))


@pytest.mark.parametrize("value", ["{'a': x}", "[x, {'a': x}]", "()", "x.sum().item()"])
def test_outputs_that_are_not_tensors_are_refused(write: Write, value: str) -> None:
    code = NET.replace("return self.fc(x)", f"return {value}")
    with pytest.raises(EdgekitError, match="must return a tensor or a tuple of tensors"):
        families.load(f"{write(code)}:Net", Options())
