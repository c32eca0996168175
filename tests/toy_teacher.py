"""A recogniser to distil from that needs no weights."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def mean_colour_teacher(path: Path) -> Path:
    """An ONNX recogniser that embeds a face as its mean colour, after two "residual" sums."""
    face = helper.make_tensor_value_info("face", TensorProto.FLOAT, ["N", 3, 112, 112])
    colour = helper.make_tensor_value_info("colour", TensorProto.FLOAT, ["N", 3])
    nodes = [
        helper.make_node("AveragePool", ["face"], ["a"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Relu", ["a"], ["positive"]),
        helper.make_node("Sub", ["a", "positive"], ["negative"]),
        helper.make_node("Add", ["positive", "negative"], ["b"]),
        helper.make_node("Add", ["b", "a"], ["c"]),
        helper.make_node("AveragePool", ["c"], ["d"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Identity", ["d"], ["e"]),
        helper.make_node("Abs", ["e"], ["f"]),
        helper.make_node("Sub", ["e", "f"], ["g"]),
        helper.make_node("Add", ["g", "f"], ["h"]),
        helper.make_node("Add", ["h", "e"], ["i"]),
        helper.make_node("ReduceMean", ["i"], ["colour"], axes=[2, 3], keepdims=0),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "teacher", [face], [colour]), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    onnx.save(model, path)
    return path
