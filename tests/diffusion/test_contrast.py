from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusers_dedim.diffusion.contrast import Exposure, at_least_contrast
from diffusers_dedim.diffusion.sampling import SampleResult


def face(contrast: float, brightness: float = 0.0) -> Tensor:
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    return (brightness + contrast * noise).clamp(-1, 1).expand(1, 3, 16, 16)


MASK = torch.ones(2, 1, 16, 16)
FACES = torch.cat([face(0.4), face(0.02, -0.95)])  # an ordinary one, and one of a few dark levels


def test_an_ordinary_face_stays_as_it_is_to_the_last_bit() -> None:
    exposure = Exposure.of(FACES, MASK, 0.25)
    assert exposure.gain.flatten().tolist()[0] == 1
    changed = FACES + 0.01
    for faces in (exposure.base, exposure.raise_(FACES), exposure.lower(FACES)):
        assert torch.equal(faces[0], FACES[0])
    assert torch.equal(exposure.lower(exposure.raise_(changed))[0], changed[0])


def test_a_dark_face_is_raised_and_a_change_of_it_lowered_again() -> None:
    exposure = Exposure.of(FACES, MASK, 0.25)
    assert float(exposure.base[1].std()) == pytest.approx(0.25, rel=0.15)  # some of it is clipped
    assert float(exposure.base[1].mean()) == pytest.approx(-0.3, abs=0.05)
    changed = exposure.base + 0.1
    assert torch.allclose((exposure.lower(changed) - FACES)[1], 0.1 / exposure.gain[1])
    assert torch.allclose(exposure.raise_(exposure.lower(changed)), changed, atol=1e-5)


def test_the_brightness_does_not_jump_where_raising_begins() -> None:
    bright = face(0.2499, 0.9)[:, :, :, :8]
    mask = torch.ones(1, 1, 16, 8)
    least = float(bright.std()) * 1.001
    assert torch.allclose(Exposure.of(bright, mask, least).base, bright, atol=0.01)


def test_the_sampler_sees_the_raised_face_and_the_photo_gets_the_lowered_change() -> None:
    seen: list[Tensor] = []

    def sample(x_org: Tensor, mask: Tensor, *, x_0: Tensor | None = None, **options: Any) -> SampleResult:
        seen.append(x_org)
        begin = x_org if x_0 is None else x_0
        return SampleResult(begin + 0.08, [[1.0, 0.5]] * 2, [1, 1], [5, 5], [True, True])

    raised = at_least_contrast(sample, 0.25)
    first = raised(FACES, MASK, max_rounds=1)
    second = raised(FACES, MASK, x_0=first.crops, max_rounds=1)
    gain = Exposure.of(FACES, MASK, 0.25).gain
    assert torch.allclose(second.crops - FACES, 0.16 / gain, atol=1e-5)
    assert float(seen[0][1].std()) > 0.2
    assert at_least_contrast(sample, 0) is sample
