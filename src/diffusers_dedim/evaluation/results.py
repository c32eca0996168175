"""What ``results.json`` of ``dedim evaluate`` holds, from the whole down, and what it says of the machine.

docs/evaluation.md describes it for readers.
"""

from __future__ import annotations

import json
import math
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from diffusers_dedim.metrics.intervals import Estimate

_SOURCE = Path(__file__).resolve().parent
_PACKAGES = ("diffusers", "facenet-pytorch", "numpy", "onnxruntime", "piq", "scikit-learn", "scipy")

SCHEMA = "diffusers-dedim/evaluation/2"
# an array of numbers as `json.dumps` indents it; text holds no raw line break, so none of it is taken for one
_NUMBERS = re.compile(r"\[\n\s*((?:-?\d[\d.e+-]*|null)(?:,\n\s*(?:-?\d[\d.e+-]*|null))*)\n\s*\]")
_UNKNOWN = Estimate(None)
_DIGITS = 6  # of the numbers written: well below any interval's width, and the file stays readable


@dataclass(frozen=True)
class Evaluation:
    """The whole of ``results.json``.

    Attributes:
        data: what was measured on.
        recognisers: who searched, the white box first.
        methods: one entry a method.
        rates: one entry a method and recogniser.
        robustness: the same after each transform of the protected photos; empty without ``--robustness``.
        run: command, commit, seed, environment, seconds, whether all methods are finished.
        adaptive: what an attacker who learns found, from ``--adaptive``; its numbers are not of this run.
        schema: version of this layout.
    """

    data: DataEntry
    recognisers: tuple[RecogniserEntry, ...]
    methods: tuple[MethodEntry, ...]
    rates: tuple[RateEntry, ...]
    robustness: tuple[RateEntry, ...] = ()
    run: dict[str, Any] = field(default_factory=dict)
    adaptive: tuple[AdaptiveEntry, ...] = ()
    schema: str = SCHEMA

    def to_json(self) -> str:
        """The text of ``results.json``: strict JSON, null where there is no number."""
        text = json.dumps(_plain(asdict(self)), indent=1, allow_nan=False)
        # a DET curve is hundreds of numbers: one line a point, not one a number
        return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"

    def rate(self, method: str, recogniser: str, gallery: str | None = None) -> RateEntry:
        """The entry of one method and recogniser, without transform.

        Args:
            method: its name.
            recogniser: its name.
            gallery: "unprotected" or "protected"; None for the one that is there, the unprotected of both.

        Raises:
            KeyError: there is none.
        """
        for entry in self.rates:
            if (entry.method, entry.recogniser) == (method, recogniser) and gallery in (None, entry.gallery):
                return entry
        raise KeyError(
            f"rates: no entry for {method!r} and {recogniser!r} in a gallery {gallery or 'of any kind'}."
        )

    @property
    def galleries(self) -> tuple[str, ...]:
        """The kinds of gallery that were searched."""
        return tuple(dict.fromkeys(entry.gallery for entry in self.rates))


@dataclass(frozen=True)
class DataEntry:
    """Probes and gallery of the run; ``*_without_face`` are photos in which no face was found.

    Probes whose face is under 40 px, which no method changes, are listed there too.
    """

    source: str
    probes: int
    gallery: int
    probes_without_face: tuple[str, ...]
    gallery_without_face: int


@dataclass(frozen=True)
class RecogniserEntry:
    """One recogniser: its name, whether it guided, SHA-256, and how many impostor comparisons set thresholds."""

    name: str
    white_box: bool
    fingerprint: str
    impostors: int


@dataclass(frozen=True)
class MethodEntry:
    """What one method did to the probes, whoever searches.

    Attributes:
        method: as given to ``--methods``.
        probes: probes protected and measured.
        psnr: dB, on aligned crops, over the probes that changed. ssim: mean SSIM. haarpsi: HaarPSI.
        lpips: AlexNet LPIPS, smaller is closer; None without ``--lpips``.
        landmark_shift: mean distance of the 51 landmarks before and after over the distance of the outer eye
            corners.
        unchanged: probes of which not one pixel of the crop changed.
        faces: faces protected, those in the background included.
        seconds_per_face: wall time inside the method. rounds, unet_calls: means over faces; None where a method
            has none.
        reached_threshold: share of faces that ended below the method's threshold; None where it has none.
        undetected: probes in which the face detector does not find the face any more: a failure of utility, not a
            success. They are in every rate all the same, matched in the original's box.
        dodging: the mean of `RateEntry.dodging` over the recognisers that do not guide, each probe's mean first; over
            those that guide where there are no others.
    """

    method: str
    probes: int
    psnr: Estimate
    ssim: Estimate
    haarpsi: Estimate
    lpips: Estimate | None
    landmark_shift: Estimate
    unchanged: int
    faces: int
    seconds_per_face: float | None
    rounds: float | None
    unet_calls: float | None
    reached_threshold: float | None
    undetected: tuple[str, ...]
    dodging: Estimate = _UNKNOWN


