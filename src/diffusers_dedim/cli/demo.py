"""The command ``dedim demo``."""

from __future__ import annotations

from typing import Annotated

import typer

from diffusers_dedim.cli import common
from diffusers_dedim.cli.common import DeviceOption, GuideOption, WeightsOption, plain_errors
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.extras import import_extra

INSTALL = 'pip install "diffusers-dedim[{}]"'


def demo(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port.", show_default="the first free from 7860")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Also make a public link; photos then pass Gradio's servers.")
    ] = False,
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Also serve a tool for language models (MCP) on this computer.")
    ] = False,
    weights: WeightsOption = None,
    guide: GuideOption = None,
    device: DeviceOption = None,
) -> None:
    """Open a page on this computer: choose photos and people, see what changes. Ctrl+C ends it."""
    with plain_errors("Stopped."):
        try:
            import_extra("gradio", "dedim demo", INSTALL.format("demo"))
            if mcp:
                import_extra("mcp", "dedim demo --mcp", INSTALL.format("mcp"))
        except ImportError as error:
            raise DeDiMError(str(error)) from error
        from diffusers_dedim.demo.launch import make_handlers, serve  # imports Gradio and PyTorch

        handlers = make_handlers(common.load_pipeline(weights, device, guide))
        serve(handlers, port=port, share=share, mcp=mcp)
