"""What the rows of a Ray run are called, and where their results may lie."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from diffusers_dedim.photo_jobs import OWN_PREFIX, READ_SUFFIXES, PhotoJob, make_job, result_names


def job_of(name: str, out: Path) -> PhotoJob:
    """The job of a row.

    Raises:
        ValueError: the id would lead out of the output folder, or to a file that runs keep there themselves.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"the id {name!r} is no path below the output folder; give ids like folder/0001")
    if any(part.casefold().startswith(OWN_PREFIX) for part in path.parts):
        raise ValueError(
            f"the id {name!r} has a part that begins with {OWN_PREFIX!r}, as dedim's own files do; give it another"
        )
    return make_job(path, Path(name), out)


def name_of(row_id: object, out: Path) -> str:
    """What a row is called in the manifest."""
    try:
        return job_of(str(row_id), out).name
    except ValueError:
        return str(row_id)  # is recorded with the reason


def possible_outputs(name: str, out: Path) -> tuple[Path, ...]:
    """The files that a row's result may be, whatever becomes of it; none where the id is refused.

    Example:
        >>> [path.name for path in possible_outputs("a.png", Path("out"))]
        ['a.png', 'a.not-protected.png']
    """
    try:
        job = job_of(name, out)
    except ValueError:
        return ()
    # a row without an ending always gets one, unlike a photo that is given as a file
    results = (out / each for each in result_names(job.name))
    return tuple(path for path in results if path.suffix.lower() in READ_SUFFIXES)


def pack_name(name: str) -> bytes:
    """A name as it goes through Ray's tables, whose texts hold nothing but Unicode; file names may hold any bytes."""
    return name.encode("utf-8", "surrogatepass")


def unpack_name(packed: bytes) -> str:
    """The inverse of `pack_name`.

    Example:
        >>> name = "caf" + chr(0xDCE9) + ".png"  # as Python has a byte 0xE9 that is no UTF-8
        >>> unpack_name(pack_name(name)) == name
        True
    """
    return packed.decode("utf-8", "surrogatepass")
