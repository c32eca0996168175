from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from accelerate.state import AcceleratorState
from toy_faces import rows
from toy_teacher import mean_colour_teacher

from diffusers_dedim.training.data import FaceCrops


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet file as the project's own data sets are."""
    path = tmp_path_factory.mktemp("faces") / "train-00000.parquet"
    datasets.Dataset.from_dict(rows()).cast_column("image", datasets.Image()).to_parquet(str(path))
    return path


@pytest.fixture
def data(faces: Path) -> FaceCrops:
    return FaceCrops(faces)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return mean_colour_teacher(tmp_path / "teacher.onnx")


@pytest.fixture(autouse=True)
def _own_accelerate() -> Iterator[None]:
    """accelerate keeps precision and device for the whole process; no test is to meet another's."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
