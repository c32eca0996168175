"""A recogniser to distil from: its embedding and its feature maps, from an ONNX file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.data import Dataset, Subset
from tqdm.auto import tqdm

from diffusers_dedim.encoders.onnx import OnnxEncoder, fold_pads
from diffusers_dedim.encoders.onnx_graph import convert_rewritten
from diffusers_dedim.extras import import_extra
from diffusers_dedim.models.mobilefacenet import MobileFaceNet
from diffusers_dedim.training.data import FaceCrops, to_model_range

_NEEDED = ("dedim train encoder", 'pip install "diffusers-dedim[train]"')
STAGE_SIZES = (28, 14, 7)
Shapes = dict[fx.Node, Any]  # of what each node of a graph gives; None where that is no tensor
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
        self.fingerprint: str = teacher_fingerprint(path)
        graph, fixed = _convert(Path(path))
        count = fixed or 1
        self.graph: fx.GraphModule
        self.graph, shape = _with_stages(graph, path, count, self._choose_stages)
        if shape is None or len(shape) != 2 or shape[0] != count:
            raise ValueError(
                f"teacher: {path} answers to {count} crop(s) in the shape {shape}, expected [{count}, D]."
            )
        self.embedding_dim: int = shape[1]
        self.eval().requires_grad_(False)
        # what a file states of its batch and what its Reshapes hold need not agree
        self.batch: int | None = None if self._takes(count + 1) else count

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

    def _choose_stages(self, graph: fx.GraphModule, shapes: Shapes) -> list[fx.Node]:
        """The last sum of two maps of each stage size."""
        last: dict[int, fx.Node] = {}
        for node, shape in shapes.items():
            inputs = [other for other in node.all_input_nodes if shapes.get(other) == shape]
            if shape is not None and len(shape) == 4 and len(inputs) > 1:
                last[shape[-1]] = node
        return [last[size] for size in STAGE_SIZES if size in last]

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
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = fold_pads(convert_rewritten(path, *_NEEDED))
    except ImportError:
        raise
    except Exception as error:  # neither library exports its error types
        raise ValueError(f"teacher: {path} cannot be converted to torch modules ({error}).") from error
    batch = next((dimension for node in session.get_inputs() for dimension in node.shape), None)
    return graph, batch if isinstance(batch, int) else None  # a name stands for any number


def _with_stages(
    graph: fx.GraphModule,
    path: str | Path,
    count: int,
    choose: Callable[[fx.GraphModule, Shapes], list[fx.Node]],
) -> tuple[fx.GraphModule, Any]:
    """Let the graph return, after its embedding, the maps that are chosen; the embedding's shape."""
    shapes: Shapes = {}

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
    output = next(node for node in graph.graph.nodes if node.op == "output")
    embedding = output.args[0]
    output.args = ((embedding, *choose(graph, shapes)),)
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


_CROPS = 6000  # that a trained student embeds, to see in which directions it answers; with 1,000 the turn is too vague
_MAP_CROPS = 256


