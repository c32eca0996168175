from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import ToyEncoder

from diffusers_dedim.baselines import TIP_IM_PRESETS, TipImPreset, TipImResult, apply_fgsm, apply_tip_im
from diffusers_dedim.baselines.levels import epsilon_ball, from_levels, to_levels
from diffusers_dedim.baselines.tip_im import (
    candidate_gain,
    l2_step,
    maximum_mean_discrepancy,
    normalise_mean,
    random_warps,
    squared_distance,
    target_gradients,
    warp_images,
)

SIZE = 16
QUICK = TipImPreset(iterations=12)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def random_crops(count: int, seed: int = 0) -> Tensor:
    """Mid tones with a few values at the ends of the range, where the ball is cut."""
    crops = torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    crops[:, :, 0], crops[:, :, 1] = -1, 1
    return crops


def random_noise(x_org: Tensor) -> Tensor:
    """The same bound, without looking at the recogniser."""
    noise = torch.randn(x_org.shape, generator=torch.Generator().manual_seed(7)).sign()
    return (x_org + 12 / 127.5 * noise).clamp(-1, 1)


def lost(before: Tensor, after: Tensor) -> Tensor:
    """How much of the similarity is gone, [N]."""
    return 1 - (before * after).sum(1)


@pytest.fixture
def encoder() -> ToyEncoder:
    return ToyEncoder(SIZE).requires_grad_(False)


@pytest.fixture
def targets(encoder: ToyEncoder) -> Tensor:
    return encoder(random_crops(4, seed=9))


def run(encoder: ToyEncoder, targets: Tensor, x_org: Tensor, seeds: list[int], **changes: Any) -> TipImResult:
    return apply_tip_im(
        x_org,
        face_encoder=encoder,
        targets=targets,
        settings=replace(QUICK, **changes),
        generators=seeded(*seeds),
    )


def test_the_published_numbers() -> None:
    published = TIP_IM_PRESETS["published"]
    assert (published.epsilon, published.iterations, published.momentum) == (12, 100, 1)
    assert published.step_size == pytest.approx(0.18)
    assert published.diversity == (0.01, 0.1)
    assert TIP_IM_PRESETS["weak"].epsilon < published.epsilon < TIP_IM_PRESETS["strong"].epsilon


def test_the_step_has_the_norm_of_the_formula() -> None:
    velocities = torch.randn(2, 3, 3, 4, 4, dtype=torch.float64)
    velocities[1, 2] = 0
    steps = l2_step(velocities, 0.18)
    for face in range(2):
        for target in range(3):
            g = velocities[face, target].flatten()
            expected = 0.18 * 48**0.5 * g / g.norm() if g.any() else g
            # float64 rounding
            torch.testing.assert_close(steps[face, target].flatten(), expected, atol=1e-14, rtol=1e-12)
    assert float(steps[0, 0].square().mean().sqrt()) == pytest.approx(0.18)


def test_gradients_are_divided_by_their_mean_magnitude() -> None:
    gradients = torch.randn(2, 3, 3, 4, 4, dtype=torch.float64)
    gradients[0, 1] = 0
    normalised = normalise_mean(gradients)
    torch.testing.assert_close(normalised[1, 2], gradients[1, 2] / gradients[1, 2].abs().mean())
    assert not normalised[0, 1].any()
    assert normalised[1].abs().mean((1, 2, 3)).tolist() == pytest.approx([1, 1, 1])


def test_the_gain_equals_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.nn.functional.normalize(  # noqa: E731
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )
    embeddings, reference, targets = draw(2, 3, 6), draw(2, 6), draw(4, 6)
    gains = candidate_gain(embeddings, reference, targets)
    for face in range(2):
        for candidate in range(3):
            e = embeddings[face, candidate]
            away = torch.linalg.norm(e - reference[face])
            best = max(torch.exp(away - torch.linalg.norm(e - target)) for target in targets)
            assert float(gains[face, candidate]) == pytest.approx(float(torch.log(1 + best)), abs=1e-12)


