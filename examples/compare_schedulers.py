"""Compare the schedulers on one public-domain photo (needs scikit-image); prints the table of docs/composition.md.

``--out faces.png`` draws the face as it was and after each of them, in the table's order.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from PIL import Image
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio

from diffusers_dedim import DeDiMPipeline

SCHEDULERS = {
    "DDPM": (DDPMScheduler, {}),
    "DDIM": (DDIMScheduler, {}),
    "Euler": (EulerDiscreteScheduler, {}),
    "DPM-Solver++": (DPMSolverMultistepScheduler, {}),
    "DPM-Solver++ SDE": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
}


def main(arguments: list[str] | None = None) -> None:
    """Protect the photo with each scheduler and print a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guidance-scale", type=float, help="size of a push (default: the preset's)")
    parser.add_argument("--max-rounds", type=int, help="(default: the preset's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="PNG of the faces")
    args = parser.parse_args(arguments)
    pipe = DeDiMPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    config, photo = pipe.scheduler.config, np.ascontiguousarray(astronaut())
    faces: list[np.ndarray] = []
    print("| scheduler | rounds | denoiser calls | cosine after | PSNR in the face's box |")
    for name, (scheduler, changes) in SCHEDULERS.items():
        pipe.scheduler = scheduler.from_config(config, **changes)
        out = pipe(
            photo,
            guidance_scale=args.guidance_scale,
            max_rounds=args.max_rounds,
            generator=torch.Generator().manual_seed(args.seed),
        )
        (face,) = out.faces
        x0, y0, x1, y1 = (int(edge) for edge in face.box)
        before, after = photo[y0:y1, x0:x1], np.asarray(out.images[0])[y0:y1, x0:x1]
        faces += [after] if faces else [before, after]
        psnr = peak_signal_noise_ratio(before, after)
        print(f"| {name} | {face.rounds} | {face.unet_calls} | {face.similarity:.2f} | {psnr:.1f} dB |")
    if args.out:
        Image.fromarray(np.concatenate(faces, axis=1)).save(args.out)


if __name__ == "__main__":
    main()
