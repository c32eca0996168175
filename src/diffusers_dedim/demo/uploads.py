"""Which files of the server a visitor may name: uploads, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers_dedim.demo.handlers import DemoError


def uploaded_file(name: str, file: Any, cache_dir: str) -> str:
    """The path of an upload. Gradio checks only what is marked as a file: an unmarked path may name any file here.

    Args:
        name: of the field or argument, for the error.
        file: what came: anything with a ``path``, as a key or an attribute.
        cache_dir: where Gradio puts uploads.

    Raises:
        DemoError: it names no file below ``cache_dir``.
    """
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
