"""Trials of `benchmarks.trials` around the networks: finding faces together, keeping places full, not waiting."""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._common import number
from benchmarks._measure import now
from diffusers_dedim.atomic import write_atomic
from diffusers_dedim.faces import FaceDetector
from diffusers_dedim.images.files import decode_photo, read_photo, save_photo
from diffusers_dedim.pipeline.engine import StreamPhoto, protect_stream
from diffusers_dedim.pipeline.presets import PRESETS
from diffusers_dedim.runs.records import RunSettings
from diffusers_dedim.runs.run import ACCELERATOR_BATCH, PROCESSOR_BATCH, FolderRun


def fastest(
    variants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Seconds of the fastest call of each, the variants in turns."""
    best = dict.fromkeys(variants, float("inf"))
    for _ in range(repeats):
        for name, call in variants.items():
            begin = now(device)
            call()
            best[name] = min(best[name], now(device) - begin)
    return best


def run_detector(pipe: Any, photos: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds a photo of MTCNN alone, one by one and on photos of equal size at once."""
    pixels = [decode_photo(data).pixels for data in photos]
    shape, _ = Counter(photo.shape for photo in pixels).most_common(1)[0]
    equal = [photo for photo in pixels if photo.shape == shape]
    networks = FaceDetector(device=options.device)._networks()
    places = options.places
    batches = [np.stack(equal[begin : begin + places]) for begin in range(0, len(equal), places)]
    networks.detect(batches[0], landmarks=True)  # the first call sets up kernels
    found: dict[str, list[Any]] = {}

    def one_by_one() -> None:
        found["one"] = [networks.detect(photo, landmarks=True)[0] for photo in equal]

    def together() -> None:
        found["together"] = [
            boxes for batch in batches for boxes in networks.detect(batch, landmarks=True)[0]
        ]

    seconds = fastest({"one_by_one": one_by_one, "together": together}, options.repeats, pipe.device)
    return {
        "photos_of_equal_size": len(equal),
        "same_number_of_faces": [_count(boxes) for boxes in found["one"]]
        == [_count(b) for b in found["together"]],
        **{f"seconds_per_photo_{name}": number(value / len(equal)) for name, value in seconds.items()},
    }


def _count(boxes: Any) -> int:
    return 0 if boxes is None else len(boxes)


def run_queue(pipe: Any, photos: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """The same photos, with the same seeds, through the pipeline in batches of photos and through the queue."""
    pixels = [decode_photo(data).pixels for data in photos]
    calls: dict[str, list[int]] = {}

    def in_batches() -> None:
        results: list[Any] = []
        for begin in range(0, len(pixels), options.places):
            batch = range(begin, min(begin + options.places, len(pixels)))
            results += pipe(
                [pixels[index] for index in batch],
                preset=options.preset,
                small_faces="skip",
                batch_size=options.places,
                output_type="np",
                generator=[_generator(index) for index in batch],
            ).faces
        calls["batches"] = [face.unet_calls for face in results]

    def in_queue() -> None:
        stream = (StreamPhoto(index, photo, _generator(index)) for index, photo in enumerate(pixels))
        results = protect_stream(
            pipe, stream, PRESETS[options.preset], small_faces="skip", slots=options.places
        )
        calls["queue"] = [face.unet_calls for result in results for face in result.faces]

    with _quiet():
        seconds = fastest({"batches": in_batches, "queue": in_queue}, options.repeats, pipe.device)
    rows = {
        name: {
            "seconds_per_face": number(value / max(1, len(calls[name]))),
            "unet_calls_per_face": number(np.mean(calls[name]), 2),
            "seconds_per_call": number(value / sum(calls[name]), 5),
        }
        for name, value in seconds.items()
    }
    return {"faces": len(calls["queue"]), **rows}


def run_beside(pipe: Any, photos: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """A folder by `dedim run`'s own code, and read, searched, sampled and written one after another."""
    slots = PROCESSOR_BATCH if pipe.device.type == "cpu" else ACCELERATOR_BATCH
    parts: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="dedim-trials-") as folder, _quiet():
        source, out = Path(folder) / "in", Path(folder) / "out"
        source.mkdir()
        out.mkdir()
        for index, data in enumerate(photos):
            write_atomic(source / f"{index:07}.jpg", data)
        settings = RunSettings(options.preset, small_faces="skip", seed=0)

        def beside() -> None:
            FolderRun([source], out, settings, overwrite=True).execute(pipe, batch_size=slots)

        def one_after_another() -> None:
            parts.update(
                _one_after_another(pipe, sorted(source.iterdir()), Path(folder), options.preset, slots)
            )

        variants = {"beside": beside, "one_after_another": one_after_another}
        seconds = fastest(variants, options.repeats, pipe.device)
    return {
        **{f"seconds_per_photo_{name}": number(value / len(photos)) for name, value in seconds.items()},
        **{f"of_these_{name}": number(value / len(photos)) for name, value in parts.items()},
    }


def _one_after_another(pipe: Any, paths: list[Path], out: Path, preset: str, slots: int) -> dict[str, float]:
    """Seconds of each part; the photos stay in memory, which a folder of millions could not."""
    marks = [now(pipe.device)]
    read = [read_photo(path) for path in paths]
    marks.append(now(pipe.device))
    faces = [pipe.face_detector(photo.pixels) for photo in read]
    marks.append(now(pipe.device))
    stream = (
        StreamPhoto(index, photo.pixels, _generator(index), faces[index]) for index, photo in enumerate(read)
    )
    results = list(protect_stream(pipe, stream, PRESETS[preset], small_faces="skip", slots=slots))
    marks.append(now(pipe.device))
    for result in results:
        save_photo(read[result.photo.owner], result.pixels, out / paths[result.photo.owner].name)
    marks.append(now(pipe.device))
    names = ("reading", "finding", "sampling", "writing")
    return {name: after - before for name, before, after in zip(names, marks, marks[1:], strict=False)}


def _generator(index: int) -> torch.Generator:
    return torch.Generator().manual_seed(index)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a face that was left as it is
        yield
