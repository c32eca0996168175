"""Which photos a run reads and where each result goes; every doubt is settled before any work is done."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from diffusers_dedim.atomic import TEMPORARY_PREFIX
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.images.files import PHOTO_SUFFIXES
from diffusers_dedim.video.reading import VIDEO_SUFFIXES
from diffusers_dedim.video.writing import video_name

READ_SUFFIXES = PHOTO_SUFFIXES | {".mpo", ".pjpeg", ".pjp", ".apng"} | VIDEO_SUFFIXES
"""Endings of what is read: photos, also the rarer names of multi-picture and progressive JPEGs and of PNGs; videos."""

REFUSED_SUFFIXES = frozenset(
    (
        *(".jxl", ".jp2", ".psd", ".dng", ".cr2", ".cr3", ".crw"),
        *(".nef", ".nrw", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
    )
)
"""Photos that cannot be read: they are listed as failed, not passed over as if they were no photos."""

WRITTEN_ENDINGS = (".png", ".jpeg", ".webp", ".tiff", ".bmp", ".heif", ".avif")
"""Endings that the result of a photo without one may get."""

OWN_PREFIX = ".dedim-"
"""Begins the names of the files and folders that runs keep in the output folder while they work."""

_OWN_NAMES = ("dedim-manifest.jsonl", "report.html")  # what they leave there
_ON_SOME_DISKS = ", where a disk tells neither upper from lower case nor ways to write an accent"
_WRITTEN_AS = {".gif": ".png", ".mpo": ".jpg"}  # formats that are not written, and the endings that are added

# "https://", as paths have it; a drive of Windows has one letter
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")

PARTIAL_MARK = ".not-protected"
"""Goes into the name of a photo that was written although a face stayed above the threshold."""


class RunError(DeDiMError):
    """A run that cannot start or go on: wrong inputs, wrong output folder, another run's manifest."""


@dataclass(frozen=True)
class PhotoJob:
    """One photo to protect.

    Attributes:
        name: path below the output folder with "/" between parts; unique in a run, see `file_key`.
        source: the file to read.
        target: the file to write.
        partial_target: the file to write instead where a face stayed above the threshold.
    """

    name: str
    source: Path
    target: Path
    partial_target: Path


@dataclass(frozen=True)
class JobPlan:
    """Photos of a run in their order, and how many files (no photos) and links to folders were passed over."""

    jobs: tuple[PhotoJob, ...]
    other_files: int


