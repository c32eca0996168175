"""No committed panel shows faces of a data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

PANELS = sorted((Path(__file__).parents[1] / "docs" / "results").glob("*/panel.png"))


@pytest.mark.parametrize("panel", PANELS, ids=lambda path: path.parent.name)
def test_a_panel_is_one_photo_wide(panel: Path) -> None:
    # `dedim evaluate` draws six probes side by side, 224 px each; with --panel the one photo that may be shown
    with Image.open(panel) as picture:
        assert picture.width < 130 + 2 * 224
