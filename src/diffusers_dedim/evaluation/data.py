"""The experiment's photos: probes to protect, the gallery an attacker searches, and people to spare.

Read with their roles from a table or a folder, or drawn by a seed from a folder of people.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.extras import import_extra
from diffusers_dedim.images.files import PHOTO_SUFFIXES, decode_photo

ROLES = ("probe", "gallery")
_COLUMNS = ("image", "person", "role")

PAIRED, ALONE = 500, 500
"""Section 4 of the paper: 500 probes with another photo in the gallery, and 500 other people in it."""


@dataclass(frozen=True)
class Record:
    """One photo of the experiment, decoded when it is asked for.

    Attributes:
        name: where it came from, for messages: a file, or a table and its row (from 0).
        person: identity.
        role: "probe" or "gallery".
        content: the encoded photo, or the file that holds it.
    """

    name: str
    person: str
    role: str
    content: bytes | Path = field(repr=False)

    def read_photo(self) -> NDArray[np.uint8]:
        """Decode the photo: ``[H, W, 3]`` uint8 RGB, upright.

        Raises:
            UnreadablePhotoError: it cannot be decoded; names the record.
        """
        try:
            return decode_photo(self.read_bytes()).pixels
        except (UnreadablePhotoError, OSError) as error:
            raise UnreadablePhotoError(f"{self.name} ({self.role} of {self.person!r}): {error}") from error

    def read_bytes(self) -> bytes:
        """The photo as it is encoded."""
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content


@dataclass(frozen=True)
class RetrievalProtocol:
    """Probes and gallery of one experiment, each in the order of the source.

    Attributes:
        probes: photos to protect and to search with.
        gallery: photos searched, at least one of each probe's person.

    Raises:
        ValueError: one of the two is empty, or a probe's person is not in the gallery.
    """

    probes: tuple[Record, ...]
    gallery: tuple[Record, ...]

    def __post_init__(self) -> None:
        for role, records in (("probe", self.probes), ("gallery", self.gallery)):
            if not records:
                raise ValueError(f"protocol: there is no photo with the role {role!r}.")
        known = {record.person for record in self.gallery}
        alone = [record for record in self.probes if record.person not in known]
        if alone:
            names = ", ".join(f"{record.person!r} ({record.name})" for record in alone[:5])
            raise ValueError(
                f"protocol: {len(alone)} probe(s) without a gallery image of the same person: {names}"
                f"{', ...' if len(alone) > 5 else ''}; add one for each, or leave these probes out."
            )

    def take_probes(self, limit: int) -> RetrievalProtocol:
        """The same gallery with the first ``limit`` probes in the order of the source.

        Raises:
            ValueError: there are fewer probes, or the limit is below 1.
        """
        if not 1 <= limit <= len(self.probes):
            raise ValueError(f"limit: expected 1 to {len(self.probes)} probes, got {limit}.")
        return RetrievalProtocol(self.probes[:limit], self.gallery)


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


def read_protocol(source: str | os.PathLike[str]) -> RetrievalProtocol:
    """Read an experiment from a parquet file or a folder.

    Args:
        source: a parquet file with the columns ``image`` (as `datasets` writes it), ``person`` and ``role``
            ("probe" or "gallery"); or a folder ``<role>/<person>/<photo>``, read in sorted order.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a column is missing, a role is unknown, or the protocol is incomplete.

    Example:
        >>> protocol = read_protocol("lfw_1500.parquet")  # doctest: +SKIP
        >>> len(protocol.probes), len(protocol.gallery)  # doctest: +SKIP
        (500, 1000)
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"source: there is no file or folder {str(path)!r}.")
    records = _read_folder(path) if path.is_dir() else _read_parquet(path)
    unknown = Counter(record.role for record in records if record.role not in ROLES)
    if unknown:
        raise ValueError(f"{path}: column 'role' must hold 'probe' or 'gallery', got {dict(unknown)}.")
    return RetrievalProtocol(
        probes=tuple(record for record in records if record.role == "probe"),
        gallery=tuple(record for record in records if record.role == "gallery"),
    )


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


