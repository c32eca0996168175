"""The endpoint ``/protect`` for programs (gradio_client); the page's own events are private."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio import FileData
from gradio.processing_utils import save_bytes_to_cache

from diffusers_dedim.demo.handlers import DemoError, DemoHandlers
from diffusers_dedim.demo.texts import score_table
from diffusers_dedim.demo.uploads import uploaded_file

_DESCRIPTION = (
    "Protect faces of one photo. Returns the file and its scores; raises an error, and returns no file, where a "
    "chosen face stayed above the threshold. faces: numbers from left to right, from 1; none for all that are "
    "large enough. note: what was wrong with the second photo. It lowers automatic matching; "
    "it does not make anybody anonymous."
)


def add_api(handlers: DemoHandlers, cache_dir: str) -> None:
    """Add the endpoint to the page that is being built.

    Args:
        handlers: the page's actions.
        cache_dir: where Gradio puts uploads, and where results are written; deleted by age. No other file is read.
    """

    def protect(
        photo: FileData, preset: str = handlers.presets[0], strength: str = "standard",
        faces: list[int] | None = None, second_photo: FileData | None = None,
    ) -> tuple[FileData, dict[str, Any]]:  # fmt: skip
        try:
            path = uploaded_file("photo", photo, cache_dir)
            other = None if second_photo is None else uploaded_file("second_photo", second_photo, cache_dir)
            view = handlers.protect_file(path, preset, strength, faces, other)
        except DemoError as error:
            raise gr.Error(str(error), print_exception=False) from None
        result = save_bytes_to_cache(view.data or b"", view.file_name or "", cache_dir)
        return FileData(path=result), score_table(view.result, view.note)

    gr.api(  # type: ignore[attr-defined]  # in its __all__, but not re-exported by name
        protect,
        api_name="protect",
        api_description=_DESCRIPTION,
        concurrency_limit=None,  # the handlers have a line, which it shares with the page
    )
