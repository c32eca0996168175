"""What griffe, which reads the docstrings for the reference, does not know of this package's habits."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class HouseStyle(griffe.Extension):
    """Runnable examples stand under "Example:", and a folder's names are told where they are defined."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Call them "Examples:", which is read as code; griffe takes the singular for a remark."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub("Examples:", obj.docstring.value)

    def on_module(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        """Forget what an ``__init__`` hands on: each name is shown once, in its module."""
        if mod.is_init_module:
            mod.exports = None
