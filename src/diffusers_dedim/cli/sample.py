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
_FIRST_TIME = 900
# of 2,000 training crops: the mean, and how much it differs from face to face
_MEAN_TONE, _LIGHT, _WARMTH = (0.20, -0.07, -0.19), 0.20, 0.08


def draw_faces(pipe: Any, number: int, seed: int, steps: int) -> list[Image.Image]:
    """Faces by Algorithm 1, but that it begins at t = 900 with a tone of skin under the noise.

    Left to itself this small denoiser makes out of the noise's own mean, which is next to none, any colour.

    Args:
        pipe: its denoiser and scheduler draw.
        number: faces to draw.
        seed: of all of them.
        steps: of the whole schedule, 1000 in the paper; a tenth of them is not run.
    """
    import torch
    from diffusers import DDPMPipeline
    from diffusers.image_processor import VaeImageProcessor

    # in bfloat16 a thousand steps would add up its rounding
    plain = DDPMPipeline(unet=pipe.unet.float(), scheduler=pipe.scheduler)
    unet, scheduler, side = plain.unet, plain.scheduler, plain.unet.config.sample_size
    generator = torch.Generator("cpu").manual_seed(seed)
    scheduler.set_timesteps(steps)
    times = [time for time in scheduler.timesteps if time <= _FIRST_TIME] or scheduler.timesteps[-1:]
    faces: list[Image.Image] = []
    while len(faces) < number:
        count = min(SAMPLES_AT_ONCE, number - len(faces))
        tone = _tones(count, generator).expand(-1, -1, side, side)
        noise = torch.randn(tone.shape, generator=generator)
        x_t = scheduler.add_noise(tone, noise, torch.as_tensor(times[0])).to(unet.device)
        with torch.inference_mode():
            for time in plain.progress_bar(times):
                x_t = scheduler.step(unet(x_t, time).sample, time, x_t, generator=generator).prev_sample
        faces += VaeImageProcessor(do_normalize=True).postprocess(x_t)
    return faces


def _tones(count: int, generator: Any) -> Any:
    """Colours ``[count, 3, 1, 1]`` that crops of faces have on average, in [-1, 1]: they differ in light and warmth."""
    import torch

    light, warmth = torch.randn(2, count, 1, 1, 1, generator=generator)
    warm = torch.tensor([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1)
    return torch.tensor(_MEAN_TONE).reshape(1, 3, 1, 1) + _LIGHT * light + _WARMTH * warmth * warm


def face_grid(faces: list[Image.Image]) -> Image.Image:
    """Faces in reading order on as square a grid as their number allows."""
    columns = max(1, round(len(faces) ** 0.5))
    rows = -(-len(faces) // columns)
    width, height = faces[0].size
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for index, face in enumerate(faces):
        grid.paste(face, (index % columns * width, index // columns * height))
    return grid
