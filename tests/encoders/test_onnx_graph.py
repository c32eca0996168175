"""Graphs as strangers export them, made differentiable: what they compute is what onnxruntime computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from diffusers_dedim.encoders import OnnxEncoder
from diffusers_dedim.encoders.onnx_graph import rewrite

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(5, 3, 3, 3)).astype(np.float32)


def save(path: Path, nodes: list[Any], **weights: np.ndarray[Any, Any]) -> Path:
    """A graph from ``face`` to ``embedding`` over the map ``map``, averaged and flattened."""
    nodes = [
        *nodes,
        helper.make_node("GlobalAveragePool", ["map"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"], axis=1),
        helper.make_node("LpNormalization", ["flat"], ["embedding"], axis=-1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("face", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def check(path: Path) -> None:
    """Both ways of running the file agree, and a gradient comes back."""
    crops = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = OnnxEncoder(path)(crops)
    encoder = OnnxEncoder(path, differentiable=True)
    seen = crops.clone().requires_grad_()
    # float32 sums in another order
    torch.testing.assert_close(encoder(seen), expected, rtol=0, atol=1e-5)
    encoder(seen)[:, 0].sum().backward()
    assert seen.grad is not None
    assert bool(seen.grad.abs().sum() > 0)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_that_is_left_to_the_reader(tmp_path: Path, mode: str, stride: int) -> None:
    convolution = helper.make_node("Conv", ["face", "w"], ["map"], auto_pad=mode, strides=[stride] * 2)
    check(save(tmp_path / "m.onnx", [convolution], w=WEIGHT))


def test_pooling_that_pads_by_itself(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["face", "w"], ["a"], auto_pad="SAME_UPPER"),
        helper.make_node(
            "MaxPool", ["a"], ["map"], auto_pad="SAME_UPPER", kernel_shape=[3, 3], strides=[1, 1]
        ),
    ]
    check(save(tmp_path / "m.onnx", nodes, w=WEIGHT))


def test_weights_stored_in_half_precision(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["face", "wide"], ["map"]),
    ]
    check(save(tmp_path / "m.onnx", nodes, w=WEIGHT.astype(np.float16)))


def test_limits_made_of_constants(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["face", "w"], ["a"]),
        helper.make_node("Add", ["low", "high"], ["limit"]),
        helper.make_node("Clip", ["a", "low", "limit"], ["map"]),
    ]
    check(save(tmp_path / "m.onnx", nodes, w=WEIGHT, low=np.float32(-0.5), high=np.float32(1.5)))


@pytest.mark.parametrize("limits", [("small", "large"), ("small",), ("", "large")])
def test_limits_that_depend_on_the_face(tmp_path: Path, limits: tuple[str, ...]) -> None:
    nodes = [
        helper.make_node("Conv", ["face", "w"], ["a"]),
        helper.make_node("ReduceMean", ["face"], ["small"], keepdims=0),
        helper.make_node("Add", ["small", "step"], ["large"]),
        helper.make_node("Clip", ["a", *limits], ["map"]),
    ]
    check(save(tmp_path / "m.onnx", nodes, w=WEIGHT, step=np.float32(1)))


def test_the_sum_of_sizes_as_norm(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Conv", ["face", "w"], ["map"])], w=WEIGHT)
    model = onnx.load(path)
    kinds = [node.op_type for node in rewrite(model).graph.node]
    assert kinds[-2:] == ["ReduceL2", "Div"]
    model = onnx.load(path)
    next(a for a in model.graph.node[-1].attribute if a.name == "p").i = 1
    assert [node.op_type for node in rewrite(model).graph.node][-2:] == ["ReduceL1", "Div"]


def test_a_graph_that_needs_nothing_is_left_alone() -> None:
    nodes = [
        helper.make_node("Conv", ["face", "w"], ["map"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["map"], ["y"]),
    ]
    face = helper.make_tensor_value_info("face", TensorProto.FLOAT, ["n", 3, 112, 112])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "toy", [face], [output], [numpy_helper.from_array(WEIGHT, "w")])
    model = helper.make_model(graph)
    before = model.SerializeToString()
    assert rewrite(model).SerializeToString() == before
