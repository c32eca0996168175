"""Albums: do the protected photos of a person find each other? Rank-1, groups, what it costs; one JSON object.

    python -m benchmarks.albums --people 20

Whoever protects all photos of a person is looked up with one of them among the *others*, protected or not, and a
photo program sorts them into people. Three times over the same photos: ``before``, ``alone`` (each photo protected by
itself) and ``album`` (as ``dedim run`` does it: each knows what is protected of its person already).

By default the people are LFW's, as aligned crops; one photo each of other people makes the strangers. ``--data`` takes
a folder ``person/photo.jpg`` of yours. ``--tune`` takes the other half of the people: choose settings on those.

Rank-1: share of photos for which no photo of somebody else, strangers among them, is strictly more similar than the
best other photo of the person (ties go to the searcher). Groups: photos match from the similarity that 0.1 % of the
pairs of strangers reach, and whatever a chain of matches connects is a group. Intervals are bootstrap 95 % over people.
``same_person``: the line from which an album takes two originals for one person (`SAME_PERSON`), the guides' own at a
false match rate of 0.001, and the shares of pairs of one person and of strangers that the album joins.
Standard output holds the JSON object alone; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks._command import (
    CROP_RECOGNISERS,
    SHARED,
    add_black_boxes,
    at_least,
    interval,
    make_parser,
    number,
    run_benchmark,
    say,
)
from benchmarks._faces import Pixels
from diffusers_dedim.encoders import Recogniser, embed_faces
from diffusers_dedim.evaluation import Probe, Record, central_face
from diffusers_dedim.evaluation.data import read_photos
from diffusers_dedim.evaluation.methods import set_strength, split_strength
from diffusers_dedim.faces import MIN_FACE_SIZE, FaceDetector, align_face, whole_crop
from diffusers_dedim.metrics.grouping import connected_groups, shares_together, strangers_together
from diffusers_dedim.metrics.intervals import bootstrap_mean
from diffusers_dedim.metrics.quality import mean_ssim, psnr
from diffusers_dedim.metrics.retrieval import genuine_ranks
from diffusers_dedim.metrics.verification import threshold_at_fmr
from diffusers_dedim.pipeline.album import SAME_PERSON, Album
from diffusers_dedim.pipeline.guides import is_guide
from diffusers_dedim.pipeline.output import FaceResult
from diffusers_dedim.pipeline.photos import StreamPhoto
from diffusers_dedim.pipeline.presets import PRESETS, DeDiMPreset

CROPS = SHARED / "data" / "lfw" / "lfw_pairs_crops.parquet"
FMR = 1e-3
_CROP_SHAPE = (112, 112, 3)

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Protected:
    """What was made of the photos, in their order.

    Attributes:
        photos: one for each given; one that could not be protected is as it was.
        faces: their records, without those that could not be protected.
        failed: how many could not be.
        seconds: time spent.
    """

    photos: tuple[Pixels, ...]
    faces: tuple[FaceResult, ...]
    failed: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Judge:
    """One recogniser, and what it makes of photos nobody has touched.

    Attributes:
        recogniser: who searches.
        plain: embeddings ``[P, D]`` of the albums' photos as they were.
        strangers: ``[S, D]``, one photo each of other people.
        line: similarity that 0.1 % of the pairs of strangers reach.
    """

    recogniser: Recogniser
    plain: NDArray[np.float32]
    strangers: NDArray[np.float32]
    line: float


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object; for the arguments see `run_benchmark`."""
    run_benchmark("benchmarks.albums", _parse, run_albums, arguments, load_pipeline)


def run_albums(pipe: Any, recognisers: Sequence[Recogniser], options: argparse.Namespace) -> dict[str, Any]:
    """Protect every album, with and without one knowing of the other; returns what the JSON object holds."""
    detector = FaceDetector(device=options.device)
    records = read_photos(options.data)
    chosen = choose_people(records, options.people, options.photos, seed=options.seed, tune=options.tune)
    photos = drop_single(find_faces(chosen, detector))
    others = choose_strangers(read_photos(options.strangers), chosen, options.gallery, seed=options.seed)
    judges = [make_judge(each, photos, find_faces(others, detector)) for each in recognisers]
    persons = [photo.person for photo in photos]
    results: dict[str, Any] = {
        "method": options.method,
        "people": len(set(persons)),
        "photos": len(photos),
        "photos_left_out": len(chosen) - len(photos),
        "strangers": len(judges[0].strangers),
        "lines": {judge.recogniser.name: number(judge.line, 3) for judge in judges},
        "same_person": joins(judges, persons),
        "before": {"recognisers": {j.recogniser.name: search(j, j.plain, persons) for j in judges}},
    }
    say("albums", results["before"])
    kinds: dict[str, Any] = {"alone": {}}
    if not options.no_album:
        kinds["album"] = {"album": Album()}
    for name, settings in kinds.items():
        done = protect(pipe, photos, options, **settings)
        results[name] = summary(photos, done, judges)
        say("albums", {name: results[name]})
    return results


