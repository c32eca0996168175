from __future__ import annotations

import numpy as np
import pytest
from face_samples import ASTRONAUT_POINTS, make_face
from numpy.typing import NDArray
from skimage.data import astronaut

from diffusers_dedim.faces import Face


@pytest.fixture(scope="session")
def photo() -> NDArray[np.uint8]:
    return np.ascontiguousarray(astronaut())


@pytest.fixture
def face() -> Face:
    return make_face(ASTRONAUT_POINTS)
