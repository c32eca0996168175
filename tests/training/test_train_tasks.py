from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toy_teacher import mean_colour_teacher
from toys import MEAN_FACE, tiny_unet
from typer.testing import CliRunner

from diffusers_dedim import LandmarkRegressor, MobileFaceNet, make_scheduler
from diffusers_dedim.cli.train import app
from diffusers_dedim.models.landmarks import MIRROR_PERMUTATION
from diffusers_dedim.models.unet import make_unet
from diffusers_dedim.training import unet as unet_module
from diffusers_dedim.training.augment import add_noise, augment, blend_faces, fill_unknown
from diffusers_dedim.training.checkpoint import load_network
from diffusers_dedim.training.config import EncoderConfig, LandmarkConfig, UNetConfig
from diffusers_dedim.training.data import FaceCrops
from diffusers_dedim.training.encoder import EncoderTask
from diffusers_dedim.training.landmarks import LandmarkTask, landmark_errors, mirror_landmarks
from diffusers_dedim.training.teacher import Teacher, teacher_embeddings
from diffusers_dedim.training.unet import UNetTask, x_0_psnr

SETTINGS: dict[str, Any] = {"output_dir": "out", "data": "faces", "batch_size": 2, "precision": "no"}


def one_step(task: Any) -> float:
    """One optimiser step on the first batch; the loss of the same batch must fall."""
    task.model.train()
    batch = next(task.batches(0))
    optimizer = torch.optim.SGD(task.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = task.loss(task.model, batch, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.model.parameters())
    assert losses[1] < losses[0]
    return losses[0]


def tiny_unet_task(data: FaceCrops, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> UNetTask:
    monkeypatch.setattr(unet_module, "make_unet", lambda size: tiny_unet())
    return UNetTask(data, data, UNetConfig(**SETTINGS, crop_size=32, val_images=2, **changes))


def test_unet_task(data: FaceCrops, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny_unet_task(data, monkeypatch)
    assert one_step(task) == pytest.approx(1, abs=0.5)  # an untrained network predicts about 0 of N(0, 1)
    figures = task.validate(task.model.eval())
    assert sorted(figures) == ["psnr_t200", "psnr_t25", "psnr_t50", "psnr_t99"]
    assert figures["psnr_t25"] > figures["psnr_t50"] > figures["psnr_t99"] > figures["psnr_t200"]


def test_the_shipped_unet_takes_crops_of_both_sizes() -> None:
    model = make_unet().eval()
    for size in (64, 112):
        with torch.no_grad():
            assert model(torch.zeros(1, 3, size, size), 5).sample.shape == (1, 3, size, size)
    assert 4e6 < sum(p.numel() for p in model.parameters()) < 5.5e6  # "4.8 M" in its docstring


@pytest.mark.parametrize(
    ("changes", "crop_size", "text"),
    [
        (
            {"num_class_embeds": 10},
            64,
            "initial_weights: the UNet asks for a class of each image, expected one",
        ),
        ({"levels": 5}, 56, "crop_size: expected a multiple of 16, which a UNet of 5 levels needs, got 56."),
        (
            {"levels": 6},
            64,
            "initial_weights: the UNet has 6 levels, and 112 px is no multiple of 32; expected at",
        ),
    ],
)
def test_a_unet_that_does_not_fit_is_refused(
    data: FaceCrops, changes: dict[str, Any], crop_size: int, text: str
) -> None:
    levels = changes.pop("levels", 2)
    model = UNet2DModel(
        sample_size=112,
        layers_per_block=1,
        block_out_channels=(4,) * levels,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        add_attention=False,
        **changes,
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        UNetTask(data, data, UNetConfig(**SETTINGS, crop_size=crop_size), model=model)


def test_a_batch_larger_than_the_data_is_refused_with_the_task(data: FaceCrops) -> None:
    with pytest.raises(ValueError, match=re.escape("batch_size: 7 is more than the 6 images of the data.")):
        LandmarkTask(data, data, LandmarkConfig(**{**SETTINGS, "batch_size": 7}))


def test_a_regressor_of_other_landmarks_is_refused(data: FaceCrops) -> None:
    with pytest.raises(ValueError, match=r"^initial_weights: the regressor has 68 landmarks, expected 51\."):
        LandmarkTask(data, data, LandmarkConfig(**SETTINGS), model=LandmarkRegressor(68))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("lost", "lacks 1 weights, mean_shape among them"),
        ("more", "config.json, 1 weights, other among them"),
        ("shape", "cannot be loaded ("),
        ("file", "cannot be loaded ("),
    ],
)
def test_weights_that_are_not_all_there_are_refused(tmp_path: Path, change: str, text: str) -> None:
    LandmarkRegressor().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    if change == "lost":
        del weights["mean_shape"]
    else:
        weights["mean_shape" if change == "shape" else "other"] = torch.zeros(3)
    save_file(weights, path, {"format": "pt"})
    if change == "file":
        path.unlink()
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        load_network("initial_weights", tmp_path, LandmarkRegressor)
    assert str(caught.value).startswith(f"initial_weights: {tmp_path} ")


def test_the_base_unet_is_of_the_size_that_is_said() -> None:
    with torch.device("meta"):
        model = make_unet("base")
    assert 25.5e6 < sum(p.numel() for p in model.parameters()) < 26.5e6  # "26 M" in its docstring


def test_min_snr_weighs_low_noise_less(data: FaceCrops, monkeypatch: pytest.MonkeyPatch) -> None:
    """min(SNR, gamma) / SNR with SNR = ac / (1 - ac), here in float64."""
    task = tiny_unet_task(data, monkeypatch, loss_weighting="min-snr", min_snr_gamma=5.0)
    timesteps = torch.tensor([0, 25, 99, 300, 999])
    ac = make_scheduler().alphas_cumprod[timesteps].double()
    snr = ac / (1 - ac)
    expected = torch.minimum(snr, torch.tensor(5.0)) / snr
    # 1 - ac is 4e-5 at t = 0: float32 keeps three digits of it
    torch.testing.assert_close(task._loss_weight(timesteps).double(), expected, rtol=3e-3, atol=0)
    assert expected[0] < 1e-3
    assert expected[-1] == 1
    assert tiny_unet_task(data, monkeypatch)._loss_weight(timesteps).tolist() == [1] * 5
    one_step(task)


def test_unknown_pixels_do_not_count(data: FaceCrops, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny_unet_task(data, monkeypatch, full_size_share=1.0)
    batch = next(task.batches(0))
    first = task.loss(task.model, batch, torch.Generator().manual_seed(0))
    batch["known"] = torch.zeros_like(batch["known"])
    assert task.loss(task.model, batch, torch.Generator().manual_seed(0)).item() == 0
    assert first.item() > 0


def test_faces_and_their_known_pixels_are_cut_alike(data: FaceCrops, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny_unet_task(data, monkeypatch, full_size_share=0.0)
    known = torch.rand(4, 1, 112, 112, generator=torch.Generator().manual_seed(0)) > 0.5
    for seed in range(5):
        image, cut = task._augment(
            known.float().expand(-1, 3, -1, -1), known, torch.Generator().manual_seed(seed)
        )
        assert image.shape == (4, 3, 32, 32)
        assert torch.equal(image[:, :1] > 0.5, cut)


def test_low_timesteps_are_preferred(data: FaceCrops, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny_unet_task(data, monkeypatch, low_timestep_share=0.6)
    timesteps = task._timesteps(20_000, torch.Generator().manual_seed(0))
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999
    # 0.6 + 0.4 * 0.2; four standard deviations of a share of 20,000
    assert (timesteps < 200).float().mean().item() == pytest.approx(0.68, abs=0.0132)


@pytest.mark.parametrize("size", [12, 60, 120])
def test_a_crop_size_the_unet_cannot_take_is_refused(size: int) -> None:
    with pytest.raises(
        ValueError, match=rf"crop_size: expected a multiple of 8 from 16 to 112, got {size}\."
    ):
        UNetConfig(**SETTINGS, crop_size=size)


class PerfectDenoiser(nn.Module):
    """Knows the clean faces, so that its x_0 estimate is exact; the PSNR is then that of rounding."""

    def __init__(self, data: FaceCrops) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.x_0 = torch.stack([data[i]["image"] for i in range(len(data))]).float() / 127.5 - 1

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Any:
        ac = make_scheduler().alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        return SimpleNamespace(sample=(x_t - ac.sqrt() * self.x_0[: len(x_t)]) / (1 - ac).sqrt())


def test_psnr_of_a_perfect_denoiser_is_that_of_float32(data: FaceCrops) -> None:
    assert min(x_0_psnr(PerfectDenoiser(data), data, 6).values()) > 100


def without_known_pixels(data: FaceCrops, hidden: Collection[int]) -> FaceCrops:
    changed = FaceCrops(data.source, keep_in_memory=True)
    for index in hidden:
        changed[index]["known"][:] = False
    return changed


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_face_without_known_pixels_does_not_count(data: FaceCrops, batch_size: int) -> None:
    unet = tiny_unet().eval()
    each = [
        x_0_psnr(unet, without_known_pixels(data, {*range(6)} - {index}), 6, batch_size)
        for index in (0, 1, 4)
    ]
    some = x_0_psnr(unet, without_known_pixels(data, {2, 3, 5}), 6, batch_size)
    for name, value in some.items():
        # sums of float32 numbers
        assert value == pytest.approx(sum(figures[name] for figures in each) / 3, rel=1e-6)


def test_validation_faces_without_known_pixels_are_refused_before_training(
    data: FaceCrops, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_unet_task(without_known_pixels(data, {0, 1}), monkeypatch)  # two faces are looked at
    text = f"data: no pixel of the first 2 validation faces of {data.source} is known (alpha 0 everywhere); expected"
    for refused in (task.identity, lambda: task.validate(task.model)):
        with pytest.raises(ValueError, match=re.escape(text)):
            refused()
    tiny_unet_task(without_known_pixels(data, {0}), monkeypatch).identity()


def encoder_task(data: FaceCrops, teacher: Path) -> EncoderTask:
    torch.manual_seed(0)
    plain = teacher_embeddings(teacher, data, teacher.with_suffix(".npz"))
    config = EncoderConfig(**SETTINGS, teacher=str(teacher))
    return EncoderTask(data, data, Teacher(teacher), plain, plain, config, student=MobileFaceNet(2))


def test_encoder_task(data: FaceCrops, tmp_path: Path) -> None:
    task = encoder_task(data, mean_colour_teacher(tmp_path / "teacher.onnx"))
    assert [size for size, _, _ in task.targets.projections] == [28, 7]
    one_step(task)
    figures = task.validate(task.model.eval())
    assert sorted(figures) == ["cosine_to_teacher", "impostor_correlation"]
    assert all(-1 <= value <= 1 for value in figures.values())


def test_teacher_gives_the_last_sum_of_each_size(data: FaceCrops, tmp_path: Path) -> None:
    teacher = Teacher(mean_colour_teacher(tmp_path / "teacher.onnx"))
    images = data[0]["image"][None].float() / 127.5 - 1
    embedding, stages = teacher(images)
    # means of 12,544 float32 numbers, added in another order
    torch.testing.assert_close(embedding, nn.functional.normalize(images.mean((2, 3))), rtol=1e-3, atol=1e-4)
    assert [tuple(stage.shape) for stage in stages] == [(1, 3, 28, 28), (1, 3, 7, 7)]
    torch.testing.assert_close(stages[1], 4 * nn.functional.avg_pool2d(images, 16))


def train_from(start: Path, name: str, faces: Path, run: Path, *more: str) -> Any:
    """One step of at most 1e-12 a weight from saved weights, by the command."""
    words = [
        name,
        "--data",
        str(faces),
        "-o",
        str(run),
        "--initial-weights",
        str(start),
        "--keep-in-memory",
        *more,
    ]
    words += ["--max-steps", "1", "--batch-size", "2", "--precision", "no", "--learning-rate", "1e-12"]
    return CliRunner().invoke(app, words)


@pytest.mark.slow
def test_training_from_given_weights_starts_there(faces: Path, tmp_path: Path) -> None:
    teacher = mean_colour_teacher(tmp_path / "teacher.onnx")
    start, run = tmp_path / "start", tmp_path / "run"
    MobileFaceNet(2).save_pretrained(start)
    result = train_from(start, "encoder", faces, run, "--teacher", str(teacher))
    assert result.exit_code == 0, result.output
    before, after = (MobileFaceNet.from_pretrained(folder) for folder in (start, run / "model"))
    torch.testing.assert_close(after.head[0][0].weight, before.head[0][0].weight, rtol=0, atol=1e-9)


def test_unet_and_landmarks_start_from_given_weights(faces: Path, tmp_path: Path) -> None:
    network = {"in_channels": 3, "out_channels": 3, "block_out_channels": (16, 16), "norm_num_groups": 8}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    small = UNet2DModel(sample_size=112, layers_per_block=1, **network, **blocks)
    points = LandmarkRegressor()
    points.mean_shape.fill_(3.0)  # not that of the data
    for name, model, weights in (("unet", small, "conv_in.weight"), ("landmarks", points, "mean_shape")):
        start, run = tmp_path / f"{name}-start", tmp_path / name
        model.save_pretrained(start)
        result = train_from(start, name, faces, run, "--val-images", "2")
        assert result.exit_code == 0, result.output
        after = type(model).from_pretrained(run / "model").state_dict()[weights]
        torch.testing.assert_close(after, model.state_dict()[weights], rtol=0, atol=1e-9)


def test_weights_of_another_network_are_refused_before_training(faces: Path, tmp_path: Path) -> None:
    LandmarkRegressor().save_pretrained(tmp_path / "points")
    result = train_from(tmp_path / "points", "unet", faces, tmp_path / "run")
    assert result.exit_code != 0
    assert "holds a LandmarkRegressor, expected a UNet2DModel" in str(result.exception) + result.output
    assert not (tmp_path / "run" / "model").exists()
    six = UNet2DModel(
        sample_size=112,
        out_channels=6,
        layers_per_block=1,
        block_out_channels=(16,),
        norm_num_groups=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    data = FaceCrops(str(faces))
    with pytest.raises(ValueError, match=r"\(3, 6\) channels in and out, expected \(3, 3\)"):
        UNetTask(data, data, UNetConfig("", data=str(faces)), model=six)


def test_augmentation_depends_on_the_generator_alone() -> None:
    images = (torch.rand(4, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 255).byte()
    first, again, other = (augment(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == images.shape


def test_what_the_photo_does_not_reach_is_filled_from_a_complete_crop() -> None:
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    images[0], images[1], images[2] = 100, 40, 200
    images[0, :, :, :8] = 0  # repeated edge
    images[1, :, 16:] = (
        60  # the donor's own structure, where the mean over the known part of the first is taken
    )
    known = torch.ones(3, 1, 32, 32, dtype=torch.bool)
    known[0, :, :, :8] = False
    known[2, :, 2:] = False
    filled = fill_unknown(images, known, torch.Generator().manual_seed(0), share=1.0)
    assert torch.equal(filled[1], images[1])  # complete: nothing to fill
    assert torch.equal(filled[0, :, :, 16:], images[0, :, :, 16:])  # far from the seam
    assert filled[0, :, 0, 0].tolist() == [90] * 3  # 40, shifted by 100 - (40 + 60) / 2
    assert filled[0, :, 31, 0].tolist() == [110] * 3
    untouched = fill_unknown(images, known, torch.Generator().manual_seed(0), share=0.0)
    assert torch.equal(untouched, images)
    nothing_to_give = fill_unknown(images[:1], known[:1], torch.Generator(), share=1.0)
    assert torch.equal(nothing_to_give, images[:1])


def test_a_share_of_the_faces_gets_soft_edged_parts_of_the_one_before() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60, 3, 112, 112, generator=generator) * 0.2
    images[::2, :, 56:] += 0.5  # the even ones are brighter below; the means are made equal
    images[1::2, :, :56] += 0.5
    blended = blend_faces(images, generator, share=0.5)
    changed = (blended - images).abs().flatten(1).amax(1) > 1e-6
    assert 15 <= int(changed.sum()) <= 45
    own, other = images[changed], images.roll(1, 0)[changed]
    other = other + (own - other).mean((2, 3), keepdim=True)
    assert bool((blended[changed] <= torch.maximum(own, other) + 1e-5).all())
    assert bool((blended[changed] >= torch.minimum(own, other) - 1e-5).all())
    weight = (((blended[changed] - own) * (other - own)).sum(1) / (other - own).square().sum(1)).flatten(1)
    parted = (weight.amin(1) < 0.3) & (weight.amax(1) > 0.7)  # some places are its own, others the other's
    assert float(parted.float().mean()) > 0.5
    assert torch.equal(blend_faces(images, generator, share=0.0), images)


def test_half_of_the_images_get_noise_up_to_the_limit() -> None:
    images = torch.zeros(400, 3, 16, 16)
    strength = add_noise(images, torch.Generator().manual_seed(0), 0.1).std((1, 2, 3))
    # four standard deviations of a share of 400; the std of 768 draws is known to 10 %
    assert (strength > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert 0.09 < strength.max() < 0.11


def test_landmark_task(data: FaceCrops) -> None:
    torch.manual_seed(0)
    task = LandmarkTask(data, data, LandmarkConfig(**SETTINGS))
    torch.testing.assert_close(task.model.mean_shape, MEAN_FACE + 2.5)  # faces are moved by 0..5 px
    loss = one_step(task)
    assert 0.5 < loss < 8  # the mean face against faces shifted by up to 4 px, scaled and turned
    figures = task.validate(task.model.eval())
    assert 0 < figures["error_iod"] < 0.2


class Fixed(nn.Module):
    """Finds the first ``count`` faces' landmarks, whatever it is shown."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.points = nn.Parameter(points)

    def forward(self, images: Tensor) -> Tensor:
        return self.points[: len(images)]


def test_landmark_error_is_over_the_outer_eye_corners(data: FaceCrops) -> None:
    truth = torch.stack([data[i]["landmarks"][17:] for i in range(6)])
    assert landmark_errors(Fixed(truth), data, 6)["error_iod"] == 0
    ocular = float(MEAN_FACE[45 - 17, 0] - MEAN_FACE[36 - 17, 0])
    shifted = landmark_errors(Fixed(truth + torch.tensor([3.0, 4.0])), data, 6)
    assert shifted["error_iod"] == pytest.approx(5 / ocular, rel=1e-5)  # float32
    symmetric = landmark_errors(Fixed(MEAN_FACE.expand(6, -1, -1)), data, 6)
    assert symmetric["flip_iod"] == pytest.approx(0, abs=1e-6)


def test_mirroring_twice_is_nothing() -> None:
    order = list(MIRROR_PERMUTATION)
    assert [order[index] for index in order] == list(range(51))
    points = torch.rand(3, 51, 2, generator=torch.Generator().manual_seed(0)) * 112
    torch.testing.assert_close(mirror_landmarks(mirror_landmarks(points)), points, rtol=0, atol=1e-5)
    assert not torch.equal(mirror_landmarks(points), points)


def test_mirroring_swaps_left_and_right_points_of_the_annotation() -> None:
    mirrored = mirror_landmarks(MEAN_FACE[None])[0]
    torch.testing.assert_close(mirrored, MEAN_FACE)  # a symmetric face is its own mirror image
    for left, right in ((36, 45), (39, 42), (48, 54), (17, 26), (31, 35), (60, 64)):
        assert MEAN_FACE[left - 17, 0] < 55.5 < MEAN_FACE[right - 17, 0]
        assert MIRROR_PERMUTATION[left - 17] == right - 17


@pytest.mark.filterwarnings("ignore:.*has no part 'val':UserWarning")
def test_the_command_trains_and_leaves_a_model(faces: Path, tmp_path: Path) -> None:
    arguments = [
        "landmarks",
        "--data",
        str(faces),
        "-o",
        str(tmp_path),
        "--max-steps",
        "1",
        "--batch-size",
        "2",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "error_iod: " in result.output
    assert f"model: {tmp_path / 'model'}" in result.output
    model = LandmarkRegressor.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(model.mean_shape, MEAN_FACE + 2.5)
