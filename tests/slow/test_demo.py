"""The page's actions over the bundled weights, without a browser."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.demo import app, launch
from diffusers_dedim.images.files import decode_photo

pytestmark = pytest.mark.slow
SPACE_SECONDS = 15.0
"""What a photo may take on a Space's two cores. Counted in seconds of one core, so that other work beside it does
not count: whatever the second core does, it takes no longer than that."""


def test_the_example_is_protected_in_the_time_of_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "me/demo")
    handlers = launch.make_handlers(DeDiMPipeline.from_pretrained())
    assert handlers.presets == ("fast",)
    start = time.process_time()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        view = handlers.protect_file(str(app.EXAMPLE), "fast", "standard")
    seconds = time.process_time() - start
    print(f"{seconds:.1f} core seconds, {view.result.seconds:.1f} s in the pipeline")
    (scores,) = view.result.scores
    assert view.result.reached == (True,)
    assert scores[0].after < view.result.threshold < scores[0].before
    assert scores[0].scale, "the page draws a line for the bundled recogniser"
    before, after = np.asarray(view.before), decode_photo(view.data or b"").pixels
    assert after.shape == before.shape
    assert seconds < SPACE_SECONDS
