from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx2torch
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from diffusers_dedim.encoders import OnnxEncoder
from diffusers_dedim.encoders.onnx import fold_pads

WEIGHT = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


def write_model(
    path: Path,
    *,
    inputs: tuple[tuple[object, ...], ...] = (("n", 3, 112, 112),),
    output: tuple[object, ...] | None = ("n", 8),
    flatten_to: tuple[int, ...] | None = None,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """A linear map of the mean colour, in every shape a stranger may export it."""
    names = [f"face{index}" for index in range(len(inputs))]
    nodes = [
        helper.make_node("ReduceMean", [names[0]], ["flat"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["flat", "weight"], ["embedding" if flatten_to is None else "linear"]),
    ]
    tensors = [numpy_helper.from_array(WEIGHT.astype(helper.tensor_dtype_to_np_dtype(kind)), "weight")]
    if flatten_to is not None:
        nodes.append(helper.make_node("Reshape", ["linear", "shape"], ["embedding"]))
        tensors.append(numpy_helper.from_array(np.array(flatten_to, dtype=np.int64), "shape"))
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in zip(names, inputs, strict=True)],
        [helper.make_tensor_value_info("embedding", kind, output)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def expected(crops: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(crops.mean(dim=(2, 3)) @ torch.from_numpy(WEIGHT))


@pytest.fixture
def crops() -> torch.Tensor:
    return torch.rand(5, 3, 112, 112, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("batch", ["n", 1, 2])
def test_runs_free_and_fixed_batches(
    tmp_path: Path, crops: torch.Tensor, batch: object, differentiable: bool
) -> None:
    path = write_model(tmp_path / "m.onnx", inputs=((batch, 3, 112, 112),), output=(batch, 8))
    encoder = OnnxEncoder(path, differentiable=differentiable)
    # 1e-5: the mean of 12,544 float32 pixels is summed in another order
    torch.testing.assert_close(encoder(crops), expected(crops), atol=1e-5, rtol=0)
    assert encoder.embedding_dim == 8
    assert encoder(crops[:0]).shape == (0, 8)


def test_batch_baked_into_the_graph_falls_back_to_one_at_a_time(tmp_path: Path, crops: torch.Tensor) -> None:
    path = write_model(tmp_path / "m.onnx", flatten_to=(1, 8), output=None)
    torch.testing.assert_close(OnnxEncoder(path)(crops), expected(crops), atol=1e-5, rtol=0)


def test_gradient_reaches_the_crops_only_when_differentiable(tmp_path: Path, crops: torch.Tensor) -> None:
    path = write_model(tmp_path / "m.onnx")
    crops.requires_grad_()
    assert not OnnxEncoder(path)(crops).requires_grad
    OnnxEncoder(path, differentiable=True)(crops)[:, 0].sum().backward()
    assert crops.grad is not None
    assert crops.grad.abs().sum() > 0


def test_fingerprint_is_that_of_the_file(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "a.onnx"), write_model(tmp_path / "b.onnx")
    other = write_model(tmp_path / "c.onnx", inputs=((1, 3, 112, 112),), output=(1, 8))
    fingerprints = [OnnxEncoder(path).fingerprint for path in (first, second, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": (("n", 3, 160, 160),)}, r"m\.onnx: expected one float input \[N, 3, 112, 112\]"),
        ({"inputs": (("n", 3, 96, 112),)}, r"got input 'face0' \['n', 3, 96, 112\] tensor\(float\)"),
        ({"inputs": (("n", 3, 112, 112), ("n", 1))}, "input 'face1'"),
        ({"kind": TensorProto.DOUBLE}, r"tensor\(double\)"),
        ({"flatten_to": (-1,), "output": None}, r"m\.onnx: expected .* got \[8\] for 1 crop"),
    ],
)
def test_other_signatures_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    path = write_model(tmp_path / "m.onnx", **settings)
    with pytest.raises(ValueError, match=message):
        OnnxEncoder(path)


def test_files_that_are_no_model_are_named(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"junk\.onnx: onnxruntime cannot read it"):
        OnnxEncoder(tmp_path / "junk.onnx")
    with pytest.raises(FileNotFoundError, match=r"there is no ONNX file .*none\.onnx"):
        OnnxEncoder(tmp_path / "none.onnx")


def test_crops_are_checked_and_answers_too(tmp_path: Path, crops: torch.Tensor) -> None:
    encoder = OnnxEncoder(write_model(tmp_path / "m.onnx"))
    with pytest.raises(ValueError, match=r"crops: expected shape \[N, 3, 112, 112\], got \[5, 3, 64, 64\]"):
        encoder(crops[:, :, :64, :64])
    with pytest.raises(ValueError, match=r"m\.onnx: .* not finite"):
        encoder(crops * torch.inf)


def write_padded_model(path: Path, pads: list[int], mode: str, value: float | None, amounts: str) -> Path:
    """A pad before the mean colour; its amounts as an initializer, a Constant, computed, or of the input."""
    nodes = {
        "initializer": [],
        "constant": [
            helper.make_node("Constant", [], ["pads"], value=numpy_helper.from_array(np.array(pads)))
        ],
        "computed": [helper.make_node("Add", ["stored", "none"], ["pads"])],
        "of the input": [
            helper.make_node("Shape", ["face0"], ["shape"]),
            helper.make_node("Slice", ["shape", "first", "second"], ["batch"]),
            helper.make_node("Sub", ["batch", "batch"], ["zero"]),
            helper.make_node("Add", ["stored", "zero"], ["pads"]),
        ],
    }[amounts]
    write_model(path)
    model = onnx.load(path)
    inputs = ["face0", "pads", *(["value"] if value is not None else [])]
    nodes.append(helper.make_node("Pad", inputs, ["padded"], mode=mode))
    model.graph.node[0].input[0] = "padded"
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    stored = {
        "pads" if amounts == "initializer" else "stored": np.array(pads),
        "none": np.zeros(len(pads), np.int64),
        "first": np.array([0]),
        "second": np.array([1]),
    }
    if value is not None:
        stored["value"] = np.array(value, np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("amounts", ["initializer", "constant", "computed", "of the input"])
@pytest.mark.parametrize(
    ("pads", "mode", "value"),
    [
        ([0, 0, 1, 2, 0, 0, 3, 4], "constant", None),
        ([0, 0, 1, 2, 0, 0, 3, 4], "constant", 0.5),
        ([0, 0, 1, 2, 0, 0, 3, 4], "reflect", None),
        ([0, 0, 1, 2, 0, 0, 3, 4], "edge", None),
        ([0, 1, 0, 0, 0, -1, 0, 0], "constant", 0.25),
        ([0] * 8, "constant", None),
        ([0] * 8, "reflect", None),
    ],
)
def test_constant_pads_become_numbers_and_compute_the_same(
    tmp_path: Path, crops: torch.Tensor, pads: list[int], mode: str, value: float | None, amounts: str
) -> None:
    path = write_padded_model(tmp_path / "m.onnx", pads, mode, value, amounts)
    plain, folded = onnx2torch.convert(str(path)), fold_pads(onnx2torch.convert(str(path)))
    left = [module for module in folded.modules() if type(module).__name__ == "OnnxPadDynamic"]
    assert len(left) == (amounts == "of the input")
    ours, theirs = (crops.clone().requires_grad_() for _ in range(2))
    assert torch.equal(folded(ours), plain(theirs))
    folded(ours).square().sum().backward()
    plain(theirs).square().sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
    encoder = OnnxEncoder(path, differentiable=True)
    torch.testing.assert_close(encoder(crops), OnnxEncoder(path)(crops), atol=1e-5, rtol=0)
    assert len([module for module in encoder.modules() if type(module).__name__ == "OnnxPadDynamic"]) == len(
        left
    )