def choose_people(
    records: Sequence[Record], people: int, photos: tuple[int, int], *, seed: int, tune: bool = False
) -> list[Record]:
    """Draw people and photos of each, so that every number of photos is had as often as any other.

    Args:
        records: photos with their persons.
        people: wanted.
        photos: fewest and most photos of one.
        seed: of the draw.
        tune: take the other half of the people.

    Returns:
        The photos, person by person. A person with more photos than wanted gives a part of them.

    Raises:
        ValueError: there are too few people with so many photos.
    """
    of: dict[str, list[Record]] = {}
    for record in records:
        of.setdefault(record.person, []).append(record)
    draw = random.Random(seed)
    left = [person for person in sorted(of)[int(tune) :: 2] if len(of[person]) >= photos[0]]
    if len(of) <= 2 * people:  # a folder of one's own: there is no half to spare
        left = [person for person in sorted(of) if len(of[person]) >= photos[0]]
    draw.shuffle(left)
    sizes = list(range(photos[0], photos[1] + 1))
    wanted = sorted((sizes[place % len(sizes)] for place in range(people)), reverse=True)
    if len(left) < people:
        raise ValueError(
            f"--people: expected at most {len(left)} people with {photos[0]} photos, got {people}."
        )
    chosen: list[Record] = []
    for count in wanted:
        enough = (person for person in left if len(of[person]) >= count)
        person = next(enough, None) or max(left, key=lambda each: len(of[each]))
        left.remove(person)
        chosen += draw.sample(of[person], min(count, len(of[person])))
    return chosen


def choose_strangers(
    records: Sequence[Record], known: Sequence[Record], count: int, *, seed: int
) -> list[Record]:
    """Draw one photo each of ``count`` people who have no album."""
    taken = {record.person for record in known}
    of = {record.person: record for record in records if record.person not in taken}
    people = sorted(of)
    return [of[person] for person in random.Random(seed).sample(people, min(count, len(people)))]


def find_faces(records: Sequence[Record], detector: FaceDetector) -> list[Probe]:
    """The photos whose face can be protected: a photo of 112x112 px is an aligned crop, in others the central face."""
    found = []
    for record in tqdm(records, desc="faces", leave=False):
        photo = record.read_photo()
        face = whole_crop(photo).face if photo.shape == _CROP_SHAPE else central_face(photo, detector)
        if face is not None and face.size >= MIN_FACE_SIZE:
            found.append(Probe(record.person, photo, face, record.name))
    return found


def drop_single(photos: Sequence[Probe]) -> list[Probe]:
    """Without the only photo of a person that is left: there is nothing to find it by."""
    counts = Counter(photo.person for photo in photos)
    return [photo for photo in photos if counts[photo.person] > 1]


def make_judge(recogniser: Recogniser, photos: Sequence[Probe], strangers: Sequence[Probe]) -> Judge:
    """Embed everything that is not protected.

    Raises:
        ValueError: there are too few strangers for a false match rate of 0.001.
    """
    plain, others = (
        embed_faces(recogniser.encoder, [each.photo for each in group], [each.face for each in group])
        for group in (photos, strangers)
    )
    upper = np.triu_indices(len(others), k=1)
    line = threshold_at_fmr((others @ others.T)[upper].astype(np.float64), FMR)
    return Judge(recogniser, plain, others, line)


def joins(judges: Sequence[Judge], persons: Sequence[str]) -> dict[str, float | None]:
    """Whom an album takes for one person by the guides' mean cosine, and which line would be theirs.

    Args:
        judges: the guides count.
        persons: identity of each photo.
    """
    guides = [judge for judge in judges if is_guide(judge.recogniser.name)]
    strangers = np.mean([judge.strangers @ judge.strangers.T for judge in guides], axis=0)
    impostors = strangers[np.triu_indices(len(strangers), k=1)].astype(np.float64)
    first, second = np.triu_indices(len(persons), k=1)
    one_person = np.asarray(persons)[first] == np.asarray(persons)[second]
    genuine = np.mean([judge.plain @ judge.plain.T for judge in guides], axis=0)[first, second][one_person]
    return {
        "line": SAME_PERSON,
        "line_at_fmr_0.001": number(threshold_at_fmr(impostors, FMR), 3),
        "joined": number((genuine >= SAME_PERSON).mean(), 3),
        "strangers_joined": number((impostors >= SAME_PERSON).mean(), 5),
    }


def protect(pipe: Any, photos: Sequence[Probe], options: argparse.Namespace, **settings: Any) -> Protected:
    """Protect the face of each photo, in their order; each with a seed of its own."""
    begin = time.perf_counter()
    items = [
        StreamPhoto(
            place, photo.photo, torch.Generator().manual_seed(options.seed * 1_000_003 + place), [photo.face]
        )
        for place, photo in enumerate(photos)
    ]
    stream = pipe.stream(items, preset=read_preset(options.method), batch_size=options.batch_size, **settings)
    results = {result.photo.owner: result for result in tqdm(stream, total=len(items), desc="protect")}
    ordered = [results[place] for place in range(len(photos))]
    return Protected(
        tuple(result.pixels for result in ordered),
        tuple(face for result in ordered for face in result.faces),
        sum(result.error is not None for result in ordered),
        time.perf_counter() - begin,
    )


