"""Train the face DDPM (the paper's denoising network)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from diffusers_dedim.diffusion.schedule import make_scheduler, predict_x_0
from diffusers_dedim.models.blocks import CROP_SIZE
from diffusers_dedim.models.unet import make_unet
from diffusers_dedim.training.config import UNetConfig
from diffusers_dedim.training.data import FaceCrops, to_model_range
from diffusers_dedim.training.loop import Batch, FaceTask

VALIDATION_TIMESTEPS = (25, 50, 99, 200)  # of T = 1000; DESIGN and the cards quote the same ones


class UNetTask(FaceTask[FaceCrops]):
    """Epsilon prediction on random crops, masked by alpha, with extra weight on low timesteps.

    Args:
        train_data, val_data: see `FaceCrops`.
        config: the settings. ``crop_size``, a multiple of 8, is the side of the training crops in pixels;
            smaller is faster on a CPU. ``full_size_share`` of the steps, drawn at random, see the whole 112-px
            face; ``low_timestep_share`` of the samples are drawn from t < ``low_timestep_limit``, where DeDiM
            works.
        model: network to train on, of 3 channels in and out and at most 5 levels, without classes; one of
            ``config.size`` by default.

    Raises:
        ValueError: ``model`` is of another kind, or halves the training crops more often than they can be.
    """

    def __init__(
        self,
        train_data: FaceCrops,
        val_data: FaceCrops,
        config: UNetConfig,
        *,
        model: UNet2DModel | None = None,
    ) -> None:
        model = model or make_unet(config.size)
        _check_network(model, config.crop_size)
        self.model: UNet2DModel = model.to(memory_format=torch.channels_last)
        self.scheduler: DDPMScheduler = make_scheduler()
        super().__init__(train_data, val_data, config)
        self.config = config

    def identity(self) -> dict[str, Any]:
        """Fingerprint of the training faces and crop size; the validation faces are looked through too.

        Raises:
            ValueError: no validation face could be measured, or a crop is wrong.
        """
        _check_known(self.val_data, self._val_count)
        return {**super().identity(), "crop_size": self.config.crop_size}

    def loss(self, model: Callable[..., Any], batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise over the pixels that the photo covers, weighted by timestep."""
        x_0, known = self._augment(to_model_range(batch["image"]), batch["known"], generator)
        timesteps = self._timesteps(len(x_0), generator).to(x_0.device)
        noise = torch.randn(x_0.shape, generator=generator).to(x_0)
        x_t = self.scheduler.add_noise(x_0, noise, timesteps)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        eps: Tensor = model(x_t, timesteps).sample.float()
        weight = known.expand_as(eps).float()
        error = (eps - noise).square() * weight * self._loss_weight(timesteps)[:, None, None, None]
        return error.sum() / weight.sum().clamp(min=1)

    def _loss_weight(self, timesteps: Tensor) -> Tensor:
        """Weight ``[N]`` of each sample: 1, or min(SNR, gamma) / SNR (Hang et al. 2023, for epsilon)."""
        if self.config.loss_weighting == "none":
            return torch.ones(len(timesteps), device=timesteps.device)
        snr: Tensor = compute_snr(self.scheduler, timesteps)
        return snr.clamp(max=self.config.min_snr_gamma) / snr

    def _augment(self, x_0: Tensor, known: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mirror each face with probability 1/2 and cut one window for the batch."""
        flip = torch.rand(len(x_0), 1, 1, 1, generator=generator).to(x_0.device) < 0.5
        x_0, known = torch.where(flip, x_0.flip(3), x_0), torch.where(flip, known.flip(3), known)
        if torch.rand(1, generator=generator).item() < self.config.full_size_share:
            keep = max(
                1, round(len(x_0) * (self.config.crop_size / x_0.shape[-1]) ** 2)
            )  # a step costs the same
            return x_0[:keep], known[:keep]
        top, left = torch.randint(
            x_0.shape[-1] - self.config.crop_size + 1, (2,), generator=generator
        ).tolist()
        window = (..., slice(top, top + self.config.crop_size), slice(left, left + self.config.crop_size))
        return x_0[window], known[window]

    def _timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        low = torch.randint(self.config.low_timestep_limit, (count,), generator=generator)
        all_ = torch.randint(self.scheduler.config.num_train_timesteps, (count,), generator=generator)
        return torch.where(torch.rand(count, generator=generator) < self.config.low_timestep_share, low, all_)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure the PSNR in dB of the x_0 estimate on whole validation faces, by timestep."""
        return x_0_psnr(model, self.val_data, self._val_count)

    @property
    def _val_count(self) -> int:
        return min(self.config.val_images, len(self.val_data))


def _check_network(model: UNet2DModel, crop_size: int) -> None:
    """Refuse what would fail at the first step, or at the first validation on whole faces."""
    channels = (model.config.in_channels, model.config.out_channels)
    if channels != (3, 3):
        raise ValueError(f"initial_weights: the UNet has {channels} channels in and out, expected (3, 3).")
    if model.class_embedding is not None:
        raise ValueError(
            "initial_weights: the UNet asks for a class of each image, expected one without classes."
        )
    levels = len(model.config.down_block_types)
    factor = 2 ** (levels - 1)
    if CROP_SIZE % factor:
        raise ValueError(
            f"initial_weights: the UNet has {levels} levels, and {CROP_SIZE} px is no multiple of {factor}; "
            "expected at most 5 levels."
        )
    if crop_size % factor:
        raise ValueError(
            f"crop_size: expected a multiple of {factor}, which a UNet of {levels} levels needs, got {crop_size}."
        )


def x_0_psnr(unet: nn.Module, data: FaceCrops, count: int, batch_size: int = 16) -> dict[str, float]:
    """Measure how well one UNet call recovers a face from noise.

    Args:
        unet: predicts epsilon.
        data: held-out faces; the first ``count`` are used, with fixed noise.
        count: number of faces.
        batch_size: faces per UNet call.

    Returns:
        ``psnr_t{t}`` in dB (peak 2, the range of [-1, 1]; the mean of the faces' PSNR over known pixels) for
        timesteps 25, 50, 99 and 200. Faces without a known pixel do not count.

    Raises:
        ValueError: none of the faces has one.
    """
    _check_known(data, count)
    scheduler = make_scheduler()
    device = next(unet.parameters()).device
    # accelerate's forward would go back to the precision of the training
    forward = getattr(unet, "_original_forward", unet)
    totals, measured = dict.fromkeys(VALIDATION_TIMESTEPS, 0.0), 0
    for start in range(0, count, batch_size):
        items = [data[index] for index in range(start, min(start + batch_size, count))]
        x_0 = to_model_range(torch.stack([item["image"] for item in items])).to(device)
        known = torch.stack([item["known"] for item in items]).to(device).expand_as(x_0)
        pixels = known.flatten(1).sum(1)
        measured += int((pixels > 0).sum())
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(start)).to(device)
        for timestep in VALIDATION_TIMESTEPS:
            timesteps = torch.full((len(x_0),), timestep, device=device)
            x_t = scheduler.add_noise(x_0, noise, timesteps)
            with torch.autocast(device.type, torch.bfloat16):
                eps = forward(x_t, timesteps).sample.float()
            estimate = predict_x_0(scheduler, eps, timesteps, x_t).clamp(-1, 1)
            error = ((estimate - x_0).square() * known).flatten(1).sum(1) / pixels
            psnr = (10 * torch.log10(4 / error))[pixels > 0]
            totals[timestep] += float(psnr.sum().detach())
    return {f"psnr_t{timestep}": total / measured for timestep, total in totals.items()}


def _check_known(data: FaceCrops, count: int) -> None:
    if not any(bool(data[index]["known"].any()) for index in range(count)):
        raise ValueError(
            f"data: no pixel of the first {count} validation faces of {data.source} is known (alpha 0 everywhere); "
            "expected faces that are at least in part opaque. Mend their alpha, or store them as RGB."
        )
