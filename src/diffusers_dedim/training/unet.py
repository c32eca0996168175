"""Train the face DDPM (the paper's denoising network)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffusers_dedim.schedule import make_scheduler, predict_x_0
from diffusers_dedim.training.data import FaceCrops, batches, to_model_range
from diffusers_dedim.training.loop import Batch, LoopConfig

VALIDATION_TIMESTEPS = (25, 50, 99, 200)  # of T = 1000; DESIGN and the cards quote the same ones


def make_unet() -> UNet2DModel:
    """Build the `small` face UNet: 4.8 M parameters, 112 px, four levels, attention at 14 px only.

    Most of its arithmetic stays at 112 and 56 px, where the fine structure of t < 200 is denoised.
    """
    channels = (48, 64, 96, 160)
    return UNet2DModel(
        sample_size=112,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        norm_num_groups=16,
        attention_head_dim=32,
    )


class UNetTask:
    """Epsilon prediction on random crops, masked by alpha, with extra weight on low timesteps.

    Args:
        train_data, val_data: see `FaceCrops`.
        loop: settings of the loop.
        crop_size: side of the training crops in pixels, a multiple of 8; smaller is faster on a CPU.
        full_size_share: share of the steps, drawn at random, that see the whole 112-px face.
        low_timestep_share: share of the samples drawn from t < ``low_timestep_limit``; DeDiM works there.
        val_images: how many validation faces to measure on.
    """

    def __init__(
        self, train_data: FaceCrops, val_data: FaceCrops, loop: LoopConfig, *, crop_size: int = 64,
        full_size_share: float = 0.1, low_timestep_share: float = 0.6, low_timestep_limit: int = 200,
        val_images: int = 64,
    ) -> None:  # fmt: skip
        if crop_size % 8 or not 16 <= crop_size <= 112:
            raise ValueError(f"crop_size: expected a multiple of 8 from 16 to 112, got {crop_size}.")
        self.model = make_unet().to(memory_format=torch.channels_last)
        self.scheduler = make_scheduler()
        self.train_data, self.val_data, self.loop = train_data, val_data, loop
        self.crop_size, self.full_size_share = crop_size, full_size_share
        self.low_timestep_share, self.low_timestep_limit = low_timestep_share, low_timestep_limit
        self.val_images = min(val_images, len(val_data))

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Yield batches of crops."""
        loop = self.loop
        return batches(self.train_data, loop.batch_size, loop.seed, start_step, loop.num_workers)

    def loss(self, model: Callable[..., Any], batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise over the pixels that the photo covers."""
        x_0, known = self._augment(to_model_range(batch["image"]), batch["known"], generator)
        timesteps = self._timesteps(len(x_0), generator).to(x_0.device)
        noise = torch.randn(x_0.shape, generator=generator).to(x_0)
        x_t = self.scheduler.add_noise(x_0, noise, timesteps)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        eps: Tensor = model(x_t, timesteps).sample.float()
        weight = known.expand_as(eps).float()
        return ((eps - noise).square() * weight).sum() / weight.sum().clamp(min=1)

    def _augment(self, x_0: Tensor, known: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mirror each face with probability 1/2 and cut one window for the batch."""
        flip = torch.rand(len(x_0), 1, 1, 1, generator=generator).to(x_0.device) < 0.5
        x_0, known = torch.where(flip, x_0.flip(3), x_0), torch.where(flip, known.flip(3), known)
        if torch.rand(1, generator=generator).item() < self.full_size_share:
            keep = max(1, round(len(x_0) * (self.crop_size / x_0.shape[-1]) ** 2))  # a step costs the same
            return x_0[:keep], known[:keep]
        top, left = torch.randint(x_0.shape[-1] - self.crop_size + 1, (2,), generator=generator).tolist()
        window = (..., slice(top, top + self.crop_size), slice(left, left + self.crop_size))
        return x_0[window], known[window]

    def _timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        low = torch.randint(self.low_timestep_limit, (count,), generator=generator)
        all_ = torch.randint(self.scheduler.config.num_train_timesteps, (count,), generator=generator)
        return torch.where(torch.rand(count, generator=generator) < self.low_timestep_share, low, all_)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure the PSNR in dB of the x_0 estimate on whole validation faces, by timestep."""
        return x_0_psnr(model, self.val_data, self.val_images)


def x_0_psnr(unet: nn.Module, data: FaceCrops, count: int, batch_size: int = 16) -> dict[str, float]:
    """Measure how well one UNet call recovers a face from noise.

    Args:
        unet: predicts epsilon.
        data: held-out faces; the first ``count`` are used, with fixed noise.
        count: number of faces.
        batch_size: faces per UNet call.

    Returns:
        ``psnr_t{t}`` in dB (peak 2, the range of [-1, 1]; the mean of the faces' PSNR over known pixels) for
        timesteps 25, 50, 99 and 200.
    """
    scheduler = make_scheduler()
    device = next(unet.parameters()).device
    totals = dict.fromkeys(VALIDATION_TIMESTEPS, 0.0)
    for start in range(0, count, batch_size):
        items = [data[index] for index in range(start, min(start + batch_size, count))]
        x_0 = to_model_range(torch.stack([item["image"] for item in items])).to(device)
        known = torch.stack([item["known"] for item in items]).to(device).expand_as(x_0)
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(start)).to(device)
        for timestep in VALIDATION_TIMESTEPS:
            timesteps = torch.full((len(x_0),), timestep, device=device)
            x_t = scheduler.add_noise(x_0, noise, timesteps)
            with torch.autocast(device.type, torch.bfloat16):
                eps = unet(x_t, timesteps).sample.float()
            estimate = predict_x_0(scheduler, eps, timesteps, x_t).clamp(-1, 1)
            error = ((estimate - x_0).square() * known).flatten(1).sum(1) / known.flatten(1).sum(1)
            totals[timestep] += float((10 * torch.log10(4 / error)).sum().detach())
    return {f"psnr_t{timestep}": total / count for timestep, total in totals.items()}
