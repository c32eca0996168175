"""Exit codes and one-line errors that all commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper

import typer

from diffusers_dedim.photo_jobs import display_name

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@contextmanager
def plain_errors(interrupted: str) -> Iterator[None]:
    """Show expected errors as one line, and leave tracebacks to the unexpected ones.

    Args:
        interrupted: what to say after Ctrl-C: what is left, and how to go on.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:  # DeDiMError is a ValueError
        typer.echo(f"Error: {display_name(str(error))}", err=True)
        raise typer.Exit(EXIT_USAGE) from error
    except KeyboardInterrupt as error:
        typer.echo(interrupted, err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from error


def print_any_name() -> None:
    """Print ``?`` for what stdout cannot: a Chinese file name on a Windows console of code page 1252 ended the run."""
    if isinstance(sys.stdout, TextIOWrapper):  # tests and notebooks put other things there
        sys.stdout.reconfigure(errors="replace")
