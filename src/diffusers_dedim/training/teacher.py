"""A recogniser to distil from: its embedding and its feature maps, from an ONNX file."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from tqdm.auto import tqdm

from diffusers_dedim.encoders.onnx import OnnxEncoder, fold_pads
from diffusers_dedim.extras import import_extra
from diffusers_dedim.training.data import FaceCrops, to_model_range

_NEEDED = ("dedim train encoder", 'pip install "diffusers-dedim[train]"')
STAGE_SIZES = (28, 14, 7)
_SPOT_CHECKS = 64  # rows of an old cache that are embedded anew


class Teacher(nn.Module):
    """Give a recogniser's unit embedding and the last residual sum of each resolution.

    Args:
        path: ONNX file: ``face`` ``[N, 3, 112, 112]`` RGB in [-1, 1] -> embedding ``[N, D]``.

    Attributes:
        fingerprint: SHA-256 of the file.
        embedding_dim: D.
        batch: crops at a time, where the file was exported for one number of them only; else None. Others are run in
            pieces of it.

    Raises:
        ValueError: there is no such file, it cannot be converted to torch modules, or it maps no such crop to an
            embedding.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.fingerprint = teacher_fingerprint(path)
        graph, fixed = _convert(Path(path))
        count = fixed or 1
        self.graph, shape = _with_stages(graph, path, count)
        if shape is None or len(shape) != 2 or shape[0] != count:
            raise ValueError(
                f"teacher: {path} answers to {count} crop(s) in the shape {shape}, expected [{count}, D]."
            )
        self.embedding_dim: int = shape[1]
        self.eval().requires_grad_(False)
        # what a file states of its batch and what its Reshapes hold need not agree
        self.batch = None if self._takes(count + 1) else count

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map ``[N, 3, 112, 112]`` to unit embeddings ``[N, D]`` and maps ``[N, C, s, s]``, s = 28, 14, 7.

        A teacher without residual sums of a size has no map of that size.
        """
        if self.batch is None:
            embedding, *stages = self.graph(images)
        else:
            pieces = [self._run_filled(piece, self.batch) for piece in torch.split(images, self.batch)]
            embedding, *stages = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return nn.functional.normalize(embedding.float()), list(stages)

    def _run_filled(self, images: Tensor, batch: int) -> tuple[Tensor, ...]:
        """Run at most ``batch`` crops, filled up to that number and cut back afterwards."""
        filled = torch.cat([images, images.new_zeros(batch - len(images), *images.shape[1:])])
        return tuple(answer[: len(images)] for answer in self.graph(filled))

    def _takes(self, count: int) -> bool:
        """Whether the graph answers to that many crops, and to each as to it alone."""
        crops = torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
        try:
            with torch.no_grad():
                answers, fewer = self.graph(crops), self.graph(crops[:-1])
        except Exception:  # of whichever operator holds the number
            return False
        if any(len(answer) != count for answer in answers):
            return False
        ours, alone = (nn.functional.normalize(rows.float()) for rows in (answers[0][:-1], fewer[0]))
        # float32 sums of another number of crops at a time; two different faces are not within 0.01 of each other
        return torch.allclose(ours, alone, rtol=0, atol=1e-3)


def _convert(path: Path) -> tuple[fx.GraphModule, int | None]:
    """The graph, and the number of crops it states if that is a fixed one.

    onnxruntime folds its constants first: exports pad by computed amounts.
    """
    runtime = import_extra("onnxruntime", *_NEEDED)
    onnx2torch = import_extra("onnx2torch", *_NEEDED)
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = f"{folder}/folded.onnx"
        try:
            session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            graph = fold_pads(onnx2torch.convert(options.optimized_model_filepath))
        except Exception as error:  # neither library exports its error types
            raise ValueError(f"teacher: {path} cannot be converted to torch modules ({error}).") from error
    batch = next((dimension for node in session.get_inputs() for dimension in node.shape), None)
    return graph, batch if isinstance(batch, int) else None  # a name stands for any number


def _with_stages(graph: fx.GraphModule, path: str | Path, count: int) -> tuple[fx.GraphModule, Any]:
    """Let the graph return, after its embedding, the last sum of two maps of each stage size; the embedding's shape."""
    shapes: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            shapes[n] = tuple(result.shape) if isinstance(result, Tensor) else None
            return result

    try:
        with torch.no_grad():
            Recorder(graph.eval()).run(torch.zeros(count, 3, 112, 112))
    except Exception as error:  # of whichever operator does not fit
        raise ValueError(f"teacher: {path} does not take crops [{count}, 3, 112, 112] ({error}).") from error
    last: dict[int, fx.Node] = {}
    for node, shape in shapes.items():
        inputs = [other for other in node.all_input_nodes if shapes.get(other) == shape]
        if shape is not None and len(shape) == 4 and len(inputs) > 1:
            last[shape[-1]] = node
    output = next(node for node in graph.graph.nodes if node.op == "output")
    embedding = output.args[0]
    output.args = ((embedding, *(last[size] for size in STAGE_SIZES if size in last)),)
    graph.recompile()
    return graph, shapes.get(embedding) if isinstance(embedding, fx.Node) else None


