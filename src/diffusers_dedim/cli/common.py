"""Exit codes and one-line errors that all commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.runs.jobs import one_line

GuideOption = Annotated[
    list[str] | None,
    typer.Option(
        "--guide",
        metavar="GUIDE",
        help="Recogniser that guides: own, NAME=FILE.onnx, NAME=FILE.pt, facenet-vggface2. May be repeated.",
        show_default="own",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", help="Folder or Hub id of a pipeline.", show_default="the bundled one"),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="E.g. cpu or cuda.", show_default="cuda where there is one")
]


EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
STOPPED_RUN = "Stopped. Photos written so far are complete; go on with --resume."
STOPPED_TRAINING = "Stopped. The last checkpoint, if there is one, is complete; go on from it with --resume."
STOPPED_EVALUATION = "Stopped before anything new was measured; give the same command again."


@contextmanager
def plain_errors(interrupted: str) -> Iterator[None]:
    """Show expected errors as one line, and leave tracebacks to the unexpected ones.

    Args:
        interrupted: what to say after Ctrl-C: what is left, and how to go on.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:  # DeDiMError is a ValueError
        typer.echo(f"Error: {one_line(str(error))}", err=True)
        raise typer.Exit(EXIT_USAGE) from error
    except KeyboardInterrupt as error:
        typer.echo(interrupted, err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from error


def print_any_name() -> None:
    """Print ``?`` for what stdout cannot: a Chinese file name on a Windows console of code page 1252 ended the run."""
    if isinstance(sys.stdout, TextIOWrapper):  # tests and notebooks put other things there
        sys.stdout.reconfigure(errors="replace")


def load_pipeline(weights: str | None, device: str | None, guides: Sequence[str] | None = None) -> Any:
    """A pipeline that is ready for a command.

    Args:
        weights: folder or Hub id; None for the bundled one.
        device: e.g. "cuda"; None for cuda where there is one.
        guides: recognisers that guide instead of its own (`guided_by`); None for its own.

    Raises:
        DeDiMError: weights or a guide cannot be loaded, or the device not be used.
    """
    import torch
    from diffusers.utils import logging

    from diffusers_dedim.pipeline.device import fast_dtype
    from diffusers_dedim.pipeline.pipeline_dedim import DeDiMPipeline

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        dtype = fast_dtype(chosen)
    except (RuntimeError, AssertionError) as error:  # what torch raises for such a device
        raise DeDiMError(f"device {chosen!r} cannot be used: {error}") from error
    try:
        pipe: Any = DeDiMPipeline.from_pretrained(weights, dtype=dtype)
    except Exception as error:  # diffusers raises almost any type on a folder that holds something else
        why = error if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {error}"
        raise DeDiMError(f"weights {weights or 'in the package'} cannot be loaded: {why}") from error
    try:
        pipe.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise DeDiMError(f"device {chosen!r} cannot be used: {error}") from error
    return _guided(pipe, guides) if guides else pipe


def _guided(pipe: Any, guides: Sequence[str]) -> Any:
    from diffusers_dedim.pipeline.guides import guided_by

    try:
        return guided_by(pipe, guides)
    except (OSError, ValueError, ImportError) as error:
        raise DeDiMError(f"--guide: {error}") from error
