from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from toys import MEAN_FACE

COUNT = 6


def rows(count: int = COUNT, size: int = 112) -> dict[str, list[object]]:
    """Random crops whose left margin of 10 px is transparent, each with the mean face a little moved."""
    rng = np.random.default_rng(0)
    images, points = [], []
    for index in range(count):
        pixels = rng.integers(0, 256, (size, size, 4), dtype=np.uint8)
        pixels[..., 3] = 255
        pixels[:, :10, 3] = 0
        images.append(Image.fromarray(pixels))
        shape = np.concatenate([np.zeros((17, 2)), MEAN_FACE.numpy() + index])
        points.append(shape.flatten().tolist())
    return {"image": images, "landmarks_68": points}


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet file as the project's own data sets are."""
    path = tmp_path_factory.mktemp("faces") / "train-00000.parquet"
    datasets.Dataset.from_dict(rows()).cast_column("image", datasets.Image()).to_parquet(str(path))
    return path
