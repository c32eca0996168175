"""A recogniser to distil from: its embedding and its feature maps, from an ONNX file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from diffusers_dedim.extras import import_extra

_STAGE_SIZES = (28, 14, 7)


class Teacher(nn.Module):
    """Give a recogniser's unit embedding and the last residual sum of each resolution.

    Args:
        path: ONNX file: ``face`` ``[N, 3, 112, 112]`` RGB in [-1, 1] -> embedding ``[N, D]``.

    Raises:
        ValueError: there is no such file, or it cannot be converted to torch modules.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.graph = _with_stages(_convert(Path(path)))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map ``[N, 3, 112, 112]`` to unit embeddings ``[N, D]`` and maps ``[N, C, s, s]``, s = 28, 14, 7.

        A teacher without residual sums of a size has no map of that size.
        """
        embedding, *stages = self.graph(images)
        return nn.functional.normalize(embedding.float()), list(stages)


def _convert(path: Path) -> fx.GraphModule:
    """Fold the graph's constants with onnxruntime (exports pad by computed amounts), then convert it."""
    if not path.is_file():
        raise ValueError(f"teacher: no such file {path}; expected an ONNX face recogniser.")
    runtime = import_extra("onnxruntime", "dedim train encoder")
    onnx2torch = import_extra("onnx2torch", "dedim train encoder")
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = f"{folder}/folded.onnx"
        try:
            runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            graph: fx.GraphModule = onnx2torch.convert(options.optimized_model_filepath)
        except Exception as error:  # neither library exports its error types
            raise ValueError(f"teacher: {path} cannot be converted to torch modules ({error}).") from error
    return graph


def _with_stages(graph: fx.GraphModule) -> fx.GraphModule:
    """Let the graph return, after its embedding, the last sum of two maps of each stage size."""
    shapes: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            shapes[n] = tuple(result.shape) if isinstance(result, Tensor) else None
            return result

    with torch.no_grad():
        Recorder(graph).run(torch.zeros(1, 3, 112, 112))
    last: dict[int, fx.Node] = {}
    for node, shape in shapes.items():
        inputs = [other for other in node.all_input_nodes if shapes.get(other) == shape]
        if shape is not None and len(shape) == 4 and len(inputs) > 1:
            last[shape[-1]] = node
    output = next(node for node in graph.graph.nodes if node.op == "output")
    output.args = ((output.args[0], *(last[size] for size in _STAGE_SIZES if size in last)),)
    graph.recompile()
    return graph
