"""One device: a kit is copied there, verified, checked, run and its result fetched."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from edgekit import files, progress
from edgekit.deployment import copying
from edgekit.deployment.connection import Connection, Ran
from edgekit.deployment.kit import Kit
from edgekit.deployment.settings import Settings
from edgekit.errors import EdgekitError

#: Makes the kit's folder and says what is there: the folder, Python, rsync, df, and a hash of each
#: file ("-" if it isn't there). A name goes nowhere but into a quoted variable.
LOOK = """
at_home() { case "$1" in "~/"*) set -- "$HOME/${1#'~/'}";; esac; printf '%s' "$1"; }
folder=$(at_home "$1"); python=$(at_home "$2"); shift 2
mkdir -p -- "$folder" && cd -- "$folder" && pwd -P || exit 20
command -v "$python" || exit 21
command -v sha256sum > /dev/null || exit 22
command -v rsync || echo -
df -Pk . | tail -n 1
for name; do if [ -f "$name" ]; then sha256sum < "$name"; else echo -; fi; done
"""
ABSENT = {
    20: ("The folder {folder} cannot be made on {host}.", "Choose another --folder."),
    21: (
        "There is no {python} on {host}.",
        "Install it (sudo apt install python3 python3-numpy), or name another: --python",
    ),
    22: ("There is no sha256sum on {host}, to check what was copied.", "Install coreutils there."),
}
#: Runs what is given in a folder.
INSIDE = 'cd "$1" && shift && exec "$@"'
SHOW = 'cat < "$1"'


@dataclass(frozen=True)
class There:
    """What a look at the host found.

    Attributes:
        folder, python: as the host knows them.
        rsync: whether the host has it.
        free: bytes on the folder's disk; None if unknown.
        wrong: files of the kit that are not there, or are others.
        changed: those of them that are others: broken off, or tampered with.
    """

    folder: str
    python: str
    rsync: bool
    free: int | None
    wrong: list[str]
    changed: list[str]


class Device:
    """A host that a kit is deployed to. Use it in a ``with`` block.

    ``prepare``, ``start`` and ``finish`` follow each other; each can be done again.
    """

    def __init__(self, host: str, kit: Kit, settings: Settings) -> None:
        self.host, self.kit, self.settings = host, kit, settings
        self._connection = Connection(host, settings.ssh_options)
        self._there: There | None = None

    def __enter__(self) -> Self:
        self._connection.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.__exit__(kind, error, trace)

    @property
    def folder(self) -> str:
        """Where the kit goes, as the host is asked for it."""
        return f"{self.settings.folder.rstrip('/')}/{self.kit.name}"

    @property
    def destination(self) -> Path:
        """The bundle's folder for what this host found."""
        return self.kit.bundle / self.kit.target / "devices" / _plain(self.host)

    def resolved(self) -> dict[str, str]:
        """What ssh's configuration says of the host."""
        return self._connection.resolved()

    def prepare(self) -> None:
        """Copy what is not there, check every file's hash there, then whether the device fits.

        Raises:
            EdgekitError: the device cannot be reached, has not what it takes, or does not fit.
        """
        there = self.look()
        if there.wrong:
            self._copy(there)
            there = self.look()
        if there.wrong:
            raise EdgekitError(
                f"The kit's copy on {self.host} is damaged: {', '.join(there.wrong)}.",
                f"The SHA-256 there is not that of the bundle; it is in {there.folder}. "
                "Nothing was run.",
                "Run the same command again; if it stays, check the disk of the device.",
            )
        progress.say(f"{self.host}: {len(self.kit.hashes)} files in {there.folder}, all verified.")
        self._there = there
        self._check()

    def start(self) -> None:
        """Start the run there, which goes on without the connection; or join that which runs."""
        ran = self._run_kit("--background", *self.settings.flags)
        if ran.code:
            raise self._refusal(ran.err)
        progress.say(f"{self.host}: {ran.out.strip()}")

    def finish(self) -> Path:
        """Follow the run to its end and fetch what it found. Returns the result's path.

        Raises:
            EdgekitError: the kit could not be run, or the connection was lost.
        """
        there, lines = self._verified(), list[str]()

        def show(line: str) -> None:
            lines.append(line)
            progress.say(f"{self.host}: {line}")

        follow = (there.folder, there.python, "run.pyz", "--follow")
        ran = self._connection.stream(show, INSIDE, *follow)
        if ran.code not in (0, 1):
            raise self._refusal("\n".join([*lines, ran.err]))
        return self._fetch(there)

    def stop(self) -> str:
        """End the run there. Returns what the kit says of it."""
        ran = self._run_kit("--stop")
        if ran.code:
            raise self._refusal(ran.err)
        return ran.out.strip()

    def _verified(self) -> There:
        """What is there, where every file of the kit was found to be the bundle's."""
        there = self._there or self.look()
        if there.wrong:
            names = ", ".join(there.wrong)
            raise EdgekitError(f"{self.host} does not hold this bundle's kit.", f"Wrong: {names}.")
        self._there = there
        return there

    def look(self) -> There:
        """Make the kit's folder there, and say what is in it."""
        names, settings = list(self.kit.hashes), self.settings
        ran = self._connection.run(LOOK, self.folder, settings.python, *names)
        if ran.code in ABSENT:
            what, fix = ABSENT[ran.code]
            facts = {"host": self.host, "python": settings.python, "folder": self.folder}
            raise EdgekitError(what.format(**facts), ran.err.strip(), fix)
        lines = ran.out.splitlines()
        if ran.code or len(lines) != 4 + len(names):
            raise EdgekitError(
                f"{self.host} cannot be looked at.", ran.err.strip() or ran.out, "See to it there."
            )
        free = re.search(r"\s(\d+)\s+\d+%\s", lines[3])
        found = {name: line.split()[0] for name, line in zip(names, lines[4:], strict=True)}
        wrong = [name for name in names if found[name] != self.kit.hashes[name]]
        return There(
            folder=lines[0],
            python=lines[1],
            rsync=lines[2] != "-",
            free=int(free.group(1)) * 1024 if free else None,
            wrong=wrong,
            changed=[name for name in wrong if found[name] != "-"],
        )

    def _copy(self, there: There) -> None:
        size = self.kit.bytes_of(there.wrong)
        needed = size - self.kit.bytes_of(there.changed)
        if there.free is not None and there.free < needed:
            raise EdgekitError(
                f"The disk of {self.host} is full.",
                f"{there.free / 1e6:.0f} MB are free in {there.folder}; the kit needs "
                f"{needed / 1e6:.0f} MB.",
                "Free some space there (older kits are in the folder above), or choose another "
                "--folder.",
            )
        rsync = there.rsync and copying.has_rsync()
        if there.changed:
            named = ", ".join(there.changed)
            progress.say(f"{self.host}: {named} not as in the bundle: copied again.")
        tool = "rsync" if rsync else "sftp"
        progress.say(f"{self.host}: copying {len(there.wrong)} files, {size / 1e6:.1f} MB, {tool}")
        hashes = {name: self.kit.hashes[name] for name in there.wrong}
        copying.push(self._connection, self.kit.path, hashes, there.folder, rsync)

    def _check(self) -> None:
        """Let the kit say whether the device fits."""
        ran = self._run_kit("--check", "--json", *self.settings.flags)
        try:
            findings = json.loads(ran.out)["findings"]
        except (ValueError, KeyError, TypeError):
            raise self._refusal(ran.err or ran.out) from None
        for finding in findings:
            if finding["status"] != "fits":
                progress.say(f"{self.host}: {finding['subject']}: {finding['found']}")
        bad = [finding for finding in findings if finding["status"] == "does not fit"]
        if bad or ran.code:
            fixes = [_as_option(finding["fix"]) for finding in bad if finding["fix"]]
            raise EdgekitError(
                f"{self.host} cannot run the kit for {self.kit.target}; nothing was built.",
                "\n".join(f"{finding['subject']}: {finding['found']}" for finding in bad),
                "\n".join(dict.fromkeys(fixes)),
            )

    def _fetch(self, there: There) -> Path:
        ran = self._connection.run(SHOW, f"{there.folder}/result.json")
        if ran.code:
            raise EdgekitError(f"{self.host} has no result.json.", ran.err.strip(), "Run it again.")
        folder = self.destination
        files.write_text(folder / "result.json", ran.out)
        if self.settings.engine:
            self._fetch_engine(there, folder, json.loads(ran.out)["build"]["engine_sha256"])
        return folder / "result.json"

    def _fetch_engine(self, there: There, folder: Path, sha256: str) -> None:
        engine, part = folder / "engine.plan", folder / f".{sha256}.part"
        if engine.exists() and files.sha256(engine) == sha256:
            return
        rsync = there.rsync and copying.has_rsync()
        copying.pull(self._connection, there.folder, "engine.plan", part, rsync)
        if files.sha256(part) != sha256:
            part.unlink()
            raise EdgekitError(
                f"The engine of {self.host} is not the one that its result is about.",
                "It was changed there, or on its way.",
                "Run the same command again with --kit-option rebuild.",
            )
        files.replace(part, engine)

    def _run_kit(self, *flags: str) -> Ran:
        there = self._verified()
        return self._connection.run(INSIDE, there.folder, there.python, "run.pyz", *flags)

    def _refusal(self, said: str) -> EdgekitError:
        """The kit's own error, which names its fix; its last lines where it gave none."""
        error = said.rpartition("Error: ")[2] if "Error: " in said else _end(said)
        return EdgekitError(f"The kit cannot be run on {self.host}.", _as_option(error.strip()))


def _end(text: str) -> str:
    return "\n".join(text.splitlines()[-10:])


def _as_option(text: str) -> str:
    """A fix that names the kit's options, naming deploy's."""
    return re.sub(r"--(any-version|any-gpu|rebuild|compute-capability)\b", r"--kit-option \1", text)


def _plain(host: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.@-]", "-", host)
