from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# Read when the libraries are imported, hence before them; nothing is downloaded and the home stays clean.
os.environ["HF_HUB_OFFLINE"] = "1"
# One thread, here and in the processes that tests start: toy networks gain nothing from more, sums keep their
# order, and on a busy machine threads that wait for each other make the run ten times longer.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="dedim-datasets-")

import numpy as np
import pytest
import torch
from no_skips import pytest_collection_modifyitems, pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401
from numpy.typing import NDArray
from toys import toy_pipeline

from diffusers_dedim import DeDiMPipeline

torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture
def pipe() -> DeDiMPipeline:
    return toy_pipeline()


@pytest.fixture(scope="session")
def crop() -> NDArray[np.uint8]:
    """A 112x112 image of soft random blobs in mid tones: room to change without hitting 0 or 255."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(90, 166, (14, 14, 3))
    return blocks.repeat(8, 0).repeat(8, 1).astype(np.uint8)
