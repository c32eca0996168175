"""Protect the photos of a folder on several devices: each process takes its share.

    accelerate launch --num_processes 2 examples/several_devices.py PHOTOS OUT                   # two GPUs
    torchrun --nproc_per_node 2 examples/several_devices.py PHOTOS OUT --cpu                     # two CPU processes

A photo's seed comes from its place in the sorted list, so the result does not depend on the number of processes.
Photos that are not protected are listed and not written, what an earlier run wrote for them is removed, and the
script ends with 1. OUT must lie outside PHOTOS; a GIF is written as PNG, ``a.gif`` as ``a.gif.png``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.images.files import read_photo, save_photo
from diffusers_dedim.runs.jobs import RunError, plan_jobs


def protect(
    pipe: DeDiMPipeline, source: Path, target: Path, seed: int, threshold: float | None
) -> str | None:
    """Protect one photo; returns what went wrong, None if it was written."""
    target.unlink(missing_ok=True)  # after a failure nothing may lie there that looks protected
    try:
        photo = read_photo(source)
        generator = torch.Generator().manual_seed(seed)
        out = pipe(photo.pixels, threshold=threshold, generator=generator)
    except DeDiMError as error:
        return f"{source.name}: {error}"
    if not all(face.is_protected for face in out.faces):
        return f"{source.name}: a face stayed above the threshold"
    save_photo(photo, np.asarray(out.images[0]), target)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Share the photos out, protect them, and say what was not protected."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default=None, help="pipeline folder or Hub id (default: the bundled one)")
    parser.add_argument("--threshold", type=float, help="match probability (default: the preset's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true", help="do not use GPUs")
    args = parser.parse_args(arguments)
    try:
        plan = plan_jobs([args.photos], args.out)
    except RunError as error:
        parser.error(str(error))
    state = PartialState(cpu=args.cpu)
    pipe = DeDiMPipeline.from_pretrained(args.model).to(state.device)
    pipe.set_progress_bar_config(disable=True)
    for job in plan.jobs:
        job.target.parent.mkdir(parents=True, exist_ok=True)

    jobs = list(enumerate(plan.jobs, start=args.seed))
    with state.split_between_processes(jobs) as share:
        failed = [protect(pipe, job.source, job.target, seed, args.threshold) for seed, job in share]
    failed = [message for message in gather_object(failed) if message]
    if state.is_main_process:
        print(f"{len(jobs) - len(failed)} of {len(jobs)} photos protected", *failed, sep="\n")
    state.destroy_process_group()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
