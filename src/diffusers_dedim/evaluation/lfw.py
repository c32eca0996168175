"""Draw the paper's retrieval protocol from a folder of people, such as LFW as it is handed out."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from diffusers_dedim.evaluation.protocol import ROLES, Record, RetrievalProtocol, read_protocol
from diffusers_dedim.image_io import PHOTO_SUFFIXES

PAIRED, ALONE = 500, 500
"""Section 4 of the paper: 500 probes with another photo in the gallery, and 500 other people in it."""


@dataclass(frozen=True)
class Experiment:
    """The photos of one experiment.

    Attributes:
        protocol: probes and gallery.
        spare: photos of people who are neither probe nor in the gallery, one a person, in random order: the
            target identities of TIP-IM are taken from these.
    """

    protocol: RetrievalProtocol
    spare: tuple[Record, ...] = ()


def read_experiment(source: str | os.PathLike[str], seed: int = 0) -> Experiment:
    """Read a parquet file or a folder with roles, or draw the protocol from a folder of people.

    Args:
        source: what `read_protocol` takes, or a folder ``Person_Name/Person_Name_0001.jpg``.
        seed: of the draw; not used where the roles are given.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: as `read_protocol` and `draw_protocol`.

    Example:
        >>> read_experiment("lfw", seed=0).protocol.probes[0].person  # doctest: +SKIP
    """
    path = Path(source)
    if path.is_dir() and not any((path / role).is_dir() for role in ROLES):
        return draw_protocol(path, seed)
    return Experiment(read_protocol(path))


def draw_protocol(
    folder: str | os.PathLike[str], seed: int = 0, paired: int = PAIRED, alone: int = ALONE
) -> Experiment:
    """Draw probes and gallery from ``folder/person/photo``.

    ``paired`` people with two photos or more give a probe and another photo for the gallery; ``alone`` other
    people, with any number of photos, give one gallery photo each. The rest are spare.

    Args:
        folder: one folder a person, its name is the identity; other files are passed over.
        seed: the same folder and seed give the same protocol.
        paired: number of probes.
        alone: number of people in the gallery without a probe.

    Raises:
        ValueError: there are too few people, or too few with two photos.
    """
    photos = _photos_by_person(Path(folder))
    with_two = [person for person, files in photos.items() if len(files) > 1]
    if len(with_two) < paired or len(photos) < paired + alone:
        raise ValueError(
            f"{folder}: expected folders of at least {paired + alone} people, {paired} of them with two photos or "
            f"more (Person_Name/Person_Name_0001.jpg), got {len(photos)} and {len(with_two)}; give the whole "
            "of LFW, or a folder probe/<person>/<photo> and gallery/<person>/<photo>."
        )
    draw = random.Random(seed)  # not numpy's: its stream is the same on every version and platform
    first = draw.sample(with_two, paired)
    taken = set(first)
    others = draw.sample([person for person in photos if person not in taken], len(photos) - paired)
    probes, gallery = [], []
    for person in first:
        probe, known = draw.sample(photos[person], 2)
        probes.append(_record(person, "probe", probe))
        gallery.append(_record(person, "gallery", known))
    gallery += [_record(person, "gallery", draw.choice(photos[person])) for person in others[:alone]]
    spare = tuple(_record(person, "target", draw.choice(photos[person])) for person in others[alone:])
    return Experiment(RetrievalProtocol(tuple(probes), tuple(gallery)), spare)


def reserve_people(experiment: Experiment, count: int, seed: int = 0) -> Experiment:
    """Take people out of the gallery, to serve as TIP-IM's targets: those must be neither probe nor gallery.

    Only people without a probe are taken. A smaller gallery makes every search a little easier, so no method
    looks better for it.

    Args:
        experiment: its gallery loses ``count`` photos, or as many as people have no probe.
        count: people wanted.
        seed: of the draw.
    """
    searched = {record.person for record in experiment.protocol.probes}
    alone = sorted({record.person for record in experiment.protocol.gallery} - searched)
    taken = set(random.Random(seed).sample(alone, min(count, len(alone))))
    gallery = experiment.protocol.gallery
    protocol = RetrievalProtocol(
        experiment.protocol.probes, tuple(record for record in gallery if record.person not in taken)
    )
    spare = {record.person: record for record in gallery if record.person in taken}
    return Experiment(protocol, (*experiment.spare, *spare.values()))


def _photos_by_person(folder: Path) -> dict[str, list[Path]]:
    """Sorted by code points, so that the draw does not depend on the file system's order."""
    photos = {
        person.name: sorted(file for file in person.iterdir() if file.suffix.lower() in PHOTO_SUFFIXES)
        for person in sorted(path for path in folder.iterdir() if path.is_dir())
    }
    return {person: files for person, files in photos.items() if files}


def _record(person: str, role: str, file: Path) -> Record:
    return Record(f"{person}/{file.name}", person, role, file)
