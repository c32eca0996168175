from __future__ import annotations

import itertools
import math
import re
import sys
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from diffusers_dedim.training import data as data_module
from diffusers_dedim.training.config import UNetConfig
from diffusers_dedim.training.data import FaceCrops, ResumableBatches, batches, to_model_range
from diffusers_dedim.training.loop import FaceTask


def png(size: int = 112, value: int = 0) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_a_parquet_file(faces: Path) -> None:
    data = FaceCrops(faces, require_landmarks=True)
    item = data[np.int64(2)]  # type: ignore[index]
    assert len(data) == 6
    assert (item["image"].dtype, item["image"].shape) == (torch.uint8, (3, 112, 112))
    assert (item["known"].dtype, item["known"].shape) == (torch.bool, (1, 112, 112))
    assert not item["known"][..., :10].any()
    assert item["known"][..., 10:].all()
    assert item["landmarks"].shape == (68, 2)
    assert item["landmarks"][17].tolist() == [27 + 2, 40 + 2]  # x then y


def test_a_folder_of_parquet_files_is_read_by_split(faces: Path, tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "val-0"):
        (tmp_path / f"{name}.parquet").write_bytes(faces.read_bytes())
    assert len(FaceCrops(tmp_path)) == 12
    assert len(FaceCrops(tmp_path, "val")) == 6


