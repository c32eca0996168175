"""Import optional packages on first use, with an error that names the command to install them."""

from __future__ import annotations

import importlib
from typing import Any


def import_extra(module: str, needed_by: str, install: str = 'pip install "diffusers-dedim[eval]"') -> Any:
    """Import ``module``, or say which command brings it.

    Args:
        module: dotted name of the module, for instance ``"onnxruntime"``.
        needed_by: what the user asked for, the subject of the error message.
        install: the command to show; for an extra of this package also the one that works in a clone.

    Raises:
        ImportError: the package is not installed.

    Example:
        >>> import_extra("math", "the example").pi > 3
        True
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if "diffusers-dedim[" in install:
            install += f" (not on PyPI yet; in a clone: {install.replace('diffusers-dedim[', '.[')})"
        raise ImportError(f"{needed_by} needs the package {module!r} ({error}); run: {install}") from error
