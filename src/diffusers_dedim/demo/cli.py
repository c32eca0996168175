"""The command ``dedim demo``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from diffusers_dedim.cli_errors import plain_errors
from diffusers_dedim.cli_options import DeviceOption, WeightsOption
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.extras import import_extra

INSTALL = 'pip install "diffusers-dedim[demo]"'


def demo_command(load_pipeline: Callable[[str | None, str | None], Any]) -> Callable[..., None]:
    """Make the command.

    Args:
        load_pipeline: (weights, device) -> pipeline.
    """

    def demo(
        port: Annotated[
            int | None, typer.Option(min=1, max=65535, help="Port.", show_default="the first free from 7860")
        ] = None,
        share: Annotated[
            bool, typer.Option("--share", help="Also make a public link; photos then pass Gradio's servers.")
        ] = False,
        weights: WeightsOption = None,
        device: DeviceOption = None,
    ) -> None:
        """Open a page on this computer: choose a photo, click on faces, see what changes. Ctrl+C ends it."""
        with plain_errors("Stopped."):
            try:
                import_extra("gradio", "dedim demo", INSTALL)
            except ImportError as error:
                raise DeDiMError(str(error)) from error
            from diffusers_dedim.demo.launch import make_handlers, serve  # imports Gradio and PyTorch

            serve(make_handlers(load_pipeline(weights, device)), port=port, share=share)

    return demo
