"""The 51 inner landmarks (eyebrows, nose, eyes, mouth) of an aligned crop."""

from __future__ import annotations

from typing import ClassVar

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from diffusers_dedim.models.blocks import CROP_SIZE, ConvNormAct, bottleneck_stack

NUM_LANDMARKS = 51
OUTER_EYE_CORNERS = (36 - 17, 45 - 17)
"""Their distance is the unit of landmark errors (the 300-W convention)."""
_OFFSET_UNIT = 8.0  # pixels
# expansion, channels, repeats, first stride: 56 px -> 28 -> 14 -> 7
_BOTTLENECKS = ((2, 32, 2, 2), (3, 64, 4, 2), (3, 96, 3, 2))


def _mirror_permutation() -> tuple[int, ...]:
    """Index of each of the 51 points in the mirrored face (68-point order less the 17 of the jaw)."""
    pairs = [(17, 26), (18, 25), (19, 24), (20, 23), (21, 22), (31, 35), (32, 34)]
    pairs += [(36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)]
    pairs += [(48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)]
    order = list(range(68))
    for left, right in pairs:
        order[left], order[right] = right, left
    return tuple(index - 17 for index in order[17:])


MIRROR_PERMUTATION = _mirror_permutation()


def mirror_landmarks(points: Tensor, size: int = CROP_SIZE) -> Tensor:
    """Landmarks ``[N, 51, 2]`` (pixels) of the mirrored crop, in the annotation's order.

    Example:
        >>> mirror_landmarks(torch.zeros(1, 51, 2))[0, 0].tolist()
        [111.0, 0.0]
    """
    mirrored = points[:, list(MIRROR_PERMUTATION)].clone()
    mirrored[..., 0] = size - 1 - mirrored[..., 0]
    return mirrored


class LandmarkRegressor(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers ships no types
    """Regress 51 landmarks from aligned crops (the 68-point annotation less the 17 jaw points).

    Args:
        num_landmarks: points; the pipeline's mask and the training know 51.

    Example:
        >>> import torch
        >>> LandmarkRegressor().eval()(torch.zeros(2, 3, 112, 112)).shape
        torch.Size([2, 51, 2])
    """

    config_name = "config.json"
    # A pipeline that is loaded in half precision keeps it whole: half a pixel matters here.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["stem", "bottlenecks", "head", "mean_shape"]

    mean_shape: Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, num_landmarks: int = NUM_LANDMARKS) -> None:
        super().__init__()
        self.stem: ConvNormAct = ConvNormAct(3, 24, 3, stride=2, padding=1)
        self.bottlenecks: nn.Sequential = bottleneck_stack(24, _BOTTLENECKS)
        offsets = nn.Linear(256, 2 * num_landmarks)
        self.head: nn.Sequential = nn.Sequential(
            ConvNormAct(96, 256, 1),
            ConvNormAct(256, 256, 7, groups=256, linear=True),  # 7x7 -> 1x1
            nn.Flatten(),
            offsets,
        )
        # What is learnt are offsets, in units of 8 px, from the mean face that is stored with the weights; training
        # sets that buffer and starts from the mean face itself.
        nn.init.zeros_(offsets.weight)
        nn.init.zeros_(offsets.bias)
        self.register_buffer("mean_shape", torch.zeros(num_landmarks, 2))

    def forward(self, crops: Tensor) -> Tensor:
        """Locate the landmarks.

        Args:
            crops: ``[N, 3, 112, 112]`` RGB in [-1, 1], aligned to the ArcFace template.

        Returns:
            ``[N, 51, 2]`` x then y in crop pixels (pixel centres at whole numbers), float32.

        Raises:
            ValueError: the crops have another shape.
        """
        if crops.ndim != 4 or crops.shape[1:] != (3, 112, 112):
            raise ValueError(
                f"crops: expected shape [N, 3, 112, 112], got {list(crops.shape)}; "
                "align faces with diffusers_dedim.faces.align_face first."
            )
        offsets: Tensor = self.head(self.bottlenecks(self.stem(crops.to(self.dtype))))
        return offsets.float().reshape(len(crops), -1, 2) * _OFFSET_UNIT + self.mean_shape
