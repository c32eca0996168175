"""Record of a run, one JSON line a finished photo, that survives a kill at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from diffusers_dedim import __version__
from diffusers_dedim.folder_lock import LOCK_NAME
from diffusers_dedim.image_io import TEMPORARY_PREFIX, write_atomic
from diffusers_dedim.photo_jobs import PhotoJob, RunError, result_names
from diffusers_dedim.under_way import names_under_way

MANIFEST_NAME = "dedim-manifest.jsonl"
_VERSION = 1  # of the file's layout
_OF_FILE_MANAGERS = (".DS_Store", "Thumbs.db", "desktop.ini")  # in folders that look empty
_NAMES = re.compile(
    rb'"(?:name|output)": ("(?:[ !#-\[\]-~]|\\["\\bfnrt]|\\u[0-9a-f]{4})*")'
)  # as JSON has them
_NO_PACKAGE = (
    "the manifest does not say which version of dedim began this run; where it was another one, its photos were "
    "protected with other settings"
)

Status = Literal["protected", "not_protected", "no_face", "face_too_small", "unreadable", "error"]
"""What became of a photo. Only "protected" is written under its own name."""

SETTLED: frozenset[Status] = frozenset(("protected", "not_protected", "no_face", "face_too_small"))
"""Results of the photo and the settings; the others may be different on another try."""


@dataclass(frozen=True)
class FaceRecord:
    """Scores of one face.

    Attributes:
        box: x0, y0, x1, y1 in photo pixels.
        similarity_before: cosine to the original face before, in [-1, 1].
        similarity: cosine to the original face after, in [-1, 1].
        probability: Eq. 4, that it is still matched, in [0, 1].
        rounds: rounds of Algorithm 2 used.
        unet_calls: UNet evaluations used.
        reached_threshold: whether the probability fell below the threshold.
    """

    box: tuple[float, float, float, float]
    similarity_before: float
    similarity: float
    probability: float
    rounds: int
    unet_calls: int
    reached_threshold: bool


@dataclass(frozen=True)
class PhotoRecord:
    """What a run did with one photo.

    Attributes:
        name: path below the output folder, as in the job.
        status: see :data:`Status`.
        reason: in words, why it was not protected; empty where it was.
        output: path of the written file below the output folder, ``None`` where nothing was written.
        source_sha256: of the input file, empty where it could not be read.
        output_sha256: of the written file, empty where nothing was written.
        faces: the protected faces, in the pipeline's order.
        notes: what reading or writing could not keep, in words.
        seconds: time spent, the photo's equal share where it ran in a batch.
    """

    name: str
    status: Status
    reason: str = ""
    output: str | None = None
    source_sha256: str = ""
    output_sha256: str = ""
    faces: tuple[FaceRecord, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @classmethod
    def from_fields(cls, row: Mapping[str, Any]) -> PhotoRecord:
        """The inverse of `dataclasses.asdict`, from JSON.

        Raises:
            KeyError, TypeError: a field is missing or unknown.
        """
        fields = dict(row)
        faces = tuple(FaceRecord(**{**face, "box": tuple(face["box"])}) for face in fields.pop("faces"))
        return cls(faces=faces, notes=tuple(fields.pop("notes")), **fields)


class Manifest:
    """The file ``dedim-manifest.jsonl`` in an output folder: a header with settings and package version, then records.

    Each record is appended, flushed and synced after its photo is on disk, so a photo that is listed is
    there, and one that is there but not listed is done again over the same name. A last line torn by a kill
    is cut off before the next one is written.

    Attributes:
        records: latest record of each photo by name, in the order they were first written.
        notes: what a user who goes on should know, in words.
    """

    def __init__(
        self,
        path: Path,
        records: dict[str, PhotoRecord],
        notes: tuple[str, ...] = (),
        whole: int | None = None,
    ) -> None:
        self._path = path
        self._whole = whole  # bytes up to a torn line
        self.records = records
        self.notes = notes

    @classmethod
    def start(cls, out: Path, settings: Mapping[str, object]) -> Manifest:
        """Begin a new manifest, replacing any other one; what that one's runs have left is named in the header.

        Raises:
            OSError: the folder cannot be written.
        """
        names = {
            *outputs_of_runs(out),
            *(each for name in names_under_way(out) for each in result_names(name)),
        }
        earlier = sorted(name for name in names if os.path.lexists(out / name))
        header = {"kind": "run", "version": _VERSION, "package": __version__, "settings": dict(settings)}
        if earlier:
            header["earlier_outputs"] = earlier
        write_atomic(out / MANIFEST_NAME, _line(header))
        return cls(out / MANIFEST_NAME, {})

    @classmethod
    def resume(cls, out: Path, settings: Mapping[str, object]) -> Manifest:
        """Go on with the manifest of a stopped run; nothing is written yet.

        Raises:
            RunError: it was made with other settings or by another version, or is not a manifest.
            OSError: it cannot be read.
        """
        path = out / MANIFEST_NAME
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        rows = [_parse(path, number, row) for number, row in enumerate(whole.splitlines(), start=1)]
        if not rows:
            raise RunError(f"{path}: is empty; start again with --overwrite")
        _check_header(path, rows[0], settings)
        records = (_record(path, number, row) for number, row in enumerate(rows[1:], start=2))
        return cls(
            path, {record.name: record for record in records},
            () if "package" in rows[0] else (_NO_PACKAGE,), len(whole) if len(whole) < len(data) else None,
        )  # fmt: skip

    def append(self, records: Iterable[PhotoRecord]) -> None:
        """Add finished photos; on return they are on disk.

        Raises:
            OSError: the disk is full or gone.
        """
        new = list(records)
        with self._path.open("ab") as file:
            if self._whole is not None:
                file.truncate(self._whole)
                self._whole = None
            file.write(b"".join(_line({"kind": "photo", **asdict(record)}) for record in new))
            file.flush()
            os.fsync(file.fileno())
        self.records.update((record.name, record) for record in new)


def open_manifest(
    out: Path, settings: Mapping[str, object], *, resume: bool, overwrite: bool
) -> Manifest | None:
    """The manifest of ``out`` to go on with, or ``None`` to begin a new one.

    Raises:
        RunError: the folder is not empty and neither flag is set, both are, or there is no run to resume or replace.
    """
    if resume and overwrite:
        raise RunError("resume and overwrite exclude each other; give one of them")
    found = out.iterdir() if out.exists() else ()
    nobodys = (TEMPORARY_PREFIX, LOCK_NAME, *_OF_FILE_MANAGERS)
    entries = [path for path in found if not path.name.startswith(nobodys)]
    if not entries:
        return None
    if not resume and not overwrite:
        raise RunError(
            f"{out}: the output folder is not empty; go on with a stopped run (--resume), "
            "replace its results (--overwrite), or choose another folder"
        )
    if not (out / MANIFEST_NAME).is_file():
        # the files may be anybody's: photos of the same names would be replaced, or removed where one fails
        verb = "replace" if overwrite else "resume"
        raise RunError(f"{out}: has no {MANIFEST_NAME}, so there is no run to {verb}; choose another folder")
    return None if overwrite else Manifest.resume(out, settings)


def outputs_of_runs(out: Path) -> frozenset[str]:
    """Names below ``out`` that runs have written by the manifest there.

    Of a damaged line it is what can be read: a photo is on disk before its line is, which a kill may tear.

    Raises:
        OSError: the manifest cannot be read.
    """
    path = out / MANIFEST_NAME
    found: set[str] = set()
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            found.update(json.loads(name) for name in _NAMES.findall(line))
            continue
        if isinstance(row, dict):
            earlier = row.get("earlier_outputs")
            names = [row.get("output"), *(earlier if isinstance(earlier, list) else ())]
            found.update(name for name in names if isinstance(name, str))
    return frozenset(found)


def still_holds(record: PhotoRecord, job: PhotoJob, out: Path) -> bool:
    """Whether an earlier result is settled, of this very input, and its output whole on disk."""
    if record.status not in SETTLED:
        return False
    try:
        if sha256(job.source.read_bytes()) != record.source_sha256:
            return False
        return record.output is None or sha256((out / record.output).read_bytes()) == record.output_sha256
    except (OSError, MemoryError):
        return False


def sha256(data: bytes) -> str:
    """Hex digest that tells whether a file is still the one that was recorded."""
    return hashlib.sha256(data).hexdigest()


def _line(row: Mapping[str, object]) -> bytes:
    # ASCII output also carries file names that are not valid UTF-8 (lone surrogates) through unharmed
    return json.dumps(row, ensure_ascii=True, allow_nan=True).encode("ascii") + b"\n"


def _parse(path: Path, number: int, row: bytes) -> dict[str, object]:
    try:
        parsed = json.loads(row)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise RunError(f"{path}: line {number} is damaged; start again with --overwrite")
    return parsed


def _check_header(path: Path, header: Mapping[str, object], settings: Mapping[str, object]) -> None:
    if header.get("kind") != "run" or header.get("version") != _VERSION:
        raise RunError(f"{path}: not a manifest of this version of dedim; start again with --overwrite")
    package = header.get("package", __version__)
    if package != __version__:
        raise RunError(
            f"{path}: was made by dedim {package}, and this is {__version__}, whose presets may be others; "
            "resume with that version, or start again with --overwrite"
        )
    then = header.get("settings")
    if not isinstance(then, dict):
        raise RunError(f"{path}: line 1 is damaged; start again with --overwrite")
    changed = [
        f"{key} was {then.get(key)!r} and is now {settings.get(key)!r}"
        for key in sorted({*then, *settings})
        if then.get(key) != settings.get(key)
    ]
    if changed:
        raise RunError(
            f"{path}: was made with other settings ({'; '.join(changed)}); "
            "resume with the same ones, or start again with --overwrite"
        )


def _record(path: Path, number: int, row: Mapping[str, Any]) -> PhotoRecord:
    try:
        return PhotoRecord.from_fields({key: value for key, value in row.items() if key != "kind"})
    except (KeyError, TypeError) as error:
        raise RunError(f"{path}: line {number} is damaged; start again with --overwrite") from error
