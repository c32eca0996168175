"""A method's strength as part of its name, so that one run measures a method at several."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, TypeVar

SYMBOLS = {"h": "threshold", "s": "guidance_scale", "L": "max_rounds"}
"""The paper's letters for settings of ``dedim``; every other setting goes by its own name."""

Preset = TypeVar("Preset")


def split_strength(name: str) -> tuple[str, dict[str, float]]:
    """Split a method's name into the method and the settings behind its ``@``.

    Args:
        name: ``METHOD`` or ``METHOD@SETTING=NUMBER``, further settings after ``+``.

    Raises:
        ValueError: what follows the ``@`` has another form.

    Example:
        >>> split_strength("dedim:fast@h=0.5+s=0.012")
        ('dedim:fast', {'threshold': 0.5, 'guidance_scale': 0.012})
    """
    method, at, text = name.partition("@")
    strength: dict[str, float] = {}
    for word in text.split("+") if at else ():
        setting, _, value = word.partition("=")
        number = _number(value)
        setting = SYMBOLS.get(setting, setting)
        if not setting or number is None or setting in strength:
            raise ValueError(
                f"method: expected METHOD@SETTING=NUMBER, each setting once, further ones after '+' "
                f"('dedim:fast@h=0.5+s=0.012'), got {name!r}."
            )
        strength[setting] = number
    return method, strength


def set_strength(name: str, preset: Preset, strength: dict[str, float]) -> Preset:
    """The preset with these settings put in.

    Args:
        name: the method's, for messages.
        preset: a frozen dataclass that checks itself, such as `DeDiMPreset`.
        strength: from `split_strength`.

    Raises:
        ValueError: the preset has no such number, or refuses the value.
    """
    known = {field.name: getattr(preset, field.name) for field in fields(preset)}  # type: ignore[arg-type]
    numbers = {key: value for key, value in known.items() if isinstance(value, (int, float))}
    unknown = sorted(set(strength) - set(numbers))
    if unknown:
        raise ValueError(f"method: {name!r} sets {unknown}; expected settings out of {sorted(numbers)}.")
    changes: dict[str, Any] = dict(strength)
    for key, value in strength.items():
        if isinstance(numbers[key], int):
            if value != int(value):
                raise ValueError(f"method: {name!r}: expected a whole number for {key}, got {value:g}.")
            changes[key] = int(value)
    if "threshold" in changes and "threshold_margin" in numbers:  # as `resolve_preset` does
        changes.setdefault("threshold_margin", min(numbers["threshold_margin"], changes["threshold"] / 2))
    return replace(preset, **changes)  # type: ignore[type-var]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