@dataclass(frozen=True)
class RateEntry:
    """How well one recogniser finds the probes of one method.

    Attributes:
        method: as given to ``--methods``.
        recogniser: name of the recogniser.
        white_box: whether it is the one that guided the method.
        transform: what was done to the protected photos before the search; empty for nothing.
        probes: probes searched with.
        rank1: share found at first place (ties go to the searcher). rank5: among the first five.
        cmc: share found at rank 1, 2, ..., 20 or the gallery's size.
        similarity: mean cosine of a probe with its own person's best gallery image.
        verification: one entry for each false match rate.
        det: ``[fmr, fnmr]`` pairs, FMR rising.
        not_compared: probes whose own person has no gallery image with a face: never found, and left out of FNMR.
        gallery: "unprotected", or "protected": the own person's images there are protected by the same method.
        own_photo: mean cosine of a probe with its own photo as it was, unprotected and unchanged.
        dodging: mean of (1 - that cosine) / 2, in [0, 1]; the privacy P of HiFD ("How Private is Private? A Comparative
            Study for Face De-Identification"; github.com/TILab-Hi/HiFD), by this recogniser.
    """

    method: str
    recogniser: str
    white_box: bool
    transform: str
    probes: int
    rank1: Estimate
    rank5: Estimate
    cmc: tuple[float, ...]
    similarity: Estimate
    verification: tuple[VerificationRate, ...]
    det: tuple[tuple[float, float], ...]
    not_compared: int
    gallery: str = "unprotected"
    own_photo: Estimate = _UNKNOWN
    dodging: Estimate = _UNKNOWN


@dataclass(frozen=True)
class VerificationRate:
    """Verification at one false match rate.

    Attributes:
        fmr: the nominal false match rate, of impostors among the unprotected gallery images.
        threshold: similarity from which a comparison matches there; None where it could not be set.
        fnmr: false non-match rate of the probes against their own gallery images.
        impostor_match_rate: share of comparisons of probes with *other* people's gallery images that match, each
            probe's share first: protection must not buy its FNMR with matches to strangers (impersonation).
        problem: why the rate is missing, else empty.
    """

    fmr: float
    threshold: float | None = None
    fnmr: Estimate | None = None
    impostor_match_rate: Estimate | None = None
    problem: str = ""


@dataclass(frozen=True)
class AdaptiveEntry:
    """What an attacker finds who has trained a recogniser against the protection.

    Attributes:
        method: how the victims were protected.
        attacker: how he protected his own people: ``plain`` as the victims, otherwise drawn (benchmarks.adaptive);
            ``none`` before he learns.
        recogniser: what he adapted.
        attack: ``none``, a ``head`` over the frozen recogniser, or all weights (``full``).
        rank1: share of the protected photos found first.
        original: the same of unprotected photos: what adapting cost him.
        relinked_plain, relinked: share of his own held-out people's protected photos that are told whose they are,
            before and after; None before he learns.
    """

    method: str
    attacker: str
    recogniser: str
    attack: str
    rank1: Estimate
    original: Estimate
    relinked_plain: float | None = None
    relinked: float | None = None


def describe_environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Commit, versions, processor and threads.

    Example:
        >>> sorted(describe_environment())[:3]
        ['commit', 'device', 'packages']
    """
    return {
        "commit": source_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "device": _device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
    }


def source_commit() -> str:
    """The commit of this source tree, "-dirty" with changes that are not in it; "unknown" outside git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(_SOURCE), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # an installed copy may lie in another's repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _plain(value: Any) -> Any:
    """Round numbers; JSON has no inf or nan: null instead."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    return value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The CPU's name; `platform.processor` is empty on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
