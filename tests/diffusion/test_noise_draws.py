from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_sampling import faces, run, seeded, toy_unet

from diffusers_dedim.diffusion.draws import NoiseDraws
from diffusers_dedim.diffusion.sampling import SampleResult

STEPS = 5
ERRORS = torch.zeros(STEPS, 3, 8, 8)


class Forgetful(NoiseDraws):
    """Draws the same noise in turns, and knows nothing of the original under it."""

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


def sample(draws: list[NoiseDraws] | None, unet: Any = toy_unet, **settings: Any) -> SampleResult:
    """Three rounds without an end, for as many faces as there are draws."""
    count = len(draws or [None])
    x_org, mask = faces(count)
    settings = {"error_correction": 0.7, "threshold": 0.0, "max_rounds": 3, **settings}
    return run(x_org, mask, tuple(range(count)), draws=draws, unet=unet, **settings)


def numbers(draws: NoiseDraws, generator: torch.Generator, kept: list[bool]) -> list[float]:
    """The first number of each round, and of one more."""
    seen = []
    for each in [*kept, True]:
        draws.begin(generator)
        seen.append(float(torch.rand(1, generator=generator)))
        draws.end(generator, ERRORS, kept=each)
    return seen


def test_two_draws_come_in_turns() -> None:
    first, second, third, fourth, fifth = numbers(NoiseDraws(2), *seeded(0), kept=[True] * 4)
    assert first == third == fifth != second == fourth


def test_without_draws_each_round_has_its_own_numbers() -> None:
    plain = torch.Generator().manual_seed(0)
    expected = [float(torch.rand(1, generator=plain)) for _ in range(4)]
    assert numbers(NoiseDraws(), *seeded(0), kept=[True] * 3) == expected


def test_noise_that_went_wrong_is_not_tried_again() -> None:
    seen = numbers(NoiseDraws(2), *seeded(0), kept=[True, False, True, True])
    assert seen[0] == seen[2] == seen[4]
    assert len({seen[0], seen[1], seen[3]}) == 3  # the new one is none of those that were had
    seen = numbers(NoiseDraws(1), *seeded(0), kept=[True, False, True])
    assert seen[0] == seen[1]
    assert seen[2] == seen[3] != seen[1]


def test_a_round_that_failed_is_begun_again() -> None:
    draws, (generator,) = NoiseDraws(1), seeded(0)
    state = generator.get_state()
    draws.begin(generator)
    torch.rand(5, generator=generator)
    generator.set_state(state)  # as the queue does after an error
    assert len(set(numbers(draws, generator, kept=[True, True]))) == 1


def test_what_is_forgotten_is_drawn_anew() -> None:
    draws, (generator,) = NoiseDraws(1), seeded(0)
    first = numbers(draws, generator, kept=[])
    draws.forget()
    assert draws.begin(generator) is None
    assert float(torch.rand(1, generator=generator)) != first[0]


def test_a_negative_number_of_draws_is_refused() -> None:
    with pytest.raises(ValueError, match="most: expected 0 draws or more, got -1"):
        NoiseDraws(-1)


@pytest.mark.parametrize(("most", "sizes"), [(0, [2, 2, 2]), (1, [2, 1, 1]), (2, [2, 2, 1])])
def test_the_original_is_denoised_once_a_draw(most: int, sizes: list[int]) -> None:
    unet = Counter()
    result = sample([NoiseDraws(most)], unet)
    history = result.probability_history[0]
    assert all(after < before for before, after in itertools.pairwise(history))  # all were kept
    assert unet.sizes == [size for size in sizes for _ in range(STEPS)]
    assert result.unet_calls == [sum(unet.sizes)]


@pytest.mark.parametrize("window", [None, (12, 12)])
def test_what_is_known_of_the_original_is_what_would_be_found_out_again(
    window: tuple[int, int] | None,
) -> None:
    known = sample([NoiseDraws(1), NoiseDraws(1)], window=window)
    found_out = sample([Forgetful(1), Forgetful(1)], window=window)
    torch.testing.assert_close(known.crops, found_out.crops, rtol=0, atol=1e-12)
    new = sample(None, window=window)
    assert not torch.allclose(known.crops[:1], new.crops, atol=1e-4)


def test_draws_go_on_from_one_call_to_the_next() -> None:
    (draws,), (generator,) = [NoiseDraws(1)], seeded(0)
    x_org, mask = faces(1)
    at_once = sample([NoiseDraws(1)])
    x_0, probability, calls = x_org, torch.ones(1).double(), 0
    for _ in range(3):
        result = run(
            x_org, mask, (0,), x_0=x_0, probability=probability, draws=[draws], max_rounds=1, threshold=0.0,
            error_correction=0.7, generators=[generator],
        )  # fmt: skip
        x_0, calls = result.crops, calls + result.unet_calls[0]
        probability = torch.tensor([result.probability_history[0][-1]]).double()
    torch.testing.assert_close(x_0, at_once.crops)
    assert calls == at_once.unet_calls[0]


def test_a_face_whose_original_is_known_does_not_depend_on_one_whose_is_not() -> None:
    together, alone = sample([NoiseDraws(1), NoiseDraws(0)]), sample([NoiseDraws(1)])
    torch.testing.assert_close(together.crops[:1], alone.crops, rtol=0, atol=1e-12)
    assert together.unet_calls == [STEPS * 4, STEPS * 6]


def test_without_a_correction_noise_is_always_new() -> None:
    once, never = sample([NoiseDraws(1)], error_correction=0.0), sample(None, error_correction=0.0)
    assert torch.equal(once.crops, never.crops)
