"""An attacker who trains against the protection: adapt recognisers on other people, search again, print JSON.

    python -m benchmarks.adaptive --probes 100 --people 400

The attacker protects crops of the training faces (never LFW), teaches each recogniser to place a protected face
where its original was, and searches the gallery for the protected LFW probes. Training faces that resemble
anybody in the gallery are left out. He does so once for each way of protecting his people (``--attackers``): as the
victims do (plain), with settings or guides drawn for each face, in albums. ``rows`` is one table of all of it, which
``dedim evaluate --adaptive FILE`` puts on its page. Standard output holds the JSON object alone; progress and the
table go to standard error. Rates count a probe as found when no gallery image of another person is strictly more
similar than its own person's (ties go to the searcher); intervals are bootstrap 95 % over people.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._attackers import WAYS, Lesson, Protector, check_way, known_ways
from benchmarks._command import (
    CROP_RECOGNISERS,
    FACES,
    LFW,
    add_black_boxes,
    interval,
    make_parser,
    number,
    read_people,
    run_benchmark,
    say,
)
from benchmarks._faces import Pixels, choose_strangers, to_crops
from diffusers_dedim.encoders import OnnxEncoder, PhotoEncoder, Recogniser
from diffusers_dedim.evaluation import (
    ArrayCache,
    Gallery,
    Probe,
    Record,
    embed_gallery,
    read_protocol,
    same_face,
    search_gallery,
)
from diffusers_dedim.evaluation.adaptive import (
    AdaptedEncoder,
    fit_adaptive_encoder,
    fit_adaptive_head,
    read_rows,
)
from diffusers_dedim.evaluation.experiment import TARGETS
from diffusers_dedim.evaluation.mates import find_mates
from diffusers_dedim.evaluation.tables import adaptive_table, to_markdown
from diffusers_dedim.faces import Face, FaceDetector
from diffusers_dedim.metrics.intervals import bootstrap_mean
from diffusers_dedim.metrics.retrieval import genuine_ranks, rank_k_rate
from diffusers_dedim.pipeline.guides import is_guide

ATTACKS = ("full", "head")
HELD_OUT = 0.1  # of the attacker's people: has the attack learned anything at all?


@dataclass(frozen=True, eq=False)
class Victims:
    """Whom the attacker looks for, and where.

    Attributes:
        probes: originals. photos: protected. faces: as the attacker's detector finds them on ``photos``.
        records, gallery: the gallery's photos, and their embeddings by the plain recognisers.
        detector, cache: of the gallery's embedding.
        undetected: how many faces are not found any more; they are searched where they were.
    """

    probes: Sequence[Probe]
    photos: Sequence[Pixels]
    faces: Sequence[Face]
    records: Sequence[Record]
    gallery: Gallery
    detector: FaceDetector
    cache: ArrayCache
    undetected: int

    def rank1(self, recogniser: Recogniser, gallery: Gallery, *, protected: bool = True) -> dict[str, Any]:
        """Share of the protected photos, or of the originals, that are found first in a gallery."""
        photos, faces = self.photos, self.faces
        if not protected:
            photos, faces = zip(*[(probe.photo, probe.face) for probe in self.probes], strict=True)
        scores = search_gallery(self.probes, photos, faces, gallery, [recogniser])[recogniser.name]
        persons = [probe.person for probe in self.probes]
        return interval(bootstrap_mean(genuine_ranks(scores, persons, gallery.persons) == 1, persons))


@dataclass(frozen=True, eq=False)
class People:
    """The attacker's own people: crops ``[N, 3, 112, 112]`` before and after; the last ``held_out`` only judge."""

    originals: Tensor
    protected: Tensor
    names: list[str]
    held_out: int


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object; for the arguments see `run_benchmark`."""
    run_benchmark("benchmarks.adaptive", _parse, run_adaptive, arguments, load_pipeline)


def run_adaptive(pipe: Any, recognisers: Sequence[Recogniser], options: argparse.Namespace) -> dict[str, Any]:
    """Protect, attack and search; returns what the JSON object holds."""
    framing = [item.name for item in recognisers if isinstance(item.encoder, PhotoEncoder)]
    if framing:
        raise ValueError(
            f"--black-box: {framing} frame faces in whole photos; the attack is fitted to crops."
        )
    ways = options.attackers or known_ways(options.method, pipe)
    if options.victims == "drawn" and not options.attackers:
        ways = ["drawn"]  # who knows the method does as its users do
    for way in {options.victims, *ways}:
        check_way(way, options.method, pipe)
    detector, cache = FaceDetector(device=options.device), ArrayCache(options.cache)
    probes, gallery = read_people(options, recognisers, detector)
    training, targets, lookalikes = choose_people(recognisers, gallery, options)
    protector = Protector(pipe, cache, options.method, options.seed, options.batch_size, targets)
    victims = protect_victims(protector, probes, gallery, detector, options)
    rows, lessons = plain_rows(recognisers, victims, options), {}
    for way in ways:
        # another seed than the probes': or face k of either set would be diffused with the same noise
        lesson = replace(protector, seed=options.seed + 1, aligned=True).protect(way, training)
        lessons[way] = {"faces": len(lesson.people), "reached_threshold": number(lesson.reached.mean())}
        people = as_crops(lesson)
        for item in recognisers:
            rows += attack_all(way, item, people, victims, options)
    say("adaptive", "\n" + to_markdown(adaptive_table(read_rows(rows))))
    return {
        "probes": len(probes),
        "gallery": len(gallery.persons),
        "method": options.method,
        "victims": options.victims,
        "people": len(training),
        "people_left_out_as_lookalikes": lookalikes,
        "attackers": lessons,
        "undetected_after": victims.undetected,
        "rows": rows,
    }


def protect_victims(
    protector: Protector,
    probes: Sequence[Probe],
    gallery: Gallery,
    detector: FaceDetector,
    options: argparse.Namespace,
) -> Victims:
    """Protect the probes in the victims' way, and find their faces anew."""
    protocol, mates = read_protocol(options.data), list[Probe]()
    if options.victims == "album":
        photos = {mate.person: mate for mate in find_mates(protocol, detector, protector.cache).values()}
        mates = [photos.get(probe.person, probe) for probe in probes]
    lesson = protector.protect(options.victims, probes, mates)
    # of an album the probes alone are searched with, of groups all; in their order
    done = dict(zip(map(id, lesson.people), lesson.photos, strict=True))
    photos_after = [done[id(probe)] for probe in probes]
    found = [
        same_face(photo, probe.face, detector) for photo, probe in zip(photos_after, probes, strict=True)
    ]
    faces = [face or probe.face for face, probe in zip(found, probes, strict=True)]
    return Victims(
        probes, photos_after, faces, protocol.gallery, gallery, detector, protector.cache, found.count(None)
    )


