"""Protect clips made of still photos, and measure what an attacker sees of them, how they flicker and what they cost.

    python -m benchmarks.video --json out/video.json --sheet out/video.png
    python -m benchmarks.video --photo astronaut.jpg --kinds talk --alone 0 --sheet docs/images/video.jpg

Single frames and the mean embedding over a clip (the attack that a video invites) are searched in a gallery with one
other photo of each person. Everything is measured on the frames of the written file, at the first ``--crf``; of each
further one the faces below the threshold and the size.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks._clips import KINDS, MadeFrame, Pixels, make_clip
from benchmarks._command import (
    CROP_RECOGNISERS,
    LFW,
    add_black_boxes,
    at_least,
    make_parser,
    number,
    run_benchmark,
    say,
)
from diffusers_dedim.diffusion.matching import match_probability
from diffusers_dedim.encoders import Recogniser, embed_faces
from diffusers_dedim.evaluation import ArrayCache, embed_gallery, prepare_probes, read_protocol
from diffusers_dedim.evaluation.data import Record
from diffusers_dedim.faces import Face, align_face
from diffusers_dedim.pipeline.presets import PRESETS
from diffusers_dedim.video.protect import protect_frames, protect_video
from diffusers_dedim.video.reading import VideoReader
from diffusers_dedim.video.report import FrameTally, VideoReport
from diffusers_dedim.video.writing import DEFAULT_CRF, VideoWriter

MODULE = "benchmarks.video"
_SHEET_FRAMES, _GAIN = 8, 8
_SEARCHED_EVERY = 3  # frames: those between are nearly the same to a recogniser
_PHOTO, _FACE = 250, 110  # px: side of a made clip's photo, and size of its face


def main(arguments: Sequence[str] | None = None, *, load_pipeline: Callable[[], Any] | None = None) -> None:
    run_benchmark(MODULE, parse, measure, arguments, load_pipeline)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(MODULE, __doc__ or "")
    add = parser.add_argument
    add("--data", type=Path, default=LFW, help="parquet or folder with roles, as for dedim evaluate")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="clips to make")
    add("--frames", type=at_least(2), default=24, help="of each clip")
    add("--rate", type=at_least(1), default=12, help="frames a second")
    add("--gallery", type=at_least(1), default=200, help="other people's photos that are searched too")
    add("--preset", choices=sorted(PRESETS), default="fast")
    add(
        "--crf",
        type=int,
        nargs="+",
        default=[DEFAULT_CRF],
        help="of the written files; several to compare them",
    )
    add(
        "--alone",
        type=at_least(0),
        default=4,
        help="frames of the first clip protected one by one, to compare",
    )
    add("--clip", type=Path, help="a video of yours, measured without a gallery instead of the made ones")
    add("--photo", type=Path, help="a photo of yours with one face, of which clips are made instead")
    add("--sheet", type=Path, help="picture with frames before, after and the change, of each clip")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add_black_boxes(add, CROP_RECOGNISERS, kept="detections and embeddings")
    return parser.parse_args(arguments)


@dataclass(frozen=True, eq=False)
class Clip:
    """A made clip, and what became of it.

    Attributes:
        people: who its photos show.
        before: its frames.
        written: rate factor -> bytes of the file, and its frames ``[H, W, 3]``.
        report: as of `protect_video`.
        seconds: wall clock, spent protecting and coding.
        processor_seconds: of all threads.
    """

    people: tuple[str, ...]
    before: tuple[MadeFrame, ...]
    written: dict[int, tuple[int, tuple[Pixels, ...]]]
    report: VideoReport
    seconds: float
    processor_seconds: float

    @property
    def after(self) -> tuple[Pixels, ...]:
        """Frames of the first file."""
        return next(iter(self.written.values()))[1]


def measure(pipe: Any, recognisers: Sequence[Recogniser], options: argparse.Namespace) -> dict[str, Any]:
    """What the JSON object holds: a row for each clip, and all together."""
    if options.clip is not None:
        return measure_given(pipe, options)
    if options.photo is not None:
        photos, names, gallery, recognisers = [_one_face(pipe, options.photo)], [""], None, ()
    else:
        records, others = _records(options)
        probes = prepare_probes(records, pipe.face_detector, ArrayCache(options.cache))
        gallery = embed_gallery(others, recognisers, pipe.face_detector, ArrayCache(options.cache))
        photos, names = [(probe.photo, probe.face) for probe in probes], [probe.person for probe in probes]
    rows: dict[str, Any] = {}
    sheets = []
    for place, kind in enumerate(options.kinds):
        chosen = [(2 * place + k) % len(photos) for k in range(2)]
        made = tuple(
            make_clip([photos[k] for k in chosen], kind, options.frames, options.rate, options.seed + place)
        )
        clip = _protect(pipe, made, tuple(names[k] for k in chosen), options)
        rows[kind] = _measure_clip(pipe, recognisers, gallery, clip, PRESETS[options.preset].threshold)
        if place == 0 and options.alone:
            rows[kind]["frame_by_frame"] = _alone(pipe, clip, options)
        say(MODULE, f"{kind}: {clip.report.summary}, {clip.seconds:.0f} s")
        sheets.append(_strip(clip))
    if options.sheet:
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(sheets)).save(options.sheet, quality=80)
    return {"preset": options.preset, "crf": options.crf, "clips": rows, "all": _together(rows)}


def measure_given(pipe: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Of a clip that is given: what its report says, and what it costs."""
    with tempfile.TemporaryDirectory() as folder:
        begin, processor = time.perf_counter(), time.process_time()
        target = Path(folder, "after.mkv")
        report = protect_video(
            pipe, options.clip, target, crf=options.crf[0], preset=options.preset, seed=options.seed
        )
        seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    return {"clip": options.clip.name, **_costs(report, seconds, processor)}


