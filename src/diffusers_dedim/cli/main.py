"""The command ``dedim``. PyTorch is imported inside its commands, so that help and usage errors are quick."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from diffusers_dedim import __version__
from diffusers_dedim.cli.common import STOPPED_EVALUATION, STOPPED_TRAINING, plain_errors, print_any_name
from diffusers_dedim.cli.demo import demo
from diffusers_dedim.cli.publish import publish, publish_space
from diffusers_dedim.cli.run import run
from diffusers_dedim.cli.sample import sample

_SPINS = "1000"  # some tens of microseconds; GNU OpenMP's own is 300,000
_MOUNTED: dict[str, Any] = {"context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}}

app: typer.Typer = typer.Typer(
    help="Change the faces in photos so that face recognition matches them less. Not anonymity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for _command in (run, sample, demo, publish, publish_space):
    app.command()(_command)


def main() -> None:
    """Run the command line; the entry point of the ``dedim`` script."""
    print_any_name()
    wait_briefly()
    app(prog_name="dedim")


def wait_briefly() -> None:
    """Let threads that wait for each other sleep after microseconds, where GNU OpenMP lets them spin for milliseconds.

    A thread that spins holds the core that the one it waits for may need, where other programs run beside: two
    threads on two busy cores took 26 to 31 s for what takes 13 (docs/performance.md). GNU OpenMP reads
    ``GOMP_SPINCOUNT`` when PyTorch is loaded, so call this before. What the user has set stays.

    Example:
        >>> wait_briefly()
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"dedim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Change the faces in photos so that face recognition matches them less. Not anonymity."""


@app.command(add_help_option=False, **_MOUNTED)
def train(context: typer.Context) -> None:
    """Train a network: unet, encoder, landmarks, visibility, discriminator, purifier; see dedim train --help."""
    with plain_errors(STOPPED_TRAINING):
        from diffusers_dedim.cli.train import app as training

        training(args=context.args, prog_name="dedim train")


@app.command(add_help_option=False, **_MOUNTED)
def evaluate(context: typer.Context) -> None:
    """Measure methods against face recognisers; see dedim evaluate --help."""
    with plain_errors(STOPPED_EVALUATION):
        from diffusers_dedim.cli.evaluate import app as evaluation  # imports PyTorch

        evaluation(args=context.args, prog_name="dedim evaluate")
