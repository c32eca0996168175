"""Networks small enough for a unit test, with the calls of the real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffusers_dedim.faces import ARCFACE_TEMPLATE, Face
from diffusers_dedim.models.landmarks import MIRROR_PERMUTATION

if TYPE_CHECKING:  # at run time where they are used: a process may load a toy network without the pipeline
    from diffusers_dedim import DeDiMPipeline, DeDiMPreset


class ToyEncoder(nn.Module):
    """Linear with unit-norm output: every pixel counts a little, so that guidance moves it fast."""

    def __init__(self, size: int = 112, dim: int = 16, seed: int = 0) -> None:
        super().__init__()
        weight = torch.randn(dim, 3 * size * size, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight)

    def forward(self, crops: Tensor) -> Tensor:
        return nn.functional.normalize(crops.flatten(1) @ self.weight.T)


def _mean_face() -> Tensor:
    """51 landmarks of a frontal, symmetric face on the ArcFace template, [51, 2] crop px."""
    half = {17: (27, 40), 18: (31, 36), 19: (36, 35), 20: (41, 36), 21: (46, 39)}  # left brow
    half |= {27: (55.5, 50), 28: (55.5, 57), 29: (55.5, 64), 30: (55.5, 71)}  # bridge of the nose
    half |= {31: (49, 77), 32: (52, 78), 33: (55.5, 79)}
    half |= {36: (32, 52), 37: (36, 49), 38: (41, 49), 39: (45, 53), 40: (41, 54), 41: (36, 54)}  # left eye
    half |= {48: (41, 92), 49: (46, 88), 50: (52, 86), 51: (55.5, 87), 57: (55.5, 101), 58: (51, 100)}
    half |= {59: (46, 97), 60: (44, 92), 61: (51, 91), 62: (55.5, 91), 66: (55.5, 95), 67: (51, 94)}
    points = torch.zeros(51, 2)
    for index, point in half.items():
        x, y = point
        points[MIRROR_PERMUTATION[index - 17]] = torch.tensor([111 - x, y])
        points[index - 17] = torch.tensor(point)
    return points


MEAN_FACE = _mean_face()


class ToyLandmarker(nn.Module):
    """The mean face, whatever it sees."""

    def forward(self, crops: Tensor) -> Tensor:
        return MEAN_FACE.to(crops.device).expand(len(crops), -1, -1)


def tiny_unet(sample_size: int = 112) -> UNet2DModel:
    """Two levels, channels (4, 8), random weights from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=sample_size,
            layers_per_block=1,
            block_out_channels=(4, 8),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            add_attention=False,
        )


def toy_pipeline() -> DeDiMPipeline:
    """A whole pipeline of toy networks: no bundled weights, a few milliseconds a step."""
    from diffusers_dedim import DeDiMPipeline, make_scheduler

    pipeline = DeDiMPipeline(tiny_unet(), make_scheduler(), ToyEncoder(), ToyLandmarker())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_preset(**changes: object) -> DeDiMPreset:
    """Two steps and two rounds of the paper's guidance, independent of how the named presets are tuned."""
    from diffusers_dedim import DeDiMPreset

    settings: dict[str, object] = {
        "start_timestep": 20,
        "num_inference_steps": 2,
        "guidance": "log_probability",
        "guidance_scale": 100.0,
        "max_rounds": 2,
        "threshold": 0.45,
    }
    return DeDiMPreset(**{**settings, **changes})  # type: ignore[arg-type]


def in_bytes(out: Any) -> Any:
    """What the pipeline gave, its PIL images as uint8 arrays ``[H, W, 3]``; the tuple of ``return_dict=False`` too."""
    from diffusers_dedim.pipeline.inputs import to_pixel_list

    out[0][:] = to_pixel_list(out[0])
    return out


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def face_at(x: float, y: float, side: float) -> Face:
    points = ARCFACE_TEMPLATE / 112 * side + (x, y)
    return Face((x, y, x + side, y + side), points, 0.99)