def teacher_fingerprint(path: str | Path) -> str:
    """SHA-256 of the teacher's file.

    Raises:
        ValueError: there is no such file.
    """
    if not Path(path).is_file():
        raise ValueError(f"teacher: no such file {path}; expected an ONNX face recogniser.")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def teacher_embeddings(
    teacher: str | Path, data: FaceCrops, cache: str | Path, batch_size: int = 32
) -> Tensor:
    """Embed every crop once with an ONNX teacher, and keep the result in ``cache`` (a .npz file).

    The cache holds the fingerprints of data and teacher and is made anew where one of them differs. A .npy
    file of the same name, which earlier versions wrote without fingerprints, is taken over only if it has as
    many rows as the data and 64 crops spread over them, embedded anew, give its rows.

    Returns:
        Unit embeddings ``[N, D]``, float32, in the order of ``data``.

    Raises:
        ValueError: the teacher file is missing, takes other crops than [N, 3, 112, 112], or gives other answers than
            finite [N, D].
    """
    cache = Path(cache)
    keys = {"data": data.fingerprint, "teacher": teacher_fingerprint(teacher)}
    if cache.is_file():
        with np.load(cache) as kept:
            if all(str(kept[name]) == value for name, value in keys.items()):
                return _unit(kept["embeddings"])
    old = cache.with_suffix(".npy")
    embeddings = _verified(old, teacher, data, batch_size) if old.is_file() else None
    if embeddings is None:
        embeddings = _embed(teacher, data, np.arange(len(data)), batch_size)
    cache.parent.mkdir(parents=True, exist_ok=True)
    fresh = cache.with_suffix(".new.npz")
    np.savez(fresh, embeddings=embeddings, data=keys["data"], teacher=keys["teacher"])
    fresh.replace(cache)
    return _unit(embeddings)


def _verified(old: Path, teacher: str | Path, data: FaceCrops, batch_size: int) -> Any:
    """The rows of a cache without fingerprints, or None where it is not of this data and teacher."""
    rows = np.load(old)
    if len(rows) != len(data):
        return None
    places = np.linspace(0, len(data) - 1, min(_SPOT_CHECKS, len(data))).astype(int)
    anew = _embed(teacher, data, places, batch_size)
    # float32 sums in another order; two different faces are not within 0.01 of each other
    agree = anew.shape[1:] == rows.shape[1:] and float((_unit(anew) - _unit(rows[places])).abs().max()) < 1e-3
    return rows if agree else None


def _embed(teacher: str | Path, data: FaceCrops, places: Any, batch_size: int) -> Any:
    import_extra("onnxruntime", *_NEEDED)
    rows = []
    with _teacher_named():
        encoder = OnnxEncoder(teacher)  # which runs a file of a fixed batch in pieces
    for start in tqdm(range(0, len(places), batch_size), desc="teacher", unit="batch"):
        images = torch.stack([data[index]["image"] for index in places[start : start + batch_size]])
        with _teacher_named():
            rows.append(encoder.answer(to_model_range(images)).numpy())
    return np.concatenate(rows)


@contextmanager
def _teacher_named() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"teacher: {error}") from error


def _unit(rows: Any) -> Tensor:
    return nn.functional.normalize(torch.from_numpy(rows).float())
