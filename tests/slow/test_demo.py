"""The page's actions over the bundled weights, without a browser."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.demo import app, launch
from diffusers_dedim.demo.handlers import Upload
from diffusers_dedim.images.files import read_photo

pytestmark = pytest.mark.slow
SPACE_SECONDS = 15.0
"""What a photo may take on a Space's two cores. Counted in seconds of one core, so that other work beside it does
not count: whatever the second core does, it takes no longer than that."""


@pytest.mark.parametrize("strength", ["gentler", "standard", "stronger"])
def test_the_example_is_protected_in_the_time_of_a_space(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, strength: str
) -> None:
    monkeypatch.setenv("SPACE_ID", "me/demo")
    handlers = launch.make_handlers(DeDiMPipeline.from_pretrained())
    start = time.process_time()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        run = handlers.protect_file(Upload(str(app.EXAMPLE)), strength, str(tmp_path))
    seconds = time.process_time() - start
    view = run.photos[0]
    print(f"{strength}: {seconds:.1f} core seconds, {view.table['seconds']} s in the pipeline")
    (face,) = view.table["faces"]
    assert (face["treatment"], face["reached_threshold"]) == ("changed", True)
    assert face["scores"][0]["after"] < 0.3 < face["scores"][0]["before"]
    assert face["scores"][0]["line"], "the page draws a line for the bundled recogniser"
    before, after = (read_photo(path).pixels for path in (app.EXAMPLE, run.download))
    assert after.shape == before.shape
    assert seconds < SPACE_SECONDS