def read_preset(method: str) -> DeDiMPreset:
    """The preset of a method's name, such as "dedim:strong" or "dedim@h=0.5"."""
    name, strength = split_strength(method)
    return set_strength(method, PRESETS[name.partition(":")[2] or "fast"], strength)


def summary(photos: Sequence[Probe], done: Protected, judges: Sequence[Judge]) -> dict[str, Any]:
    """What was hidden, changed and spent."""
    persons, faces = [photo.person for photo in photos], [photo.face for photo in photos]
    before, after = (
        torch.stack([align_face(pixels, face).crop for pixels, face in zip(kind, faces, strict=True)])
        for kind in ([photo.photo for photo in photos], done.photos)
    )
    found = {}
    for judge in judges:
        embedded = embed_faces(judge.recogniser.encoder, done.photos, faces)
        found[judge.recogniser.name] = {
            **search(judge, embedded, persons),
            "own_photo": number((embedded * judge.plain).sum(1).mean(), 3),
        }
    decibels = psnr(before, after).numpy()
    return {
        "recognisers": found,
        "psnr": number(decibels[np.isfinite(decibels)].mean(), 2),
        "ssim": number(mean_ssim(before, after).numpy().mean()),
        "unet_calls_per_face": number(np.mean([face.unet_calls for face in done.faces]), 1),
        "reached_threshold": number(np.mean([face.reached_threshold for face in done.faces]), 3),
        "failed": done.failed,
        "seconds_per_face": number(done.seconds / len(photos), 2),
    }


def search(judge: Judge, embedded: NDArray[np.float32], persons: Sequence[str]) -> dict[str, Any]:
    """Look each photo up among the others, and sort them into groups.

    Args:
        judge: who searches.
        embedded: ``[P, D]`` of the photos as they are now.
        persons: identity of each.
    """
    among_protected = embedded @ embedded.T
    groups = connected_groups(among_protected, judge.line)
    ranks = rank_others(among_protected, embedded @ judge.strangers.T, persons)
    return {
        "rank1_in_plain": _first(
            rank_others(embedded @ judge.plain.T, embedded @ judge.strangers.T, persons), persons
        ),
        "rank1_in_protected": _first(ranks, persons),
        "rank1_in_protected_by_photos": by_photos(ranks == 1, persons),
        "together": interval(bootstrap_mean(shares_together(groups, persons), persons)),
        "strangers_together": number(strangers_together(groups, persons)),
    }


def rank_others(
    among: NDArray[np.float32], strangers: NDArray[np.float32], persons: Sequence[str]
) -> NDArray[np.int64]:
    """Rank of the best *other* photo of each photo's person.

    Args:
        among: ``[P, P]`` cosine of each photo with all; its own place is not read.
        strangers: ``[P, S]`` with those of other people.
        persons: identity of each photo.
    """
    scores = np.concatenate([among, strangers], axis=1).astype(np.float64)
    np.fill_diagonal(scores, -np.inf)
    return genuine_ranks(scores, persons, [*persons, *[""] * strangers.shape[1]])


def by_photos(found: NDArray[np.bool_], persons: Sequence[str]) -> dict[str, float | None]:
    """Share found, by how many photos the person has."""
    names, counts = np.unique(np.asarray(persons), return_counts=True)
    size = dict(zip(names.tolist(), counts.tolist(), strict=True))
    sizes = np.array([size[person] for person in persons])
    return {str(each): number(found[sizes == each].mean(), 3) for each in sorted(set(sizes.tolist()))}


def _first(ranks: NDArray[np.int64], persons: Sequence[str]) -> dict[str, float | None]:
    return interval(bootstrap_mean(ranks == 1, persons))


def _range(word: str) -> tuple[int, int]:
    """Read ``2..8`` or ``4``."""
    low, _, high = word.partition("..")
    fewest, most = int(low), int(high or low)
    if not 2 <= fewest <= most:
        raise argparse.ArgumentTypeError(f"expected FEWEST..MOST of at least 2 photos, got {word}")
    return fewest, most


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.albums", __doc__)
    add = parser.add_argument
    add("--people", type=at_least(1), default=20, help="people with an album each (default 20)")
    add("--photos", type=_range, default=(2, 8), metavar="N..M", help="photos of each (default 2..8)")
    add("--method", default="dedim", help="such as dedim:strong or dedim@h=0.5 (default dedim)")
    add("--no-album", action="store_true", help="leave out the albums whose photos know of each other")
    add("--tune", action="store_true", help="the other half of the people, for choosing settings")
    add("--data", type=Path, default=CROPS, help="parquet with image and person, or folder person/photo.jpg")
    add("--strangers", type=Path, default=CROPS, help="photos of other people, in the same forms")
    add("--gallery", type=at_least(46), default=400, help="strangers at most (default 400)")
    add("--weights", type=Path, help="pipeline folder (default: the weights inside the package)")
    add("--batch-size", type=at_least(1), default=4, help="faces at a time (default 4)")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add_black_boxes(add, CROP_RECOGNISERS)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