@dataclass(frozen=True)
class Targets:
    """How the teacher's answers become the student's.

    Principal directions have arbitrary signs, and arbitrary places within nearly equal variances: other data, or
    another machine's LAPACK, gives other ones. A training must therefore keep the first.

    Attributes:
        basis: ``[D, d]`` with orthonormal columns: teacher's embedding -> student's.
        projections: size, weight ``[c, C, 1, 1]`` and bias ``[c]`` of the 1x1 convolution of each feature map.
    """

    basis: Tensor
    projections: tuple[tuple[int, Tensor, Tensor], ...]

    def save(self, path: Path) -> None:
        """Write a .npz file in one move."""
        arrays = {"basis": self.basis.numpy()}
        for size, weight, bias in self.projections:
            arrays |= {f"weight_{size}": weight.numpy(), f"bias_{size}": bias.numpy()}
        fresh = path.with_suffix(".new.npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(fresh, **arrays)  # type: ignore[arg-type]  # its second parameter is not among the arrays
        fresh.replace(path)

    @classmethod
    def load(cls, path: Path) -> Targets:
        """Read what `save` wrote."""
        with np.load(path) as kept:
            arrays = {name: torch.from_numpy(kept[name]) for name in kept.files}
        sizes = [int(name.removeprefix("weight_")) for name in arrays if name.startswith("weight_")]
        return cls(arrays["basis"], tuple((s, arrays[f"weight_{s}"], arrays[f"bias_{s}"]) for s in sizes))


def fit_targets(
    teacher: Teacher, student: MobileFaceNet, data: FaceCrops, embeddings: Tensor, *, trained: bool
) -> Targets:
    """Take the principal directions of the teacher's answers, and turn them to a trained student's.

    A student that was trained on other data learnt other directions of the same space. Turned by the orthogonal
    Procrustes solution (Schönemann 1966) they are kept, and with them what it knows; cosines stay as they are.

    Args:
        teacher: gives the feature maps.
        student: gives the widths and, where ``trained``, the directions.
        data: the training faces, of which the first 256 (maps) and 6,000 spread over all (embeddings) are shown.
        embeddings: the teacher's unit embeddings ``[N, D]`` of the plain crops.
        trained: whether the student was trained before.

    Returns:
        The targets.

    Raises:
        ValueError: the student's embedding is wider than the teacher's.
    """
    student.eval()
    basis = principal_directions(embeddings, student.config.embedding_dim)
    if trained:
        places = np.linspace(0, len(data) - 1, min(_CROPS, len(data))).astype(int).tolist()
        answers = embed(student, Subset(data, places), len(places))
        basis = basis @ _rotation(nn.functional.normalize(embeddings[places] @ basis), answers)
    images = torch.stack([data[index]["image"] for index in range(min(_MAP_CROPS, len(data)))])
    theirs = _maps(teacher, images)
    ours = _maps(student.embed_with_stages, images if trained else images[:2])
    projections = []
    for size, maps in theirs.items():
        weight, bias = projection(maps, ours[size].shape[1])
        if trained:
            weight, bias = _turned(weight, bias, maps, ours[size])
        projections.append((size, weight, bias))
    return Targets(basis, tuple(projections))


def principal_directions(embeddings: Tensor, dimensions: int) -> Tensor:
    """Leading directions ``[D, dimensions]`` of the uncentred embeddings, which keep cosines best.

    Raises:
        ValueError: there are fewer than ``dimensions``.
    """
    check_width(dimensions, embeddings.shape[1])
    vectors: Tensor = torch.linalg.eigh(embeddings.T.double() @ embeddings.double())[1]
    return vectors.flip(1)[:, :dimensions].float()


def check_width(dimensions: int, teachers: int) -> None:
    """Refuse a student whose embedding is wider than the teacher's.

    Raises:
        ValueError: it is.
    """
    if dimensions > teachers:
        raise ValueError(f"embedding_dim: {dimensions} exceeds the teacher's {teachers}.")


def projection(maps: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Weight ``[width, C, 1, 1]`` and bias that give the leading principal components, at a mean variance of 1."""
    values = maps.float().transpose(0, 1).flatten(1)
    mean = values.mean(1)
    vectors = torch.linalg.eigh(torch.cov(values.double()))[1].flip(1)[:, :width].float()
    scale = (vectors.T @ (values - mean[:, None])).std()
    weight = vectors.T / scale
    return weight[:, :, None, None], -weight @ mean


def _maps(answer: Callable[..., Any], images: Tensor) -> dict[int, Tensor]:
    """Feature maps of uint8 crops by their size, of the sizes that are compared."""
    with torch.no_grad():
        parts = [
            [maps for maps in answer(to_model_range(part))[1] if maps.shape[-1] in STAGE_SIZES]
            for part in torch.split(images, 32)
        ]
    return {stage[0].shape[-1]: torch.cat(stage) for stage in zip(*parts, strict=True)}


def _rotation(rows: Tensor, wanted: Tensor) -> Tensor:
    """The orthogonal matrix that brings ``rows`` ``[N, d]`` nearest to ``wanted``, in the sum of squares."""
    left, _, right = torch.linalg.svd(rows.T.double() @ wanted.double())
    rotation: Tensor = (left @ right).float()
    return rotation


def _turned(weight: Tensor, bias: Tensor, maps: Tensor, ours: Tensor) -> tuple[Tensor, Tensor]:
    """The projection turned within its width to the student's maps (its first channels, if it has more)."""
    goal = nn.functional.conv2d(maps.float(), weight, bias)
    ours = ours[:, : goal.shape[1]].float()
    rotation = _rotation(*(values.transpose(0, 1).flatten(1).T for values in (goal, ours)))
    return (rotation.T @ weight[:, :, 0, 0])[:, :, None, None], rotation.T @ bias


def agreement(student: Tensor, target: Tensor, teacher: Tensor) -> dict[str, float]:
    """How well a student agrees with its teacher on N faces of different people.

    Args:
        student: its unit embeddings ``[N, d]``.
        target: those that it should give, ``[N, d]``.
        teacher: the teacher's own, ``[N, D]``.

    Returns:
        ``cosine_to_teacher``, the mean cosine to the target, and ``impostor_correlation``, Pearson's correlation of
        the cosines between faces.
    """
    rows, columns = torch.triu_indices(len(student), len(student), offset=1)
    ours, theirs = ((each @ each.T)[rows, columns] for each in (student, teacher))
    correlation = torch.corrcoef(torch.stack([ours, theirs]))[0, 1]
    return {
        "cosine_to_teacher": float((student * target).sum(1).mean()),
        "impostor_correlation": float(correlation),
    }


def embed(model: nn.Module, data: Dataset[dict[str, Tensor]], count: int, batch_size: int = 64) -> Tensor:
    """Embed the first ``count`` crops; unit vectors ``[count, D]``."""
    device = next(model.parameters()).device
    rows = []
    with torch.no_grad():
        for start in range(0, count, batch_size):
            items = [data[index]["image"] for index in range(start, min(start + batch_size, count))]
            rows.append(model(to_model_range(torch.stack(items)).to(device)).cpu())
    return torch.cat(rows)
