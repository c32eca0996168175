"""Save and load the two parts of a pipeline whose classes diffusers does not know (docs/paper.md, D6).

`DeDiMPipeline` uses this on its own folders and Hub repositories; `dedim publish` writes the same files.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from torch import nn

from diffusers_dedim.encoders import MobileFaceNet
from diffusers_dedim.faces import LandmarkRegressor

OWN_COMPONENTS: dict[str, type[ModelMixin]] = {
    "face_encoder": MobileFaceNet,
    "landmarker": LandmarkRegressor,
}
_WHERE = ("revision", "variant", "cache_dir", "local_files_only", "token", "force_download", "proxies")
_PACKAGE = "diffusers_dedim"
# diffusers takes a class it does not know from `<component>/<library>.py`, and only with trust_remote_code=True.
_COMPONENT_CODE = '''"""Where diffusers finds this network's class when it is allowed to run code of the repository."""

from diffusers_dedim import LandmarkRegressor, MobileFaceNet

__all__ = ["LandmarkRegressor", "MobileFaceNet"]
'''
# Exactly one subclass of DiffusionPipeline may be visible in this file.
_PIPELINE_CODE = '''"""For diffusers' `from_pretrained(..., custom_pipeline="pipeline", trust_remote_code=True)`."""

from diffusers_dedim import DeDiMPipeline

__all__ = ["DeDiMPipeline"]
'''


def load_own_components(source: str, options: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Load recogniser and landmark model from their subfolders, but those that ``options`` has already.

    Args:
        source: folder or Hub id.
        options: keywords of ``from_pretrained``; where to look (revision, variant, token, ...) is taken from them.
            The type is not: both stay in float32, because their scores are reported.
    """
    where = {name: options[name] for name in _WHERE if name in options}
    return {
        name: model_class.from_pretrained(source, subfolder=name, **where)
        for name, model_class in OWN_COMPONENTS.items()
        if name not in options
    }


def own_classes(components: Mapping[str, Any]) -> list[str]:
    """Names of the parts that are of this package's classes, which can be named in ``model_index.json``."""
    return [name for name, own in OWN_COMPONENTS.items() if type(components.get(name)) is own]


def write_loading_files(folder: Path, names: Collection[str]) -> None:
    """Complete a saved pipeline so that any way of loading finds its parts.

    ``model_index.json`` names the parts in ``names`` as ``["diffusers_dedim", class]`` and no other part of ours;
    ``pipeline.py`` and a module in each part's subfolder let `DiffusionPipeline` load them as remote code.
    """
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    for name, own in OWN_COMPONENTS.items():
        index.pop(name, None)
        if name in names:
            index[name] = [_PACKAGE, own.__name__]
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{_PACKAGE}.py").write_text(_COMPONENT_CODE)
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    (folder / "pipeline.py").write_text(_PIPELINE_CODE)
