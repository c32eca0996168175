from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from toy_sampling import faces, seeded, toy_unet
from toys import ToyEncoder

from diffusers_dedim.diffusion.denoisers import FACE_WINDOW, WindowedDenoiser, round_denoiser, window_for
from diffusers_dedim.diffusion.sampling import SampleResult, sample_dedim
from diffusers_dedim.diffusion.schedule import make_scheduler, predict_x_0
from diffusers_dedim.diffusion.solvers import prepare_scheduler

SIZE = 12


def box(rows: slice, columns: slice, side: int = 112) -> Tensor:
    mask = torch.zeros(1, 1, side, side)
    mask[..., rows, columns] = 0.5
    return mask


def levels(count: int) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(block_out_channels=(8,) * count))


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(slice(30, 108), slice(16, 98)), (slice(0, 60), slice(0, 20)), (slice(100, 112), slice(60, 112))],
)
def test_the_window_holds_the_mask_wherever_it_lies(rows: slice, columns: slice) -> None:
    mask, seen = box(rows, columns), []

    def unet(x_t: Tensor, timestep: int) -> Tensor:
        seen.append(x_t.shape)
        return torch.full_like(x_t, 7.0)

    x_t = torch.randn(1, 3, 112, 112)
    eps = WindowedDenoiser(unet, make_scheduler(), FACE_WINDOW, torch.zeros_like(x_t), mask)(x_t, 99)
    assert seen == [(1, 3, *FACE_WINDOW)]
    inside = eps == 7
    assert inside[(mask > 0).expand_as(eps)].all()
    assert int(inside[0, 0].sum()) == FACE_WINDOW[0] * FACE_WINDOW[1]


def test_outside_the_window_the_estimate_is_the_original() -> None:
    scheduler, mask = make_scheduler(), box(slice(30, 60), slice(30, 60))
    x_org = torch.rand(1, 3, 112, 112) * 2 - 1
    x_t = scheduler.add_noise(x_org, torch.randn_like(x_org), torch.tensor([99])) + 0.1
    denoise = WindowedDenoiser(lambda x, t: torch.full_like(x, torch.nan), scheduler, (40, 40), x_org, mask)
    eps = denoise(x_t, 99)
    estimate = predict_x_0(scheduler, eps, torch.tensor(99), x_t)
    outside = ~torch.isnan(eps)
    assert int((~outside)[0, 0].sum()) == 40 * 40
    torch.testing.assert_close(estimate[outside], x_org[outside], atol=1e-4, rtol=0)


def test_a_mask_larger_than_the_window_gets_the_whole_crop_and_the_others_theirs() -> None:
    masks = torch.cat([box(slice(40, 60), slice(40, 60)), box(slice(5, 110), slice(2, 100))])
    sizes = []

    def unet(x_t: Tensor, timestep: int) -> Tensor:
        sizes.append(tuple(x_t.shape))
        return x_t.mean((1, 2, 3), keepdim=True).expand_as(x_t)

    x_org, x_t = torch.zeros(4, 3, 112, 112), torch.randn(4, 3, 112, 112)
    twice = torch.cat([masks, masks])  # as with their originals beside them
    both = WindowedDenoiser(unet, make_scheduler(), FACE_WINDOW, x_org, twice)(x_t, 99)
    assert sizes == [(2, 3, *FACE_WINDOW), (2, 3, 112, 112)]
    for face in range(2):
        rows = [face, face + 2]
        alone = WindowedDenoiser(unet, make_scheduler(), FACE_WINDOW, x_org[rows], twice[rows])
        torch.testing.assert_close(alone(x_t[rows], 99), both[rows])


def test_an_empty_mask_has_a_window_too() -> None:
    mask, x_t = torch.zeros(1, 1, 112, 112), torch.randn(1, 3, 112, 112)
    eps = WindowedDenoiser(lambda x, t: 0 * x, make_scheduler(), FACE_WINDOW, 0 * x_t, mask)(x_t, 99)
    assert torch.isfinite(eps).all()


def run(window: tuple[int, int] | None, error_correction: float) -> SampleResult:
    x_org, _ = faces(2)
    mask = torch.zeros(2, 1, SIZE, SIZE, dtype=x_org.dtype)
    mask[0, :, 2:7, 3:8] = 1
    mask[1, :, 5:12, 0:6] = 0.5
    return sample_dedim(
        x_org,
        mask,
        unet=lambda x_t, t: toy_unet(x_t.mean((2, 3), keepdim=True), t) + 0.1 * x_t,
        scheduler=prepare_scheduler(make_scheduler(), [60, 30, 10]),
        face_encoder=ToyEncoder(SIZE).double().requires_grad_(False),
        threshold=0.0,
        max_rounds=2,
        generators=seeded(0, 1),
        error_correction=error_correction,
        window=window,
    )


@pytest.mark.parametrize("error_correction", [0.0, 0.7])
def test_a_window_of_the_whole_crop_changes_nothing(error_correction: float) -> None:
    whole, windowed = run(None, error_correction), run((SIZE, SIZE), error_correction)
    torch.testing.assert_close(windowed.crops, whole.crops)
    assert windowed.unet_calls == whole.unet_calls


def test_with_a_smaller_one_the_rest_stays_the_original() -> None:
    x_org, _ = faces(2)
    crops = run((8, 8), 0.7).crops
    assert torch.equal(crops[0, :, :2], x_org[0, :, :2])
    assert not torch.equal(crops[0, :, 2:7, 3:8], x_org[0, :, 2:7, 3:8])


def test_the_window_fits_the_denoiser() -> None:
    assert window_for(levels(4), (112, 112)) == (88, 96)
    assert window_for(levels(5), (112, 112)) == (96, 96)
    assert window_for(levels(7), (112, 112)) is None  # 128 px are more than there are
    assert window_for(levels(4), (88, 96)) is None
    assert window_for(torch.nn.Identity(), (112, 112)) is None  # nobody knows what fits


def test_neither_window_nor_share_leaves_the_denoiser_itself() -> None:
    x_org = torch.zeros(1, 3, SIZE, SIZE)
    denoise = round_denoiser(
        toy_unet, make_scheduler(), x_org, x_org[:, :1], x_org, seeded(1), [None], 0.0, None
    )
    assert denoise is toy_unet
