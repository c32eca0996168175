from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from toys import MEAN_FACE

from diffusers_dedim.faces import landmark_mask, visible_gate, visible_share

NOWHERE = torch.full((1, 51, 2), -50.0)  # no eye, so no temple


def seen(value: float = 0.97) -> Tensor:
    return torch.full((1, 1, 112, 112), value)


def test_what_is_plainly_visible_keeps_its_mask_to_the_bit() -> None:
    noisy = (seen() + 0.3 * torch.randn(4, 1, 112, 112, generator=torch.Generator().manual_seed(0))).clamp(
        0.3, 1
    )
    mask = torch.rand(4, 1, 112, 112)
    assert torch.equal(mask * visible_gate(noisy, NOWHERE.expand(4, -1, -1)), mask)


def test_a_speck_and_a_mere_doubt_are_no_cover() -> None:
    probability = seen()
    probability[..., 20:22, 20:90] = 0.0  # thinner than a core
    probability[..., 60:90, 60:90] = 0.4  # nothing in it is sure
    assert torch.equal(visible_gate(probability, NOWHERE), torch.ones(1, 1, 112, 112))


def test_a_cover_is_exactly_zero_with_a_margin_and_a_ramp() -> None:
    probability = seen()
    probability[..., 40:60, 40:60] = 0.4
    probability[..., 48:52, 48:52] = 0.1
    gate = visible_gate(probability, NOWHERE)[0, 0]
    assert gate[38:62, 38:62].abs().max() == 0
    assert gate[50, 36].item() == pytest.approx(0.8)  # one column of the five around it is hidden
    assert gate[50, 35] == 1
    outside = gate.clone()
    outside[35:65, 35:65] = 1
    assert torch.equal(outside, torch.ones(112, 112))


def test_a_cover_does_not_leak_into_another_doubt() -> None:
    probability = seen()
    probability[..., 40:50, 40:50] = 0.1
    probability[..., 80:90, 80:90] = 0.4
    gate = visible_gate(probability, NOWHERE)[0, 0]
    assert gate[45, 45] == 0
    assert gate[85, 85] == 1


def covered_mouth() -> tuple[Tensor, Tensor]:
    """A cover over the mouth that the network is sure of in 7 x 7 px, and in doubt of around them."""
    points = torch.full((1, 51, 2), -50.0)
    points[:, 31:] = 60.0  # the mouth
    probability = seen()
    probability[..., 50:90, 40:80] = 0.8
    probability[..., 57:64, 57:64] = 0.1
    return probability, points


def test_a_cover_over_the_mouth_reaches_further_where_there_is_a_doubt() -> None:
    probability, points = covered_mouth()
    hidden = visible_gate(probability, points)[0, 0] == 0
    assert hidden[48:74, 47:74].all()  # 8 px, no further up than the doubt, and the margin of 2
    assert hidden.sum() == 26 * 27
    probability[..., 57:59, 57:64] = 0.8  # a speck that is no cover for sure
    assert visible_gate(probability, points)[0, 0, 70, 60] == 1
    points[:, 31:] = 20.0  # beside the face, as hair is
    assert visible_gate(probability, points)[0, 0, 70, 60] == 1


def test_a_cover_is_drawn_less_wide_where_else_too_little_of_a_face_is_left() -> None:
    probability, points = covered_mouth()
    both = probability.repeat(2, 1, 1, 1), points.repeat(2, 1, 1)
    mask = torch.zeros(2, 1, 112, 112)
    mask[0, :, 46:76, 46:76] = 1
    mask[1] = 1
    narrow, wide = visible_gate(*both, mask)
    assert (narrow == 0).sum() == 17 * 17  # 3 px
    assert torch.equal(wide[None], visible_gate(probability, points))


@pytest.mark.parametrize("wrong", [float("nan"), -0.1, 1.1])
def test_values_that_are_no_probability_are_refused(wrong: float) -> None:
    probability = seen()
    probability[0, 0, 0, 0] = wrong
    with pytest.raises(ValueError, match=re.escape("probability: expected values in [0, 1]")):
        visible_gate(probability, NOWHERE)


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("expected shape [N, 1, S, S], got [112, 112]")):
        visible_gate(torch.ones(112, 112), NOWHERE)


def test_the_share_that_is_left_of_a_mask() -> None:
    mask, gate = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    mask[0, 0, :2] = 1
    gate[0, 0, 0] = 0
    assert visible_share(mask, gate).tolist() == [0.5, 0.0]


def beside_the_face(width: int) -> Tensor:
    """All is visible but that much of the left, px."""
    probability = seen()
    probability[..., :width] = 0.02
    return probability


def test_the_rim_at_the_temples_is_left_where_it_is_beside_the_face() -> None:
    """The mask of a plain eye reaches past the brow's outer end, which is 27 px from the left, onto hair or wall."""
    mask = landmark_mask(MEAN_FACE[None], 10, 4)
    changed = mask * visible_gate(beside_the_face(24), MEAN_FACE[None])
    assert changed[..., :26].sum() == 0
    assert mask[..., :26].sum() > 0
    assert torch.equal(changed[..., 29:], mask[..., 29:])


def test_landmarks_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("landmarks: expected shape [1, 51, 2], got [1, 5, 2]")):
        visible_gate(seen(), torch.zeros(1, 5, 2))
