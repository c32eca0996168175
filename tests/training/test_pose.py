from __future__ import annotations

import math

import pytest
import torch

from diffusers_dedim.faces.align import ARCFACE_TEMPLATE
from diffusers_dedim.training import augment as pose
from diffusers_dedim.training.augment import turn_heads

CENTRE = torch.tensor(pose.HEAD_CENTRE)
TEMPLATE = torch.tensor(ARCFACE_TEMPLATE, dtype=torch.float32)[None] - CENTRE


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_images(count: int) -> torch.Tensor:
    small = torch.rand(count, 3, 7, 7, generator=generator())
    return torch.nn.functional.interpolate(small, size=(112, 112), mode="bicubic")


def degrees(yaw: float, pitch: float) -> torch.Tensor:
    return torch.tensor([[math.radians(yaw), math.radians(pitch)]])


@pytest.mark.parametrize(("share", "yaw", "pitch"), [(0.0, 40.0, 20.0), (1.0, 0.0, 0.0)])
def test_without_a_turn_the_picture_stays(share: float, yaw: float, pitch: float) -> None:
    images = smooth_images(3)
    same = turn_heads(images, generator(), share=share, yaw=yaw, pitch=pitch)
    torch.testing.assert_close(same, images, atol=1e-4, rtol=0)  # float32 coordinates of up to 112 px


def test_only_a_share_is_turned_and_the_generator_decides_which() -> None:
    images = smooth_images(40)
    first, again, other = (
        turn_heads(images, generator(seed), share=0.5, yaw=20, pitch=10) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    changed = ((first - images).abs().flatten(1).amax(1) > 1e-3).sum()
    assert 10 <= int(changed) <= 30


def test_only_a_share_is_bent_by_moves_of_the_given_size() -> None:
    ramp = torch.linspace(0, 1, 112).expand(200, 1, 112, 112)  # one pixel across is 1 / 111
    bent = turn_heads(ramp, generator(), share=0.0, yaw=0, pitch=0, bend_share=0.5, bend=2.0)
    moved = ((bent - ramp) * 111)[:, 0, 20:92, 20:92].flatten(1)
    spread = moved.std(1)
    assert 70 <= int((spread > 0.1).sum()) <= 130
    assert moved[spread > 0.1].square().mean().sqrt().item() == pytest.approx(
        1.5, abs=0.4
    )  # px: less in between
    assert not torch.equal(moved[spread > 0.1][0], moved[spread > 0.1][1])


@pytest.mark.parametrize("angles", [(30.0, 0.0), (-30.0, 10.0), (0.0, 20.0), (15.0, -15.0)])
def test_looking_back_from_the_turned_head_finds_the_point(angles: tuple[float, float]) -> None:
    turned = pose._rotate(TEMPLATE, degrees(*angles))
    back = pose._unrotate(turned, degrees(*angles))
    assert float((back - TEMPLATE).abs().max()) < 1.5  # px; what four iterations leave


def test_eyes_come_nearer_to_each_other_and_the_nose_moves_with_the_turn() -> None:
    turned = pose._rotate(TEMPLATE, degrees(30, 0))[0]
    before = TEMPLATE[0]
    assert turned[1, 0] - turned[0, 0] < before[1, 0] - before[0, 0]
    from_eyes = turned[2, 0] - turned[:2, 0].mean()
    assert from_eyes > 3  # px; the tip stands out and moves further than the eyes do


def test_the_turned_face_is_aligned_again() -> None:
    turned = pose._rotate(TEMPLATE, degrees(25, 10))
    placed = pose.move_alike(turned, TEMPLATE, turned)  # how alignment would move the five points
    assert float((placed - TEMPLATE).norm(dim=-1).mean()) < 4
    there_and_back = pose.move_alike(TEMPLATE, turned, pose.move_alike(turned, TEMPLATE, turned))
    assert float((there_and_back.mean(1) - turned.mean(1)).abs().max()) < 1e-3
