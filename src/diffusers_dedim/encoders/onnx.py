"""Any recogniser that somebody exported to ONNX, with the call of our own encoder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from diffusers_dedim.encoders.onnx_graph import convert_rewritten
from diffusers_dedim.extras import import_extra
from diffusers_dedim.models.blocks import check_crops

_EXPECTED = "one float input [N, 3, 112, 112] (RGB in [-1, 1]) and one float output [N, D]"


class OnnxEncoder(nn.Module):
    """Map aligned face crops to unit embeddings with an ONNX file.

    The file must take what the house's encoders take, its own normalisation or re-crop inside the graph.
    A file exported for one batch size only is run in pieces of that size.

    Args:
        path: the ONNX file.
        differentiable: convert the graph to torch modules (onnx2torch), so that gradients reach the crops
            and ``.to(device)`` moves it. Otherwise onnxruntime runs it on the CPU, without gradients.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: onnxruntime (or onnx2torch) is missing.
        ValueError: the file is no ONNX model, or its signature is another.

    Example:
        >>> encoder = OnnxEncoder("mobilefacenet.onnx")  # doctest: +SKIP
        >>> encoder(torch.zeros(2, 3, 112, 112)).shape  # doctest: +SKIP
        torch.Size([2, 128])
    """

    def __init__(self, path: str | os.PathLike[str], *, differentiable: bool = False) -> None:
        super().__init__()
        self.path: Path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"path: there is no ONNX file {str(self.path)!r}.")
        self._session = _open_session(self.path)
        self._input_name, fixed_batch = _check_signature(self._session, self.path)
        # Some exports state a free batch and bake it into a Reshape all the same: two crops tell.
        self._batch = fixed_batch or (None if self._takes_two() else 1)
        self.embedding_dim: int = self._probe(self._batch or 1).shape[1]
        self.graph: nn.Module | None = None
        if differentiable:
            self.graph = _to_torch(self.path)
            self._session = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file: names this recogniser in caches and reports."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def forward(self, crops: Tensor) -> Tensor:
        """Embed aligned crops.

        Args:
            crops: ``[N, 3, 112, 112]`` RGB in [-1, 1], aligned to the ArcFace template.

        Returns:
            Unit vectors ``[N, D]`` float32 on the device of the crops.

        Raises:
            ValueError: the crops have another shape, or the file answers with something that is not finite.
        """
        return nn.functional.normalize(self.answer(crops))

    def answer(self, crops: Tensor) -> Tensor:
        """Embed aligned crops and leave the vectors the length that the file gives them.

        Args:
            crops: ``[N, 3, 112, 112]`` RGB in [-1, 1], aligned to the ArcFace template.

        Returns:
            ``[N, D]`` float32 on the device of the crops.

        Raises:
            ValueError: the crops have another shape, or the file answers with something that is not finite.
        """
        check_crops(crops)
        if len(crops) == 0:
            return crops.new_zeros((0, self.embedding_dim), dtype=torch.float32)
        pieces = [self._run(piece) for piece in torch.split(crops.float(), self._batch or len(crops))]
        embeddings = torch.cat(pieces)
        if not bool(embeddings.isfinite().all()):
            raise ValueError(f"{self.path}: the model gave embeddings that are not finite for these crops.")
        return embeddings

    def _run(self, crops: Tensor) -> Tensor:
        """Run one piece, filled up to the file's fixed batch size and cut back afterwards."""
        count = len(crops)
        if self._batch is not None and count < self._batch:
            crops = torch.cat([crops, crops.new_zeros(self._batch - count, 3, 112, 112)])
        if self.graph is not None:
            answer: Tensor = self.graph(crops)
            return answer[:count]
        embeddings = self._run_session(crops.detach().cpu().numpy())
        return torch.from_numpy(embeddings[:count]).to(crops.device)

    def _run_session(self, crops: NDArray[np.float32]) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = self._session.run(None, {self._input_name: crops})[0]
        return answer

    def _probe(self, count: int) -> NDArray[np.float32]:
        """Run ``count`` black crops and check the shape of the answer."""
        try:
            answer = self._run_session(np.full((count, 3, 112, 112), -1, dtype=np.float32))
        except Exception as error:  # onnxruntime raises its own, unexported types
            raise ValueError(f"{self.path}: the model does not run on {count} crop(s): {error}") from error
        if answer.ndim != 2 or len(answer) != count:
            shape = list(answer.shape)
            raise ValueError(f"{self.path}: expected {_EXPECTED}, got {shape} for {count} crop(s).")
        return answer

    def _takes_two(self) -> bool:
        try:
            self._probe(2)
        except ValueError:
            return False
        return True


