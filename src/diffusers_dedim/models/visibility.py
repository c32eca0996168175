"""Where an aligned crop shows the face itself, and not what lies over it or beside it."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from diffusers_dedim.models.blocks import check_crops

_CHANNELS = (32, 48, 64)  # at 28, 14 and 7 px
_PATCH = 4  # px: the side of what a place of the finest map answers for


class VisibilityNet(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers ships no types
    """Tell for each pixel of an aligned crop whether it shows uncovered skin, eyes or mouth of this face.

    Residual blocks down to 7 px, which see the whole face, and the finer maps added again on the way up (Lin et al.
    2017). No map is finer than 28 px, which keeps it quick; each place of that map reads 7 x 7 pixels and answers for
    4 x 4 of them (Shi et al. 2016). Plain convolutions and ReLU: on a processor they train four times as fast as
    inverted residuals with as many parameters.

    Args:
        width: factor of the channels; 1.0 is what is shipped, 0.9 MB.

    Example:
        >>> import torch
        >>> VisibilityNet().eval()(torch.zeros(2, 3, 112, 112)).shape
        torch.Size([2, 1, 112, 112])
    """

    config_name = "config.json"
    # A pipeline that is loaded in half precision keeps it whole: it decides where a photo may be changed at all.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["down", "lateral", "up", "head"]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = [max(4, round(width * count)) for count in _CHANNELS]
        stem = _convolution(3, channels[0], 7, stride=_PATCH)
        steps = [_convolution(finer, coarser, 3, stride=2) for finer, coarser in pairwise(channels)]
        self.down: nn.ModuleList = nn.ModuleList(
            nn.Sequential(entry, _Residual(count), _Residual(count))
            for entry, count in zip([stem, *steps], channels, strict=True)
        )
        upwards = channels[::-1]
        self.lateral: nn.ModuleList = nn.ModuleList(
            _convolution(coarser, finer, 1) for coarser, finer in pairwise(upwards)
        )
        self.up: nn.ModuleList = nn.ModuleList(_Residual(count) for count in upwards[1:])
        self.head: nn.Conv2d = nn.Conv2d(channels[0], _PATCH**2, 3, padding=1)

    def forward(self, crops: Tensor) -> Tensor:
        """Estimate what is visible.

        Args:
            crops: ``[N, 3, 112, 112]`` RGB in [-1, 1], aligned to the ArcFace template.

        Returns:
            ``[N, 1, 112, 112]`` float32 in [0, 1]: the probability that the pixel shows the uncovered face.

        Raises:
            ValueError: the crops have another shape.
        """
        check_crops(crops)
        x = crops.to(self.dtype, memory_format=torch.channels_last)
        maps = []
        for stage in self.down:
            x = stage(x)
            maps.append(x)
        for lateral, block, finer in zip(self.lateral, self.up, maps[-2::-1], strict=True):
            coarse = nn.functional.interpolate(lateral(x), size=finer.shape[-2:], mode="bilinear")
            x = block(finer + coarse)
        return nn.functional.pixel_shuffle(self.head(x), _PATCH).float().sigmoid()


class _Residual(nn.Module):
    """A 3x3 convolution whose answer is added to what it saw: ``[N, C, H, W]`` to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = _convolution(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Add the convolution's answer."""
        return x + self.layers(x)  # type: ignore[no-any-return]


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