def plan_jobs(inputs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> JobPlan:
    """List the photos among files and folders and give each its place below ``out``.

    Folders are read recursively, in the order of their names; hidden files and folders and links to folders
    are left out, and so is what is no file, such as a pipe: reading it might not end. The tree below each
    folder is kept, a single file goes directly below ``out``; one with the name of a file that runs keep there
    themselves, as the manifest, is left out. A file with two names, one of them a link, is two photos. A GIF called
    ``a.gif`` becomes ``a.gif.png``, a multi-picture JPEG ``a.mpo`` becomes ``a.mpo.jpg``.

    Args:
        inputs: files and folders.
        out: the output folder; it need not exist.

    Raises:
        RunError: an input does not exist or cannot be listed, no photo among the inputs, ``out`` overlaps an
            input, or two photos would be written to the same file.

    Example:
        >>> plan_jobs(["no/such/folder"], "out")
        Traceback (most recent call last):
        diffusers_dedim.runs.jobs.RunError: no/such/folder: no such file or folder
    """
    out_folder = Path(out)
    _check_out(out_folder)
    jobs: dict[Path, PhotoJob] = {}  # by place, the last part not followed where it is a link
    sources: dict[tuple[str, Path], Path] = {}
    others = 0
    for entry in map(Path, inputs):
        _check_input(entry, out_folder)
        found = [(Path(entry.name), entry)] if entry.is_file() else sorted(_walk(entry))
        for relative, source in found:
            job = make_job(PurePosixPath(*relative.parts), source, out_folder)
            passed_over = _is_own_file(job.name) if entry.is_file() else not _is_photo(source)
            if passed_over:
                others += 1
            else:
                place = follow(source.parent) / source.name
                jobs.setdefault(sources.setdefault((job.name, follow(source)), place), job)
    if not jobs:
        listed = ", ".join(display_name(os.fspath(entry)) for entry in inputs)
        known = " ".join(sorted(READ_SUFFIXES))
        raise RunError(f"no photos in {listed or 'an empty list of inputs'} (looked for {known})")
    _check_clashes(jobs.values(), {source for _, source in sources})
    return JobPlan(tuple(jobs.values()), others)


def display_name(name: str) -> str:
    """A file name that is safe to print: undecodable bytes and control characters become ``?``.

    Example:
        >>> display_name("a" + chr(27) + "[31m.png")
        'a?[31m.png'
    """
    return "".join(character if character.isprintable() else "?" for character in name)


def one_line(message: str) -> str:
    """A message that is safe to print, its lines one after another.

    Example:
        >>> one_line("2 weights are missing:" + chr(10) + chr(9) + "a.weight" + chr(10) + chr(9) + "a.bias" + chr(27))
        '2 weights are missing: a.weight; a.bias?'
    """
    text = ""
    for line in filter(None, (line.replace("\t", " ").strip() for line in message.splitlines())):
        between = " " if text.endswith((":", ";", ",", ".", "!", "?", "(", "[", "{")) else "; "
        text = f"{text}{between}{line}" if text else line
    return display_name(text)


def result_names(name: str) -> tuple[str, ...]:
    """Names below the output folder that a result of the photo ``name`` may have; its format may decide the ending.

    Example:
        >>> result_names("a/b.png")
        ('a/b.png', 'a/b.not-protected.png')
    """
    path = PurePosixPath(name)
    if not path.name:
        return ()
    endings = ("",) if path.suffix.lower() in READ_SUFFIXES else ("", *WRITTEN_ENDINGS)
    return tuple(f"{each}{ending}" for each in (path, _partial(path)) for ending in endings)


def follow(path: Path) -> Path:
    """The path with every link followed, as far as links lead anywhere.

    `Path.resolve` raises RuntimeError for a link to itself before Python 3.13; such links lie in snapshots of disks.

    Example:
        >>> follow(Path("/no/such/../folder")).parts[1:]
        ('no', 'folder')
    """
    return Path(os.path.realpath(path))


def file_key(name: str) -> str:
    """The same for two names that may be one file: a disk may tell neither upper from lower case nor ways to write é.

    Example:
        >>> file_key("\u00c9.PNG") == file_key("e\u0301.png")
        True
    """
    return unicodedata.normalize("NFC", name).casefold()


def remove_temporaries(out: Path) -> int:
    """Remove what a killed run left half written below ``out``; returns how many files."""
    leftovers = list(out.rglob(f"{TEMPORARY_PREFIX}*"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def make_job(name: PurePosixPath, source: Path, out: Path) -> PhotoJob:
    """The job of a photo that is called ``name`` below the output folder."""
    if is_video(name):
        name = name.with_name(video_name(name.name))
    added = _WRITTEN_AS.get(name.suffix.lower())
    if added:
        name = name.with_name(f"{name.name}{added}")
    return PhotoJob(str(name), source, out / name, out / _partial(name))


def is_video(path: PurePath) -> bool:
    """Whether a file is called like a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def _partial(name: PurePosixPath) -> PurePosixPath:
    """What the photo is called where a face stayed above the threshold."""
    return name.with_name(f"{name.stem}{PARTIAL_MARK}{name.suffix}")


def _is_photo(path: Path) -> bool:
    """Whether a file found in a folder is called like a photo, and is a file."""
    if path.suffix.lower() not in READ_SUFFIXES | REFUSED_SUFFIXES:
        return False
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True  # a broken link, or one that may not be looked at: is recorded as unreadable


def _is_own_file(name: str) -> bool:
    """Whether a job's file would take the place of one that runs keep directly in the output folder."""
    key = file_key(name)
    return key in _OWN_NAMES or key.startswith(OWN_PREFIX)


def _walk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield (path below the folder, path) of each visible file and link to a folder."""

    def refuse(error: OSError) -> None:
        raise RunError(f"{display_name(str(error.filename))}: folder cannot be read ({error.strerror})")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in (*files, *links):
            path = Path(parent, name)
            if not name.startswith("."):
                yield path.relative_to(folder), path


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: the output must be a folder, and a file is there")
    above = next((parent for parent in out.parents if parent.exists()), out)
    if not out.exists() and above.is_file():
        raise RunError(f"{out}: the output folder cannot be made, because {above} is a file")
    if not out.exists() and out.suffix.lower() in READ_SUFFIXES:
        raise RunError(f"{out}: the output is a folder, and this is the name of a photo; give {out.stem}")


def _check_input(entry: Path, out: Path) -> None:
    """An output among the inputs would be overwritten, or be read again by the next run."""
    shown = display_name(str(entry))
    if not entry.exists():
        if _ADDRESS.match(str(entry)):
            raise RunError(
                f"{shown}: is an address, and only files are read; save the photo and give its file"
            )
        if entry.is_symlink():
            raise RunError(f"{shown}: a link that leads to no file or folder")
        raise RunError(f"{shown}: no such file or folder")
    if not entry.is_dir() and not entry.is_file():
        raise RunError(f"{shown}: neither a file nor a folder")
    source, target = follow(entry), follow(out)
    if source == target:
        raise RunError(f"{shown}: output equals input; choose a new output folder")
    if source in target.parents and source.is_dir():
        raise RunError(f"{out}: the output folder lies in the input folder {shown}; choose one outside it")
    if target in source.parents:
        raise RunError(f"{shown}: the input lies in the output folder {out}; choose another output folder")


def _check_clashes(jobs: Iterable[PhotoJob], sources: Container[Path]) -> None:
    taken: dict[str, PhotoJob] = {}
    for job in jobs:
        for target in (job.target, job.partial_target):
            other = taken.setdefault(file_key(str(target)), job)
            if other is not job:
                same = target in (other.target, other.partial_target)
                raise RunError(
                    f"{display_name(str(other.source))} and {display_name(str(job.source))} would both be "
                    f"written to {display_name(str(target))}{'' if same else _ON_SOME_DISKS}; rename one, or run them "
                    "into different output folders"
                )
            if follow(target) in sources:
                raise RunError(
                    f"{display_name(str(target))}: would overwrite an input; choose another output folder"
                )
