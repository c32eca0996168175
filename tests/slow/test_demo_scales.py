from __future__ import annotations

import pytest

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.demo.protect import SCALES
from diffusers_dedim.encoders.recogniser import Recogniser

pytestmark = pytest.mark.slow


def test_the_bundled_encoder_has_a_measured_line() -> None:
    encoder = DeDiMPipeline.from_pretrained().face_encoder
    known = Recogniser.of("guide", encoder).fingerprint in SCALES
    assert known, "the weights changed: run python -m benchmarks.score_lines and put its numbers into SCALES"
