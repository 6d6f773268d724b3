"""The commands. Nothing heavy is imported until a command needs it: help and argument errors come at once."""

from __future__ import annotations

import logging
import sys

from rich.console import Console

from interp.cli import analyses as analyses
from interp.cli import attacks as attacks
from interp.cli import attention as attention
from interp.cli import checkpoints as checkpoints
from interp.cli.options import app as app
from interp.errors import InputError

INTERRUPTED = 130  # the exit code that typer gives Ctrl-C

errors = Console(stderr=True)


def main() -> None:
    """Entry point: input errors end with one message and exit code 2, Ctrl-C with 130; finished results stay."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app()
    except InputError as error:
        errors.print(f"interp: {error}", style="bold red", highlight=False, soft_wrap=True, markup=False)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            errors.print("interp: stopped; finished results are kept, the same command goes on from there")
        raise
