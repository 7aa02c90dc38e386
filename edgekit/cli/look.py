"""Commands that only look: at a model or bundle, at the devices, at this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import show
from edgekit.cli.options import (
    Checkpoint,
    Inputs,
    Json,
    Model,
    Partial,
    Random,
    Set,
    Targets,
    recipe_from,
)
from edgekit.errors import EdgekitError

#: That spikes are counted on, if it is not said.
SAMPLES = 64


def inspect(
    model: Model,
    checkpoint: Checkpoint = None,
    random_weights: Random = None,
    allow_partial: Partial = None,
    set_: Set = None,
    input_: Inputs = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Read no weights: what would it need, and where?")
    ] = False,
    spikes: Annotated[
        Path | None,
        typer.Option(help="Count a spiking model's spikes on this data; estimate its energy."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Count on at most so many [64].", min=1)
    ] = None,
    target: Targets = None,
    as_json: Json = False,
) -> None:
    """Describe a model, or a bundle; plan a model of any size; count spikes."""
    from edgekit import single
    from edgekit.bundle import MANIFEST, Bundle

    if samples is not None and spikes is None:
        raise EdgekitError("--samples has no meaning without --spikes DATA.", "", "Drop it.")
    if (Path(model) / MANIFEST).exists():
        made = Bundle.open(Path(model))
        if spikes is not None:
            raise EdgekitError(
                f"{model} is a bundle: its artifacts tell no spikes.",
                "They are counted in the model that it was built from.",
                f"Give that: `edgekit inspect {made.manifest.recipe['model']} --spikes {spikes}`.",
            )
        if as_json:
            show.dump(made.manifest.model_dump(mode="json"))
        else:
            show.bundle(made)
        return
    recipe = recipe_from({name: v for name, v in locals().items() if name != "samples"})
    if spikes is not None:
        found, latency = single.count_spikes(recipe, spikes, samples or SAMPLES)
        if as_json:
            show.dump({**found.as_dict(), "latency": latency})
        else:
            show.spikes(found, latency)
        return
    if plan:
        from edgekit.plan import plan as planned

        show.fields(asdict(planned(recipe)), as_json)
        return
    show.fields(asdict(single.inspect(recipe)), as_json)


def targets(
    name: Annotated[str | None, typer.Argument(help="Show one device's facts.")] = None,
    as_json: Json = False,
) -> None:
    """List the devices that edgekit knows."""
    from edgekit import table
    from edgekit import targets as known

    if name is not None:
        show.fields(known.load(name).model_dump(mode="json"), as_json)
        return
    found = [known.load(each) for each in known.names()]
    if as_json:
        show.dump([target.model_dump(mode="json") for target in found])
        return
    rows = [
        (t.name, t.title, t.runtime, ", ".join(t.dtypes), t.system or t.deployment or "")
        for t in found
    ]
    columns = ("target", "device", "runtime", "dtypes", "system")
    table.show(table.plain_table("Targets", columns, rows))


def passes(
    name: Annotated[str | None, typer.Argument(help="Show one pass's options.")] = None,
    as_json: Json = False,
) -> None:
    """List the passes that make a model smaller, and their options."""
    from edgekit import table
    from edgekit.compress import catalogue

    found = catalogue(name)
    if as_json:
        show.dump([asdict(entry) for entry in found])
        return
    if name is not None:
        typer.echo(found[0].text)
    rows = [
        (entry.name, option.name, option.kind, option.usual)
        for entry in found
        for option in entry.options
    ]
    table.show(table.plain_table("Passes", ("pass", "option", "takes", "default"), rows))


def doctor(as_json: Json = False) -> None:
    """Say what is installed, and what can be built, verified and run here."""
    from edgekit import table
    from edgekit.doctor import doctor as examine

    found = examine()
    if as_json:
        show.dump(asdict(found))
        return
    rows = [
        (a.target, a.build or "yes", a.verify or "yes", a.run or "yes") for a in found.abilities
    ]
    installed = [(name, version) for name, version in found.installed.items()]
    installed += [(name, "not installed") for name in found.missing]
    table.show(table.plain_table("Packages", ("package", "version"), installed))
    table.show(table.plain_table("Targets", ("target", "build", "verify", "run"), rows))
    ways = [(way.runtime, " ".join(way.opens), way.run or "yes") for way in found.runtimes]
    table.show(table.plain_table("Runtimes", ("runtime", "opens", "runs here"), ways))
    if found.install:
        typer.echo(f"To install what is missing: {found.install}")
