"""Targets: every file loads, and every fact has its source."""

import pytest

from edgekit import find, targets
from edgekit.errors import EdgekitError

EXPECTED = {
    "cpu",
    "iphone-14-pro",
    "iphone-15-pro",
    "jetson-agx-orin-64gb",
    "jetson-orin-nano",
    "jetson-orin-nano-super",
    "jetson-orin-nx-16gb",
    "jetson-thor",
    "jetson-xavier-nx",
    "macbook-m4",
    "rtx-3060",
    "rtx-3090",
    "rtx-4060",
    "rtx-4090",
    "rtx-5090",
}
SOURCED = {
    "cache_mb",
    "clock_mhz",
    "compute_capability",
    "cores",
    "deployment",
    "opset",
    "power_modes",
    "runtime_version",
}


def test_the_shipped_devices():
    assert set(targets.names()) >= EXPECTED


@pytest.mark.parametrize("name", targets.names())
def test_every_fact_has_a_source(name):
    target = targets.load(name)
    stated = {fact for fact in SOURCED if getattr(target, fact)}
    assert stated | {"dtypes", "peak", "memory_gb", "bandwidth_gb_s"} <= set(target.sources)
    assert all(len(source) > 10 for source in target.sources.values())


@pytest.mark.parametrize("name", targets.names())
def test_facts_agree_with_each_other(name):
    target = targets.load(name)
    assert set(target.peak) <= set(target.dtypes)
    assert target.float_dtype in target.dtypes
    assert (target.opset is None) == ("onnx" not in target.formats)
    assert (target.deployment is not None) == (target.runtime == "coreml")
    assert (target.compute_capability is not None) == target.runtime.startswith("tensorrt")
    rates = target.peak
    if "fp16" in rates:
        assert rates["int8"] >= rates["fp16"]


@pytest.mark.parametrize("name", targets.names())
def test_formats_are_converters(name):
    assert set(targets.load(name).formats) <= {"onnx", "tensorrt", "on_device", "coreml", "nir"}


def test_a_jetson_engine_is_built_on_the_device():
    for name in targets.names():
        formats = targets.load(name).formats
        assert ("on_device" in formats) == name.startswith("jetson-")
        assert ("tensorrt" in formats) == name.startswith("rtx-")


def test_unknown_target_names_the_nearest():
    with pytest.raises(EdgekitError, match="rtx-4090") as caught:
        targets.load("rtx4090")
    assert "Unknown target 'rtx4090'" in caught.value.what


def test_impossible_precision_names_the_possible_ones():
    with pytest.raises(EdgekitError) as caught:
        targets.load("cpu").require("fp16")
    assert "CPU of any computer cannot run fp16" in caught.value.what
    assert "fp32 or int8" in caught.value.fix


def test_possible_precisions_pass():
    for precision in ("fp32", "fp16", "int8"):
        targets.load("jetson-xavier-nx").require(precision)


def test_malformed_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "__init__.py").touch()
    (tmp_path / "toaster.toml").write_text('title = "Toaster"\nwatts = 900\n')
    monkeypatch.setattr(targets, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(EdgekitError, match=r"toaster\.toml is malformed") as caught:
        targets.load("toaster")
    assert "watts" in caught.value.why


def test_tensorrt_runtime_is_found_by_its_file_name():
    assert "tensorrt" in find.names("runtimes")
