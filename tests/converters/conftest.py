"""A stand-in for a Jetson, and how a kit is run: in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAKES = Path(__file__).with_name("fake_jetson")


@pytest.fixture(scope="session")
def jetson(tmp_path_factory):
    """An environment in which the kit finds a GPU and TensorRT 8.5, both fakes."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("jetson")
    library = folder / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, FAKES / "cuda.c"], check=True)
    return {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(FAKES)}


@pytest.fixture(scope="session")
def run_kit():
    """Run a kit, with arguments of its script and entries of its environment."""

    def run(kit, *arguments, **environment):
        return subprocess.run(
            [sys.executable, str(kit / "run.pyz"), *arguments],
            capture_output=True,
            text=True,
            cwd="/",
            env={**os.environ, **environment},
            timeout=120,
        )

    return run
