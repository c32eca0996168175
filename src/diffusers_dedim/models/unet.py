"""The face denoiser: `UNet2DModel` in the sizes that are trained here."""

from __future__ import annotations

from diffusers import UNet2DModel

# Widths of the four levels (112, 56, 28 and 14 px), residual blocks a level, levels with attention.
_SIZES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...]]] = {
    "small": ((48, 64, 96, 160), 1, ()),
    "base": ((80, 128, 192, 288), 2, (2, 3)),
}


def make_unet(size: str = "small") -> UNet2DModel:
    """Build a face UNet for 112-px crops: ``small`` of 4.8 M parameters, or ``base`` of 26 M for a GPU.

    Most of the arithmetic of ``small`` stays at 112 and 56 px, where the fine structure of t < 200 is
    denoised; its only attention is that of the middle block, at 14 px. ``base`` has twice the blocks a level,
    and attention at 28 and 14 px.

    Raises:
        KeyError: an unknown size.
    """
    channels, layers, attention = _SIZES[size]
    levels = range(len(channels))
    return UNet2DModel(
        sample_size=112,
        layers_per_block=layers,
        block_out_channels=channels,
        down_block_types=tuple("AttnDownBlock2D" if i in attention else "DownBlock2D" for i in levels),
        up_block_types=tuple("AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(levels)),
        norm_num_groups=16,
        attention_head_dim=32,
    )
