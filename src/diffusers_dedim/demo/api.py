"""The endpoint ``/protect`` for programs (gradio_client); the page's own events are private."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio import FileData
from gradio.processing_utils import save_bytes_to_cache

from diffusers_dedim.demo.handlers import DemoError, DemoHandlers
from diffusers_dedim.demo.texts import score_table

_DESCRIPTION = (
    "Protect faces of one photo. Returns the file and its scores; raises an error, and returns no file, where a "
    "chosen face stayed above the threshold. faces: numbers from left to right, from 1; none for all that are "
    "large enough. It lowers automatic matching; it does not make anybody anonymous."
)


def add_api(handlers: DemoHandlers, cache_dir: str) -> None:
    """Add the endpoint to the page that is being built.

    Args:
        handlers: the page's actions.
        cache_dir: where results are written and deleted by age.
    """

    def protect(
        photo: FileData, preset: str = handlers.presets[0], strength: str = "standard",
        faces: list[int] | None = None, second_photo: FileData | None = None,
    ) -> tuple[FileData, dict[str, Any]]:  # fmt: skip
        try:
            view = handlers.protect_file(
                _path(photo), preset, strength, faces, _path(second_photo) if second_photo else None
            )
        except DemoError as error:
            raise gr.Error(str(error), print_exception=False) from None
        path = save_bytes_to_cache(view.data or b"", view.file_name or "", cache_dir)
        return FileData(path=path), score_table(view.result)

    gr.api(  # type: ignore[attr-defined]  # in its __all__, but not re-exported by name
        protect,
        api_name="protect",
        api_description=_DESCRIPTION,
        concurrency_limit=None,  # the handlers have a line, which it shares with the page
    )


def _path(file: Any) -> str:
    """Where Gradio put an upload; it has checked that it lies among the uploads."""
    path = file.get("path") if isinstance(file, dict) else getattr(file, "path", None)
    if not path:
        raise DemoError("photo: expected a file; with gradio_client, wrap its path in handle_file(...).")
    return str(path)
