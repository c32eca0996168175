"""Lay out, in a folder, exactly the files that a repository on the Hub will hold."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zipfile import is_zipfile

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.hub.cards import (
    EVAL_RESULTS,
    card_path,
    copy_pictures,
    eval_results_yaml,
    package_folder,
    read_card,
    render_card,
)
from diffusers_dedim.hub.kinds import KINDS, Model, ModelKind

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_HALF = "diffusion_pytorch_model.fp16.safetensors"
_LICENCE = "LICENSE.md"
_REQUIREMENTS = "requirements.txt"
_OWN_REQUIREMENT = re.compile(r"(?m)^diffusers[-_.]dedim(?P<extras>\[[^\]\n]*\])?(?![\w.-]).*$")
_OWN_WHEEL = re.compile(r"diffusers_dedim-[\w.!+]+(-\d\w*)?-[\w.]+-[\w.]+-[\w.]+\.whl")
BUNDLED = Path(__file__).resolve().parents[1] / "weights"


def stage_model(
    model: Model, repo_id: str, folder: Path, *, weights: Path | None = None, card: Path | None = None
) -> None:
    """Write the files of one model into ``folder`` and load it from there once.

    The same weights give the same bytes each time, so that publishing again finds nothing to do.

    Args:
        repo_id: "user/name"; the card's usage names it.
        folder: empty folder to fill.
        weights: pipeline folder with ``unet``, ``scheduler``, ``face_encoder``, ``landmarker`` and, unless it is
            older, ``visibility`` and ``discriminator``; None for the bundled one.
        card: model card to use; needed with ``weights``, whose figures are not those of the bundled cards.

    Raises:
        DeDiMError: a file is missing or damaged, the weights do not fit in float16, or the result does not load.
    """
    from diffusers_dedim.pipeline.components import OPTIONAL_COMPONENTS

    if weights is not None and card is None:
        raise DeDiMError(
            "--card: weights of your own need a card of their own; the bundled cards give figures of the bundled "
            "weights. Start from a copy of model_cards/."
        )
    kind, source = KINDS[model], weights or BUNDLED
    model_card = read_card(model, card)
    for part, target in kind.folders.items():
        if part not in OPTIONAL_COMPONENTS or (source / part).is_dir():
            _copy_part(source / part, folder / target)
    if kind.index == "model_index.json":
        _write_index(model, kind, source, folder)
    class_name = str(_read_json(folder / kind.index).get("_class_name") or kind.class_names[0])
    text = render_card(model_card, model, repo_id, shared=card is None, class_name=class_name)
    (folder / "README.md").write_text(text, "utf-8")
    copy_pictures(card_path(model, card), folder)
    results = eval_results_yaml(model_card)
    if results is not None:
        (folder / EVAL_RESULTS).mkdir()
        (folder / EVAL_RESULTS / "dedim.yaml").write_text(results, "utf-8")
    if (source / _LICENCE).is_file():
        shutil.copyfile(source / _LICENCE, folder / _LICENCE)
    _check_it_loads(model, folder)


def stage_space(
    repo_id: str, folder: Path, source: Path | None = None, *, wheel: Path | None = None
) -> list[str]:
    """Copy the Space's files into ``folder``.

    Args:
        repo_id: "user/name"; the address of the wheel has it.
        folder: empty folder to fill.
        source: folder with the files; None for those of this package.
        wheel: of this package, to be installed instead of what PyPI has. It lies in the Space, and requirements.txt
            names it by its address there: a Space installs its requirements before its other files are in place.

    Returns:
        Notes for the user.

    Raises:
        DeDiMError: ``app.py``, ``requirements.txt`` or ``README.md`` is missing, the wheel is none of this package, or
            requirements.txt does not ask for this package.
    """
    source = source or package_folder("spaces")
    for name in ("app.py", _REQUIREMENTS, "README.md"):
        if not (source / name).is_file():
            raise DeDiMError(f"{source}: a Space needs {name}, which is not there; give --folder.")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=ignored)
    asked = _OWN_REQUIREMENT.search((folder / _REQUIREMENTS).read_text(encoding="utf-8"))
    if wheel is not None:
        if asked is None:
            raise DeDiMError(
                f"{source / _REQUIREMENTS}: has no line with diffusers-dedim that --wheel could replace."
            )
        _put_wheel(wheel, asked, repo_id, folder)
    elif asked is not None and "@" not in asked.group():
        return [
            "the Space will install diffusers-dedim from PyPI, and cannot be built where it is not there; "
            "--wheel FILE takes a wheel of yours instead."
        ]
    return []


def _put_wheel(wheel: Path, asked: re.Match[str], repo_id: str, folder: Path) -> None:
    """Copy the wheel into the Space and let the requirement that was found name it."""
    if not _OWN_WHEEL.fullmatch(wheel.name) or not is_zipfile(wheel):
        raise DeDiMError(
            f"--wheel: expected a file like diffusers_dedim-0.1.0-py3-none-any.whl, got {wheel}; make one with "
            "`pip wheel --no-deps .` in a checkout."
        )
    shutil.copyfile(wheel, folder / wheel.name)
    # pip checks the digest; and a wheel built anew under the same name changes the line, so that the Space installs it
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    address = f"{constants.ENDPOINT}/spaces/{repo_id}/resolve/main/{quote(wheel.name)}#sha256={digest}"
    line = f"diffusers-dedim{asked['extras'] or ''} @ {address}"
    text = asked.string[: asked.start()] + line + asked.string[asked.end() :]
    (folder / _REQUIREMENTS).write_text(text, encoding="utf-8")


def _copy_part(source: Path, target: Path) -> None:
    """Copy one network or scheduler: its config without local paths, its weights in float32 and float16."""
    configs = [
        path for path in source.glob("*.json") if path.name in ("config.json", "scheduler_config.json")
    ]
    if not configs:
        raise DeDiMError(
            f"{source}: expected a folder with config.json, as save_pretrained writes it; found none."
        )
    target.mkdir(parents=True, exist_ok=True)
    for path in configs:
        config = {name: value for name, value in _read_json(path).items() if name != "_name_or_path"}
        (target / path.name).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        if path.name == "config.json":
            _copy_weights(source / _WEIGHTS, target)


def _copy_weights(path: Path, target: Path) -> None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DeDiMError(f"{path}: cannot be read as safetensors: {error}") from error
    for name, dtype in ((_WEIGHTS, torch.float32), (_HALF, torch.float16)):
        cast = {
            key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()
        }
        if any(value.is_floating_point() and not value.isfinite().all() for value in cast.values()):
            raise DeDiMError(f"{path}: a weight is not finite in {dtype}; it cannot be published that way.")
        save_file(cast, target / name, metadata={"format": "pt"})


def _write_index(model: Model, kind: ModelKind, source: Path, folder: Path) -> None:
    """Write ``model_index.json``; for the whole pipeline also the code that lets plain diffusers load it."""
    from diffusers_dedim.pipeline.components import OWN_COMPONENTS, class_named, write_loading_files

    old = _read_json(source / "model_index.json")
    names = ("_diffusers_version", "scheduler", "unet")
    missing = [name for name in names if name not in old]
    if missing:
        raise DeDiMError(
            f"{source / 'model_index.json'}: lacks {', '.join(missing)}; save the pipeline again."
        )
    index = {"_class_name": kind.class_names[0], **{name: old[name] for name in names}}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    if model is Model.pipeline:
        configs = {name: folder / name / "config.json" for name in OWN_COMPONENTS if (folder / name).is_dir()}
        classes = {name: class_named(_read_json(path), name, path).__name__ for name, path in configs.items()}
        write_loading_files(folder, classes)


def _check_it_loads(model: Model, folder: Path) -> None:
    from diffusers import DDPMPipeline

    from diffusers_dedim import DeDiMPipeline, LandmarkRegressor
    from diffusers_dedim.pipeline.components import class_named

    classes: dict[Model, Any] = {
        Model.pipeline: DeDiMPipeline,
        Model.unet: DDPMPipeline,
        Model.landmarks: LandmarkRegressor,
    }
    try:
        if model is Model.encoder:
            classes[model] = class_named(_read_json(folder / "config.json"), "face_encoder", folder)
        classes[model].from_pretrained(str(folder), variant="fp16")
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise DeDiMError(f"the {model.value} does not load and was not published: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeDiMError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DeDiMError(f"{path}: expected a JSON object, got {type(content).__name__}.")
    return content
