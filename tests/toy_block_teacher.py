"""A MobileFaceNet of random weights as an ONNX file: what blockwise distillation learns from."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from diffusers_dedim.models.blocks import ConvNormAct, _fold
from diffusers_dedim.models.mobilefacenet import MobileFaceNet


def block_teacher(
    path: Path, *, activation: str = "PRelu", seed: int = 0, **settings: object
) -> MobileFaceNet:
    """Write a network with batch norms folded as recognisers are exported; its names say nothing.

    Args:
        path: of the file.
        activation: PRelu, Relu or Clip (ReLU6); the network that is returned has PReLUs in any case.
        seed: of the weights.
        **settings: of the `MobileFaceNet`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MobileFaceNet(**settings)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over what is seen
        with torch.no_grad():
            network.train()(torch.rand(4, 3, 112, 112) * 2 - 1)  # else the maps shrink from layer to layer
        network.eval()
    writer = _Writer(activation)
    place = writer.layers("face", network.stem)
    for block in network.bottlenecks:
        start, place = place, writer.layers(place, block.layers)
        if block.is_residual:
            place = writer.add("Add", [start, place])
    flat = writer.add("Flatten", [writer.layers(place, network.head)], axis=1)
    length = writer.add("ReduceL2", [flat], axes=[1], keepdims=1)
    writer.nodes.append(helper.make_node("Div", [flat, length], ["embedding"]))
    face = helper.make_tensor_value_info("face", TensorProto.FLOAT, ["N", 3, 112, 112])
    embedding = helper.make_tensor_value_info(
        "embedding", TensorProto.FLOAT, ["N", network.config.embedding_dim]
    )
    graph = helper.make_graph(writer.nodes, "teacher", [face], [embedding], writer.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)
    return network


class _Writer:
    def __init__(self, activation: str) -> None:
        self.activation = activation
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: list[str], **attributes: object) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(self, value: torch.Tensor) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value.detach().numpy().copy(), name))
        return name

    def layers(self, place: str, layers: nn.Sequential) -> str:
        for layer in layers:
            place = self.layer(place, layer)
        return place

    def layer(self, place: str, layer: ConvNormAct) -> str:
        convolution, norm, *slopes = layer
        weight, bias = _fold(convolution, norm)
        place = self.add(
            "Conv",
            [place, self.weight(weight), self.weight(bias)],
            kernel_shape=list(convolution.kernel_size),
            strides=list(convolution.stride),
            pads=[*convolution.padding, *convolution.padding],
            group=convolution.groups,
        )
        if not slopes:
            return place
        others = {
            "PRelu": [self.weight(slopes[0].weight[:, None, None])],
            "Relu": [],
            "Clip": [self.weight(torch.tensor(0.0)), self.weight(torch.tensor(6.0))],
        }
        return self.add(self.activation, [place, *others[self.activation]])
