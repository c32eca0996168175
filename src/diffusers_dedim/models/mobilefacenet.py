"""MobileFaceNet (Chen et al. 2018, table 1): the recogniser whose gradient guides DeDiM."""

from __future__ import annotations

from typing import ClassVar

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from diffusers_dedim.models.blocks import ConvNormAct, bottleneck_stack, check_crops

# Rows of table 1 between the depthwise stem and the last 1x1: expansion, channels, repeats, first stride.
_BOTTLENECKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class MobileFaceNet(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers ships no types
    """Map aligned face crops to unit embeddings.

    Args:
        embedding_dim: length D of the embedding; 128 in the paper.
        stem_pointwise: mix the channels of the depthwise stem by a 1x1 convolution, which makes it a whole depthwise
            separable convolution. Table 1 has none; recognisers that were trained with one are met all the same.

    Example:
        >>> import torch
        >>> encoder = MobileFaceNet().eval()
        >>> encoder(torch.zeros(2, 3, 112, 112)).shape
        torch.Size([2, 128])
    """

    config_name = "config.json"
    # Its scores are reported, so a pipeline that is loaded in half precision keeps it whole.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["stem", "bottlenecks", "head"]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, embedding_dim: int = 128, stem_pointwise: bool = False) -> None:
        super().__init__()
        self.stem: nn.Sequential = nn.Sequential(
            ConvNormAct(3, 64, 3, stride=2, padding=1), ConvNormAct(64, 64, 3, padding=1, groups=64)
        )
        if stem_pointwise:
            self.stem.append(ConvNormAct(64, 64, 1))
        self.bottlenecks: nn.Sequential = bottleneck_stack(64, _BOTTLENECKS)
        self.head: nn.Sequential = nn.Sequential(
            ConvNormAct(128, 512, 1),
            ConvNormAct(512, 512, 7, groups=512, linear=True),  # global depthwise: 7x7 -> 1x1
            ConvNormAct(512, embedding_dim, 1, linear=True),
        )

    def forward(self, crops: Tensor) -> Tensor:
        """Embed aligned crops.

        Args:
            crops: ``[N, 3, 112, 112]`` RGB in [-1, 1], aligned to the ArcFace template.

        Returns:
            Unit vectors ``[N, D]`` in float32 or the crops' wider type.

        Raises:
            ValueError: the crops have another shape.
        """
        return self.embed_with_stages(crops)[0]

    def embed_with_stages(self, crops: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Embed aligned crops, and give the last feature map of each resolution: what distillation compares.

        Args:
            crops: as for `forward`.

        Returns:
            The embeddings, and maps ``[N, 64, 56, 56]``, ``[N, 64, 28, 28]``, ``[N, 128, 14, 14]``,
            ``[N, 128, 7, 7]``.

        Raises:
            ValueError: the crops have another shape.
        """
        check_crops(crops)
        # the layout that convolutions like: without it each of them reorders its input
        stages: list[Tensor] = [self.stem(crops.to(self.dtype, memory_format=torch.channels_last))]
        for block in self.bottlenecks:
            features = block(stages[-1])
            if features.shape[-1] == stages[-1].shape[-1]:
                stages[-1] = features
            else:
                stages.append(features)
        flat = self.head(stages[-1]).flatten(1)
        return nn.functional.normalize(flat.to(torch.promote_types(flat.dtype, torch.float32))), stages
