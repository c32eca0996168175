"""What the package tells others' libraries before they are loaded: that nothing is reported to anybody."""

from __future__ import annotations

import importlib
import os

import pytest

import diffusers_dedim

_VARIABLE = "ORT_DISABLE_TELEMETRY"


def test_onnxruntime_is_told_to_report_nothing_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(_VARIABLE, raising=False)
    importlib.reload(diffusers_dedim)
    assert os.environ[_VARIABLE] == "1"
    monkeypatch.setenv(_VARIABLE, "0")
    importlib.reload(diffusers_dedim)
    assert os.environ[_VARIABLE] == "0"
