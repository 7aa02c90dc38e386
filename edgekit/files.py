"""Files: complete or absent, and known by their contents."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError


class NoSpace(EdgekitError):
    """The disk is full: no fault of one artifact, so it ends the whole build."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A place of the same name to write ``path`` in; it is moved there if the block succeeds.

    Files written beside it (external data) move along. On any failure nothing stays.

    Raises:
        NoSpace: the disk is full.
        EdgekitError: the folder cannot be made, or the system refuses to write.
    """
    made = make_folder(path.parent)
    room = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield room / path.name
        for entry in room.iterdir():
            replace(entry, path.parent / entry.name)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise EdgekitError(f"{path} cannot be written.", str(error)) from error
        raise NoSpace(
            f"There is no space left to write {path}.",
            f"{shutil.disk_usage(path.parent).free / 2**20:.0f} MB are free on that disk.",
            "Free some space, or choose another --output, and run the same command again.",
        ) from error
    finally:
        shutil.rmtree(room, ignore_errors=True)
        remove_empty(made)


def make_folder(path: Path) -> list[Path]:
    """Make a folder and its parents; returns those that were not there, inmost first.

    Raises:
        EdgekitError: the system refuses.
    """
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgekitError(
            f"The folder {path} cannot be made.", str(error), "Choose another --output."
        ) from error
    return absent


def remove_empty(folders: list[Path]) -> None:
    """Remove folders that hold nothing, inmost first, up to one that holds something."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def replace(source: Path, destination: Path) -> None:
    """Move a file or folder to where one may already be."""
    if destination.is_dir():
        shutil.rmtree(destination)
    os.replace(source, destination)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with atomic(path) as room:
        room.write_text(text, encoding="utf-8")


def size(path: Path) -> int:
    """Bytes of a file, its external data included, or of a folder's files."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def sha256(path: Path) -> str:
    """Of a file's contents, or of a folder's files' names and contents."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def fingerprint(path: Path) -> str:
    """What a rebuild depends on: a file's contents; a folder's names, sizes and dates.

    Raises:
        EdgekitError: there is nothing at ``path``.
    """
    if not path.exists():
        raise EdgekitError(f"{path} does not exist.", "", f"Check the path; this is {Path.cwd()}.")
    if path.is_file():
        return sha256(path)
    stats = [(p.relative_to(path).as_posix(), p.stat()) for p in path.rglob("*") if p.is_file()]
    return digest(sorted((name, s.st_size, s.st_mtime_ns) for name, s in stats))


def digest(value: Any) -> str:
    """Of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
