"""Convolution blocks shared by the networks that read a 112x112 face crop (MobileFaceNet, landmarks)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CROP_SIZE = 112  # px, the side of an aligned crop


def check_crops(crops: Tensor) -> None:
    """Refuse anything but crops ``[N, 3, 112, 112]``.

    Raises:
        ValueError: the crops have another shape.

    Example:
        >>> import torch
        >>> check_crops(torch.zeros(2, 3, 112, 112))
    """
    if crops.ndim != 4 or crops.shape[1:] != (3, 112, 112):
        raise ValueError(
            f"crops: expected shape [N, 3, 112, 112], got {list(crops.shape)}; "
            "align faces with diffusers_dedim.faces.align_face first."
        )


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution whose strided and global forms are computed by faster, equal means on the CPU.

    PyTorch's CPU gradients of a depthwise convolution with stride 2, or with a kernel as large as its input,
    are slow: MobileFaceNet has four such layers of fifty, and they took 43 % of a profiled training step. Keeping
    every second value of the unstrided convolution, or a plain weighted sum, gives the same numbers.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What `torch.nn.Conv2d.forward` calls with its own weight and bias."""
        if input.device.type != "cpu":
            output: Tensor = super()._conv_forward(input, weight, bias)
            return output
        if self.padding == (0, 0) and tuple(input.shape[-2:]) == self.kernel_size:
            summed = (input * weight[:, 0].to(input.dtype)).sum((2, 3), keepdim=True)
            return summed if bias is None else summed + bias[:, None, None].to(input.dtype)
        dense = nn.functional.conv2d(input, weight, bias, 1, self.padding, 1, self.groups)
        vertical, horizontal = self.stride
        return dense[:, :, ::vertical, ::horizontal]


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm and, unless ``linear``, a per-channel PReLU (Chen et al. 2018, section 3).

    In evaluation mode the norm is folded into the convolution anew at each call: the same numbers up to rounding, one
    pass over the feature map less, and the parameters stay what they are saved as.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        *,
        linear: bool = False,
    ) -> None:
        convolution = DepthwiseConv2d if groups == in_channels == out_channels else nn.Conv2d
        layers: list[nn.Module] = [
            convolution(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        if not linear:
            layers.append(PReLU(out_channels))
        super().__init__(*layers)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[N, in, H, W]`` to ``[N, out, H / stride, W / stride]``."""
        convolution, norm, *activation = self
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d) or norm.training:
            output: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
            return output
        weight, bias = _fold(convolution, norm)
        output = convolution._conv_forward(input, weight, bias)
        return activation[0](output) if activation else output


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what both do; computed in float32 for half-precision networks."""
    mean, variance = norm.get_buffer("running_mean").float(), norm.get_buffer("running_var").float()
    scale = norm.weight.float() * torch.rsqrt(variance + norm.eps)  # [out]
    weight = convolution.weight * scale[:, None, None, None]
    bias = norm.bias.float() - mean * scale
    return weight.to(convolution.weight.dtype), bias.to(convolution.weight.dtype)


class Bottleneck(nn.Module):
    """Inverted residual of MobileNetV2 with PReLU: 1x1 expand, 3x3 depthwise, 1x1 linear projection.

    The input is added to the output where both have the same shape.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.is_residual: bool = stride == 1 and in_channels == out_channels
        self.layers: nn.Sequential = nn.Sequential(
            ConvNormAct(in_channels, hidden, 1),
            ConvNormAct(hidden, hidden, 3, stride, 1, groups=hidden),
            ConvNormAct(hidden, out_channels, 1, linear=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in, H, W]`` to ``[N, out, H / stride, W / stride]``."""
        projected: Tensor = self.layers(x)
        return x + projected if self.is_residual else projected


def bottleneck_stack(in_channels: int, settings: tuple[tuple[int, int, int, int], ...]) -> nn.Sequential:
    """Stack bottlenecks from rows ``(expansion, out_channels, repeats, first_stride)``, as papers print them."""
    layers: list[nn.Module] = []
    for expansion, out_channels, repeats, first_stride in settings:
        for index in range(repeats):
            stride = first_stride if index == 0 else 1
            layers.append(Bottleneck(in_channels, out_channels, stride, expansion))
            in_channels = out_channels
    return nn.Sequential(*layers)


class PReLU(nn.PReLU):
    """Per-channel PReLU; where its slopes are frozen, the gradient of its input is one product.

    PyTorch's CPU kernel works out the gradient of the slopes as well, wanted or not: it took a third to half of the
    time of a backward pass through a frozen MobileFaceNet. Values and gradient are the same to the last bit.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[N, C, ...]`` as `torch.nn.PReLU` does."""
        if self.weight.requires_grad or not (torch.is_grad_enabled() and input.requires_grad):
            return super().forward(input)
        slopes = self.weight.to(input.dtype).reshape(1, -1, *[1] * (input.ndim - 2))
        return input * torch.where(input > 0, torch.ones_like(slopes), slopes)
