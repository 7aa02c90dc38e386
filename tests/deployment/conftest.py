"""A real OpenSSH server on loopback that stands for a device, and what is deployed to it."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ["PATH"])
FAKES = Path(__file__).parents[1] / "converters" / "fake_jetson"
SLOW = Path(__file__).with_name("slow_jetson")
#: It needs the environment of a device.
collect_ignore = ["slow_jetson"]
#: What a device needs of its system, and no rsync.
TOOLS = "sh mkdir cat df tail sha256sum wc rm mv env"
CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
MaxStartups 50
SetEnv {environment}
"""


def until(condition, what, seconds=30):
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Device:
    """A server in a folder of its own, which is its home folder as well.

    Attributes:
        options: of ssh, which lead there from any name of a host.
        home: where ``~`` is in commands.
    """

    def __init__(self, folder, keys, environment):
        self.folder, self.home, self.port = folder, folder / "home", free_port()
        self.home.mkdir(parents=True)
        for key in keys.iterdir():
            shutil.copy(key, folder / key.name)
        values = {"HOME": self.home, **environment}
        listed = " ".join(f'"{name}={value}"' for name, value in values.items())
        config = CONFIG.format(port=self.port, folder=folder, environment=listed)
        (folder / "sshd_config").write_text(config)
        public = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"device {public}")
        self.log = folder / "sshd.log"
        self.server = None

    def start(self):
        command = [SSHD, "-D", "-e", "-f", self.folder / "sshd_config"]
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
        until(lambda: b"Server listening" in self.log.read_bytes(), "sshd listens")

    def stop(self):
        self.cut()
        self.server.terminate()
        self.server.wait()

    def cut(self):
        """End all sessions, as a connection that breaks does."""
        for process in children(self.server.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def options(self, port=None):
        return [
            "HostName=127.0.0.1",
            f"Port={port or self.port}",
            f"User={getpass.getuser()}",
            f"IdentityFile={self.folder / 'user_key'}",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "HostKeyAlias=device",
            "StrictHostKeyChecking=yes",
            f"UserKnownHostsFile={self.folder / 'known_hosts'}",
            "GlobalKnownHostsFile=/dev/null",
        ]

    def flags(self, *more, port=None):
        """Of ``edgekit deploy``: how it gets there, and a kit that measures hardly at all."""
        given = [f"--ssh-option={option}" for option in self.options(port)]
        quick = ("--kit-option=seconds=0", "--kit-option=iterations=3", "--kit-option=warmup=1")
        return [*given, *quick, f"--python={sys.executable}", *map(str, more)]

    def kits(self):
        """Folders that hold a kit."""
        return sorted((self.home / ".cache/edgekit").glob("*"))


def children(process):
    done = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False
    )
    found = [int(text) for text in done.stdout.split()]
    # The processes of a session that serve the connection; what they started lives on.
    names = {p: Path(f"/proc/{p}/comm").read_text().strip() for p in found if alive(p)}
    serving = [p for p, name in names.items() if name.startswith("sshd")]
    return [*serving, *(inner for p in serving for inner in children(p))]


def alive(process):
    return Path(f"/proc/{process}/comm").exists()


class Wire:
    """A slow line to a device, on a port of its own, that counts what is sent to it."""

    def __init__(self, port, rate):
        self.target, self.rate, self.sent, self.ends = port, rate, 0, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self.ends += [near, far]
                for pair in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source, sink, counted):
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 14):
                sink.sendall(block)
                if counted:
                    self.sent += len(block)
                    time.sleep(len(block) / self.rate)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.listener.close()
        self.cut()


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Keys of the server and of the user, made once."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs OpenSSH's server: apt-get install openssh-server")
    folder = tmp_path_factory.mktemp("keys")
    for name in ("host_key", "user_key", "other_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name]
        subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="session")
def jetson(tmp_path_factory):
    """The environment of a device: an Orin with TensorRT 10.3, both stand-ins."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("jetson")
    library = folder / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, FAKES / "cuda.c"], check=True)
    return {"LD_LIBRARY_PATH": folder, "PYTHONPATH": FAKES, "FAKE_TENSORRT": "10.3"}


@pytest.fixture
def serve(tmp_path, keys):
    """``serve(**environment)`` is a device that runs, with these entries of its environment."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    running = []

    def start(**environment):
        device = Device(tmp_path / f"device{len(running)}", keys, environment)
        device.start()
        running.append(device)
        return device

    yield start
    for device in running:
        device.stop()


@pytest.fixture
def device(serve, jetson):
    """A Jetson Orin Nano, as far as a kit can see."""
    return serve(**jetson)


@pytest.fixture
def slow(serve, jetson, tmp_path):
    """The same, and the file that lets its builds end."""
    gate = tmp_path / "gate"
    shown = {"PYTHONPATH": f"{SLOW}:{FAKES}", "SLOW_FAKE": FAKES / "tensorrt.py"}
    yield serve(**{**jetson, **shown, "SLOW_UNTIL": gate}), gate
    gate.touch()


@pytest.fixture
def wire():
    """``wire(port, rate)`` is a line of so many bytes a second."""
    lines = []

    def lay(port, rate):
        lines.append(Wire(port, rate))
        return lines[-1]

    yield lay
    for line in lines:
        line.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory, edgekit):
    """A bundle for a Jetson, of a model with 4 MB of weights. Do not change it: copy it."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("made")
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>'
        "product (float[1, 1000] x) => (float[1, 1000] y) { y = MatMul(x, w) }"
    )
    weight = random.standard_normal((1000, 1000)).astype(np.float32) / 30
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, folder / "product.onnx")
    np.savez(folder / "data.npz", x=random.standard_normal((8, 1000)).astype(np.float32))
    quick = ("--warmup", 0, "--iterations", 3, "--seconds", 0.01)
    request = (folder / "product.onnx", "--evaluation", folder / "data.npz", *quick)
    targets = ("-t", "jetson-orin-nano-super")
    ran = edgekit("build", *request, *targets, "--precision", "fp32", "-o", folder / "bundle")
    assert ran.code == 0, ran.err
    return folder / "bundle"


@pytest.fixture
def bundle(made, tmp_path):
    """The bundle, to be changed."""
    return shutil.copytree(made, tmp_path / "bundle")


@pytest.fixture
def start(tmp_path_factory):
    """``start(...)`` is ``edgekit deploy ...`` in a process of its own."""
    running, room = [], tmp_path_factory.mktemp("t")

    def go(*arguments):
        command = [sys.executable, "-m", "edgekit", "deploy", *map(str, arguments)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(room)},
        )
        running.append(process)
        return process

    yield go
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def no_rsync(tmp_path):
    """A PATH with no rsync in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS.split():
        (folder / name).symlink_to(shutil.which(name))
    return folder
