from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_clips import moving

from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.video import animation
from diffusers_dedim.video.animation import AnimationReader, AnimationWriter, is_animation


def write(path: Path, *, alpha: bool = False) -> Path:
    images = [Image.fromarray(pixels) for pixels in moving(3)]
    if alpha:
        for image in images:
            image.putalpha(Image.fromarray(np.tile(np.arange(160, dtype=np.uint8), (120, 1))))
    options = {"lossless": True} if path.suffix == ".webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=[40, 80, 120], loop=2, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif"])
def test_an_animation_keeps_times_and_loops(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name)
    assert is_animation(source)
    target = tmp_path / ("out" + (".png" if name.endswith("gif") else source.suffix))
    with AnimationReader(source) as reader, AnimationWriter(target, reader) as writer:
        frames = list(reader.frames())
        for frame in frames:
            writer.add(frame.pixels, frame)
        loops = reader.loops
    assert [frame.duration for frame in frames] == [Fraction(1, 25), Fraction(2, 25), Fraction(3, 25)]
    with AnimationReader(target) as reader:
        again = list(reader.frames())
        assert reader.loops == loops
    assert [frame.time for frame in again] == [frame.time for frame in frames]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(frames, again, strict=True))


def test_transparency_is_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "a.png", alpha=True)
    with AnimationReader(source) as reader, AnimationWriter(tmp_path / "b.png", reader) as writer:
        for frame in reader.frames():
            assert frame.alpha is not None
            writer.add(frame.pixels, frame)
    with AnimationReader(tmp_path / "b.png") as reader:
        assert [int(frame.alpha[5, 99]) for frame in reader.frames()] == [99, 99, 99]


def test_a_still_picture_is_no_animation(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "still.png")
    (tmp_path / "text.gif").write_text("no picture")
    assert not is_animation(tmp_path / "still.png")
    assert not is_animation(tmp_path / "text.gif")
    with pytest.raises(UnreadablePhotoError, match="not an animation that can be read"):
        AnimationReader(tmp_path / "text.gif")


def test_a_huge_or_damaged_animation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.gif")
    cut = tmp_path / "cut.gif"
    cut.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    with pytest.raises(UnreadablePhotoError), AnimationReader(cut) as reader:
        list(reader.frames())
    monkeypatch.setattr(animation, "MAX_ANIMATION_PIXELS", 1000)
    with pytest.raises(UnreadablePhotoError, match="3 frames of 160x120 are 57600 pixels, limit 1000"):
        AnimationReader(source)


def test_other_endings_and_stopped_blocks_write_nothing(tmp_path: Path) -> None:
    with AnimationReader(write(tmp_path / "a.gif")) as reader:
        with pytest.raises(ValueError, match=r"expected a name that ends in \.png \.apng \.webp"):
            AnimationWriter(tmp_path / "b.gif", reader)

        def begin() -> None:
            with AnimationWriter(tmp_path / "b.png", reader) as writer:
                writer.add(moving(1)[0], next(reader.frames()))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            begin()
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]
