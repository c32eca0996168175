"""The command ``dedim sample``: faces of nobody."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from diffusers_dedim.atomic import write_atomic
from diffusers_dedim.cli import common
from diffusers_dedim.cli.common import DeviceOption, WeightsOption, plain_errors
from diffusers_dedim.errors import DeDiMError


def sample(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PNG", help="Picture to write.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Faces to draw.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps; 1000 in the paper.")] = 1000,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture.")] = False,
) -> None:
    """Draw faces of nobody from the diffusion model (Algorithm 1) into one picture."""
    with plain_errors("Stopped; no picture was written."):
        if out.suffix.lower() != ".png":
            raise DeDiMError(f"{out}: the picture is written as PNG; give a name that ends in .png")
        if out.exists() and not overwrite:
            raise DeDiMError(f"{out}: is there already; give --overwrite or another name")
        if not out.parent.is_dir():
            raise DeDiMError(f"{out}: its folder does not exist")
        pipe = common.load_pipeline(weights, device)
        buffer = BytesIO()
        face_grid(draw_faces(pipe, number, seed, steps)).save(buffer, "PNG")
        write_atomic(out, buffer.getvalue())
    typer.echo(f"{number} faces in {out}")


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
