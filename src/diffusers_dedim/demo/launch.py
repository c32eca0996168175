"""Load everything the page needs and serve it: ``dedim demo`` and ``spaces/app.py`` both end here."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gradio as gr

from diffusers_dedim.demo import app
from diffusers_dedim.demo.files import end_by_signals, keep_deleting, keep_forgetting, make_private_folder
from diffusers_dedim.demo.handlers import DemoHandlers
from diffusers_dedim.demo.protect import STRENGTHS, Protector, load_unseen
from diffusers_dedim.demo.theme import make_theme
from diffusers_dedim.faces import FaceDetector

SPACE_SECONDS = 180.0
"""Longest run of one photo on a Space, where others wait."""
_SESSIONS = 32  # whose opened photos are held in memory, up to 75 MB each
_MAX_UPLOAD = "80mb"
_DRAWN_CONFIDENCE = 0.5  # a detector's, of a face in a box that a person drew


def make_handlers(pipe: Any, *, wrap: Callable[..., Any] | None = None) -> DemoHandlers:
    """The page's actions for a pipeline.

    On a Space (the environment says so) a photo may take `SPACE_SECONDS`, and the paper's setting is not offered.

    Args:
        pipe: a `DeDiMPipeline` on its device.
        wrap: put around its call, e.g. ``spaces.GPU``.
    """
    pipe.set_progress_bar_config(disable=True)
    on_space = is_space()
    strengths = tuple(name for name in STRENGTHS if name != "paper" or not on_space)
    protector = Protector(pipe, load_unseen(), SPACE_SECONDS if on_space else None, wrap)
    keen = FaceDetector(min_confidence=_DRAWN_CONFIDENCE, any_turn=True)
    return DemoHandlers(protector, FaceDetector(any_turn=True), keen, strengths)


def serve(
    handlers: DemoHandlers,
    *,
    port: int | None = None,
    share: bool = False,
    mcp: bool = False,
    block: bool = True,
) -> tuple[gr.Blocks, str]:
    """Build the page and serve it.

    Args:
        handlers: its actions.
        port: TCP port; None for the first free one from 7860.
        share: also reachable by anybody through Gradio's servers.
        mcp: also a server of the Model Context Protocol, at ``/gradio_api/mcp/``; needs the extra ``mcp``.
        block: return only when the server ends.

    Returns:
        The page and its local address.

    Raises:
        OSError: the port is taken.
    """
    where = "on the server of this page" if is_space() or share else "on this computer"
    if block:
        end_by_signals()
    folder = make_private_folder()
    keep_deleting(folder, *app.DELETE_CACHE)
    if mcp:
        import gradio.mcp

        # where photos go that a client sends as text: Gradio has read the place before there was our folder
        gradio.mcp.DEFAULT_TEMP_DIR = str(folder)
    demo = app.build_demo(handlers, where)
    keep_forgetting(demo, *app.DELETE_CACHE, handlers.albums.forget)
    _, url, _ = demo.launch(
        server_port=port,
        share=share,
        prevent_thread_lock=not block,
        quiet=not block,
        theme=make_theme(),
        css_paths=app.HERE / "style.css",
        footer_links=["api"],
        max_file_size=_MAX_UPLOAD,
        state_session_capacity=_SESSIONS,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=mcp,
        i18n=None,
    )
    return demo, url


def is_space() -> bool:
    """Whether this process is a Hugging Face Space."""
    return "SPACE_ID" in os.environ
