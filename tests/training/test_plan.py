"""Whether a teacher's network is ours, layer by layer, and what its blocks give."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from toy_block_teacher import block_teacher
from toy_teacher import mean_colour_teacher

from diffusers_dedim.models.mobilefacenet import MobileFaceNet
from diffusers_dedim.training.plan import BlockTeacher


def maps_of(network: MobileFaceNet, images: torch.Tensor) -> list[torch.Tensor]:
    maps = [network.stem(images)]
    for block in network.bottlenecks:
        maps.append(block(maps[-1]))
    return [*maps, network.head(maps[-1])]


@pytest.mark.parametrize(
    "settings", [{}, {"embedding_dim": 512}, {"embedding_dim": 64, "stem_pointwise": True}]
)
def test_a_teacher_of_the_plan_gives_what_goes_in_and_out_of_each_block(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    network = block_teacher(tmp_path / "teacher.onnx", **settings)
    teacher = BlockTeacher(tmp_path / "teacher.onnx")
    assert teacher.settings == {"embedding_dim": 128, "stem_pointwise": False, **settings}
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        embedding, maps = teacher(images)
        # float32, fifty convolutions by another library
        torch.testing.assert_close(embedding, network(images), rtol=0, atol=1e-4)
        for found, expected in zip(maps, maps_of(network, images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_the_kind_of_activation_is_the_teachers_own(tmp_path: Path, activation: str) -> None:
    block_teacher(tmp_path / "teacher.onnx", activation=activation)
    _, maps = BlockTeacher(tmp_path / "teacher.onnx")(torch.zeros(1, 3, 112, 112))
    assert len(maps) == 17
    assert bool((maps[0] >= 0).all())


def test_what_prepares_the_crop_is_the_teachers_own(tmp_path: Path) -> None:
    path = tmp_path / "teacher.onnx"
    block_teacher(path)
    model = onnx.load(path)
    model.graph.node[0].input[0] = "scaled"
    model.graph.node.insert(0, helper.make_node("Mul", ["face", "two"], ["scaled"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2), "two"))
    onnx.save(model, path)
    assert BlockTeacher(path).settings["embedding_dim"] == 128


def wider(model: onnx.ModelProto) -> None:
    """The second block's 1x1 expands to 160 channels instead of 128, its depthwise takes them on."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    expand, depthwise, project = convolutions[5:8]
    slopes = [node for node in model.graph.node if node.op_type == "PRelu"][4:6]
    for name in (*expand.input[1:], *depthwise.input[1:], *(node.input[1] for node in slopes)):
        grow(weights[name], 0)
    grow(weights[project.input[1]], 1)
    next(attribute for attribute in depthwise.attribute if attribute.name == "group").i = 160


def grow(tensor: onnx.TensorProto, axis: int) -> None:
    value = numpy_helper.to_array(tensor)
    more = np.take(value, range(160 - value.shape[axis]), axis)
    tensor.CopyFrom(numpy_helper.from_array(np.concatenate([value, more], axis), tensor.name))


def without_a_shortcut(model: onnx.ModelProto) -> None:
    added = next(node for node in model.graph.node if node.op_type == "Add")
    kept = [node for node in model.graph.node if node is not added]
    for node in kept:
        node.input[:] = [added.input[1] if name == added.output[0] else name for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def with_an_activation_more(model: onnx.ModelProto) -> None:
    last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    place = list(model.graph.node).index(last)
    model.graph.node.insert(place + 1, helper.make_node("Relu", [last.output[0]], ["positive"]))
    model.graph.node[place + 2].input[0] = "positive"


def with_a_softmax(model: onnx.ModelProto) -> None:
    flat = next(node for node in model.graph.node if node.op_type == "Flatten")
    place = list(model.graph.node).index(flat)
    model.graph.node.insert(place + 1, helper.make_node("Softmax", [flat.output[0]], ["share"], axis=1))
    for node in list(model.graph.node)[place + 2 :]:
        node.input[:] = ["share" if name == flat.output[0] else name for name in node.input]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (wider, "at bottlenecks.1.layers.0 expected a convolution 64 to 128 of 1x1, stride 1x1"),
        (
            wider,
            "got a convolution 64 to 160 of 1x1, stride 1x1, padding 0x0, 1 group(s), with an activation.",
        ),
        (without_a_shortcut, "at bottlenecks.1.layers.0 expected "),
        (with_an_activation_more, "with no activation, got a convolution 512 to 128 of 1x1"),
        (
            with_a_softmax,
            "after the last convolution expected nothing but a normalisation, got something else.",
        ),
    ],
)
def test_a_teacher_of_another_plan_is_refused_with_the_layer_that_differs(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], text: str
) -> None:
    path = tmp_path / "teacher.onnx"
    block_teacher(path)
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        BlockTeacher(path)
    assert str(caught.value).startswith(f"teacher: {path} has another plan than MobileFaceNet")
    assert str(caught.value).endswith("Learn from it with --method distill.")


def test_a_network_without_convolutions_is_refused(tmp_path: Path) -> None:
    path = mean_colour_teacher(tmp_path / "teacher.onnx")
    with pytest.raises(
        ValueError, match=r"at the start expected a MobileFaceNet of 50 or 51 convolutions, got 0"
    ):
        BlockTeacher(path)
