from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from toy_teacher import mean_colour_teacher

from diffusers_dedim.training import teacher as teacher_module
from diffusers_dedim.training.data import FaceCrops
from diffusers_dedim.training.teacher import Teacher, teacher_embeddings


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many crops each call of the teacher's pass embedded."""
    made: list[int] = []
    embed = teacher_module._embed

    def counting(teacher: Any, data: Any, places: Any, batch_size: int) -> Any:
        made.append(len(places))
        return embed(teacher, data, places, batch_size)

    monkeypatch.setattr(teacher_module, "_embed", counting)
    return made


def mean_colour(item: dict[str, Tensor]) -> Tensor:
    return nn.functional.normalize((item["image"].float() / 127.5 - 1).mean((1, 2)), dim=0)


def test_embeddings_are_made_once(data: FaceCrops, teacher: Path, tmp_path: Path, calls: list[int]) -> None:
    cache = tmp_path / "made" / "cache.npz"
    embeddings = teacher_embeddings(teacher, data, cache, batch_size=4)
    # means of 12,544 float32 numbers, added in another order
    torch.testing.assert_close(embeddings[5], mean_colour(data[5]), rtol=1e-3, atol=1e-4)
    assert torch.equal(teacher_embeddings(teacher, data, cache), embeddings)
    assert calls == [6]
    assert [path.name for path in cache.parent.iterdir()] == ["cache.npz"]


def test_other_data_or_another_teacher_of_as_many_rows_is_embedded_anew(
    data: FaceCrops, teacher: Path, tmp_path: Path, calls: list[int]
) -> None:
    cache = tmp_path / "cache.npz"
    first = teacher_embeddings(teacher, data, cache)
    other = FaceCrops(data.source)
    other.rows = other.rows.select([5, 4, 3, 2, 1, 0])
    # means of 12,544 float32 numbers, another number of them at a time
    torch.testing.assert_close(teacher_embeddings(teacher, other, cache), first.flip(0), rtol=1e-5, atol=1e-6)
    teacher.write_bytes(teacher.read_bytes().replace(b"colour", b"tinted"))
    teacher_embeddings(teacher, other, cache)
    assert calls == [6, 6, 6]


@pytest.mark.parametrize("wrong", ["nothing", "order", "count", "width"])
def test_an_old_cache_is_taken_over_only_if_its_rows_are_found_again(
    data: FaceCrops, teacher: Path, tmp_path: Path, calls: list[int], wrong: str
) -> None:
    right = teacher_embeddings(teacher, data, tmp_path / "first.npz").numpy()
    stored = {"nothing": right, "order": right[::-1], "count": right[:5], "width": right[:, :2]}[wrong]
    np.save(tmp_path / "old.npy", stored)
    calls.clear()
    # fewer than 64 rows: all of them are checked
    again = teacher_embeddings(teacher, data, tmp_path / "old.npz")
    torch.testing.assert_close(again, torch.from_numpy(right))
    assert calls == {"nothing": [6], "order": [6, 6], "count": [6], "width": [6, 6]}[wrong]
    teacher_embeddings(teacher, data, tmp_path / "old.npz")
    assert len(calls) == {"nothing": 1, "order": 2, "count": 1, "width": 2}[wrong]


def test_a_missing_teacher_is_refused(data: FaceCrops, tmp_path: Path) -> None:
    text = f"teacher: no such file {tmp_path / 'missing.onnx'}; expected an ONNX face recogniser"
    with pytest.raises(ValueError, match=re.escape(text)):
        teacher_embeddings(tmp_path / "missing.onnx", data, tmp_path / "cache.npz")


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a network")
    with pytest.raises(ValueError, match=r"^teacher: .*notes\.txt cannot be converted to torch modules"):
        Teacher(tmp_path / "notes.txt")


def test_a_network_that_gives_no_embedding_is_refused(tmp_path: Path) -> None:
    path = mean_colour_teacher(tmp_path / "maps.onnx")
    model = onnx.load(path)
    model.graph.node[-1].attribute[1].i = 1  # keepdims
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("colour", 1, ["N", 3, 1, 1]))
    onnx.save(model, path)
    text = f"teacher: {path} answers to 1 crop(s) in the shape (1, 3, 1, 1), expected [1, D]."
    with pytest.raises(ValueError, match=re.escape(text)):
        Teacher(path)
    model.graph.node[0].attribute[0].ints[:] = [200, 200]  # a window that a crop of 112 px does not hold
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"^teacher: "):
        Teacher(path)


