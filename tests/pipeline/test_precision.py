from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.pipeline import pipeline_dedim
from diffusers_dedim.pipeline.device import DeviceMap, mapped_device


@pytest.mark.parametrize(
    ("device_map", "device"),
    [
        (None, "cpu"),
        ("cuda", "cuda"),
        ({"unet": "meta", "": "cpu"}, "meta"),
        ({"": 1}, "cuda:1"),
        ({}, "cpu"),
        ("balanced", "cuda" if torch.cuda.is_available() else "cpu"),
    ],
)
def test_the_denoisers_device_is_found(device_map: DeviceMap, device: str) -> None:
    assert str(mapped_device(device_map)) == device


def test_a_pipeline_is_loaded_in_the_type_that_suits_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def note(device: str) -> torch.dtype:
        asked.append(device)
        return torch.float16

    monkeypatch.setattr(pipeline_dedim, "fast_dtype", note)
    assert DeDiMPipeline.from_pretrained(device_map="cpu").unet.dtype == torch.float16
    assert asked == ["cpu"]
