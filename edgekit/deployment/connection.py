"""An SSH connection to a host, by the system's own ssh: its keys, agent, config and known hosts.

Passwords and passphrases are asked by ssh on the terminal. One connection is shared by everything
that is done (OpenSSH's ControlMaster), so that they are asked once.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from edgekit import interrupt, progress
from edgekit.deployment.failures import unreachable
from edgekit.errors import EdgekitError

#: [user@]host, of characters that mean nothing to a shell (a ProxyCommand may hold the name), to
#: sftp or to rsync.
HOST = re.compile(r"(?:[A-Za-z0-9_.+@][A-Za-z0-9_.+@-]*@)?[A-Za-z0-9_.:\[][A-Za-z0-9_.:%\[\]-]*")
#: Nothing of this machine is lent to the device, and config's forwards are not opened again.
CLOSED = (
    "ForwardAgent=no",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
    "RemoteCommand=none",
    "RequestTTY=no",
)
#: Seconds; they hold where the user's configuration names none.
USUAL = {
    "connecttimeout": ("none", "ConnectTimeout=30"),
    "serveraliveinterval": ("0", "ServerAliveInterval=15"),
}
#: What comes before is said by the login shell's own files.
MARK = "edgekit 5d1f0c"
LOST = 255


@dataclass(frozen=True)
class Ran:
    """How a command on the host ended: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


class Connection:
    """A host to run commands on. Use it in a ``with`` block.

    Args:
        host: ``user@host``, ``host`` or an alias of ssh's configuration.
        options: of ssh, ``Name=value`` as in ssh_config; they go before those of the user's files.

    Raises:
        EdgekitError: this is no host's name, or there is no ssh here.
    """

    def __init__(self, host: str, options: Sequence[str] = ()) -> None:
        if not HOST.fullmatch(host):
            raise EdgekitError(
                f"{host!r} is not a host.", "", "Write user@host, or an alias of ~/.ssh/config."
            )
        if shutil.which("ssh") is None:
            raise EdgekitError("There is no ssh here.", "", "Install OpenSSH's client.")
        self.host, self._given = host, tuple(options)
        self.options: list[str] = _flags(self._given)

    def __enter__(self) -> Self:
        # A socket's path has about 100 characters at most.
        short = len(tempfile.gettempdir()) < 50
        self._room = Path(tempfile.mkdtemp(prefix="edgekit-", dir=None if short else "/tmp"))
        known = self.resolved()
        usual = [text for name, (unset, text) in USUAL.items() if known.get(name) in (unset, None)]
        self.options = _flags([*self._given, *CLOSED, *usual])
        self._own = os.name != "nt" and not self._is_shared()
        if self._own:
            socket = f"ControlPath={self._room / 's'}"
            self.options += _flags([socket, "ControlMaster=auto", "ControlPersist=600"])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._own:
            self._local("-O", "exit")
        shutil.rmtree(self._room, ignore_errors=True)

    def resolved(self) -> dict[str, str]:
        """What ssh's configuration says of the host: hostname, user, port, ... Nothing connects."""
        done = self._local("-G")
        if done.returncode:
            raise unreachable(self.host, self.by_hand, done.stderr)
        return dict(line.partition(" ")[::2] for line in done.stdout.splitlines())

    def _is_shared(self) -> bool:
        """Whether the user's own shared connection to the host is open."""
        return self._local("-O", "check").returncode == 0

    def _local(self, *flags: str) -> subprocess.CompletedProcess[str]:
        command = ["ssh", *self.options, *flags, self.host]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    @property
    def by_hand(self) -> str:
        """The command that connects in a terminal."""
        return shlex.join(["ssh", *_flags(self._given), self.host])

    def run(self, script: str, *arguments: str) -> Ran:
        """Run a script of ``sh`` on the host; its arguments are ``$1``, ``$2``...

        Raises:
            EdgekitError: there is no connection.
        """
        lines: list[str] = []
        ran = self.stream(lines.append, script, *arguments)
        return Ran(ran.code, "\n".join(lines), ran.err)

    def stream(self, line: Callable[[str], None], script: str, *arguments: str) -> Ran:
        """As ``run``, giving each line of stdout to ``line`` as it comes."""
        words = ["sh", "-c", f"echo {shlex.quote(MARK)}\n{script}", "sh", *arguments]
        command = ["ssh", *self.options, self.host, shlex.join(words)]
        with talking(command) as (process, said):
            found = False
            for text in process.stdout or ():
                interrupt.check()
                if found:
                    line(plain(text))
                found = found or text.rstrip("\r\n") == MARK
        if process.returncode == LOST:
            raise unreachable(self.host, self.by_hand, said())
        if not found:
            raise EdgekitError(
                f"{self.host} does not run commands.",
                said() or f"It ended with {process.returncode} and said nothing.",
                f"Its login shell must run them: {self.by_hand} echo works",
            )
        return Ran(process.returncode, "", said())

    def transfer(self, command: Sequence[str], folder: Path, given: str) -> Ran:
        """Run rsync or sftp here, in a folder, with ``given`` as its stdin.

        Its progress goes to stderr where that is a terminal.
        """
        shown = sys.stderr if progress.visible() else subprocess.DEVNULL
        with talking(command, cwd=folder, stdin=subprocess.PIPE, stdout=shown) as (process, said):
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # type: ignore[union-attr]
                stdin.write(given)
            process.wait()
        if process.returncode == LOST:
            raise unreachable(self.host, self.by_hand, said())
        return Ran(process.returncode, "", said())


@contextlib.contextmanager
def talking(
    command: Sequence[str],
    cwd: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[str] = subprocess.PIPE,
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """A process, and what gives all that it said on stderr. Whatever ends the block ends it.

    What it says is shown as well, unless it ends at once: then it goes into an error.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    words: list[str] = []

    def listen() -> None:
        with process.stderr as stream:  # type: ignore[union-attr]
            for text in stream:
                words.append(plain(text))
                try:
                    process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    progress.say(words[-1])

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()

    def said() -> str:
        # A connection that stays open may hold stderr open as well.
        listener.join(timeout=2)
        return "\n".join(words)

    try:
        yield process, said
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def plain(text: str) -> str:
    """A line without what would steer the terminal."""
    return "".join(c for c in text.rstrip() if c.isprintable() or c == "\t")


def _flags(options: Sequence[str]) -> list[str]:
    return [word for option in options for word in ("-o", option)]