def crops(count: int) -> Tensor:
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(1)) * 2 - 1


def fix_batch(path: Path, stated: int | None, reshaped: tuple[int, ...] | None) -> Path:
    """Write the number of crops into the signature of a teacher, and a shape into a Reshape at its end."""
    model = onnx.load(path)
    if stated is not None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = stated
    if reshaped is not None:
        model.graph.node[-1].output[0] = "unshaped"
        model.graph.node.append(onnx.helper.make_node("Reshape", ["unshaped", "shape"], ["colour"]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(reshaped, np.int64), "shape"))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("stated", "reshaped", "pieces"),
    [
        (None, None, None),
        (None, (1, -1), 1),
        (1, None, None),
        (4, None, None),
        (1, (1, 3), 1),
        (1, (1, -1), 1),
        (4, (4, 3), 4),
        (4, (-1, 3), None),
    ],
)
def test_a_teacher_of_a_fixed_batch_is_run_in_pieces(
    data: FaceCrops, teacher: Path, tmp_path: Path, stated: int | None, reshaped: Any, pieces: int | None
) -> None:
    """What the file states need not be what its graph holds."""
    images = crops(6)
    expected, maps = Teacher(teacher)(images)
    plain = teacher_embeddings(teacher, data, tmp_path / "free.npz")
    path = fix_batch(teacher, stated, reshaped)
    fixed = Teacher(path)
    assert (fixed.batch, fixed.embedding_dim) == (pieces, 3)
    embeddings, same_maps = fixed(images)
    # float32 sums of another number of crops at a time
    torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(same_maps, maps, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    again = teacher_embeddings(path, data, tmp_path / "fixed.npz", batch_size=5)
    torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("stated", "reshaped", "text"),
    [
        (4, (1, 12), "answers to 4 crop(s) in the shape (1, 12), expected [4, D]."),
        (None, (2, 3), "does not take crops [1, 3, 112, 112] ("),
    ],
)
def test_a_batch_that_cannot_be_had_is_refused_with_the_teacher(
    teacher: Path, stated: int | None, reshaped: Any, text: str
) -> None:
    path = fix_batch(teacher, stated, reshaped)
    with pytest.raises(ValueError, match=re.escape(f"teacher: {path} {text}")):
        Teacher(path)


def test_a_teacher_of_other_crops_is_refused_before_the_pass(
    data: FaceCrops, teacher: Path, tmp_path: Path
) -> None:
    model = onnx.load(teacher)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 96
    onnx.save(model, teacher)
    with pytest.raises(
        ValueError, match=r"^teacher: .*teacher\.onnx: expected one float input \[N, 3, 112, 112\]"
    ):
        teacher_embeddings(teacher, data, tmp_path / "cache.npz")
    assert not (tmp_path / "cache.npz").exists()


def test_an_unreadable_crop_is_not_laid_on_the_teacher(
    data: FaceCrops, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(self: FaceCrops, index: int) -> None:
        raise ValueError(f"data: image {index} of faces cannot be read")

    monkeypatch.setattr(FaceCrops, "__getitem__", unreadable)
    with pytest.raises(ValueError, match=r"^data: image 0 of faces cannot be read"):
        teacher_embeddings(teacher, data, tmp_path / "cache.npz")


def test_the_pads_of_a_teacher_are_plain_numbers(tmp_path: Path) -> None:
    """Else each waits for a GPU, and breaks the graph that torch.compile makes."""
    path = mean_colour_teacher(tmp_path / "padded.onnx")
    model = onnx.load(path)
    model.graph.node[0].input[0] = "positive0"
    model.graph.node.insert(
        0, onnx.helper.make_node("Abs", ["padded"], ["positive0"])
    )  # a pool would swallow the pad
    model.graph.node.insert(0, onnx.helper.make_node("Pad", ["face", "pads"], ["padded"]))
    pads = np.array([0, 0, 2, 2, 0, 0, 2, 2], np.int64)
    model.graph.initializer.append(onnx.numpy_helper.from_array(pads, "pads"))
    onnx.save(model, path)
    graph = Teacher(path).graph
    assert not [module for module in graph.modules() if type(module).__name__ == "OnnxPadDynamic"]
    explained = torch._dynamo.explain(graph)(crops(2))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
