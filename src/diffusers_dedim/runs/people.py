"""The people whom a run is told to protect, or to leave as they are: found in photos of them before any work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusers_dedim.images.files import read_photo
from diffusers_dedim.runs.jobs import RunError, display_name

if TYPE_CHECKING:
    from diffusers_dedim.faces import AlignedFace
    from diffusers_dedim.pipeline.persons import PersonChoice
    from diffusers_dedim.runs.records import RunSettings


@dataclass(frozen=True, eq=False)
class People:
    """Faces of the people that a run is told of; they stay in memory.

    Attributes:
        references: a face of each of their photos.
        spared: everybody else is to be protected, and not they.
    """

    references: tuple[AlignedFace, ...]
    spared: bool

    def choice(self, pipe: Any) -> PersonChoice:
        """For ``select_faces`` of a pipeline, by its recogniser."""
        from diffusers_dedim.pipeline.persons import PersonChoice  # PyTorch

        return PersonChoice(self.references, pipe.face_encoder, spared=self.spared)


def find_people(settings: RunSettings) -> People | None:
    """Find the face in each photo of a person, by the run's detector; None where the settings name nobody.

    Raises:
        RunError: a photo cannot be read, or shows no face or several.
        ValueError, ImportError: there is no such detector, or its package is missing.
    """
    photos = settings.only or settings.all_but
    if not photos:
        return None
    option = "--only" if settings.only else "--except"
    faces = tuple(_find_face(photo, option, settings.detector) for photo in photos)
    return People(faces, bool(settings.all_but))


def _find_face(path: str | os.PathLike[str], option: str, detector: str) -> AlignedFace:
    from diffusers_dedim.faces import shared_detector  # PyTorch
    from diffusers_dedim.pipeline.persons import reference_face

    finder = shared_detector(detector)
    shown = f"{option} {display_name(str(path))}"
    try:
        return reference_face(read_photo(path).pixels, finder)
    except ValueError as error:  # unreadable, no face or several
        raise RunError(f"{shown}: {error}") from error
