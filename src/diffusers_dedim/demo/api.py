"""The page's endpoint for programs, and its tool for language models (MCP): the docstring is what they read."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio import FileData

from diffusers_dedim.demo.files import uploaded_file
from diffusers_dedim.demo.handlers import DemoHandlers, Upload
from diffusers_dedim.demo.texts import DemoError


def add_api(handlers: DemoHandlers, cache_dir: str) -> None:
    """Add the endpoint to the page that is being built.

    Args:
        handlers: the page's actions.
        cache_dir: where Gradio puts uploads, and where results are written; deleted by age. No other file is read.
    """

    def protect(
        photo: FileData,
        strength: str = "standard",
        faces: list[int] | None = None,
        second_photo: FileData | None = None,
    ) -> dict[str, Any]:
        """Change the faces in a photo a little, so that face recognition matches them less.

        It does not make anybody anonymous: other recognisers, and people who know the person, may still recognise
        them. Returns the file, and what was done to each face; an error, and no file, where a face stayed above the
        threshold. Faces that are too small, turned away or covered are blurred.

        Args:
            photo: the photo, up to 25 megapixels.
            strength: gentler, standard or stronger: how much the faces are changed.
            faces: which faces to protect, counted from left to right from 1; leave out for all of them.
            second_photo: another photo of the same person, to see whether recognition still finds it.
        """
        try:
            upload = Upload(uploaded_file("photo", photo, cache_dir))
            other = None
            if second_photo is not None:
                other = Upload(uploaded_file("second_photo", second_photo, cache_dir))
            view = handlers.protect_file(upload, strength, cache_dir, faces, other)
        except DemoError as error:
            raise gr.Error(str(error), print_exception=False) from None
        # in one record: as a value of its own MCP would send the picture too, packed anew as nobody has judged it
        return {"file": FileData(path=view.download or "").model_dump(), **(view.photos[0].table or {})}

    gr.api(  # type: ignore[attr-defined]  # in its __all__, but not re-exported by name
        protect,
        api_name="protect",
        concurrency_limit=None,  # the handlers have a line, which it shares with the page
    )
