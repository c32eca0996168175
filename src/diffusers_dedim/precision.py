"""Which number type the denoiser runs fastest in, at no visible loss."""

from __future__ import annotations

from typing import Any

import torch

DeviceMap = str | dict[str, int | str | torch.device] | None


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """Return bfloat16 where the device computes in it, float32 elsewhere.

    A processor that has to emulate bfloat16 is slower with it than with float32.

    Example:
        >>> fast_dtype("meta")
        torch.float32
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if kind == "cpu":
        ask: Any = getattr(torch.cpu, "get_capabilities", dict)  # older torch cannot tell
        capabilities = ask()
        if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
            return torch.bfloat16
    return torch.float32


def mapped_device(device_map: DeviceMap) -> str | torch.device:
    """Return the device that diffusers' ``device_map`` puts the denoiser on, the processor without a map.

    Example:
        >>> mapped_device({"unet": "meta", "": "cpu"})
        'meta'
    """
    if isinstance(device_map, dict):
        chosen = device_map.get("unet", next(iter(device_map.values()), "cpu"))
        return f"cuda:{chosen}" if isinstance(chosen, int) else chosen
    if device_map in ("balanced", "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device_map or "cpu"
