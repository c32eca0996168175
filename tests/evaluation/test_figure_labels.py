from __future__ import annotations

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from diffusers_dedim.evaluation.figures import Label, place_labels


def draw(points: list[tuple[float, float]], scale: str = "linear") -> tuple[Figure, list[Bbox]]:
    """Label every point, and say where the labels are."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), marker="o")
    axes.set_xscale(scale)
    place_labels(
        axes, [Label(x, y, f"h=0.{index:02}", "black") for index, (x, y) in enumerate(points)], points
    )
    figure.draw_without_rendering()
    return figure, [Text.get_window_extent(text) for text in axes.texts]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_labels_of_crowded_points_are_apart_and_inside(scale: str) -> None:
    # strengths of a method end at rank-1 0 with hardly another SSIM, in the corner of the axes
    points = [(20 + 0.3 * index, 0.0) for index in range(6)] + [(10.0, 0.5), (40.0, 1.0)]
    figure, boxes = draw(points, scale)
    assert len(boxes) == len(points)
    for index, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:index]) == 0
        assert Bbox.union([box, figure.axes[0].bbox]).bounds == pytest.approx(figure.axes[0].bbox.bounds)


def test_a_lonely_label_stands_at_its_point_and_a_far_one_has_a_line_to_it() -> None:
    figure, boxes = draw([(0.0, 0.0), (1.0, 0.0), (1.0, 0.0), *[(1.0, 0.0)] * 8])
    texts = figure.axes[0].texts
    assert [text.arrow_patch is None for text in texts[:2]] == [True, True]
    assert not all(text.arrow_patch is None for text in texts)
    x, y = figure.axes[0].transData.transform((0.0, 0.0))
    near = 4 * figure.dpi / 72  # the first distance, in pixels
    # 1 px: text is placed on whole pixels
    assert min(abs(boxes[0].x0 - x), abs(boxes[0].x1 - x)) == pytest.approx(near, abs=1)
    assert min(abs(boxes[0].y0 - y), abs(boxes[0].y1 - y)) == pytest.approx(near, abs=1)


def test_a_label_does_not_stand_on_another_point() -> None:
    figure, (box, _, _) = draw([(0.5, 0.5), (0.52, 0.52), (0.0, 1.0)])
    x, y = figure.axes[0].transData.transform((0.52, 0.52))
    assert not box.contains(x, y)
