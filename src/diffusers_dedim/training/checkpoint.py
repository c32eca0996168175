"""What a training leaves on disk: settings, checkpoints and models, each replaced in one move."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from diffusers_dedim.training.config import LoopConfig

# with what is assumed where an older file lacks one
_FIXED_SETTINGS = {"batch_size": None, "gradient_accumulation_steps": 1, "seed": None, "optimizer": "adamw"}


def check_run(
    config: LoopConfig, task: str, model: nn.Module, identity: dict[str, Any], *, resume: bool
) -> dict[str, Any]:
    """Refuse to go on from a checkpoint of another network, data or batch size, or to overwrite one.

    Args:
        config: the run's settings.
        task: name of the task.
        model: the network; its ``config`` is compared.
        identity: what else a resumed run must share with the first, see `Task.identity`.
        resume: whether an existing checkpoint is to be gone on from.

    Returns:
        The record to keep as ``config.json``.

    Raises:
        ValueError: the checkpoint was made with other settings, or is there without ``resume``.
    """
    output = Path(config.output_dir)
    record: dict[str, Any] = {
        "task": task,
        "model": _public(getattr(model, "config", {})),
        "identity": identity,
        "settings": asdict(config),
    }
    record = json.loads(json.dumps(record, default=str))
    if (output / "checkpoint.old").is_dir() and not (output / "checkpoint").exists():
        (output / "checkpoint.old").rename(output / "checkpoint")  # killed in the middle of the swap
    if (output / "checkpoint").exists() and not resume:
        raise ValueError(f"output_dir: {output} holds a checkpoint; pass --resume or choose another folder.")
    path = output / "config.json"
    if (output / "checkpoint").is_dir() and path.is_file():
        differs = _differences(json.loads(path.read_text()), record, output)
        if differs:
            raise ValueError(
                f"resume: the checkpoint in {output} was made with other settings ({', '.join(differs)}); "
                "use the same ones or another --output-dir."
            )
    return record


def _differences(before: dict[str, Any], now: dict[str, Any], output: Path) -> list[str]:
    """Names of what may not change in the middle of a training and did."""
    differs = ["task"] if before.get("task") != now["task"] else []
    differs += ["model"] if not _same_network(_public(before.get("model", {})), now["model"]) else []
    settings = before.get("settings", before.get("loop", {}))  # "loop": before version 0.2
    differs += [k for k, old in _FIXED_SETTINGS.items() if settings.get(k, old) != now["settings"][k]]
    if "identity" in before:
        differs += [name for name, value in now["identity"].items() if before["identity"].get(name) != value]
    else:
        warnings.warn(
            f"resume: {output / 'config.json'} is of an older version and does not say what the checkpoint "
            f"was trained on; {', '.join(now['identity'])} could not be compared.",
            stacklevel=4,
        )
    return differs


def _same_network(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two settings of a network are the same; a switch that came later and is off changes nothing."""
    later = {name: value for name, value in now.items() if name not in before and value is False}
    return {**later, **before} == now


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out diffusers' own notes, such as a list of defaults in an order that changes from run to run."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def replace_folder(folder: Path, write: Callable[[str], Any]) -> None:
    """Let ``write`` fill a new folder beside the old one, then swap, so that a kill leaves a whole one."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    write(str(fresh))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Replace the file in one move: a kill must not leave half a ``config.json``, which would bar resuming."""
    fresh = path.with_suffix(".json.new")
    fresh.write_text(json.dumps(record, indent=2) + "\n")
    fresh.replace(path)


def check_model_folder(name: str, folder: str | Path, expected: str) -> None:
    """Refuse a folder that holds another network than the class ``expected``, before weights are guessed.

    Raises:
        ValueError: the folder has no ``config.json``, or that of another class.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{name}: {folder} has no config.json; expected a folder saved by save_pretrained.")
    found = json.loads(path.read_text()).get("_class_name")
    if found != expected:
        raise ValueError(f"{name}: {folder} holds a {found}, expected a {expected}.")


def load_network(name: str, folder: str | Path, network: type[Any]) -> Any:
    """Load a whole network of the class ``network``; diffusers would fill what is missing with random weights.

    Raises:
        ValueError: the folder holds another class, or other weights than its ``config.json`` describes.
    """
    check_model_folder(name, folder, network.__name__)
    try:
        model, found = network.from_pretrained(folder, output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:  # no weights; shapes that differ
        raise ValueError(f"{name}: {folder} cannot be loaded ({error}).") from error
    for kind, what in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "holds, beside those of its config.json,"),
    ):
        if found[kind]:
            raise ValueError(
                f"{name}: {folder} {what} {len(found[kind])} weights, {sorted(found[kind])[0]} among them; "
                "expected a folder saved by save_pretrained."
            )
    return model
