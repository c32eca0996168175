"""How the attacker protects his own people, and the victims theirs: one word for each way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._faces import to_crops
from diffusers_dedim.diffusion.guidance import EstimateGuidance
from diffusers_dedim.evaluation import ArrayCache, Probe
from diffusers_dedim.evaluation.crops import protect_once
from diffusers_dedim.evaluation.methods import seeded, set_strength, split_strength
from diffusers_dedim.images.modes import PixelArray
from diffusers_dedim.pipeline.album import Album
from diffusers_dedim.pipeline.guides import name_guides
from diffusers_dedim.pipeline.presets import PRESETS, DeDiMPreset
from diffusers_dedim.training.augment import random_similarity

WAYS = ("plain", "settings", "guides", "album", "drawn")
"""
- ``plain``: the method as it is named.
- ``settings``: each face by a setting drawn from `SETTINGS`.
- ``guides``: each face by one of the pipeline's guides alone, or by all of them, drawn.
- ``album``: each face in an album with another photo of its person, which was protected before it.
- ``drawn``: by one of the guides alone, drawn anew for each face and round.
"""

SETTINGS = {
    "dedim": ("h=0.46", "h=0.5", "h=0.54", "h=0.58", "h=0.62"),  # from below "strong" to about "gentle"
    "tip-im": ("epsilon=6", "epsilon=9", "epsilon=12", "epsilon=15", "epsilon=18"),
}
_GROUP_SEEDS = 1000  # between the seeds of the groups of one way: or their faces would share noise


@dataclass(frozen=True, eq=False)
class Lesson:
    """Photos of people and what became of them, row by row.

    Attributes:
        people: originals; a person may be there twice.
        photos: protected.
        reached: per face, whether it reached the threshold.
    """

    people: tuple[Probe, ...]
    photos: tuple[PixelArray, ...]
    reached: np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False)
class Protector:
    """What all ways share.

    Attributes:
        pipe: a `DeDiMPipeline`. cache: keeps what was protected.
        method: a name for `make_method`. seed: of the method and of what is drawn.
        batch_size: photos a call. targets: for TIP-IM.
        aligned: the photos are aligned crops.
        guide: guides in place of the pipeline's own.
    """

    pipe: Any
    cache: ArrayCache
    method: str
    seed: int
    batch_size: int
    targets: Tensor | None = None
    aligned: bool = False
    guide: nn.Module | None = None

    def protect(self, way: str, people: Sequence[Probe], mates: Sequence[Probe] = ()) -> Lesson:
        """Protect everybody in one of `WAYS`.

        Args:
            way: how.
            people: whose photos.
            mates: for an album, another photo of each; views of the same photo without it, and of half the people, so
                that as many faces are protected as in the other ways.

        Raises:
            ValueError: the method or the pipeline does not know this way.
        """
        check_way(way, self.method, self.pipe)
        if way == "settings":
            name = self.method.partition("@")[0]
            return self._draw(
                people, [replace(self, method=f"{name}@{word}") for word in SETTINGS[_base(name)]]
            )
        if way == "guides":
            whole = self.pipe.face_encoder
            alone = [each.encoder for each in name_guides(whole)]
            return self._draw(people, [replace(self, guide=guide) for guide in (*alone, whole)])
        if way == "album":
            return self._album(people, mates)
        if way == "drawn":
            return self._once(
                people, "a guide drawn a round", partial(_with_drawn_guide, read_preset(self.method))
            )
        return self._once(people)

    def _once(
        self, people: Sequence[Probe], note: str = "", make: Callable[..., Any] | None = None
    ) -> Lesson:
        with _guided(self.pipe, self.guide or self.pipe.face_encoder):
            done = protect_once(
                self.pipe,
                people,
                self.cache,
                method=f"{self.method}, {note}" if note else self.method,
                seed=self.seed,
                batch_size=self.batch_size,
                aligned=self.aligned,
                targets=self.targets,
                make=make,
            )
        return Lesson(tuple(people), done.photos, done.reached)

    def _draw(self, people: Sequence[Probe], choices: Sequence[Protector]) -> Lesson:
        """Protect each person by one of the choices."""
        drawn = np.random.default_rng(self.seed).integers(len(choices), size=len(people))
        lessons = [
            replace(choice, seed=self.seed + _GROUP_SEEDS * (place + 1))._once(
                [people[row] for row in np.flatnonzero(drawn == place)]
            )
            for place, choice in enumerate(choices)
            if (drawn == place).any()
        ]
        return join(lessons, people)

    def _album(self, people: Sequence[Probe], mates: Sequence[Probe]) -> Lesson:
        """Two photos of each person in turn; those that were given as ``people`` alone come back with mates."""
        if not mates:
            people = people[: (len(people) + 1) // 2]
            mates = other_views(people, self.seed)
        in_turn = [photo for pair in zip(mates, people, strict=True) for photo in pair]
        whole_pairs = replace(self, batch_size=2 * max(1, self.batch_size // 2))
        return whole_pairs._once(in_turn, "albums of two", partial(_with_album, read_preset(self.method)))


def check_way(way: str, method: str, pipe: Any) -> None:
    """Refuse a way that a method or a pipeline does not know.

    Raises:
        ValueError: it does not; says what would do.
    """
    base = _base(method)
    if way == "settings" and base not in SETTINGS:
        raise ValueError(f"settings: expected a method of {sorted(SETTINGS)}, got {method!r}.")
    if way in ("album", "drawn") and base != "dedim":
        raise ValueError(f"{way}: only 'dedim' knows it, got {method!r}; leave it out.")
    if way in ("guides", "drawn") and len(name_guides(pipe.face_encoder)) < 2:
        raise ValueError(f"{way}: expected a pipeline of several guides, this one has one; leave it out.")


def known_ways(method: str, pipe: Any) -> list[str]:
    """Those of an attacker that the method and the pipeline know, ``drawn`` left out: the victims have to do it too."""
    known = []
    for way in WAYS[:-1]:
        with contextlib.suppress(ValueError):
            check_way(way, method, pipe)
            known.append(way)
    return known


def join(lessons: Sequence[Lesson], people: Sequence[Probe]) -> Lesson:
    """All rows of several, in the order of the people: whatever was drawn is then everywhere in it."""
    place = {id(person): row for row, person in enumerate(people)}
    everybody = [person for lesson in lessons for person in lesson.people]
    order = sorted(range(len(everybody)), key=lambda row: place[id(everybody[row])])
    photos = [photo for lesson in lessons for photo in lesson.photos]
    reached = np.concatenate([lesson.reached for lesson in lessons])
    return Lesson(tuple(people), tuple(photos[row] for row in order), reached)


def read_preset(method: str) -> DeDiMPreset:
    """The preset of a method's name, such as "dedim:strong" or "dedim@h=0.5"."""
    name, strength = split_strength(method)
    return set_strength(method, PRESETS[name.partition(":")[2] or "fast"], strength)


