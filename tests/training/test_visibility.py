from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train_tasks import SETTINGS, one_step
from torch import Tensor, nn
from toys import MEAN_FACE
from typer.testing import CliRunner

from diffusers_dedim import VisibilityNet
from diffusers_dedim.cli.train import app
from diffusers_dedim.training import covers, loop
from diffusers_dedim.training.config import VisibilityConfig
from diffusers_dedim.training.covers import Scene, add_cover
from diffusers_dedim.training.data import FaceCrops
from diffusers_dedim.training.pose import turn_far
from diffusers_dedim.training.visibility import VisibilityTask, cover_faces, face_region, visibility_figures

# A jaw from ear to ear, then the inner landmarks.
_ANGLE = np.linspace(np.pi, 0, 17)
JAW = np.stack([55.5 + 42 * np.cos(_ANGLE), 52 + 62 * np.sin(_ANGLE)], 1)
POINTS = np.concatenate([JAW, MEAN_FACE.double().numpy()])


def scene(seed: int = 0) -> Scene:
    rng = np.random.default_rng(seed)
    image, other = rng.uniform(0, 255, (2, 112, 112, 3)).astype(np.float32)
    return Scene(image, other, POINTS, rng)


def batch(count: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (count, 3, 112, 112), generator=generator, dtype=torch.uint8),
        "known": torch.ones(count, 1, 112, 112, dtype=torch.bool),
        "landmarks": torch.from_numpy(POINTS).float().expand(count, -1, -1),
    }


@pytest.mark.parametrize("draw", [*covers.TRAINED, *covers.HELD_BACK])
@pytest.mark.parametrize("seed", range(3))
def test_a_cover_changes_what_it_covers_and_says_so(draw: Callable[..., Any], seed: int) -> None:
    given = scene(seed)
    colour, alpha = draw(scene(seed))
    assert colour.shape == (112, 112, 3)
    assert alpha.shape == (112, 112)
    assert 0 <= alpha.min() <= alpha.max() <= 1
    assert 0 <= colour.min() <= colour.max() <= 255
    picture, hidden = add_cover(given, draw)
    assert picture.dtype == np.float32
    assert hidden.dtype == bool
    assert 0.002 < hidden.mean() < 0.95
    assert np.isfinite(picture).all()


def test_no_kind_is_both_trained_and_held_back() -> None:
    assert not set(covers.TRAINED) & set(covers.HELD_BACK)


def test_the_face_is_inside_the_jaw_and_doubt_is_along_it_and_above() -> None:
    region, sure = face_region(POINTS)
    assert region[66, 56] == region[30, 56] == sure[66, 56] == 1
    assert region[66, 5] == region[110, 5] == 0
    assert sure[66, 5] == 1
    x, y = POINTS[4].round().astype(int)
    assert sure[y, x] == 0  # on the line of the jaw
    assert sure[3, 56] == 0  # hair or skin


def test_covered_faces_are_marked_within_the_known() -> None:
    given = batch(16)
    given["known"][:, :, :20] = False
    images, visible, weight = cover_faces(given, torch.Generator().manual_seed(0))
    again = cover_faces(batch(16) | {"known": given["known"]}, torch.Generator().manual_seed(0))
    assert all(torch.equal(one, other) for one, other in zip((images, visible, weight), again, strict=True))
    assert images.shape == (16, 3, 112, 112)
    assert visible.shape == weight.shape == (16, 1, 112, 112)
    assert visible.dtype == torch.bool
    assert set(weight.unique().tolist()) == {0.0, 1.0}
    assert 0.1 < visible.float().mean() < 0.6


def test_a_far_turn_hides_one_side_of_the_face() -> None:
    columns = torch.linspace(0, 255, 112).expand(1, 3, 112, 112)
    labels = face_region(POINTS)[None]
    layers = torch.cat([columns, labels], 1).expand(8, -1, -1, -1)
    turned = turn_far(layers, torch.zeros(8, 3, 112, 112), torch.Generator().manual_seed(1))
    assert turned.shape == (8, 5, 112, 112)
    assert turned.isfinite().all()
    shares = turned[:, 3:4].flatten(1).mean(1)
    assert (shares < labels[:, :1].mean()).all()  # less of it is in sight
    centre = turned[:, 0, 66, 30:80]
    assert ((centre.amin(1) > 60) | (centre.amax(1) < 195)).any()  # a side of the head is gone


def test_visibility_task(data: FaceCrops) -> None:
    torch.manual_seed(0)
    task = VisibilityTask(data, data, VisibilityConfig(**SETTINGS, val_images=2), model=VisibilityNet(0.2))
    assert one_step(task) == pytest.approx(0.7, abs=0.6)  # an untrained network says about one half
    figures = task.validate(task.model.eval())
    assert sorted(figures) == ["iou_cup", "iou_microphone", "iou_scarf", "iou_trained", "kept_plain"]


class Fixed(nn.Module):
    """One answer everywhere."""

    def __init__(self, answer: float) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer))

    def forward(self, crops: Tensor) -> Tensor:
        return self.answer.expand(len(crops), 1, 112, 112)


def test_figures_of_who_sees_everything_and_of_who_sees_nothing() -> None:
    given = batch(4)
    data: Any = [{name: value[index] for name, value in given.items()} for index in range(4)]
    sees = visibility_figures(Fixed(1.0), data, 4, batch_size=2)
    assert sees["kept_plain"] == 1
    assert {value for name, value in sees.items() if name.startswith("iou")} == {0.0}
    blind = visibility_figures(Fixed(0.0), data, 4, batch_size=2)
    assert blind["kept_plain"] == 0
    assert 0 < blind["iou_trained"] < 1  # all that is covered, and much that is not


def test_the_network_is_small_and_takes_crops_alone() -> None:
    network = VisibilityNet()
    assert sum(4 * value.numel() for value in network.state_dict().values()) < 1e6  # bytes
    with pytest.raises(ValueError, match=r"expected shape \[N, 3, 112, 112\]"):
        network(torch.zeros(1, 3, 64, 64))


@pytest.mark.filterwarnings("ignore:.*has no part 'val':UserWarning")
def test_the_command_trains_and_leaves_a_model(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SETTLING_BATCHES", 1)
    words = ["visibility", "--data", faces, "-o", tmp_path, "--max-steps", 1, "--batch-size", 2]
    result = CliRunner().invoke(app, [str(word) for word in [*words, "--precision", "no", "--val-images", 2]])
    assert result.exit_code == 0, result.output
    assert "iou_microphone" in result.output
    assert VisibilityNet.from_pretrained(tmp_path / "model").config.width == 1.0