def test_a_folder_of_images_is_read_by_split(tmp_path: Path) -> None:
    for name in ("train/a.png", "train/b.png", "val/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    assert len(FaceCrops(tmp_path)) == 2
    val = FaceCrops(tmp_path, "val")
    assert len(val) == 1
    assert val[0]["known"].all()  # no alpha: everything is known
    assert "landmarks" not in val[0]


def test_a_source_without_parts_says_so(tmp_path: Path, faces: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    for source in (tmp_path, faces):
        with pytest.warns(UserWarning, match="has no part 'val'; all of it is used") as caught:
            FaceCrops(source, "val")
        assert caught[0].filename == __file__


def test_a_folder_without_validation_faces_gives_its_training_faces(tmp_path: Path, faces: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("data/train-0.parquet", "data/test-0.parquet"):
        (tmp_path / name).write_bytes(faces.read_bytes())
    with pytest.warns(UserWarning, match="has no part 'val'; its part 'train' is used"):
        assert len(FaceCrops(tmp_path, "val")) == 6
    (tmp_path / "data" / "validation-0.parquet").write_bytes(faces.read_bytes())
    assert len(FaceCrops(tmp_path, "val")) == 6  # no warning: an error here


def test_faces_for_validation_are_not_trained_on(tmp_path: Path, faces: Path) -> None:
    for name in ("tables/val-0.parquet", "tables/faces.parquet", "images/val/a.png", "images/more/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(faces.read_bytes() if name.endswith("parquet") else png())
    for folder in ("tables", "images"):
        with pytest.raises(
            ValueError, match="has a part for validation and none whose name begins with 'train'"
        ):
            FaceCrops(tmp_path / folder)
    assert len(FaceCrops(tmp_path / "images", "val")) == 1


@pytest.mark.parametrize(
    "names",
    [
        ("training_faces/1.png", "more/2.png", "more/3.png"),
        ("face_train_1.png", "face_2.png", "test.png"),
        ("anna/1.png", "val_kilmer/1.png", "val_kilmer/2.png"),
    ],
)
def test_no_image_is_left_out_because_of_a_word_in_a_name(tmp_path: Path, names: tuple[str, ...]) -> None:
    for value, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(value=value))
    (tmp_path / "notes.txt").write_text("no image")
    data = FaceCrops(tmp_path, label_column="label" if "anna" in names[0] else None)
    assert sorted(int(data[index]["image"].max()) for index in range(len(data))) == [0, 1, 2]
    assert data.labels.tolist() in ([], [0, 1, 1])


@pytest.mark.parametrize(
    ("parts", "asked", "warned"),
    [
        (["train", "val"], "val", None),
        (["train", "validation"], "validation", None),
        (["train"], "train", "has no part 'val'; its part 'train' is used"),
        (["faces", "more"], "faces+more", "has no part 'val'; all of it is used"),
    ],
)
def test_a_name_on_the_hub_is_asked_for_the_part_it_has(
    monkeypatch: pytest.MonkeyPatch, faces: Path, parts: list[str], asked: str, warned: str | None
) -> None:
    """The Hub is out of reach of the tests: what is asked of `datasets` is looked at."""
    calls = []
    rows = datasets.load_dataset("parquet", data_files=[str(faces)], split="train")
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: parts)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: calls.append((name, split)) or rows)
    with pytest.warns(UserWarning, match=warned) if warned else nullcontext():
        assert len(FaceCrops("someone/ffhq-v1.0", "val")) == 6
    assert calls == [("someone/ffhq-v1.0", asked)]


@pytest.mark.parametrize("image", [png(), {"bytes": png(), "path": None}])
def test_encoded_bytes_of_other_programs_are_images(tmp_path: Path, image: Any) -> None:
    assert FaceCrops(write(tmp_path / "a.parquet", image=[image]))[0]["image"].max() == 0


@pytest.mark.parametrize(
    ("columns", "arguments", "text"),
    [
        ({"photo": [png()]}, {}, "has no column 'image'; its columns are ['photo']."),
        (
            {"image": [png()]},
            {"require_landmarks": True},
            "has no column 'landmarks_68' (136 floats, x then y)",
        ),
        (
            {"image": [png(64)]},
            {},
            "is 64x64, expected 112x112; align it with diffusers_dedim.faces.align_face first.",
        ),
        ({"image": [3]}, {}, "the column 'image' of"),
        ({"image": [b"no image"]}, {}, "cannot be read (cannot identify image file"),
        (
            {"image": [png()], "landmarks_68": [[1.0] * 10]},
            {},
            "has 10 numbers in 'landmarks_68', expected 136",
        ),
        (
            {"image": [png()], "landmarks_68": pa.array([None], pa.list_(pa.float32()))},
            {},
            "has 0 numbers in",
        ),
    ],
)
def test_bad_data_is_refused(
    tmp_path: Path, columns: dict[str, Any], arguments: dict[str, Any], text: str
) -> None:
    path = write(tmp_path / "bad.parquet", **columns)
    with pytest.raises(ValueError, match=re.escape(text)):
        FaceCrops(path, **arguments)


@pytest.mark.parametrize(
    "source",
    [
        "nowhere.parquet",
        "/no/where",
        "./faces",
        "a/b/c",
        "nowhere",
        "here/ffqh",
        "there/",
        "../x/y",
        "a b/c",
        "a/b.parquet",
    ],
)
def test_a_source_that_is_not_there_is_refused_without_asking_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(datasets, "get_dataset_split_names", asked.append)
    text = f"data: there is no such folder or file here: {source}; expected a .parquet file, a folder, or OWNER/NAME"
    with pytest.raises(ValueError, match=re.escape(text)):
        FaceCrops(source)
    assert asked == []


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    text = f"data: {tmp_path / 'a.png'} is neither a .parquet file nor a folder."
    with pytest.raises(ValueError, match=re.escape(text)):
        FaceCrops(tmp_path / "a.png")


@pytest.mark.parametrize("failing", ["get_dataset_split_names", "load_dataset"])
def test_where_the_hub_fails_both_mistakes_are_named(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """A mistyped folder looks like a name on the Hub."""

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach\n 'some-one/ffhq'")

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train"])
    monkeypatch.setattr(datasets, failing, fail)
    text = (
        "data: there is no such folder or file here: some-one/ffhq; and as a data set on the Hub it could not be "
        "opened (Couldn't reach 'some-one/ffhq')."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        FaceCrops("some-one/ffhq")


@pytest.mark.parametrize("inside", [None, "notes.txt", ".hidden.png", ".hidden/a.png", "__cache__/a.png"])
def test_a_part_without_images_is_named(tmp_path: Path, inside: str | None) -> None:
    for name in ("train/", "val/a.png", *([f"train/{inside}"] if inside else [])):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_bytes(png())
    text = f"data: the folder {tmp_path / 'train'} holds no image, but {tmp_path} does; put the faces of this part"
    with pytest.raises(ValueError, match=re.escape(text)):
        FaceCrops(tmp_path)
    assert len(FaceCrops(tmp_path, "val")) == 1


def test_a_path_with_the_signs_of_a_pattern_is_taken_as_it_is(tmp_path: Path, faces: Path) -> None:
    folder = tmp_path / "a[1]*?"
    for name in ("images/train/a.png", "images/val/b.png", "images/val/.c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png())
    (folder / "tables").mkdir()
    (folder / "tables" / "train[0].parquet").write_bytes(faces.read_bytes())
    assert len(FaceCrops(folder / "images")) == 1
    assert len(FaceCrops(folder / "images", "val")) == 1
    assert len(FaceCrops(folder / "tables")) == 6
    assert len(FaceCrops(folder / "tables" / "train[0].parquet")) == 6


def test_a_folder_with_nothing_of_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no images here")
    text = f"data: the folder {tmp_path} holds no .parquet file and no image."
    with pytest.raises(ValueError, match=re.escape(text)):
        FaceCrops(tmp_path, "val")


def test_batches_cover_an_epoch_without_repeats_and_shuffle_anew() -> None:
    sampler = iter(ResumableBatches(10, 3, seed=0))
    first, second = (list(itertools.islice(sampler, 3)) for _ in range(2))
    for epoch in (first, second):
        flat = list(itertools.chain.from_iterable(epoch))
        assert len(set(flat)) == 9  # ten images, three batches of three: one waits for another epoch
    assert first != second


@pytest.mark.parametrize("start", [0, 1, 3, 7])
def test_resumed_batches_are_those_of_an_uninterrupted_run(start: int) -> None:
    whole = list(itertools.islice(iter(ResumableBatches(10, 3, seed=5)), 12))
    resumed = list(itertools.islice(iter(ResumableBatches(10, 3, seed=5, start_batch=start)), 12 - start))
    assert resumed == whole[start:]
    assert list(itertools.islice(iter(ResumableBatches(10, 3, seed=6)), 12)) != whole


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("batch_size: 8 is more than the 6 images of the data.")):
        ResumableBatches(6, 8, seed=0)


@pytest.mark.parametrize("is_cuda", [False, True])
def test_batches_for_cuda_are_in_pinned_memory(
    data: FaceCrops, monkeypatch: pytest.MonkeyPatch, is_cuda: bool
) -> None:
    """There is no GPU here: what is asked of the loader is looked at."""
    asked: list[bool] = []
    loader = data_module.DataLoader
    monkeypatch.setattr(
        data_module,
        "DataLoader",
        lambda *args, pin_memory, **more: asked.append(pin_memory) or loader(*args, **more),
    )
    task = FaceTask(data, data, UNetConfig("out", data="faces", batch_size=2))
    task.model = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(is_cuda=is_cuda)]))  # type: ignore[assignment]
    next(task.batches(0))
    assert asked == [is_cuda]