def other_views(people: Sequence[Probe], seed: int) -> list[Probe]:
    """Each photo mirrored, turned, scaled and moved a little: like another photo of the person, for want of one."""
    views = []
    for row, person in enumerate(people):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + row)
        crop = to_crops([person.photo]).flip(3)
        moved, _ = random_similarity(
            crop, crop.new_zeros(1, 0, 2), generator, max_shift=4, max_scale=0.08, max_degrees=8
        )
        pixels = (
            ((moved[0].clamp(-1, 1) + 1) * 127.5)
            .round()
            .to(torch.uint8)
            .permute(1, 2, 0)
            .contiguous()
            .numpy()
        )
        views.append(replace(person, photo=pixels))
    return views


class DrawnGuide(EstimateGuidance):
    """Push each face away by one of the guides alone, drawn anew for each face and round.

    Where the drawn one is left behind already, all push, or the round would be lost.

    Args:
        like: whose settings it takes.
        generator: of the draws.
    """

    def __init__(self, like: EstimateGuidance, generator: torch.Generator) -> None:
        super().__init__(
            like.step_size,
            like.stop_similarity,
            like.views,
            like.smoothing,
            like.contrast_masking,
            like.config.cutoff_step_ratio,
            gradient_power=like.gradient_power,
            spread=like.spread,
            spared_structure=like.spared_structure,
            realism=like.realism,
            near_push=like.near_push,
        )
        self._generator = generator
        self._drawn = torch.empty(0)

    def _similarity_gradients(
        self,
        face_encoder: nn.Module,
        blend: Tensor,
        reference: Tensor,
        step_index: int,
        avoid: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        gradients, weights, own = super()._similarity_gradients(
            face_encoder, blend, reference, step_index, avoid
        )
        if step_index == 0 or len(self._drawn) != len(blend):
            self._drawn = torch.randint(len(weights), (len(blend),), generator=self._generator)
        all_of_them = torch.stack(weights)  # [K, N]
        alone = nn.functional.one_hot(self._drawn, len(weights)).T.to(all_of_them) * all_of_them
        return gradients, list(torch.where(alone.sum(0) > 0, alone, all_of_them)), own


def _with_drawn_guide(
    preset: DeDiMPreset, method: str, pipe: Any, *, seed: int, first: int, targets: Tensor | None
) -> Callable[[list[PixelArray]], Any]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + first)
    like = preset.make_guidance()
    if not isinstance(like, EstimateGuidance):
        raise ValueError(f"drawn: expected a preset that pushes the estimate, got {method!r}.")
    guidance = DrawnGuide(like, generator)
    return seeded(partial(_call, pipe, preset=preset, guidance=guidance), seed, first)


def _with_album(
    preset: DeDiMPreset, method: str, pipe: Any, *, seed: int, first: int, targets: Tensor | None
) -> Callable[[list[PixelArray]], Any]:
    return seeded(partial(_call, pipe, preset=preset, album=Album()), seed, first)


def _call(pipe: Any, photos: list[PixelArray], generator: Any = None, **settings: Any) -> Any:
    return pipe(photos, small_faces="skip", generator=generator, **settings)


@contextlib.contextmanager
def _guided(pipe: Any, encoder: nn.Module) -> Iterator[None]:
    """Let another recogniser guide; who searches keeps those that the pipeline had."""
    before, pipe.face_encoder = pipe.face_encoder, encoder
    try:
        yield
    finally:
        pipe.face_encoder = before


def _base(method: str) -> str:
    return method.partition("@")[0].partition(":")[0]