def test_the_gradient_is_that_of_the_loss(encoder: ToyEncoder, targets: Tensor) -> None:
    """Central differences of the loss as written in docs/baselines.md, in float64."""
    encoder, targets = encoder.double(), targets.double()
    x_org = random_crops(2).double()
    original, reference, warps = to_levels(x_org), encoder(x_org), random_warps(seeded(0, 1), (0.01, 0.1))
    levels, gamma = original + torch.randn(original.shape, dtype=torch.float64), 0.3

    def loss(x: Tensor, face: int, target: int) -> float:
        seen = warp_images(warp_images(x[None], warps[0, face : face + 1]), warps[1, face : face + 1])
        embedding = encoder(from_levels(seen))[0]
        towards = (embedding - targets[target]).square().sum()
        away = (embedding - reference[face]).square().sum()
        sets = [x.flatten()[None, None], original[face].flatten()[None, None]]
        return float(towards - away + gamma * maximum_mean_discrepancy(*sets))

    gradients = target_gradients(levels, original, encoder, reference, targets, warps, gamma)
    assert gradients.shape == (2, 4, 3, SIZE, SIZE)
    direction = torch.randn(3, SIZE, SIZE, dtype=torch.float64)
    for face, target in ((0, 0), (1, 3)):
        ahead, behind = (loss(levels[face] + sign * 1e-4 * direction, face, target) for sign in (1, -1))
        slope = float((gradients[face, target] * direction).sum())
        # central differences: error of the order of the squared step, here under a millionth
        assert slope == pytest.approx((ahead - behind) / 2e-4, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_the_cotangents_give_what_differentiating_each_loss_gives(
    encoder: ToyEncoder, targets: Tensor, gamma: float
) -> None:
    x_org = random_crops(2)
    original, reference, warps = to_levels(x_org), encoder(x_org), random_warps(seeded(0, 1), (0.01, 0.1))
    start = original + torch.randn(original.shape, generator=seeded(4)[0])
    levels = start.clone().requires_grad_()
    embedding = encoder(from_levels(warp_images(warp_images(levels, warps[0]), warps[1])))
    natural = maximum_mean_discrepancy(levels.flatten(1)[:, None], original.flatten(1)[:, None])
    expected = []
    for target in targets:
        loss = squared_distance(embedding, target) - squared_distance(embedding, reference) + gamma * natural
        expected.append(torch.autograd.grad(loss.sum(), levels, retain_graph=True)[0])
    gradients = target_gradients(start, original, encoder, reference, targets, warps, gamma)
    # float32: f - f_t less f - f_0 is f_0 - f_t up to rounding of values of about 1
    largest = float(gradients.abs().max())
    torch.testing.assert_close(gradients, torch.stack(expected, 1), atol=1e-5 * largest, rtol=1e-4)


def test_equals_a_plain_loop(encoder: ToyEncoder, targets: Tensor) -> None:
    """One face, one target at a time, with the parts in their written order."""
    encoder, targets, x_org = encoder.double(), targets.double(), random_crops(1).double()
    settings = TipImPreset(iterations=5, gamma=0.1, momentum=0.9)
    original, reference, generator = to_levels(x_org), encoder(x_org), seeded(3)
    low, high = (original - 12).clamp(min=0), (original + 12).clamp(max=255)
    x, velocity, chosen = original, torch.zeros_like(original), []
    for _ in range(5):
        warps = random_warps(generator, (0.01, 0.1))
        gradients = target_gradients(x, original, encoder, reference, targets, warps, 0.1)[0]
        options = []
        for gradient in gradients:
            v = 0.9 * velocity + gradient / gradient.abs().mean()
            step = 1.5 * 12 / 5 * v / v.norm() * (3 * SIZE * SIZE) ** 0.5
            candidate = torch.minimum(torch.maximum(x - step, low), high)
            gain = candidate_gain(encoder(from_levels(candidate))[None], reference, targets)
            options.append((float(gain), candidate, v))
        best = max(range(len(options)), key=lambda index: options[index][0])
        _, x, velocity = options[best]
        chosen.append(best)
    result = apply_tip_im(
        x_org, face_encoder=encoder, targets=targets, settings=settings, generators=seeded(3)
    )
    # float64 rounding over 5 steps
    torch.testing.assert_close(result.crops, from_levels(x), atol=1e-10, rtol=0)
    assert result.targets == [chosen]


def test_stays_within_epsilon_and_8_bits_and_moves_to_a_target(encoder: ToyEncoder, targets: Tensor) -> None:
    x_org = random_crops(3)
    result = run(encoder, targets, x_org, [0, 1, 2])
    change = to_levels(result.crops) - to_levels(x_org)
    assert float(change.abs().max()) <= 12 + 1e-3  # float32 rounding of values up to 255
    assert float(result.crops.abs().max()) <= 1
    assert float(change.abs().max()) > 6
    before, after = encoder(x_org), encoder(result.crops)
    assert (lost(before, after) > 5 * lost(before, encoder(random_noise(x_org)))).all()
    assert ((after @ targets.T).amax(1) > (before @ targets.T).amax(1)).all()
    assert all(len(steps) == 12 and set(steps) <= {0, 1, 2, 3} for steps in result.targets)


def test_more_noise_moves_further_and_mmd_holds_back(encoder: ToyEncoder, targets: Tensor) -> None:
    x_org = random_crops(1)

    def rms(**changes: Any) -> float:
        return float((run(encoder, targets, x_org, [0], **changes).crops - x_org).square().mean().sqrt())

    assert rms(epsilon=6.0) < rms() < rms(epsilon=24.0)
    assert rms(gamma=100.0) < rms()


def test_a_batch_equals_singles(encoder: ToyEncoder, targets: Tensor) -> None:
    encoder, targets, x_org = encoder.double(), targets.double(), random_crops(3).double()
    together = run(encoder, targets, x_org, [1, 2, 3])
    for face, seed in enumerate((1, 2, 3)):
        alone = run(encoder, targets, x_org[face : face + 1], [seed])
        # float64: another order of sums in the matrix product
        torch.testing.assert_close(together.crops[face], alone.crops[0], atol=1e-9, rtol=0)
        assert together.targets[face] == alone.targets[0]


def test_same_seed_same_noise(encoder: ToyEncoder, targets: Tensor) -> None:
    one, two, other = (run(encoder, targets, random_crops(1), [seed]).crops for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(encoder: ToyEncoder, targets: Tensor, mode: Any) -> None:
    expected = run(encoder, targets, random_crops(1), [0]).crops
    with mode():
        assert torch.equal(run(encoder, targets, random_crops(1), [0]).crops, expected)


def test_a_constant_recogniser_changes_nothing(targets: Tensor) -> None:
    def constant(crops: Tensor) -> Tensor:
        return targets[:1].expand(len(crops), -1) + 0 * crops.sum((1, 2, 3))[:, None]

    x_org = random_crops(1)
    result = apply_tip_im(
        x_org, face_encoder=constant, targets=targets[1:], settings=QUICK, generators=seeded(0)
    )
    torch.testing.assert_close(result.crops, x_org, atol=1e-6, rtol=0)  # to levels and back, float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "epsilon: expected grey levels above 0 and up to 255, got 0.0"),
        ({"iterations": 0}, "iterations: expected a whole number of at least 1, got 0"),
        ({"gamma": float("nan")}, "gamma: expected a finite number of 0 or more, got nan"),
        ({"momentum": -1.0}, "momentum: expected a finite number of 0 or more, got -1.0"),
        ({"diversity": (0.1, 0.01)}, "diversity: expected two standard deviations"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TipImPreset(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_org": torch.zeros(3, 4, 4)},
            r"x_org: expected float crops \[N, 3, H, W\], got torch.float32 \[3, 4, 4\]",
        ),
        ({"x_org": torch.full((1, 3, SIZE, SIZE), 7.0)}, r"x_org: expected values in \[-1, 1\], got 7 to 7"),
        ({"generators": []}, "generators: expected 1, one a face, got 0"),
        ({"targets": torch.zeros(0, 16)}, r"targets: expected embeddings \[K, 16\]"),
        ({"targets": torch.zeros(2, 5)}, r"targets: expected embeddings \[K, 16\] .*got \[2, 5\]"),
    ],
)
def test_wrong_arguments_are_refused(
    encoder: ToyEncoder, targets: Tensor, changes: dict[str, Any], message: str
) -> None:
    arguments = {"x_org": random_crops(1), "targets": targets, "generators": seeded(0), **changes}
    with pytest.raises(ValueError, match=message):
        apply_tip_im(arguments.pop("x_org"), face_encoder=encoder, settings=QUICK, **arguments)


def test_the_ball_is_cut_to_8_bits() -> None:
    low, high = epsilon_ball(torch.tensor([0.0, 5.0, 128.0, 250.0]), 12.0)
    assert low.tolist() == [0, 0, 116, 238]
    assert high.tolist() == [12, 17, 140, 255]


def test_warps_are_as_drawn_and_black_outside() -> None:
    warps = random_warps(seeded(5), (0.05, 0.05))
    linear, rotation = warps[:, 0]
    assert 0 < float((linear - torch.eye(2, 3)).abs().max()) < 0.3  # 6 standard deviations
    # a rotation, up to float64 rounding
    torch.testing.assert_close(rotation[:, :2] @ rotation[:, :2].T, torch.eye(2, dtype=torch.float64))
    still = torch.eye(2, 3)[None]
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(warp_images(image, still), image)
    shifted = warp_images(torch.ones(1, 3, 8, 8), still + torch.tensor([[0, 0, 0.3], [0, 0, 0]]))
    assert set(shifted.unique().tolist()) == {0, 1}  # half covered pixels are black too
    assert shifted[0, 0, 0].tolist() == [1] * 6 + [0] * 2


def test_no_spread_means_no_warp() -> None:
    warps = random_warps(seeded(0), (0.0, 0.0))
    assert torch.equal(warps, torch.eye(2, 3, dtype=torch.float64).expand(2, 1, 2, 3))


def test_fgsm_stays_within_epsilon_and_lowers_the_similarity(encoder: ToyEncoder) -> None:
    x_org = random_crops(2)
    crops = apply_fgsm(x_org, face_encoder=encoder, generators=seeded(0, 1), epsilon=12.0)
    change = to_levels(crops) - to_levels(x_org)
    assert float(change.abs().max()) <= 12 + 1e-3  # float32 rounding of values up to 255
    assert float(crops.abs().max()) <= 1
    before, after = encoder(x_org), encoder(crops)
    assert (lost(before, after) > 5 * lost(before, encoder(random_noise(x_org)))).all()
    alone = apply_fgsm(x_org[1:], face_encoder=encoder, generators=seeded(1), epsilon=12.0)
    torch.testing.assert_close(crops[1:], alone)


def test_fgsm_equals_the_formula(encoder: ToyEncoder) -> None:
    encoder, x_org = encoder.double(), random_crops(1).double()
    original = to_levels(x_org)
    noise = torch.randn(x_org.shape, generator=seeded(0)[0], dtype=torch.float64)
    start = (original + 4 * noise.sign()).clamp(original - 8, original + 8).clamp(0, 255).requires_grad_()
    (encoder(from_levels(start)) * encoder(x_org)).sum().backward()
    expected = (start - 4 * start.grad.sign()).detach().clamp(0, 255)
    crops = apply_fgsm(x_org, face_encoder=encoder, generators=seeded(0), epsilon=8.0)
    torch.testing.assert_close(to_levels(crops), expected)


def test_fgsm_checks_epsilon(encoder: ToyEncoder) -> None:
    with pytest.raises(ValueError, match="epsilon: expected grey levels above 0 and up to 255, got -1"):
        apply_fgsm(random_crops(1), face_encoder=encoder, generators=seeded(0), epsilon=-1)