def _one_face(pipe: Any, path: Path) -> tuple[Pixels, Face]:
    """A photo cut and scaled so that its largest face lies in it as in the clips' own photos."""
    image = Image.open(path).convert("RGB")
    face = max(pipe.face_detector(np.asarray(image)), key=lambda each: each.size)
    x, y = face.landmarks.mean(axis=0)
    half, scale = _PHOTO / _FACE * face.size / 2, _FACE / face.size
    left, top = max(0.0, x - half), max(0.0, y - half)
    box = (left, top, min(image.width, left + 2 * half), min(image.height, top + 2 * half))
    size = round((box[2] - box[0]) * scale), round((box[3] - box[1]) * scale)
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS, box))
    return pixels, max(pipe.face_detector(pixels), key=lambda each: each.size)


def _records(options: argparse.Namespace) -> tuple[list[Record], list[Record]]:
    """The photos that clips are made of, and the gallery: another photo of each person, and others'."""
    protocol = read_protocol(options.data)
    probes = list(protocol.probes[: 2 * len(options.kinds)])
    people = {record.person for record in probes}
    mates = [record for record in protocol.gallery if record.person in people]
    others = [record for record in protocol.gallery if record.person not in people][: options.gallery]
    return probes, [*mates, *others]


def _protect(
    pipe: Any, made: tuple[MadeFrame, ...], people: tuple[str, ...], options: argparse.Namespace
) -> Clip:
    """Write the clip without loss, protect it, and read what was written."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "before.mkv")
        _write([each.frame.pixels for each in made], source, options.rate, 0)  # 0: lossless
        read = _read(source)  # as it is in 4:2:0
        begin, processor = time.perf_counter(), time.process_time()
        report, targets = _write_protected(pipe, source, options)
        seconds, processor = time.perf_counter() - begin, time.process_time() - processor
        written = {crf: (target.stat().st_size, _read(target)) for crf, target in targets.items()}
    before = tuple(
        MadeFrame(type(each.frame)(pixels, each.frame.time), each.faces)
        for each, pixels in zip(made, read, strict=True)
    )
    return Clip(people, before, written, report, seconds, processor)


def _write_protected(
    pipe: Any, source: Path, options: argparse.Namespace
) -> tuple[VideoReport, dict[int, Path]]:
    """Protect a clip once and write it at each rate factor."""
    targets = {crf: source.with_name(f"after-{crf}.mkv") for crf in options.crf}
    tally = FrameTally()
    with VideoReader(source) as reader, contextlib.ExitStack() as stack:
        writers = [stack.enter_context(VideoWriter(path, reader, crf)) for crf, path in targets.items()]
        for result in protect_frames(pipe, reader.frames(), preset=options.preset, seed=options.seed):
            tally.add(result.faces)
            for writer in writers:
                writer.add(result.pixels, result.frame)
    return tally.report(), targets


def _read(path: Path) -> tuple[Pixels, ...]:
    with VideoReader(path) as reader:
        return tuple(frame.pixels for frame in reader.frames())


def _write(pictures: Sequence[Pixels], path: Path, rate: int, crf: int) -> None:
    import av

    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=rate, options={"crf": str(crf)})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for pixels in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))


def _measure_clip(
    pipe: Any, recognisers: Sequence[Recogniser], gallery: Any, clip: Clip, threshold: float
) -> dict[str, Any]:
    row: dict[str, Any] = _costs(clip.report, clip.seconds, clip.processor_seconds)
    row["below_in_file"] = number(_below(pipe, clip, clip.after, threshold))
    row["by_crf"] = {
        crf: {"bytes": size, "below_in_file": number(_below(pipe, clip, pixels, threshold))}
        for crf, (size, pixels) in (clip.written.items() if len(clip.written) > 1 else ())
    }
    row["flicker_psnr"] = number(_flicker(clip.before, clip.after))
    row["recognisers"] = {each.name: _search(each, gallery, clip) for each in recognisers}
    return row


def _costs(report: VideoReport, seconds: float, processor: float) -> dict[str, Any]:
    faces = max(1, report.face_frames)
    return {
        "frames": report.frames,
        "people": len(report.people),
        "face_frames": report.face_frames,
        "below": number(report.below_share),
        "covered": report.covered,
        "carried": report.carried,
        "unet_calls_a_face_frame": number(sum(person.unet_calls for person in report.people) / faces, 2),
        "seconds_a_face_frame": number(seconds / faces, 3),
        "processor_seconds_a_face_frame": number(processor / faces, 3),
    }


def _faces(clip: Clip) -> Iterator[tuple[int, int, Face]]:
    """(frame, photo, face) of every face that is known to be seen."""
    for index, made in enumerate(clip.before):
        for photo, face in made.faces.items():
            yield index, photo, face


@torch.no_grad()
def _below(pipe: Any, clip: Clip, written: Sequence[Pixels], threshold: float) -> float:
    """Share of the faces of a written file that the guide matches below h with the same frame before.

    Aligned by the points that are known from the photos, not by the tracker's.
    """
    values = []
    for index, _, face in _faces(clip):
        pair = [align_face(pixels, face).crop for pixels in (clip.before[index].frame.pixels, written[index])]
        before, after = pipe.face_encoder(torch.stack(pair).to(pipe.device)).split(1)
        values.append(float(match_probability(after, before)))
    return float(np.mean(np.array(values) < threshold)) if values else float("nan")


def _search(recogniser: Recogniser, gallery: Any, clip: Clip) -> dict[str, Any]:
    """Cosine with the other photo of the person, and the share found first: every third frame, and their mean."""
    faces = [each for each in _faces(clip) if each[0] % _SEARCHED_EVERY == 0]
    known = np.nan_to_num(gallery.embeddings[recogniser.name], nan=-1.0)
    result: dict[str, Any] = {}
    for word, frames in (
        ("before", [made.frame.pixels for made in clip.before]),
        ("after", list(clip.after)),
    ):
        embeddings = embed_faces(
            recogniser.encoder, [frames[i] for i, _, _ in faces], [f for _, _, f in faces]
        )
        for name, rows in _groups(embeddings, [photo for _, photo, _ in faces]):
            scores = [_score(rows[photo], known, gallery.persons, clip.people[photo]) for photo in rows]
            result[f"{name}_cosine_{word}"] = number(np.mean(np.concatenate([each[0] for each in scores])), 3)
            result[f"{name}_rank1_{word}"] = number(np.mean(np.concatenate([each[1] for each in scores])), 3)
    return result


def _groups(
    embeddings: NDArray[np.float32], photos: Sequence[int]
) -> list[tuple[str, dict[int, NDArray[np.float32]]]]:
    """Embeddings of each person: of the single frames, and their mean."""
    labels = np.array(photos)
    single = {int(photo): embeddings[labels == photo] for photo in np.unique(labels)}
    mean = {}
    for photo, rows in single.items():
        middle = rows.mean(axis=0, keepdims=True)
        mean[photo] = middle / np.linalg.norm(middle)
    return [("single", single), ("mean", mean)]


def _score(
    rows: NDArray[np.float32], known: NDArray[np.float32], persons: Sequence[str], person: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Of each embedding the cosine with the person's own photo, and whether that comes first."""
    cosines = rows @ known.T
    own = np.array([name == person for name in persons])
    best = cosines[:, own].max(axis=1)
    return best, best >= cosines[:, ~own].max(axis=1)


