"""One call of ``dedim evaluate``: read, protect, search, measure, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusers_dedim.atomic import TEMPORARY_PREFIX
from diffusers_dedim.encoders.recogniser import Recogniser
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.evaluation.cache import ArrayCache
from diffusers_dedim.evaluation.data import Experiment, Record, check_readable
from diffusers_dedim.evaluation.gallery import central_face, embed_gallery
from diffusers_dedim.evaluation.mates import GALLERIES, PROTECTED, find_mates
from diffusers_dedim.evaluation.measure import Bench, EvaluationSettings, Evaluator, Transform
from diffusers_dedim.evaluation.panels import draw_panel, read_shown
from diffusers_dedim.evaluation.pieces import Protect
from diffusers_dedim.evaluation.probes import prepare_probes
from diffusers_dedim.evaluation.report import write_panel, write_report, write_results
from diffusers_dedim.evaluation.results import (
    AdaptiveEntry,
    DataEntry,
    Evaluation,
    MethodEntry,
    RateEntry,
    RecogniserEntry,
    describe_environment,
)
from diffusers_dedim.faces import FaceDetection, align_face, whole_crop
from diffusers_dedim.metrics.quality import Lpips
from diffusers_dedim.pipeline.guides import is_guide, name_guides

CACHE = "cache"
TARGETS = 10
"""Target identities that TIP-IM chooses from, as its authors and the paper have it."""
_CROP_SHAPE = (112, 112, 3)


@dataclass(frozen=True, eq=False)
class Session:
    """Everything one evaluation is made of.

    Attributes:
        pipe: the `DeDiMPipeline`; its ``face_encoder`` is the white box.
        experiment: probes, gallery and spare people.
        source: where the experiment was read from, for the results.
        settings: methods, seed, size of a piece.
        make_method: see `Evaluator`.
        detector: photo -> faces, the attacker's and the gallery's.
        black_boxes: recognisers that no method sees.
        targets: photos of people for TIP-IM; the experiment's spare people without it.
        transforms: for the robustness rates.
        lpips: the optional measure.
        panel: photos that may be shown, for the panel; its first probes without them.
        cache: folder for what is measured; ``cache`` below the output folder without it.
        command: as it was given, for the results.
        adaptive: what an attacker who learns found, for the report (`read_adaptive`).
    """

    pipe: Any
    experiment: Experiment
    source: str
    settings: EvaluationSettings
    make_method: Callable[..., Protect]
    detector: FaceDetection
    black_boxes: Sequence[Recogniser] = ()
    targets: Sequence[Record] = ()
    transforms: Mapping[str, Transform] | None = None
    lpips: Lpips | None = None
    panel: Sequence[Record] = ()
    cache: Path | None = None
    command: str = ""
    adaptive: Sequence[AdaptiveEntry] = ()

    def run(self, folder: Path, on_method: Callable[[MethodEntry], None] = lambda _: None) -> Evaluation:
        """Measure every method, write ``results.json`` and the report after each, and the panel at the end.

        Args:
            folder: output folder; what an earlier call measured there is not measured again.
            on_method: called after each method.

        Raises:
            UnreadablePhotoError: a photo cannot be decoded; told before anything is measured, as what follows on
                methods and the panel's photos.
            ValueError: a method is unknown, or lacks targets; told before anything is measured.
            DeDiMError: no face in any probe, or a method failed; what was measured stays in the cache.
        """
        begin = time.perf_counter()
        targets = self._targets()
        for method in self.settings.methods:  # a wrong name is told now, not after hours
            self.make_method(method, self.pipe, seed=self.settings.seed, targets=targets)
        protocol = self.experiment.protocol
        check_readable([*protocol.probes, *protocol.gallery])
        shown = read_shown(self.panel, self.detector)
        evaluator = self._evaluator(ArrayCache(self.cache or folder / CACHE), targets)
        impostors = evaluator.impostors()
        done: list[tuple[MethodEntry, list[RateEntry]]] = []
        for method in self.settings.methods:
            done.append(evaluator.measure(method, impostors))
            finished = len(done) == len(self.settings.methods)
            seconds = round(time.perf_counter() - begin, 1)
            evaluation = self._evaluation(
                evaluator,
                done,
                {name: len(s) for name, s in impostors.items()},
                {"finished": finished, "seconds": seconds},
            )
            write_results(evaluation, folder)
            write_report(evaluation, folder)  # now, for the next one may fail or be killed
            on_method(done[-1][0])
        write_panel(evaluation, draw_panel(evaluator, evaluation.methods, shown), folder)
        return evaluation

    def _targets(self) -> Tensor | None:
        """Aligned faces of people who are neither probe nor in the gallery."""
        protocol = self.experiment.protocol
        known = {record.person for record in (*protocol.probes, *protocol.gallery)}
        spare = self.targets or self.experiment.spare
        targets = target_crops([record for record in spare if record.person not in known], self.detector)
        if self.targets and targets is None:
            raise DeDiMError(
                f"targets: none of the {len(self.targets)} photos shows a face of a person who is neither probe nor "
                "in the gallery; TIP-IM needs other people as targets."
            )
        return targets

    def _evaluator(self, cache: ArrayCache, targets: Tensor | None) -> Evaluator:
        protocol = self.experiment.protocol
        recognisers = (*name_guides(self.pipe.face_encoder), *self.black_boxes)
        gallery = embed_gallery(protocol.gallery, recognisers, self.detector, cache)
        probes = prepare_probes(protocol.probes, self.detector, cache)
        if not probes:
            raise DeDiMError(f"data: no face was found in any of the {len(protocol.probes)} probes.")
        bench = Bench(recognisers, gallery, self.detector, self.pipe.landmarker, cache, self.lpips)
        kinds = GALLERIES[self.settings.gallery]
        mates = find_mates(protocol, self.detector, cache) if PROTECTED in kinds else {}
        return Evaluator(
            self.pipe, probes, bench, self.settings, self.make_method, targets, self.transforms or {}, mates
        )

    def _evaluation(
        self,
        evaluator: Evaluator,
        done: Sequence[tuple[MethodEntry, list[RateEntry]]],
        impostors: Mapping[str, int],
        progress: Mapping[str, Any],
    ) -> Evaluation:
        protocol, bench = self.experiment.protocol, evaluator.bench
        measured = {probe.name for probe in evaluator.probes}
        rates = [rate for _, entries in done for rate in entries]
        return Evaluation(
            data=DataEntry(
                self.source,
                len(evaluator.probes),
                len(bench.gallery.persons),
                tuple(record.name for record in protocol.probes if record.name not in measured),
                bench.gallery.undetected,
            ),
            recognisers=tuple(
                RecogniserEntry(each.name, is_guide(each.name), each.fingerprint, impostors[each.name])
                for each in bench.recognisers
            ),
            methods=tuple(entry for entry, _ in done),
            rates=tuple(rate for rate in rates if not rate.transform),
            robustness=tuple(rate for rate in rates if rate.transform),
            adaptive=tuple(self.adaptive),
            run={
                "command": self.command,
                "seed": self.settings.seed,
                "chunk": self.settings.chunk,
                "gallery": self.settings.gallery,
                "targets": 0 if evaluator.targets is None else len(evaluator.targets),
                **progress,
                **describe_environment(self.pipe.device),
            },
        )


def target_crops(records: Sequence[Record], detector: FaceDetection, count: int = TARGETS) -> Tensor | None:
    """Aligned crops of the first ``count`` people in whose photo a face is found.

    Args:
        records: one photo a person, in the order in which they are wanted; a photo of 112x112 px counts as
            an aligned crop already.
        detector: photo -> faces.
        count: people wanted.

    Returns:
        ``[K, 3, 112, 112]`` RGB in [-1, 1], K <= count; None where there is none.
    """
    crops: list[Tensor] = []
    for record in records:
        if len(crops) == count:
            break
        photo = record.read_photo()
        face = None if photo.shape == _CROP_SHAPE else central_face(photo, detector)
        if photo.shape == _CROP_SHAPE:
            crops.append(whole_crop(photo).crop)
        elif face is not None:
            crops.append(align_face(photo, face).crop)
    return torch.stack(crops) if crops else None


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse to mix two evaluations in one folder by accident.

    Raises:
        DeDiMError: the folder holds something and ``resume`` is not set, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise DeDiMError(f"{folder}: expected a folder for the results, this is a file; give another name.")
    entries = folder.iterdir() if folder.exists() else iter(())
    if not resume and any(not path.name.startswith(TEMPORARY_PREFIX) for path in entries):
        raise DeDiMError(
            f"{folder}: the output folder is not empty; go on with a stopped evaluation (--resume: what is measured "
            "already is taken from its cache), or choose another folder."
        )
