"""Faces of nobody, for `dedim sample`."""

from __future__ import annotations

from typing import Any

from PIL import Image

SAMPLES_AT_ONCE = 16


def draw_faces(pipe: Any, number: int, seed: int, steps: int) -> list[Image.Image]:
    """Faces by Algorithm 1, through diffusers' own unconditional pipeline over the same networks."""
    import torch
    from diffusers import DDPMPipeline

    # DDPMPipeline keeps x_t in the network's type: in bfloat16 a thousand steps would add up its rounding
    plain = DDPMPipeline(unet=pipe.unet.float(), scheduler=pipe.scheduler)
    generator = torch.Generator("cpu").manual_seed(seed)
    faces: list[Image.Image] = []
    while len(faces) < number:
        count = min(SAMPLES_AT_ONCE, number - len(faces))
        faces += plain(batch_size=count, generator=generator, num_inference_steps=steps).images
    return faces


def face_grid(faces: list[Image.Image]) -> Image.Image:
    """Faces in reading order on as square a grid as their number allows."""
    columns = max(1, round(len(faces) ** 0.5))
    rows = -(-len(faces) // columns)
    width, height = faces[0].size
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for index, face in enumerate(faces):
        grid.paste(face, (index % columns * width, index // columns * height))
    return grid
