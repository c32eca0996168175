from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_sampling import faces, run, seeded, toy_unet

from diffusers_dedim.diffusion.noise import FaceNoise
from diffusers_dedim.diffusion.sampling import SampleResult

STEPS = 5
ERRORS = torch.zeros(STEPS, 3, 8, 8)


class Forgetful(FaceNoise):
    """Draws noise twice, and knows nothing of the original under it; the correction takes the share of a new one."""

    def begin(self, generator: torch.Generator) -> Tensor | None:
        super().begin(generator)
        return None


class Counter:
    """A denoiser that notes how many images it sees in each call."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, x_t: Tensor, timestep: int) -> Tensor:
        self.sizes.append(len(x_t))
        return toy_unet(x_t, timestep)


def sample(noises: list[FaceNoise] | None, unet: Any = toy_unet, **settings: Any) -> SampleResult:
    """Three rounds without an end, for as many faces as there are records of noise."""
    count = len(noises or [None])
    x_org, mask = faces(count)
    settings = {"error_correction": 0.7, "threshold": 0.0, "max_rounds": 3, **settings}
    return run(x_org, mask, tuple(range(count)), noises=noises, unet=unet, **settings)


def numbers(noise: FaceNoise, generator: torch.Generator, kept: list[bool]) -> list[float]:
    """The first number of each round."""
    seen = []
    for each in kept:
        noise.begin(generator)
        seen.append(float(torch.rand(1, generator=generator)))
        noise.end(generator, ERRORS, kept=each)
    return seen


def test_noise_serves_two_rounds_and_no_third() -> None:
    seen = numbers(FaceNoise(twice=True), *seeded(0), kept=[True] * 6)
    assert seen[::2] == seen[1::2]
    assert len(set(seen)) == 3


def test_without_it_each_round_has_its_own_numbers() -> None:
    plain = torch.Generator().manual_seed(0)
    expected = [float(torch.rand(1, generator=plain)) for _ in range(4)]
    assert numbers(FaceNoise(), *seeded(0), kept=[True] * 4) == expected


def test_noise_that_went_wrong_is_not_tried_again() -> None:
    seen = numbers(FaceNoise(twice=True), *seeded(0), kept=[False, True, False, True, True])
    assert seen[1] == seen[2]
    assert seen[3] == seen[4]
    assert len({seen[0], seen[1], seen[3]}) == 3


def test_a_round_that_failed_is_begun_again() -> None:
    noise, (generator,) = FaceNoise(twice=True), seeded(0)
    for _ in range(2):  # in the first round of two, and in the second
        state = generator.get_state()
        noise.begin(generator)
        torch.rand(5, generator=generator)
        generator.set_state(state)  # as the queue does after an error
        numbers(noise, generator, kept=[True])
    plain = torch.Generator().manual_seed(0)
    first, second = (float(torch.rand(1, generator=plain)) for _ in range(2))
    assert numbers(noise, generator, kept=[True]) == [second] != [first]


def test_what_is_forgotten_is_drawn_anew() -> None:
    noise, (generator,) = FaceNoise(twice=True), seeded(0)
    first = numbers(noise, generator, kept=[True])
    noise.forget()
    assert noise.begin(generator) is None
    assert float(torch.rand(1, generator=generator)) != first[0]


@pytest.mark.parametrize(("twice", "sizes"), [(False, [2, 2, 2]), (True, [2, 1, 2])])
def test_the_original_is_denoised_once_for_two_rounds(twice: bool, sizes: list[int]) -> None:
    unet = Counter()
    result = sample([FaceNoise(twice)], unet)
    history = result.probability_history[0]
    assert all(after < before for before, after in itertools.pairwise(history))  # all were kept
    assert unet.sizes == [size for size in sizes for _ in range(STEPS)]
    assert result.unet_calls == [sum(unet.sizes)]


@pytest.mark.parametrize("window", [None, (12, 12)])
def test_what_is_known_of_the_original_is_what_would_be_found_out_again(
    window: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers_dedim.diffusion.denoisers._AGAIN", 1.0)  # the same share in both rounds
    known = sample([FaceNoise(True), FaceNoise(True)], window=window)
    found_out = sample([Forgetful(True), Forgetful(True)], window=window)
    torch.testing.assert_close(known.crops, found_out.crops, rtol=0, atol=1e-12)
    new = sample(None, window=window)
    assert not torch.allclose(known.crops[:1], new.crops, atol=1e-4)


def test_of_what_is_lost_twice_in_the_same_way_less_is_let_go() -> None:
    def lost(noises: list[FaceNoise]) -> float:
        x_org, mask = faces(1)
        result = run(
            x_org, torch.ones_like(mask), (0,), scale=None, noises=noises, max_rounds=2, threshold=0.0,
            error_correction=0.7,
        )  # fmt: skip
        return float((result.crops - x_org).square().mean())

    assert lost([FaceNoise(True)]) < lost([Forgetful(True)])


def test_it_is_remembered_from_one_call_to_the_next() -> None:
    noise, (generator,) = FaceNoise(twice=True), seeded(0)
    x_org, mask = faces(1)
    at_once = sample([FaceNoise(twice=True)])
    x_0, probability, calls = x_org, torch.ones(1).double(), 0
    for _ in range(3):
        result = run(
            x_org, mask, (0,), x_0=x_0, probability=probability, noises=[noise], max_rounds=1, threshold=0.0,
            error_correction=0.7, generators=[generator],
        )  # fmt: skip
        x_0, calls = result.crops, calls + result.unet_calls[0]
        probability = torch.tensor([result.probability_history[0][-1]]).double()
    torch.testing.assert_close(x_0, at_once.crops)
    assert calls == at_once.unet_calls[0]


def test_a_face_whose_original_is_known_does_not_depend_on_one_whose_is_not() -> None:
    together, alone = sample([FaceNoise(True), FaceNoise(False)]), sample([FaceNoise(True)])
    torch.testing.assert_close(together.crops[:1], alone.crops, rtol=0, atol=1e-12)
    assert together.unet_calls == [STEPS * 5, STEPS * 6]


def test_without_a_correction_noise_is_always_new() -> None:
    once, never = sample([FaceNoise(True)], error_correction=0.0), sample(None, error_correction=0.0)
    assert torch.equal(once.crops, never.crops)


def test_one_record_for_two_faces_is_refused() -> None:
    x_org, mask = faces(2)
    with pytest.raises(ValueError, match="noises: expected one for each of the 2 faces, got 1"):
        run(x_org, mask, (0, 1), noises=[FaceNoise(True)], error_correction=0.7)
