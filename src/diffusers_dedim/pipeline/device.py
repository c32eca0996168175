"""Networks on more crops than fit into memory at once, and how to tell that they did not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

# Of errors that accelerate does not take for a lack of memory: a kernel's own allocation, and cuBLAS's workspace.
_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may succeed: memory ran out, on the accelerator or on the processor.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("a wrong weight"))
        (True, False)
    """
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return should_reduce_batch_size(error) or any(words in str(error) for words in _OUT_OF_MEMORY)


def in_parts(network: Callable[[Tensor], Tensor], crops: Tensor, most: int) -> Tensor:
    """``network(crops)``, computed for at most ``most`` crops at a time and for half as many where memory ends.

    Args:
        network: computes each row for itself, ``[n, 3, H, W]`` -> ``[n, ...]``.
        crops: ``[N, 3, H, W]``.
        most: at least 1.

    Returns:
        ``[N, ...]``, up to the rounding of other batch sizes what one call would give.

    Raises:
        RuntimeError, MemoryError: not even one crop fits into memory; or whatever else the network raises.

    Example:
        >>> in_parts(lambda crops: crops.mean((1, 2, 3)), torch.zeros(5, 3, 2, 2), most=2).shape
        torch.Size([5])
    """
    parts: list[Tensor] = []
    done = 0
    while done < len(crops) or not parts:
        part = crops[done : done + most]
        try:
            parts.append(network(part))
            done += len(part)
            continue
        except Exception as error:
            if len(part) <= 1 or not is_out_of_memory(error):
                raise
        # out here the traceback, and with it what the failed call had made, is gone
        most = (len(part) + 1) // 2
        clear_device_cache()
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
