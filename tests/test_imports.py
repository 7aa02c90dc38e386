"""Imports: looking costs nothing, and every module can be looked at on any machine."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

import edgekit

HEAVY = {
    "coremltools",
    "diffusers",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "ot",
    "PIL",
    "ray",
    "safetensors",
    "tensorrt",
    "tensorrt_rtx",
    "timm",
    "torch",
    "torch_pruning",
    "torchvision",
    "transformers",
}
#: Optional: without them, everything else still works.
OPTIONAL = {
    "coremltools",
    "diffusers",
    "onnxruntime_ep_nv_tensorrt_rtx",
    "ot",
    "ray",
    "tensorrt",
    "tensorrt_rtx",
    "timm",
    "torch_pruning",
    "torchvision",
    "transformers",
}
#: A script for the device, which does its work when it is imported.
SCRIPTS = {"edgekit.converters.kit.__main__"}

BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def modules() -> list[str]:
    found = pkgutil.walk_packages(edgekit.__path__, "edgekit.")
    return sorted(module.name for module in found if module.name not in SCRIPTS)


@pytest.mark.parametrize(
    "code",
    [
        "import edgekit",
        "import edgekit; edgekit.Recipe; edgekit.EdgekitError; edgekit.targets.load('cpu')",
        "sys.argv = ['edgekit', '--help']\nfrom edgekit.cli import app\napp(standalone_mode=False)",
        "sys.argv = ['edgekit', 'build', '--help']\n"
        "from edgekit.cli import app\napp(standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_loaded_to_look(code):
    check = f"\nloaded = {HEAVY!r} & set(sys.modules)\nsys.exit(', '.join(loaded) or 0)"
    result = python(f"import sys\n{code}{check}")
    assert result.returncode == 0, result.stderr


def test_looking_into_every_room_loads_no_more_than_numpy():
    look = "import sys\nfrom edgekit.find import ROOMS, names\n[names(room) for room in ROOMS]\n"
    loaded = f"sys.exit(', '.join({HEAVY - {'numpy'}!r} & set(sys.modules)) or 0)"
    result = python(look + loaded)
    assert result.returncode == 0, result.stderr


def test_every_module_imports_without_the_optional_packages():
    code = "from importlib import import_module\nfor name in sys.argv[1:]: import_module(name)"
    result = python(BLOCK.format(blocked=OPTIONAL) + code, *modules())
    assert result.returncode == 0, result.stderr


def test_help_works_in_a_bare_environment():
    code = "sys.argv = ['edgekit', '--help']\nfrom edgekit.cli import main\nmain()"
    result = python(BLOCK.format(blocked=HEAVY) + code)
    assert result.returncode == 0, result.stderr
    assert "build" in result.stdout


def test_a_missing_package_is_named_with_its_remedy(tmp_path):
    code = (
        "sys.argv = ['edgekit', 'build', 'timm/x', '-t', 'iphone-15-pro', '-o', 'out']\n"
        "import importlib.util as util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'coremltools' else real(name)\n"
        "from edgekit.cli import main\nmain()"
    )
    result = python(f"import sys, os; os.chdir({str(tmp_path)!r})\n{code}")
    assert result.returncode == 2, result.stderr
    assert "pip install coremltools" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", edgekit.__all__)
def test_public_names_are_documented(name):
    value = getattr(edgekit, name)
    assert inspect.getdoc(value)
    assert name in dir(edgekit)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__.startswith("edgekit.")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'buidl'"):
        edgekit.buidl  # noqa: B018


@pytest.mark.parametrize("name", modules())
def test_every_module_says_what_it_is(name):
    assert import_module(name).__doc__
