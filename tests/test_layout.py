"""Layout: the package list is the disk, and the house rules that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
HOMES = {"edgekit": "edgekit", **SETUP["package-dir"]}


def folder_of(package: str) -> Path:
    """Where a listed package lies, by the longest matching entry of package-dir."""
    home = max((h for h in HOMES if f"{package}.".startswith(f"{h}.")), key=len)
    rest = package.removeprefix(home).strip(".").replace(".", "/")
    return ROOT / HOMES[home] / rest


def packages_on_disk() -> set[str]:
    found = set()
    for home, folder in HOMES.items():
        for marker in (ROOT / folder).rglob("__init__.py"):
            inside = marker.parent.relative_to(ROOT / folder)
            if not any((ROOT / folder / part).is_symlink() for part in inside.parents):
                found.add(".".join((home, *inside.parts)))
    return found


def sources() -> list[Path]:
    """Our Python files that git knows, or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).exists()]


def test_the_package_list_is_the_disk():
    assert set(SETUP["packages"]) == packages_on_disk()
    for package in SETUP["packages"]:
        assert (folder_of(package) / "__init__.py").is_file()


@pytest.mark.parametrize("room", ["converters", "quantize", "targets"])
def test_the_rooms_are_linked_into_the_package(room):
    link = ROOT / "edgekit" / room
    assert link.is_symlink()
    assert link.resolve() == ROOT / room


def test_package_data_covers_every_data_file():
    data = SETUP["package-data"]
    for package in SETUP["packages"]:
        folder, patterns = folder_of(package), [*data["*"], *data.get(package, ())]
        own = {path for path in folder.glob("*") if path.is_file()}
        plain = (path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        for below in (path for path in plain if not any(path.rglob("*.py*"))):
            own |= {path for path in below.rglob("*") if path.is_file()}
        for path in own:
            inside = path.relative_to(folder)
            assert path.suffix == ".py" or any(inside.match(p) for p in patterns), path


def test_no_drawer_for_everything():
    assert not [path for path in sources() if path.name in ("utils.py", "helpers.py", "misc.py")]


def test_a_warning_in_our_own_code_is_an_error():
    code = "import warnings; warnings.warn('old')"
    with pytest.raises(UserWarning, match="old"):
        exec(code, {"__name__": "edgekit.somewhere"})
    with pytest.warns(UserWarning, match="old"):
        exec(code, {"__name__": "elsewhere"})


def test_the_flow_alone_sequences():
    """Converters and quantization know nothing of the flow, the command line or runtimes."""
    above = {"edgekit.flow", "edgekit.cli", "edgekit.single", "edgekit.work"}
    for path in (p for room in ("converters", "quantize", "targets") for p in sources()
                 if p.is_relative_to(ROOT / room)):  # fmt: skip
        tree = ast.parse(path.read_text())
        imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not imported & above, path


def test_tests_mirror_the_tree():
    """A test folder stands for a folder of the same name."""
    known = {
        path.relative_to(home).as_posix()
        for home in (ROOT / "edgekit", ROOT)
        for path in home.rglob("*")
        if path.is_dir() and ".venv" not in path.parts
    }
    tests = ROOT / "tests"
    folders = {path.parent.relative_to(tests).as_posix() for path in tests.rglob("test_*.py")}
    assert folders - {"."} <= known
