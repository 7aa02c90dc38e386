"""A bundle is taken to a device over SSH: a real server, a stand-in's TensorRT."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

from edgekit import deployment
from edgekit.bundle import Bundle
from edgekit.converters.kit.cuda import cuda_available
from edgekit.deployment.connection import Connection, plain
from edgekit.errors import EdgekitError

JETSON = "jetson-orin-nano-super"


def row(bundle):
    return next(r for r in Bundle.open(bundle).manifest.rows if r.format == "on_device")


def result(bundle, host="device"):
    return json.loads((bundle / JETSON / "devices" / host / "result.json").read_text())


def test_a_bundle_is_built_checked_and_measured_there(bundle, device, edgekit, wire):
    ran = edgekit("deploy", bundle, "device", *device.flags("--engine"))
    assert ran.code == 0, ran.err
    assert "verified on the device" in ran.out
    assert result(bundle)["status"] == "passed"
    (kit,) = device.kits()
    engine = bundle / JETSON / "devices" / "device" / "engine.plan"
    assert engine.read_bytes() == (kit / "engine.plan").read_bytes()
    assert row(bundle).latency[0]["latency_ms"]["p50"] > 0
    assert Bundle.open(bundle).damaged() == []
    # One connection, so that a password is asked once.
    assert device.log.read_text().count("Accepted publickey") == 1

    # Once more, from Python: nothing is copied or built again.
    built = (kit / "engine.plan").stat().st_mtime_ns
    line = wire(device.port, 1e9)
    settings = deployment.Settings(
        python=sys.executable,
        ssh_options=tuple(device.options(line.port)),
        kit_options=("seconds=0", "iterations=3"),
    )
    (one,) = deployment.deploy(bundle, "device", settings=settings)
    assert (one.host, one.status, one.ok) == ("device", "verified on the device", True)
    assert result(bundle)["build"]["reused"] is True
    assert (kit / "engine.plan").stat().st_mtime_ns == built
    assert line.sent < 100_000


def test_outputs_that_differ_end_with_1(bundle, serve, jetson, edgekit):
    device = serve(**jetson, FAKE_FACTOR="-1")
    ran = edgekit("deploy", bundle, "device", *device.flags())
    assert ran.code == 1
    assert "marked failed" in ran.err
    assert row(bundle).status == "failed"


@pytest.mark.skipif(cuda_available(), reason="there is a GPU")
def test_without_a_gpu_tensorrt_rtx_builds(bundle, serve, edgekit):
    device = serve()
    flags = device.flags("--kit-option", "compute-capability=8.9", "--json")
    ran = edgekit("deploy", bundle, "device", *flags)
    assert ran.code == 0, ran.err
    (one,) = json.loads(ran.out)
    assert one["status"] == "built, not run: no CUDA device"
    assert result(bundle)["build"]["package"] == "tensorrt_rtx"


@pytest.mark.parametrize(
    ("shown", "said", "fix"),
    [
        ({"FAKE_TENSORRT": "8.5"}, "TensorRT: 8.5", "--kit-option any-version"),
        ({"FAKE_SM": "7.2"}, "compute capability 7.2", "--kit-option any-gpu"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_built(
    shown, said, fix, bundle, serve, jetson, edgekit
):
    device = serve(**{**jetson, **shown})
    ran = edgekit("deploy", bundle, "device", *device.flags())
    assert ran.code == 2
    assert said in ran.err
    assert fix in ran.err
    (kit,) = device.kits()
    assert not (kit / "engine.plan").exists()
    assert not (kit / "run.log").exists()


@pytest.mark.parametrize("tool", ["rsync", "sftp"])
def test_names_mean_nothing_to_a_shell(
    tool, made, serve, jetson, no_rsync, edgekit, tmp_path, monkeypatch
):
    name = "--delete a b;touch $(boo) 'q' \"d\" `c` *?[x] #\\n \\\\ \\* &|<>!~"
    device = serve(**jetson, **({"PATH": no_rsync} if tool == "sftp" else {}))
    bundle = shutil.copytree(made, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    folder = f"{device.home}/{name}"
    ran = edgekit("deploy", *device.flags("--folder", folder, "--engine"), "--", name, "device")
    assert ran.code == 0, ran.err
    assert {path.name for path in device.home.iterdir()} - {".cache"} == {name}
    assert row(bundle).ok
    assert (bundle / JETSON / "devices" / "device" / "engine.plan").exists()
    assert not list(tmp_path.rglob("boo"))


@pytest.mark.parametrize("name", ["~/deep/er", "plain", "-x"])
def test_a_folder_is_in_the_home_folder(name, made, device, tmp_path):
    settings = deployment.Settings(folder=name, ssh_options=tuple(device.options()))
    with deployment.Device("device", deployment.find_kit(made), settings) as there:
        ran = there.look()
    assert ran.folder.endswith(f"/{name.removeprefix('~/')}/{there.kit.name}")
    os.rmdir(ran.folder)
    os.rmdir(os.path.dirname(ran.folder))


@pytest.mark.parametrize(
    "host", ["-oProxyCommand=touch${IFS}x", "a;b", "a b", "$(id)", "user@", "", "a\nb", "x@-y"]
)
def test_what_is_no_host_goes_nowhere(host, made, edgekit):
    ran = edgekit("deploy", made, "--", host)
    assert ran.code == 2
    assert "is not a host" in ran.err


def test_what_was_tampered_with_is_never_run(bundle, device, edgekit):
    kit = deployment.find_kit(bundle)
    there = device.home / ".cache/edgekit" / kit.name
    shutil.copytree(kit.path, there)
    genuine, times = (there / "run.pyz").read_bytes(), (there / "run.pyz").stat()
    evil = f"open({str(device.home / 'evil')!r}, 'w')\n".encode()
    (there / "run.pyz").write_bytes(evil.ljust(len(genuine), b"#"))
    os.utime(there / "run.pyz", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert edgekit("deploy", bundle, "device", *device.flags()).code == 0
    assert (there / "run.pyz").read_bytes() == genuine
    assert not (device.home / "evil").exists()


def test_a_copy_that_stays_wrong_is_never_run(bundle, serve, jetson, no_rsync, edgekit):
    (no_rsync / "sha256sum").unlink()
    (no_rsync / "sha256sum").write_text("#!/bin/sh\necho 0000  -\n")
    (no_rsync / "sha256sum").chmod(0o755)
    device = serve(**jetson, PATH=no_rsync)
    ran = edgekit("deploy", bundle, "device", *device.flags())
    assert ran.code == 2
    assert "copy on device is damaged: README.txt, kit.json, model.onnx" in ran.err
    (kit,) = device.kits()
    assert {file.name for file in kit.iterdir()} == {file.name for file in kit_of(bundle)}


def kit_of(bundle):
    return list((bundle / row(bundle).path).iterdir())


@pytest.mark.parametrize(
    ("options", "said", "fix"),
    [
        (["HostName=nowhere.invalid"], "There is no host device", "alias of ~/.ssh/config"),
        (["Port={deaf}"], "refuses the connection", "--ssh-option Port=2222"),
        (["HostKeyAlias=other"], "key of device is not known", "Connect once by hand"),
        (["IdentityFile={other}"], "does not let you in", "ssh-copy-id device"),
        (["Nonsense=1"], "does not take these options", "--ssh-option"),
    ],
)
def test_no_connection(options, said, fix, made, device, edgekit):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        names = {"deaf": deaf.getsockname()[1], "other": device.folder / "other_key"}
        given = [f"--ssh-option={option.format(**names)}" for option in options]
        named = [option.partition("=")[0] for option in options]
        usual = [flag for flag in device.flags() if not any(name in flag for name in named)]
        ran = edgekit("deploy", made, "device", *given, *usual)
    assert ran.code == 2
    assert said in ran.err
    assert fix in ran.err


def test_a_changed_host_key(made, device, edgekit):
    other = (device.folder / "other_key.pub").read_text()
    (device.folder / "known_hosts").write_text(f"device {other}")
    ran = edgekit("deploy", made, "device", *device.flags())
    assert ran.code == 2
    assert "key of device is not the one" in ran.err
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in ran.err  # ssh's own words
    assert "ssh-keygen -R" in ran.err
    assert device.kits() == []


def test_no_python_there(made, device, edgekit):
    ran = edgekit("deploy", made, "device", *device.flags("--python", "/nowhere/python3"))
    assert ran.code == 2
    assert "There is no /nowhere/python3 on device" in ran.err


def test_no_numpy_there(made, device, edgekit, tmp_path):
    python = tmp_path / "my python"
    python.write_text(f'#!/bin/sh\nexec "{sys.base_prefix}/bin/python3" -I -S "$@"\n')
    python.chmod(0o755)
    ran = edgekit("deploy", made, "device", *device.flags("--python", python))
    assert ran.code == 2
    assert "NumPy: No module named 'numpy'" in ran.err
    assert "pip install numpy" in ran.err


def test_a_full_disk(made, serve, jetson, no_rsync, edgekit):
    (no_rsync / "df").unlink()
    (no_rsync / "df").write_text("#!/bin/sh\necho /dev/sda1 1000 900 100 90% /\n")
    (no_rsync / "df").chmod(0o755)
    device = serve(**jetson, PATH=no_rsync)
    ran = edgekit("deploy", made, "device", *device.flags())
    assert ran.code == 2
    assert "The disk of device is full" in ran.err
    assert "0 MB are free" in ran.err


def test_a_folder_that_cannot_be_made(made, device, edgekit):
    (device.home / "file").touch()
    ran = edgekit("deploy", made, "device", *device.flags("--folder", device.home / "file"))
    assert ran.code == 2
    assert "cannot be made on device" in ran.err
    assert "Choose another --folder" in ran.err


def test_what_a_login_shell_says_is_no_answer(bundle, serve, jetson, no_rsync, edgekit):
    device = serve(**jetson, PATH=no_rsync)
    (device.home / ".bashrc").write_text("echo welcome; echo again\n")
    ran = edgekit("deploy", bundle, "device", *device.flags())
    assert ran.code == 0, ran.err


def test_a_bundle_with_no_kit(bundle, edgekit):
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["rows"] = [one for one in manifest["rows"] if one["format"] != "on_device"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    ran = edgekit("deploy", bundle, "device")
    assert ran.code == 2
    assert "has no on-device kit" in ran.err
    assert "--target" in ran.err


def test_a_target_without_a_kit(made, edgekit):
    ran = edgekit("deploy", made, "device", "--target", "jetson-xavier-nx")
    assert ran.code == 2
    assert f"has one for {JETSON}" in ran.err


def test_a_damaged_bundle(bundle, edgekit):
    with (bundle / row(bundle).path / "model.onnx").open("ab") as file:
        file.write(b"\0")
    ran = edgekit("deploy", bundle, "device")
    assert ran.code == 2
    assert "is not the kit that was built" in ran.err


@pytest.mark.parametrize("option", ["background", "result=x", "a;b", "--rebuild", ""])
def test_options_that_the_kit_is_not_given(option, made, edgekit):
    ran = edgekit("deploy", made, "device", f"--kit-option={option}")
    assert ran.code == 2
    assert "cannot be given" in ran.err


def test_an_option_that_the_kit_refuses(made, device, edgekit):
    ran = edgekit("deploy", made, "device", *device.flags("--kit-option=warmup=some"))
    assert ran.code == 2
    assert "argument --warmup" in ran.err


def test_a_dry_run_connects_nowhere(made, device, edgekit):
    ran = edgekit("deploy", made, "device", *device.flags("--dry-run", "--engine"))
    assert ran.code == 0, ran.err
    assert f"@127.0.0.1, port {device.port}" in ran.out
    assert "run.pyz --background --seconds=0" in ran.out
    assert "engine.plan" in ran.out
    assert "Connection from" not in device.log.read_text()
    assert not (made / JETSON / "devices").exists()


def test_several_hosts_one_of_which_fails(bundle, device, edgekit):
    flags = [flag for flag in device.flags() if "HostName" not in flag]
    ran = edgekit("deploy", bundle, "nowhere.invalid", "127.0.0.1", *flags)
    assert ran.code == 2
    assert "nowhere.invalid did not. 127.0.0.1 finished." in ran.err
    assert "There is no host nowhere.invalid" in ran.err
    assert result(bundle, "127.0.0.1")["status"] == "passed"


def test_the_users_configuration_is_read(bundle, device, edgekit, tmp_path, monkeypatch):
    """Its file cannot be changed here, so that an ``ssh`` on the PATH names another."""
    config = "\n".join(option.replace("=", " ", 1) for option in device.options())
    (tmp_path / "config").write_text(f"Host my-jetson\n{config}\n")
    folder = tmp_path / "wrapped"
    folder.mkdir()
    (folder / "ssh").write_text(
        f'#!/bin/sh\nexec {shutil.which("ssh")} -F "{tmp_path}/config" "$@"\n'
    )
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    flags = [flag for flag in device.flags() if "ssh-option" not in flag]
    ran = edgekit("deploy", bundle, "my-jetson", *flags)
    assert ran.code == 0, ran.err
    assert result(bundle, "my-jetson")["status"] == "passed"


def test_a_connection_that_the_user_shares_is_used(device, tmp_path):
    socket = f"ControlPath={tmp_path}/s"
    options = [socket, *device.options()]
    flags = [word for option in options for word in ("-o", option)]
    quiet = {"check": True, "stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["ssh", *flags, "-o", "ControlMaster=yes", "-fN", "device"], **quiet)
    with Connection("device", options) as connection:
        assert connection.run("echo $(($1 + 1))", "41").out == "42"
    assert device.log.read_text().count("Accepted publickey") == 1
    subprocess.run(["ssh", *flags, "-O", "exit", "device"], **quiet)  # it was left open


def test_what_steers_a_terminal_is_left_out():
    assert plain("\x1b[2J\x07warm\tµ\r\n") == "[2Jwarm\tµ"


def test_the_errors_name_what_is_at_fault():
    with pytest.raises(EdgekitError, match="not the name of a program"):
        deployment.Settings(python="-c")
    with pytest.raises(EdgekitError, match="not a folder's name"):
        deployment.Settings(folder="a\nb")
