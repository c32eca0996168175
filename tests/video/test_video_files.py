from __future__ import annotations

import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from toy_clips import moving, picture, sound_of, write_clip

from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.video.reading import Frame, VideoReader
from diffusers_dedim.video.writing import VideoWriter, video_name


def copy(source: Path, target: Path) -> tuple[list[Frame], list[Frame], list[str]]:
    """Frames before and after, and what was noted."""
    with VideoReader(source) as clip, VideoWriter(target, clip, crf=4) as writer:
        before = []
        for frame in clip.frames(writer.add_sound):
            writer.add(frame.pixels, frame)
            before.append(frame)
        notes = clip.notes
    with VideoReader(target) as clip:
        return before, list(clip.frames()), notes


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    # coding twice at crf 4 moves pixels at edges of chroma by some levels
    return float(np.abs(a.astype(int) - b[: a.shape[0], : a.shape[1]]).mean()) < 3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("variable.mp4", {"times": [0, 90, 250, 300, 410, 500]}),
        ("full.mov", {"full_range": True}),
        ("silent.mkv", {"sound": False}),
        ("late.mkv", {"times": [600, 700, 800, 900, 1000, 1100]}),
    ],
)
def test_a_copy_has_the_times_colours_and_sound_of_its_source(
    tmp_path: Path, name: str, options: dict
) -> None:
    source = write_clip(tmp_path / name, moving(6), **options)
    before, after, notes = copy(source, tmp_path / f"out-{name}")
    assert [frame.time for frame in after] == [frame.time for frame in before]
    assert len(before) == 6
    assert abs(float(after[-1].duration - before[-1].duration)) < 1 / 12
    assert all(alike(a.pixels, b.pixels) for a, b in zip(before, after, strict=True))
    assert notes == []
    if options.get("sound", True):
        assert sound_of(tmp_path / f"out-{name}") == sound_of(source)
    with VideoReader(tmp_path / f"out-{name}") as clip:
        assert next(clip.frames()).pixels.shape == (120, 160, 3)
        assert clip.colours.full_range == options.get("full_range", False)


def test_metadata_is_dropped(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", moving(3))
    assert b"secret" in source.read_bytes()
    copy(source, tmp_path / "b.mp4")
    assert b"secret" not in (tmp_path / "b.mp4").read_bytes()
    assert b"+48" not in (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_a_turned_clip_is_upright_for_the_networks_and_in_the_result(
    tmp_path: Path, matrix: tuple[int, ...], turns: int
) -> None:
    """Phones write the pixels as the sensor lies, and a matrix into the track header: a, b, u, c, d, v, ..."""
    source = write_clip(tmp_path / "phone.mov", moving(2), sound=False)
    data = bytearray(source.read_bytes())
    place = data.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    source.write_bytes(bytes(data))
    before, after, _ = copy(source, tmp_path / "out.mov")
    assert alike(np.rot90(moving(1)[0], turns), before[0].pixels)
    assert alike(before[0].pixels, after[0].pixels)


def test_odd_sides_are_repeated_once(tmp_path: Path) -> None:
    frames = [picture((0, 20, 30), size=(161, 119))] * 2
    source = write_clip(tmp_path / "odd.mkv", frames, pixel_format="yuv444p")
    before, after, _ = copy(source, tmp_path / "out.mkv")
    assert before[0].pixels.shape == (119, 161, 3)
    assert after[0].pixels.shape == (120, 162, 3)
    assert alike(before[0].pixels, after[0].pixels)


def test_ten_bits_become_eight_and_it_is_said(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "deep.mkv", moving(2), pixel_format="yuv420p10le")
    before, after, notes = copy(source, tmp_path / "out.mkv")
    assert notes == ["10 bits a channel became 8"]
    assert alike(before[1].pixels, after[1].pixels)


def test_webm_goes_into_matroska(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.webm", moving(2), codec="libvpx-vp9")
    assert video_name(source.name) == "a.webm.mkv"
    _, after, _ = copy(source, tmp_path / "a.webm.mkv")
    assert len(after) == 2
    assert sound_of(tmp_path / "a.webm.mkv") == sound_of(source)
    with (
        VideoReader(source) as clip,
        pytest.raises(ValueError, match=r"expected a name that ends in .*webm.mkv"),
    ):
        VideoWriter(tmp_path / "b.webm", clip)


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UnreadablePhotoError, match=r"text\.mp4: not a video that can be read"):
        VideoReader(tmp_path / "text.mp4")
    with pytest.raises(UnreadablePhotoError, match="No such file"):
        VideoReader(tmp_path / "missing.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        track = output.add_stream("aac", rate=48000)
        track.layout = "mono"
        output.mux(track.encode(None))
    with pytest.raises(UnreadablePhotoError):
        VideoReader(tmp_path / "sound.mp4")


def test_a_clip_that_is_cut_off_gives_what_can_be_read(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", moving(12), sound=False)
    data = source.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(data[: len(data) * 95 // 100])
    with VideoReader(cut) as clip:
        assert 0 < len(list(clip.frames())) < 12
    mp4 = write_clip(tmp_path / "a.mp4", moving(12))
    cut = tmp_path / "cut.mp4"  # its index is at the end
    cut.write_bytes(mp4.read_bytes()[:-400])
    with pytest.raises(UnreadablePhotoError, match="cut off"):
        VideoReader(cut)


def test_damaged_packets_are_passed_over_and_counted(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", moving(12), sound=False)
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    source.write_bytes(bytes(data))
    with VideoReader(source) as clip:
        frames = list(clip.frames())
    assert 0 < len(frames) <= 12


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_ends_the_block_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    source = write_clip(tmp_path / "a.mp4", moving(3))

    def begin() -> None:
        with VideoReader(source) as clip, VideoWriter(tmp_path / "b.mp4", clip) as writer:
            frame = next(clip.frames(writer.add_sound))
            writer.add(frame.pixels, frame)
            raise error

    with pytest.raises(error):
        begin()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_the_rate_factor_is_checked(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", moving(1))
    with VideoReader(source) as clip, pytest.raises(ValueError, match=r"crf: expected 0 .* to 51, got 52"):
        VideoWriter(tmp_path / "b.mp4", clip, crf=52)


def test_the_number_of_frames_is_known_beforehand(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        with VideoReader(write_clip(tmp_path / name, moving(6), sound=False)) as clip:
            assert clip.expected_frames == 6
            assert clip.rate == Fraction(12)


def test_without_pyav_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"a video needs the package .av.*diffusers-dedim\[video\]"):
        VideoReader("a.mp4")