def _open_session(path: Path) -> Any:
    """Open the file with onnxruntime on as many threads as torch uses, quiet below errors."""
    runtime = import_extra("onnxruntime", "OnnxEncoder")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # its default takes every core
    options.log_severity_level = 3  # old exports list each weight as an input: a warning per weight
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own, unexported types
        raise ValueError(f"{path}: onnxruntime cannot read it as an ONNX model: {error}") from error


def _check_signature(session: Any, path: Path) -> tuple[str, int | None]:
    """Give the input's name and the batch size if it is a fixed one."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    found = "; ".join(
        [f"input {node.name!r} {node.shape} {node.type}" for node in inputs]
        + [f"output {node.name!r} {node.shape} {node.type}" for node in outputs]
    )
    fits = (
        len(inputs) == len(outputs) == 1
        and inputs[0].type == outputs[0].type == "tensor(float)"
        and len(inputs[0].shape) == 4
        # a name instead of a number is a free dimension
        and all(
            not isinstance(d, int) or d == e for d, e in zip(inputs[0].shape[1:], (3, 112, 112), strict=True)
        )
    )
    if not fits:
        raise ValueError(f"{path}: expected {_EXPECTED}, got {found}; export the model with this signature.")
    batch = inputs[0].shape[0]
    return inputs[0].name, batch if isinstance(batch, int) else None


def _to_torch(path: Path) -> nn.Module:
    """Convert the graph to torch modules, frozen and in evaluation mode.

    It is taken as it is where that goes, so that what it computes does not hang on what onnxruntime folds.
    """
    onnx2torch = import_extra("onnx2torch", "OnnxEncoder(differentiable=True)")
    try:
        try:
            converted = onnx2torch.convert(str(path))
        except Exception:  # the converter raises NotImplementedError, KeyError, ...
            converted = convert_rewritten(path, "OnnxEncoder(differentiable=True)")
        module: nn.Module = fold_pads(converted)
    except Exception as error:
        raise ValueError(
            f"{path}: onnx2torch cannot convert this graph ({error}); "
            "use differentiable=False to measure with it."
        ) from error
    return module.eval().requires_grad_(False)


def fold_pads(graph: fx.GraphModule) -> fx.GraphModule:
    """Put the amounts of pads that do not depend on the input into a graph of onnx2torch, as plain integers.

    onnx2torch reads them off a tensor in every call: on a GPU each pad then waits for the device, and torch.compile
    breaks the graph there. What the graph computes stays bit-equal.

    Args:
        graph: what ``onnx2torch.convert`` gave; changed in place.

    Returns:
        The graph.
    """
    constants = _Constants(graph, garbage_collect_values=False)
    with torch.no_grad():
        constants.run()
    for node in list(graph.graph.nodes):
        pad = graph.get_submodule(node.target) if node.op == "call_module" else None
        if type(pad).__name__ == "OnnxPadDynamic":
            _fold_pad(graph, node, pad, constants.env)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


_UNKNOWN = object()


class _Constants(fx.Interpreter):
    """Compute what does not depend on the input; the rest of ``env`` is `_UNKNOWN`."""

    def run_node(self, n: fx.Node) -> Any:
        depends = n.op in ("placeholder", "output") or any(self.env[i] is _UNKNOWN for i in n.all_input_nodes)
        return _UNKNOWN if depends else super().run_node(n)


def _fold_pad(graph: fx.GraphModule, node: fx.Node, pad: Any, constants: dict[fx.Node, Any]) -> None:
    """Replace one pad by torch's own, with numbers for amounts and value, where they are constant."""
    names = ("input_tensor", "pads", "constant_value")
    operands: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    source = operands["input_tensor"]
    amounts, value = (
        constants[operand] if isinstance(operand, fx.Node) else operand
        for operand in (operands["pads"], operands.get("constant_value", 0.0))
    )
    if amounts is _UNKNOWN or value is _UNKNOWN:
        return
    starts, ends = amounts.reshape(2, -1).tolist()
    # ONNX begins with the first dimension, torch with the last
    pairs = [amount for pair in zip(reversed(starts), reversed(ends), strict=True) for amount in pair]
    if pad.mode != "constant":
        if any(pairs[-4:]):
            return  # torch mirrors or repeats at borders of pixels only
        pairs = pairs[:-4]
    if any(pairs):
        with graph.graph.inserting_before(node):
            options = {"mode": pad.mode, "value": float(value)}
            source = graph.graph.call_function(nn.functional.pad, (source, pairs), options)
    node.replace_all_uses_with(source)
    graph.graph.erase_node(node)
