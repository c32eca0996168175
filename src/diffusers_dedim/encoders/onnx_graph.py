"""Say a recogniser's ONNX graph in the operators that onnx2torch knows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import fx

from diffusers_dedim.extras import import_extra

_PADDED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")


def convert_rewritten(path: str | Path, needed_by: str, install: str | None = None) -> fx.GraphModule:
    """Convert a graph to torch modules after onnxruntime has computed its constants and `rewrite` has changed it.

    What is stored in another type, or made of constants by nodes, becomes a plain weight: float16 weights behind a
    Cast, amounts of pads, limits of a Clip.

    Args:
        path: the ONNX file.
        needed_by: what needs the packages, for the message where one is missing.
        install: the command that installs them.

    Returns:
        What ``onnx2torch.convert`` gives.

    Raises:
        ImportError: onnx, onnxruntime or onnx2torch is missing.
        Exception: one of them refuses the graph; their error types are not exported.
    """
    names = (needed_by,) if install is None else (needed_by, install)
    onnx, runtime, onnx2torch = (
        import_extra(package, *names) for package in ("onnx", "onnxruntime", "onnx2torch")
    )
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = f"{folder}/folded.onnx"
        runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        model = rewrite(onnx.load(options.optimized_model_filepath))
        converted: fx.GraphModule = onnx2torch.convert(model)
    return converted


def rewrite(model: Any) -> Any:
    """Replace operators that onnx2torch has no module for by some that it has; what the graph computes stays.

    - ``LpNormalization`` becomes a norm and a division.
    - ``auto_pad`` SAME_UPPER and SAME_LOWER become amounts of padding, where the size of the input is known.
    - A ``Clip`` whose limits the graph computes becomes a Max and a Min.

    Args:
        model: ``onnx.ModelProto`` of a graph whose constants are folded; changed in place.

    Returns:
        The model.
    """
    onnx = import_extra("onnx", "OnnxEncoder(differentiable=True)")
    sizes = _spatial_sizes(onnx, model)
    stored = {tensor.name for tensor in model.graph.initializer}
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.op_type == "LpNormalization":
            nodes += _norm_and_division(onnx, node)
        elif node.op_type == "Clip" and any(name and name not in stored for name in node.input[1:]):
            nodes += _max_and_min(onnx, node)
        else:
            if node.op_type in _PADDED:
                _state_padding(onnx, node, model, sizes.get(node.input[0]))
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _attributes(onnx: Any, node: Any) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _spatial_sizes(onnx: Any, model: Any) -> dict[str, list[int]]:
    """Height and width (and so on) of every map whose size is known, by name."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dimensions = value.type.tensor_type.shape.dim[2:]
        if dimensions and all(dimension.HasField("dim_value") for dimension in dimensions):
            sizes[value.name] = [dimension.dim_value for dimension in dimensions]
    return sizes


def _norm_and_division(onnx: Any, node: Any) -> list[Any]:
    settings = _attributes(onnx, node)
    norm = "ReduceL1" if settings.get("p", 2) == 1 else "ReduceL2"
    length = f"{node.output[0]}_length"
    options = {"axes": [settings.get("axis", -1)], "keepdims": 1}
    return [
        onnx.helper.make_node(norm, [node.input[0]], [length], name=f"{node.output[0]}_norm", **options),
        onnx.helper.make_node("Div", [node.input[0], length], list(node.output), name=node.name),
    ]


def _max_and_min(onnx: Any, node: Any) -> list[Any]:
    place, made = node.input[0], []
    for kind, limit in zip(("Max", "Min"), node.input[1:], strict=False):
        if limit:
            output = f"{node.output[0]}_{kind}"
            made.append(onnx.helper.make_node(kind, [place, limit], [output], name=output))
            place = output
    made[-1].output[0] = node.output[0]
    return made


def _state_padding(onnx: Any, node: Any, model: Any, size: list[int] | None) -> None:
    """Put numbers in the place of ``auto_pad`` SAME_UPPER or SAME_LOWER; leave it where the input's size is open."""
    settings = _attributes(onnx, node)
    mode = settings.get("auto_pad", b"NOTSET").decode()
    if not mode.startswith("SAME") or size is None or node.op_type == "ConvTranspose":
        return
    kernel = settings.get("kernel_shape") or next(
        list(tensor.dims[2:]) for tensor in model.graph.initializer if tensor.name == node.input[1]
    )
    ones = [1] * len(size)
    strides, spreads = settings.get("strides", ones), settings.get("dilations", ones)
    begin, end = [], []
    for length, window, stride, spread in zip(size, kernel, strides, spreads, strict=True):
        needed = (-(-length // stride) - 1) * stride + (window - 1) * spread + 1
        total = max(0, needed - length)
        half = total // 2
        begin.append(half if mode == "SAME_UPPER" else total - half)
        end.append(total - begin[-1])
    kept = [attribute for attribute in node.attribute if attribute.name not in ("auto_pad", "pads")]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("pads", [*begin, *end])])
