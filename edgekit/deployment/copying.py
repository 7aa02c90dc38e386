"""Copying over SSH: by rsync where both sides have it, else by sftp. Both go on where they stopped.

What was copied is judged by its SHA-256, which the caller takes; nothing here is trusted.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgekit import progress
from edgekit.deployment.connection import Connection, Ran
from edgekit.errors import EdgekitError

#: Makes each part that is not there, and says how many bytes each has.
PARTS = 'cd "$1" || exit; shift; for part; do : >> "$part"; wc -c < "$part"; done'
REMOVE = 'cd "$1" || exit; shift; rm -f -- "$@"'
#: Gives each part its name.
RENAME = 'cd "$1" || exit; shift; while [ $# -gt 0 ]; do mv -f -- "$1" "$2" || exit; shift 2; done'


def has_rsync() -> bool:
    """Whether this machine has an rsync whose remote names are safe (version 3 and later)."""
    try:
        done = subprocess.run(["rsync", "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return re.match(r"rsync +version [3-9]", done.stdout) is not None


def push(
    connection: Connection, source: Path, hashes: Mapping[str, str], folder: str, rsync: bool
) -> None:
    """Copy files into a folder of the host.

    Args:
        source: where the files are.
        hashes: name -> SHA-256 of those to copy.
        folder: absolute.
        rsync: whether both sides have it.

    Raises:
        EdgekitError: the connection was lost, or the host refused to write.
    """
    if rsync:
        command = [*_rsync(connection), "--ignore-times", "--from0", "--files-from=-"]
        names = "".join(f"{name}\0" for name in hashes)
        there = f"{_address(connection)}:{folder}/"
        ran = connection.transfer([*command, "./", there], source, names)
        _require(connection, ran, "rsync")
        return
    _push_parts(connection, source, hashes, folder)


def pull(connection: Connection, folder: str, name: str, destination: Path, rsync: bool) -> None:
    """Copy a file of the host to ``destination``, going on with what is there of it."""
    destination.touch()
    if rsync:
        there = f"{_address(connection)}:{folder}/{name}"
        command = [*_rsync(connection), there, f"./{destination.name}"]
        _require(connection, connection.transfer(command, destination.parent, ""), "rsync")
        return
    batch = f"cd {_quoted(folder)}\nreget {_quoted(name)} {_quoted(destination.name)}\n"
    _require(connection, _sftp(connection, destination.parent, batch), "sftp")


def _push_parts(
    connection: Connection, source: Path, hashes: Mapping[str, str], folder: str
) -> None:
    """By sftp: under names that are the contents' hashes, so that a part is one of this content."""
    parts = {f".{sha256}.part": name for name, sha256 in hashes.items()}
    ran = connection.run(PARTS, folder, *parts)
    _require(connection, ran, "sh")
    there = dict(zip(parts, map(int, ran.out.split()), strict=True))
    sizes = {part: (source / name).stat().st_size for part, name in parts.items()}
    over = [part for part in parts if there[part] > sizes[part]]
    if over:
        _require(connection, connection.run(REMOVE, folder, *over), "sh")
        _push_parts(connection, source, hashes, folder)
        return
    left = [part for part in parts if there[part] < sizes[part]]
    with tempfile.TemporaryDirectory() as room:
        for part in left:
            # sftp reads wildcards in the names of files to send; these have none.
            (Path(room) / part).symlink_to((source / parts[part]).resolve())
            progress.say(f"  {parts[part]}, {(sizes[part] - there[part]) / 1e6:.1f} MB")
            batch = f"cd {_quoted(folder)}\nreput {part} {part}\n"
            _require(connection, _sftp(connection, Path(room), batch), "sftp")
    pairs = [word for part, name in parts.items() for word in (part, name)]
    _require(connection, connection.run(RENAME, folder, *pairs), "sh")


def _rsync(connection: Connection) -> list[str]:
    words = ["ssh", *connection.options]
    shell = " ".join("'{}'".format(word.replace("'", "''")) for word in words)
    shown = ["--info=progress2"] if progress.visible() else []
    # -s: names are sent as they are, not through the host's shell.
    return ["rsync", "-s", "--times", "--partial", *shown, "--rsh", shell]


def _sftp(connection: Connection, folder: Path, batch: str) -> Ran:
    # Said before -b, which would forbid to ask for a password.
    command = ["sftp", "-q", "-o", "BatchMode=no", *connection.options, "-b", "-"]
    return connection.transfer([*command, _address(connection)], folder, batch)


def _quoted(text: str) -> str:
    """A word of sftp's own language."""
    return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))


def _address(connection: Connection) -> str:
    """The host as rsync and sftp take it: an IPv6 address in brackets."""
    user, at, host = connection.host.rpartition("@")
    return f"{user}{at}[{host}]" if host.count(":") > 1 and "[" not in host else connection.host


def _require(connection: Connection, ran: Ran, tool: str) -> None:
    if ran.code == 0:
        return
    lost = re.search(r"connection unexpectedly closed|Connection closed|Broken pipe", ran.err)
    raise EdgekitError(
        f"The connection to {connection.host} was lost while copying."
        if lost
        else f"{tool} cannot copy to or from {connection.host}.",
        ran.err.strip() or f"It ended with {ran.code}.",
        "Run the same command again: it goes on where this one stopped."
        if lost
        else "Free space there if its disk is full, or choose another --folder; then run the same "
        "command again: it goes on where this one stopped.",
    )
