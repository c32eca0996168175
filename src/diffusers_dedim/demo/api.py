"""The endpoint ``/protect`` for programs (gradio_client); the page's own events are private."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio import FileData
from gradio.processing_utils import save_bytes_to_cache

from diffusers_dedim.demo.handlers import DemoError, DemoHandlers
from diffusers_dedim.demo.texts import score_table

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
            path = _uploaded("photo", photo, cache_dir)
            other = None if second_photo is None else _uploaded("second_photo", second_photo, cache_dir)
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


def _uploaded(name: str, file: Any, cache_dir: str) -> str:
    """The path of an upload. Gradio checks only what is marked as a file: an unmarked path may name any file here."""
    path = file.get("path") if isinstance(file, dict) else getattr(file, "path", None)
    try:
        resolved = Path(path or "").resolve()
        is_upload = resolved.is_relative_to(Path(cache_dir).resolve()) and resolved.is_file()
    except (TypeError, ValueError, OSError):  # no text, or no name that a file can have
        is_upload = False
    if not is_upload:
        raise DemoError(
            f"{name}: expected an uploaded file; with gradio_client, wrap its path or address in handle_file(...)."
        )
    return str(resolved)
