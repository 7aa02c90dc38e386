"""The command line: a thin shell over flow, single and evaluation.

Each command is a function in ``make``, ``quantize``, ``judge``, ``bench`` or ``look``; ``options``
holds the flags that they share, and ``show`` how they print.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from edgekit import interrupt, progress
from edgekit.cli import judge, look, make
from edgekit.cli.bench import bench
from edgekit.cli.deploy import deploy
from edgekit.cli.predict import predict
from edgekit.cli.quantize import quantize
from edgekit.cli.sweep import sweep
from edgekit.errors import EdgekitError

COMMANDS: dict[str, Callable[..., None]] = {
    "build": make.build,
    "convert": make.convert,
    "compress": make.compress,
    "quantize": quantize,
    "inspect": look.inspect,
    "verify": judge.verify,
    "eval": judge.evaluate,
    "bench": bench,
    "result": judge.result,
    "deploy": deploy,
    "sweep": sweep,
    "predict": predict,
    "targets": look.targets,
    "passes": look.passes,
    "doctor": look.doctor,
}

app = typer.Typer(
    help="From a PyTorch checkpoint to a small, fast engine, proven equal to its source.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """The entry point: errors become their exit codes, never a traceback."""
    progress.enable()
    interrupt.listen()
    try:
        app()
    except EdgekitError as error:
        typer.secho(f"Error: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