def read_photos(source: str | os.PathLike[str]) -> list[Record]:
    """Read photos of people without roles: a parquet with ``image`` and ``person``, or ``folder/person/photo``.

    A parquet without ``person`` must name its images ``Person_Name_0001.jpg``, as LFW does. Photos that lie in the
    folder itself are a person each. Rows and files are in the order of the source.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a column is missing, or there is no photo.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"targets: there is no file or folder {str(path)!r}.")
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in PHOTO_SUFFIXES]
        records = [
            Record(str(file), file.stem if file.parent == path else file.parent.name, "target", file)
            for file in files
        ]
    else:
        records = _read_parquet(path, ("image",))
    if not records:
        raise ValueError(f"targets: there is no photo in {str(path)!r}.")
    return records


def check_readable(records: Sequence[Record]) -> None:
    """Decode every photo once, so that a broken one is told before anything is measured, not hours later.

    Raises:
        UnreadablePhotoError: names every photo that cannot be decoded (the first five in full).
    """
    problems = [problem for record in records if (problem := _reading_problem(record))]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UnreadablePhotoError(
            f"data: {len(problems)} of {len(records)} photos cannot be read: {'; '.join(problems[:5])}{more}. "
            "Replace them or leave them out; nothing was measured with them."
        )


def hash_records(records: Sequence[Record]) -> str:
    """SHA-256 over the photos in their order: names this set of photos in caches."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(hashlib.sha256(record.read_bytes()).digest())
    return digest.hexdigest()


def _reading_problem(record: Record) -> str:
    try:
        record.read_photo()
    except UnreadablePhotoError as error:
        return str(error)
    return ""


def _read_parquet(path: Path, wanted: Sequence[str] = _COLUMNS) -> list[Record]:
    """Read the table with pyarrow: `datasets` would leave a second copy of the faces in its cache."""
    parquet = import_extra("pyarrow.parquet", f"reading {path.name}")
    try:
        columns = parquet.read_schema(path).names
    except Exception as error:  # ArrowInvalid, OSError: pyarrow's types are not importable here
        raise ValueError(f"{path}: expected a parquet file or a folder: {error}") from error
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise ValueError(f"{path}: column(s) {missing} missing; expected {list(wanted)}, got {columns}.")
    rows = parquet.read_table(path, columns=[name for name in _COLUMNS if name in columns]).to_pylist()
    return [_record_from_row(f"{path.name} row {index}", row) for index, row in enumerate(rows)]


def _record_from_row(name: str, row: dict[str, object]) -> Record:
    image = row["image"]
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes):
        raise ValueError(
            f"{name}: column 'image' must hold the encoded photo ({{'bytes': ..., 'path': ...}} as datasets "
            f"writes it), got {type(content).__name__}."
        )
    person = row.get("person")
    if person is None or person == "" or person != person:  # a number that is none
        person = _person_of(image.get("path") if isinstance(image, dict) else None)
    if person == "":
        raise ValueError(f"{name}: no column 'person' and no image path Person_Name_0001.jpg: who is it?")
    return Record(name, str(person), str(row.get("role", "target")), content)


def _person_of(path: object) -> str:
    """``Abel_Pacheco`` of ``Abel_Pacheco_0004.jpg``."""
    match = re.fullmatch(r"(.+)_\d+", Path(path).stem) if isinstance(path, str) else None
    return match[1] if match else ""


def _read_folder(folder: Path) -> list[Record]:
    files = (file for role in ROLES for file in sorted((folder / role).glob("*/*")))
    return [
        Record(str(file), person=file.parent.name, role=file.parent.parent.name, content=file)
        for file in files
        if file.suffix.lower() in PHOTO_SUFFIXES
    ]


def _photos_by_person(folder: Path) -> dict[str, list[Path]]:
    """Sorted by code points, so that the draw does not depend on the file system's order."""
    photos = {
        person.name: sorted(file for file in person.iterdir() if file.suffix.lower() in PHOTO_SUFFIXES)
        for person in sorted(path for path in folder.iterdir() if path.is_dir())
    }
    return {person: files for person, files in photos.items() if files}


def _record(person: str, role: str, file: Path) -> Record:
    return Record(f"{person}/{file.name}", person, role, file)
