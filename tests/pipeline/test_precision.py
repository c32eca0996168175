from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys import seeded, tiny_preset, toy_pipeline

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


@pytest.mark.parametrize("around", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_autocast_around_the_pipeline_of_either_type_works(own: torch.dtype, around: torch.dtype) -> None:
    pipe = toy_pipeline().to(own)
    crop = Image.fromarray(np.random.default_rng(0).integers(60, 190, (112, 112, 3), dtype=np.uint8))
    settings: dict[str, Any] = {"preset": tiny_preset(threshold=0.95), "aligned": True}
    plain = pipe(crop, generator=seeded(0), **settings).faces[0].similarity
    with torch.autocast("cpu", around):
        inside = pipe(crop, generator=seeded(0), **settings).faces[0].similarity
    assert inside == pytest.approx(plain, abs=0.1)  # three digits in each layer of what has the type around
