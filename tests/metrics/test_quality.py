from __future__ import annotations

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffusers_dedim.metrics.quality import Lpips, fsim, haarpsi, landmark_shift, mdsi, mean_ssim, psnr

MEASURES = [psnr, mean_ssim, haarpsi, fsim, mdsi]


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    original = torch.nn.functional.interpolate(smooth, size=(112, 112), mode="bicubic").clamp(-1, 1)
    noise = torch.randn(original.shape, generator=generator) * torch.tensor([0.02, 0.1])[:, None, None, None]
    return original, (original + noise).clamp(-1, 1)


def test_psnr_and_ssim_agree_with_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    original, changed = (((crops.double() + 1) * 127.5).numpy() for crops in pair)
    ours_psnr, ours_ssim = psnr(*pair), mean_ssim(*pair)
    for index in range(2):
        theirs = peak_signal_noise_ratio(original[index], changed[index], data_range=255)
        # 1e-9: both in float64, sums in another order
        assert ours_psnr[index].item() == pytest.approx(theirs, abs=1e-9)
        theirs = structural_similarity(
            original[index],
            changed[index],
            data_range=255,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        # 1e-6: piq's gaussian window is built in float32
        assert ours_ssim[index].item() == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_is_float64_per_face_and_sees_the_stronger_change(
    measure, pair: tuple[torch.Tensor, torch.Tensor]
) -> None:
    original, changed = pair
    weak, strong = measure(original, changed)
    assert measure(original, changed).dtype == torch.float64
    assert measure(original, changed).shape == (2,)
    assert (weak < strong) if measure is mdsi else (weak > strong)
    # each face alone gives what it gives in the batch
    torch.testing.assert_close(measure(original[1:], changed[1:])[0], strong)
    assert measure(original[:1], changed[:1]).shape == (1,)


@pytest.mark.parametrize(
    ("measure", "value"), [(psnr, torch.inf), (mean_ssim, 1), (haarpsi, 1), (fsim, 1), (mdsi, 0)]
)
def test_nothing_changed(measure, value: float, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    # 1e-6: the stabilising constants of HaarPSI and FSIM
    assert measure(pair[0], pair[0])[0].item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_wrong_input_is_named(measure, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    original, changed = pair
    with pytest.raises(
        ValueError, match=r"expected the same shape \[N, 3, H, W\], got \[2, 3, 112, 112\] and"
    ):
        measure(original, changed[:1])
    with pytest.raises(ValueError, match=r"expected values in \[-1, 1\], got -1 to 254"):
        measure(torch.full_like(original, -1.0), torch.full_like(changed, 254.0))


def test_landmark_shift_is_a_share_of_the_eye_distance() -> None:
    class Brightness(torch.nn.Module):
        """All points move right by the mean brightness; the outer eye corners are 40 px apart."""

        def forward(self, crops: torch.Tensor) -> torch.Tensor:
            points = torch.zeros(len(crops), 51, 2)
            points[:, 28, 0] = 40
            return points + torch.stack([crops.mean(dim=(1, 2, 3)), torch.zeros(len(crops))], 1)[:, None]

    original = torch.zeros(2, 3, 112, 112)
    changed = original + torch.tensor([0.0, 0.5])[:, None, None, None]
    assert landmark_shift(Brightness(), original, changed).tolist() == pytest.approx([0, 0.5 / 40], abs=1e-7)


@pytest.mark.slow
def test_lpips_takes_the_trunk_from_a_file(tmp_path, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    reference = pytest.importorskip("lpips")
    from torchvision.models import alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = alexnet(weights=None)
    torch.save(trunk.state_dict(), tmp_path / "alexnet.pth")
    measure = Lpips(tmp_path / "alexnet.pth")
    theirs = reference.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for part in (getattr(theirs.net, f"slice{place}") for place in range(1, 6)):
        for name, layer in part.named_children():
            layer.load_state_dict(trunk.features[int(name)].state_dict())
    expected = theirs(*pair).detach().double().flatten()
    torch.testing.assert_close(measure(*pair), expected)
    assert measure(pair[0], pair[0]).tolist() == [0, 0]
    assert 0 < measure(*pair)[0] < measure(*pair)[1]


def test_lpips_says_what_is_wrong_with_its_file(tmp_path) -> None:
    pytest.importorskip("lpips")
    with pytest.raises(FileNotFoundError, match=r"lpips: there is no file .*none\.pth.*alexnet-owt-7be5be79"):
        Lpips(tmp_path / "none.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: expected torchvision's AlexNet weights: KeyError"):
        Lpips(tmp_path / "other.pth")
