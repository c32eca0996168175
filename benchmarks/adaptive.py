"""An attacker who trains against the protection: adapt recognisers on other people, search again, print JSON.

    python -m benchmarks.adaptive --probes 100 --people 400

The attacker protects crops of the training faces (never LFW), teaches each recogniser to place a protected face
where its original was, and searches the gallery for the protected LFW probes. Training faces that resemble
anybody in the gallery are left out. Standard output holds the JSON object alone; progress goes to standard
error. Rates count a probe as found when no gallery image of another person is strictly more similar than its own
person's (ties go to the searcher); intervals are bootstrap 95 % over people.
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
from diffusers_dedim.evaluation.adaptive import AdaptedEncoder, fit_adaptive_encoder, fit_adaptive_head
from diffusers_dedim.evaluation.crops import protect_once
from diffusers_dedim.evaluation.experiment import TARGETS
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
    """

    probes: Sequence[Probe]
    photos: Sequence[Pixels]
    faces: Sequence[Face]
    records: Sequence[Record]
    gallery: Gallery
    detector: FaceDetector
    cache: ArrayCache

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
    detector, cache = FaceDetector(device=options.device), ArrayCache(options.cache)
    probes, gallery = read_people(options, recognisers, detector)
    training, targets, lookalikes = choose_people(recognisers, gallery, options)
    settings = {"method": options.method, "batch_size": options.batch_size, "targets": targets}
    # another seed than the probes': or face k of either set would be diffused with the same noise
    taught = protect_once(pipe, training, cache, seed=options.seed + 1, aligned=True, **settings)
    done = protect_once(pipe, probes, cache, seed=options.seed, **settings)
    pairs = zip(done.photos, probes, strict=True)
    found = [same_face(photo, probe.face, detector) for photo, probe in pairs]
    faces = [face or probe.face for face, probe in zip(found, probes, strict=True)]
    records = read_protocol(options.data).gallery
    victims = Victims(probes, done.photos, faces, records, gallery, detector, cache)
    originals, protected = to_crops([person.photo for person in training]), to_crops(taught.photos)
    people = People(originals, protected, max(2, round(HELD_OUT * len(training))))
    return {
        "probes": len(probes),
        "gallery": len(gallery.persons),
        "method": options.method,
        "people": len(training),
        "people_held_out": people.held_out,
        "people_left_out_as_lookalikes": lookalikes,
        "people_reached_threshold": number(taught.reached.mean()),
        "rank1": {
            item.name: {
                "original": victims.rank1(item, gallery, protected=False),
                "protected": victims.rank1(item, gallery),
            }
            for item in recognisers
        },
        "attacks": {item.name: attack_all(item, people, victims, options) for item in recognisers},
        "undetected_after": sum(face is None for face in found),
    }


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
    recogniser: Recogniser, people: People, victims: Victims, options: argparse.Namespace
) -> dict[str, Any]:
    """Every attack that was asked for on this recogniser."""
    kinds = ATTACKS if is_guide(recogniser.name) else options.black_box_attacks
    return {kind: attack(kind, recogniser, people, victims, options) for kind in kinds}


def attack(
    kind: str, recogniser: Recogniser, people: People, victims: Victims, options: argparse.Namespace
) -> dict[str, Any]:
    """Adapt one recogniser and search with it."""
    say("adaptive", f"{recogniser.name}: {kind}")
    begin = time.perf_counter()
    adapted = _fit(kind, recogniser.encoder, people, options)
    seconds = time.perf_counter() - begin
    # its own name and fingerprint: the plain recogniser's gallery must not be taken from the cache for it
    fingerprint = f"{recogniser.fingerprint} {Recogniser.of(kind, adapted).fingerprint}"
    searcher = Recogniser(f"{recogniser.name}-{kind}", adapted, fingerprint)
    gallery = embed_gallery(victims.records, [searcher], victims.detector, victims.cache)
    plain = replace(victims.gallery, embeddings={searcher.name: victims.gallery.embeddings[recogniser.name]})
    return {
        "rank1": victims.rank1(searcher, gallery),
        "rank1_plain_gallery": victims.rank1(searcher, plain),
        "rank1_original": victims.rank1(searcher, gallery, protected=False),
        "held_out": _judge(recogniser.encoder, adapted, people),
        "steps": options.steps if kind == "full" else options.head_steps,
        "seconds": number(seconds, 1),
    }


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
    names = [str(index) for index in range(people.held_out)]
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
