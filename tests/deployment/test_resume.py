"""Whatever breaks off, the same command goes on."""

import json
import re
import signal
import time

import pytest

SIZE = 4_000_000


def log_of(process, text, seconds=60):
    """Read what a process says until it says this."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return
    pytest.fail(f"never said {text!r}: {''.join(lines)}")


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("tool", ["rsync", "sftp"])
@pytest.mark.parametrize("how", ["killed", "connection cut"])
def test_copying_goes_on(how, tool, bundle, serve, jetson, no_rsync, start, wire, edgekit):
    device = serve(**jetson, **({"PATH": no_rsync} if tool == "sftp" else {}))
    line = wire(device.port, 2e6)
    process = start(bundle, "device", *device.flags(port=line.port))
    wait_for(lambda: line.sent > SIZE / 2 or process.poll() is not None)
    if how == "killed":
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=90)
        assert process.returncode == 130, said
        assert "The same command goes on" in said
    else:
        line.cut()
        _, said = process.communicate(timeout=90)
        assert process.returncode == 2, said
        assert "connection to device was lost" in said
        assert "Run the same command again" in said
    (kit,) = device.kits()
    assert not (kit / "run.log").exists()
    again = wire(device.port, 1e9)
    ran = edgekit("deploy", bundle, "device", *device.flags(port=again.port))
    assert ran.code == 0, ran.err
    assert again.sent < 0.75 * SIZE
    assert not list(kit.glob("*.part"))


def builds(gate):
    noted = gate.with_name("gate.builds")
    return noted.read_text().split() if noted.exists() else []


@pytest.mark.parametrize("how", ["killed", "connection cut"])
def test_a_build_that_goes_on_is_joined(how, bundle, slow, start):
    device, gate = slow
    first = start(bundle, "device", *device.flags())
    wait_for(lambda: builds(gate) or first.poll() is not None)
    if how == "killed":
        first.kill()
    else:
        device.cut()
        _, said = first.communicate(timeout=90)
        assert first.returncode == 2, said
        assert "connection to device was lost" in said
    second = start(bundle, "device", *device.flags())
    log_of(second, "Joining the run")
    gate.touch()
    assert second.wait(timeout=90) == 0
    assert len(builds(gate)) == 1
    (path,) = bundle.rglob("result.json")
    assert json.loads(path.read_text())["status"] == "passed"


def test_a_run_with_other_options_is_not_joined_and_can_be_stopped(bundle, slow, start, edgekit):
    device, gate = slow
    first = start(bundle, "device", *device.flags())
    wait_for(lambda: builds(gate) or first.poll() is not None)
    ran = edgekit("deploy", bundle, "device", *device.flags("--kit-option", "profile"))
    assert ran.code == 2
    assert "A run with other options is going on" in ran.err
    assert "Its options: --seconds=0" in ran.err
    ran = edgekit("deploy", bundle, "device", *device.flags("--stop"))
    assert (ran.code, ran.out) == (0, "device: The run was stopped.\n")
    _, said = first.communicate(timeout=90)
    assert first.returncode == 2
    assert re.search("ended without an exit code.*It was stopped", said, re.DOTALL)
    ran = edgekit("deploy", bundle, "device", *device.flags("--stop"))
    assert ran.out == "device: No run is going on.\n"