def as_crops(lesson: Lesson) -> People:
    """What the attacker learns from; the last tenth judges, and of an album no person is on both sides."""
    held_out = max(2, round(HELD_OUT * len(lesson.people)))
    return People(
        to_crops([person.photo for person in lesson.people]),
        to_crops(lesson.photos),
        [person.person for person in lesson.people],
        held_out + held_out % 2,
    )


def plain_rows(
    recognisers: Sequence[Recogniser], victims: Victims, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """What each recogniser finds before anybody has learned."""
    return [
        {
            **_subject(options, "none", item.name, "none"),
            "rank1": victims.rank1(item, victims.gallery),
            "rank1_original": victims.rank1(item, victims.gallery, protected=False),
        }
        for item in recognisers
    ]


def choose_people(
    recognisers: Sequence[Recogniser], gallery: Gallery, options: argparse.Namespace
) -> tuple[list[Probe], Tensor | None, int]:
    """The attacker's people, TIP-IM's targets if needed, and how many were left out as lookalikes.

    The black boxes judge who resembles whom, the white box if there are none.
    """
    judges = [item for item in recognisers if not is_guide(item.name)] or recognisers
    extra = TARGETS if options.method.startswith("tip-im") else 0
    strangers, known = choose_strangers(
        options.people_data, options.people + extra, judges, gallery, options.seed
    )
    if len(strangers) < 4 + extra:
        raise ValueError(
            f"--people: {len(strangers)} of {options.people + extra} training faces resemble nobody in the "
            f"gallery; the attack needs at least {4 + extra}, give more."
        )
    targets = to_crops([person.photo for person in strangers[:extra]]) if extra else None
    return strangers[extra:], targets, known


def attack_all(
    way: str, recogniser: Recogniser, people: People, victims: Victims, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for every attack that was asked for on this recogniser."""
    kinds = ATTACKS if is_guide(recogniser.name) else options.black_box_attacks
    return [
        {
            **_subject(options, way, recogniser.name, kind),
            **attack(kind, recogniser, people, victims, options),
        }
        for kind in kinds
    ]


def attack(
    kind: str, recogniser: Recogniser, people: People, victims: Victims, options: argparse.Namespace
) -> dict[str, Any]:
    """Adapt one recogniser and search with it."""
    begin = time.perf_counter()
    adapted = _fit(kind, recogniser.encoder, people, options)
    seconds = time.perf_counter() - begin
    # its own name and fingerprint: the plain recogniser's gallery must not be taken from the cache for it
    fingerprint = f"{recogniser.fingerprint} {Recogniser.of(kind, adapted).fingerprint}"
    searcher = Recogniser(f"{recogniser.name}-{kind}", adapted, fingerprint)
    gallery = embed_gallery(victims.records, [searcher], victims.detector, victims.cache)
    plain = replace(victims.gallery, embeddings={searcher.name: victims.gallery.embeddings[recogniser.name]})
    found = {
        "rank1": victims.rank1(searcher, gallery),
        "rank1_plain_gallery": victims.rank1(searcher, plain),
        "rank1_original": victims.rank1(searcher, gallery, protected=False),
        "held_out": _judge(recogniser.encoder, adapted, people),
        "steps": options.steps if kind == "full" else options.head_steps,
        "seconds": number(seconds, 1),
    }
    say("adaptive", f"{recogniser.name}, {kind}: {found['rank1']}")
    return found


def _subject(options: argparse.Namespace, way: str, recogniser: str, kind: str) -> dict[str, str]:
    """Whose row it is."""
    note = "" if options.victims == "plain" else f", {options.victims}"
    return {"method": options.method + note, "attacker": way, "recogniser": recogniser, "attack": kind}


def _fit(kind: str, encoder: nn.Module, people: People, options: argparse.Namespace) -> AdaptedEncoder:
    crops = (people.originals[: -people.held_out], people.protected[: -people.held_out])
    if kind == "head":
        return fit_adaptive_head(encoder, *crops, steps=options.head_steps, seed=options.seed)
    if isinstance(encoder, OnnxEncoder) and encoder.graph is None:
        encoder = OnnxEncoder(encoder.path, differentiable=True)
    return fit_adaptive_encoder(
        encoder, *crops, steps=options.steps, learning_rate=options.learning_rate, seed=options.seed
    )


@torch.no_grad()
def _judge(plain: nn.Module, adapted: nn.Module, people: People) -> dict[str, Any]:
    """How protected faces of held-out people lie to their originals, before and after adapting."""
    device = next((value.device for value in adapted.parameters()), torch.device("cpu"))
    originals = people.originals[-people.held_out :].to(device)
    protected = people.protected[-people.held_out :].to(device)
    target = plain(originals)
    names = people.names[-people.held_out :]
    result: dict[str, Any] = {"people": people.held_out}
    for label, embedding in (("plain", plain(protected)), ("adapted", adapted(protected))):
        scores = (embedding.double() @ target.double().T).cpu().numpy()
        result[f"similarity_{label}"] = number(scores.diagonal().mean())
        result[f"relinked_{label}"] = number(rank_k_rate(scores, names, names))
    result["similarity_original"] = number(float((adapted(originals) * target).sum(1).mean()))
    return result


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.adaptive", __doc__)
    add = parser.add_argument
    add("--probes", type=int, default=100, help="first N probes of the data (default 100)")
    add("--people", type=int, default=400, help="training faces of the attacker (default 400)")
    add("--method", default="dedim:fast", help="dedim:PRESET, tip-im, ... (default dedim:fast)")
    text = "how the victims protect themselves: plain, in an album with their gallery photo, a guide drawn a round"
    add("--victims", choices=("plain", "album", "drawn"), default="plain", help=text)
    text = (
        "how the attacker protects his people: benchmarks/_attackers.py (default: all that the method knows)"
    )
    add("--attackers", nargs="+", choices=WAYS, help=text)
    add("--weights", type=Path, help="pipeline folder (default: the weights inside the package)")
    add("--steps", type=int, default=300, help="steps of fine-tuning all weights (default 300)")
    add("--learning-rate", type=float, default=3e-4, help="of fine-tuning all weights (default 3e-4)")
    add("--head-steps", type=int, default=2000, help="steps of fitting a head (default 2000)")
    text = "on these: a head over the frozen network, or all weights (default head; the white box gets both)"
    add("--black-box-attacks", nargs="+", choices=ATTACKS, default=["head"], help=text)
    add("--data", type=Path, default=LFW, help="parquet or folder")
    add("--people-data", default=str(FACES), help="crops with a part 'train'; not LFW")
    add("--batch-size", type=int, default=8, help="photos per call of the pipeline (default 8)")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add_black_boxes(add, CROP_RECOGNISERS, kept="gallery and photos")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