def _flicker(before: Sequence[MadeFrame], after: Sequence[Pixels]) -> float:
    """PSNR, dB, between the changes of a face in two frames after one another, carried into its aligned crop."""
    last: dict[int, NDArray[np.float64]] = {}
    errors = []
    for made, pixels in zip(before, after, strict=True):
        now: dict[int, NDArray[np.float64]] = {}
        for photo, face in made.faces.items():
            now[photo] = (
                (align_face(pixels, face).crop - align_face(made.frame.pixels, face).crop).double().numpy()
            )
            if photo in last:
                errors.append(float(np.mean((127.5 * (now[photo] - last[photo])) ** 2)))
        last = now
    return 10 * np.log10(255**2 / max(1e-9, float(np.mean(errors)))) if errors else float("nan")


def _alone(pipe: Any, clip: Clip, options: argparse.Namespace) -> dict[str, Any]:
    """The first frames of a clip as so many photos: what a video without a memory looks like."""
    some = clip.before[: options.alone]
    begin = time.perf_counter()
    out = pipe([made.frame.pixels for made in some], preset=options.preset, output_type="pil")
    seconds = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:  # coded alike, which is part of what flickers
        path = Path(folder, "alone.mkv")
        _write([np.asarray(image) for image in out.images], path, options.rate, options.crf[0])
        pixels = _read(path)
    return {
        "frames": len(some),
        "flicker_psnr": number(_flicker(some, pixels)),
        "seconds_a_face_frame": number(seconds / max(1, len(out.faces)), 3),
    }


