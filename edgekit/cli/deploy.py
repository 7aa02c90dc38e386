"""The command that takes a bundle to its device."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import show
from edgekit.cli.options import Json
from edgekit.errors import CheckFailed


def deploy(
    bundle: Annotated[Path, typer.Argument(help="A bundle with an on-device kit.")],
    hosts: Annotated[
        list[str], typer.Argument(help="user@host, or an alias of ~/.ssh/config; several at once.")
    ],
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Whose kit, of several.")
    ] = None,
    python: Annotated[
        str, typer.Option(help="The host's Python, with NumPy and TensorRT.")
    ] = "/usr/bin/python3",
    folder: Annotated[
        str, typer.Option(help="Of the host; each kit gets a folder in it.")
    ] = "~/.cache/edgekit",
    ssh_option: Annotated[
        list[str] | None, typer.Option(help="Name=value of ssh_config, as Port=2222; repeat.")
    ] = None,
    kit_option: Annotated[
        list[str] | None,
        typer.Option(help="Of run.pyz: iterations=200, profile, any-gpu, rebuild, ...; repeat."),
    ] = None,
    engine: Annotated[bool, typer.Option("--engine", help="Fetch the built engine, too.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the run that goes on there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; connect nowhere.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build, check and measure a bundle's kit on devices over SSH; read the results back."""
    from edgekit import deployment
    from edgekit.bundle import Bundle

    ssh_options, kit_options = tuple(ssh_option or ()), tuple(kit_option or ())
    settings = deployment.Settings(python, folder, ssh_options, kit_options, engine)
    if dry_run or stop:
        work = deployment.planned if dry_run else deployment.stop
        said = work(bundle, hosts, target, settings)
        lines = said if isinstance(said, list) else [f"{h}: {line}" for h, line in said.items()]
        show.dump(said) if as_json else typer.echo("\n".join(lines))
        return
    try:
        done = deployment.deploy(bundle, hosts, target, settings)
    except KeyboardInterrupt:
        typer.echo(
            "Interrupted. The same command goes on where this one stopped; a run that was started "
            "goes on there, until --stop.",
            err=True,
        )
        raise typer.Exit(130) from None
    if as_json:
        show.dump([asdict(one) for one in done])
    else:
        show.bundle(Bundle.open(bundle))
    bad = [f"{one.host}: {one.status}" for one in done if not one.ok]
    if bad:
        raise CheckFailed(f"{bundle} is marked failed.", "; ".join(bad))
