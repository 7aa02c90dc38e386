"""A stand-in for a Jetson, and how a kit is run: in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAKES = Path(__file__).with_name("fake_jetson")
#: Stand-ins, which import each other as a device's packages.
collect_ignore = ["fake_jetson"]


@pytest.fixture(scope="session")
def jetson(tmp_path_factory):
    """An environment in which the kit finds an Orin and TensorRT 10.3, both stand-ins."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("jetson")
    library = folder / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, FAKES / "cuda.c"], check=True)
    return {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(FAKES), "FAKE_TENSORRT": "10.3"}


@pytest.fixture(scope="session")
def xavier(jetson):
    """The same for a Jetson Xavier NX with JetPack 5's TensorRT 8.5."""
    return {**jetson, "FAKE_TENSORRT": "8.5", "FAKE_SM": "7.2", "FAKE_GPU": "Xavier"}


@pytest.fixture(scope="session")
def run_kit():
    """Run a kit, with arguments of its script and entries of its environment.

    It times no longer than its calls need, unless ``--seconds`` says so.
    """

    def run(kit, *arguments, python=sys.executable, **environment):
        seconds = () if "--seconds" in arguments else ("--seconds", "0")
        return subprocess.run(
            [python, str(kit / "run.pyz"), *arguments, *seconds],
            capture_output=True,
            text=True,
            cwd="/",
            env={**os.environ, **environment},
            timeout=120,
        )

    return run
