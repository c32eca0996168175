"""The demo as a Hugging Face Space: the same page as ``dedim demo`` on one's own computer."""

from __future__ import annotations

import os
from typing import Any

# ZeroGPU lends a GPU for the length of a decorated call, and wants to be imported before PyTorch.
if os.environ.get("SPACES_ZERO_GPU"):
    import spaces

    lend_gpu: Any = spaces.GPU
else:
    lend_gpu = None

import torch

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.demo.launch import make_handlers, serve
from diffusers_dedim.pipeline.device import fast_dtype

device = "cuda" if torch.cuda.is_available() else "cpu"
pipe: DeDiMPipeline = DeDiMPipeline.from_pretrained(dtype=fast_dtype(device)).to(device)

if __name__ == "__main__":
    serve(make_handlers(pipe, wrap=lend_gpu))