def test_batches_are_collated(faces: Path) -> None:
    batch = next(batches(FaceCrops(faces), 4, 0, 0, 0))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "image": (4, 3, 112, 112),
        "known": (4, 1, 112, 112),
        "landmarks": (4, 68, 2),
    }


def test_model_range() -> None:
    assert to_model_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_a_bad_row_anywhere_is_found_before_training(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=[png(), png(), png(64)])
    data = FaceCrops(path)  # looks at the first only
    with pytest.raises(
        ValueError, match=re.escape(f"data: image 2 of {path} is 64x64, expected 112x112; align")
    ):
        _ = data.fingerprint
    path = write(tmp_path / "b.parquet", image=[png(), b"no image"])
    with pytest.raises(ValueError, match=re.escape(f"data: image 1 of {path} cannot be read (")):
        _ = FaceCrops(path).fingerprint
    points = [[1.0] * 136, [1.0] * 3]
    path = write(tmp_path / "c.parquet", image=[png(), png()], landmarks_68=points)
    with pytest.raises(ValueError, match=re.escape(f"data: row 1 of {path} has 3 numbers in 'landmarks_68'")):
        _ = FaceCrops(path).fingerprint


@pytest.mark.parametrize("wrong", [None, math.nan, math.inf])
def test_a_landmark_that_is_no_number_is_found_before_training(tmp_path: Path, wrong: float | None) -> None:
    points = [[1.0] * 136, [1.0] * 135 + [wrong]]
    path = write(tmp_path / "a.parquet", image=[png(), png()], landmarks_68=points)
    data, text = (
        FaceCrops(path),
        f"data: row 1 of {path} has 1 of 136 numbers in 'landmarks_68' that are null, NaN",
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        _ = data.fingerprint
    with pytest.raises(ValueError, match=re.escape(text)):
        data[1]


def test_without_datasets_the_command_to_install_is_named(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=re.escape("dedim train needs the package 'datasets'")) as caught:
        FaceCrops(faces)
    assert 'pip install "diffusers-dedim[train]"' in str(caught.value)


def test_the_fingerprint_is_of_the_content_and_not_of_its_place(tmp_path: Path) -> None:
    images = [png(value=1), png(value=2)]
    (tmp_path / "folder").mkdir()
    for index, content in enumerate(images):
        (tmp_path / "folder" / f"{index}.png").write_bytes(content)
    one = FaceCrops(write(tmp_path / "one.parquet", image=images)).fingerprint
    assert FaceCrops(tmp_path / "folder").fingerprint == one
    assert FaceCrops(write(tmp_path / "two.parquet", image=images[::-1])).fingerprint != one
    assert FaceCrops(write(tmp_path / "few.parquet", image=images[:1])).fingerprint != one
