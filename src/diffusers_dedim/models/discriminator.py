"""Where an aligned crop looks as if its face had been changed."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from diffusers_dedim.models.blocks import check_crops

_CHANNELS = (32, 64, 96)  # at 56, 28 and 14 px
_DEPTHS = (1, 2, 2)  # residual blocks at each
PATCH = 8
"""px: the side of what a place of the answer stands for."""


class PatchDiscriminator(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers ships no types
    """Tell photos from protected photos, place by place: a discriminator that guides the sampler back to photos.

    Its gradient leads away from what protection does to faces and photos do not show: dark nostrils under a bright tip
    of the nose, brows that meet, teeth and frames that are half gone. It sees light and shape, no colour, under noise
    of a known level, so that no single pixel decides. No norm: a face's answer depends on that face alone.

    Args:
        width: factor of the channels; 1.0 is what is shipped, 0.6 M parameters.

    Source:
        Answers for patches: Isola et al. 2017 (pix2pix); as guidance of a diffusion model, under its noise: Kim et al.
        2023 (Discriminator Guidance).

    Example:
        >>> PatchDiscriminator().eval()(torch.zeros(2, 3, 112, 112), 0.05).shape
        torch.Size([2, 1, 14, 14])
    """

    config_name = "config.json"
    # a gradient of it is wanted, and it takes little time
    _keep_in_fp32_modules: ClassVar[list[str]] = ["entries", "stages", "head"]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = [max(4, round(width * count)) for count in _CHANNELS]
        steps = [nn.Conv2d(finer, coarser, 3, stride=2, padding=1) for finer, coarser in pairwise(channels)]
        stem = nn.Conv2d(2, channels[0], 5, stride=2, padding=2)
        self.entries: nn.ModuleList = nn.ModuleList([stem, *steps])
        self.stages: nn.ModuleList = nn.ModuleList(
            nn.Sequential(*(_Residual(count) for _ in range(depth)))
            for count, depth in zip(channels, _DEPTHS, strict=True)
        )
        self.head: nn.Conv2d = nn.Conv2d(channels[-1], 1, 3, padding=1)

    def forward(self, crops: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        """Judge crops.

        Args:
            crops: ``[N, 3, 112, 112]`` RGB in about [-1, 1], aligned to the ArcFace template.
            noise_level: standard deviation of the noise on their grey values, in [-1, 1] units; one for all, or ``[N]``

        Returns:
            Logits ``[N, 1, 14, 14]`` float32: above 0 where it looks protected, below 0 where it looks untouched.

        Raises:
            ValueError: the crops have another shape.
        """
        check_crops(crops)
        grey = crops.to(self.dtype).mean(1, keepdim=True)
        level = torch.as_tensor(noise_level, dtype=grey.dtype, device=grey.device).reshape(-1, 1, 1, 1)
        x = torch.cat([grey, level.expand_as(grey)], 1).contiguous(memory_format=torch.channels_last)
        for entry, stage in zip(self.entries, self.stages, strict=True):
            x = stage(entry(x))
        answer: Tensor = self.head(nn.functional.silu(x))
        return answer.float()


class _Residual(nn.Module):
    """Two 3x3 convolutions, half of whose answer is added to what they saw: ``[N, C, H, W]`` to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add half of the convolutions' answer."""
        inner = self.first(nn.functional.silu(x))
        return x + 0.5 * self.second(nn.functional.silu(inner))  # type: ignore[no-any-return]