def _together(rows: dict[str, Any]) -> dict[str, Any]:
    """Means over the clips, each counting alike."""
    names = ("below", "below_in_file", "flicker_psnr", "processor_seconds_a_face_frame")
    result: dict[str, Any] = {name: number(np.mean([row[name] for row in rows.values()])) for name in names}
    result["by_crf"] = {
        crf: {
            "bytes": sum(row["by_crf"][crf]["bytes"] for row in rows.values()),
            "below_in_file": number(np.mean([row["by_crf"][crf]["below_in_file"] for row in rows.values()])),
        }
        for crf in next(iter(rows.values()))["by_crf"]
    }
    result["recognisers"] = {
        recogniser: {
            name: number(np.mean([row["recognisers"][recogniser][name] for row in rows.values()]), 3)
            for name in values
        }
        for recogniser, values in next(iter(rows.values()))["recognisers"].items()
    }
    return result


def _strip(clip: Clip) -> Pixels:
    """Frames before, after and their change times eight, one below the other."""
    places = np.linspace(0, len(clip.before) - 1, _SHEET_FRAMES).astype(int)
    before = np.concatenate([clip.before[place].frame.pixels for place in places], axis=1)
    after = np.concatenate([clip.after[place][: before.shape[0]] for place in places], axis=1)
    change = ((after.astype(np.float64) - before) * _GAIN + 128).round().clip(0, 255).astype(np.uint8)
    return np.concatenate([before, after, change])


if __name__ == "__main__":
    main()
