"""What `dedim publish` makes of the bundled weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.faces import FaceDetector, align_face
from diffusers_dedim.hub.kinds import Model
from diffusers_dedim.hub.staging import stage_model

pytestmark = pytest.mark.slow
ASTRONAUT = pytest.importorskip("skimage.data").astronaut()


def test_the_float16_files_give_nearly_the_same(tmp_path: Path) -> None:
    """Rounded to 11 bits, and computed in float32; the bounds are those of docs/hub.md."""
    stage_model(Model.pipeline, "me/x", tmp_path)
    whole, half = (
        DeDiMPipeline.from_pretrained(tmp_path, variant=variant, dtype=torch.float32)
        for variant in (None, "fp16")
    )
    crop = align_face(ASTRONAUT, FaceDetector()(ASTRONAUT)[0]).crop[None]
    noise = torch.randn(crop.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cosine = (whole.face_encoder(crop) * half.face_encoder(crop)).sum()
        points = (whole.landmarker(crop) - half.landmarker(crop)).abs().max()
        one, two = (pipe.unet(crop + 0.2 * noise, 99).sample for pipe in (whole, half))
    error = (one - two).norm() / one.norm()
    print(f"1 - cosine {1 - cosine:.1e}, landmarks {points:.3f} px, noise {error:.1e}")
    assert 1 - cosine < 1e-5
    assert points < 0.1
    assert error < 1e-3
    total = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    print(f"{total / 1e6:.1f} MB")
