"""A teacher whose network is our MobileFaceNet: its layers, found by its graph, and what each block of it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx, nn

from diffusers_dedim.models.blocks import Bottleneck, ConvNormAct
from diffusers_dedim.models.mobilefacenet import MobileFaceNet
from diffusers_dedim.training.teacher import Shapes, Teacher

# of torch and of onnx2torch, which has no class of its own for most of them
_ACTIVATIONS = ("PReLU", "OnnxPReLU", "ReLU", "ReLU6", "LeakyReLU", "OnnxClip", "OnnxClipDynamic", "Hardtanh")


class BlockTeacher(Teacher):
    """Give a recogniser's unit embedding and the maps before and after each of its blocks.

    Its network must be that of `MobileFaceNet`, layer by layer: kernels, strides, groups, channels, shortcuts. The
    kind of its activations, what comes before its first convolution, the width of its embedding and the 1x1
    convolution of its stem are its own. Layers are found by what feeds what; names do not matter.

    Args:
        path: ONNX file, as for `Teacher`.

    Attributes:
        settings: those of the `MobileFaceNet` that has this plan.

    Raises:
        ValueError: as for `Teacher`, or the network has another plan; the message says which layer differs.
    """

    settings: dict[str, Any]

    def __init__(self, path: str | Path) -> None:
        self._path = path
        super().__init__(path)
        crops = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            embedding, maps = self(crops)
        head = nn.functional.normalize(maps[-1].flatten(1).float())
        # float32; anything else than a normalisation is further off
        if head.shape != embedding.shape or not torch.allclose(head, embedding, rtol=0, atol=1e-3):
            raise self._differs("after the last convolution", "nothing but a normalisation", "something else")

    def _choose_stages(self, graph: fx.GraphModule, shapes: Shapes) -> list[fx.Node]:
        """The map after the stem and after each bottleneck, and the head's last one ``[N, D, 1, 1]``."""
        walk = _Walk(graph)
        try:
            self.settings = walk.settings()
            return walk.maps(self.settings)
        except _PlanDiffersError as difference:
            raise self._differs(*difference.args) from None

    def _differs(self, place: str, expected: str, found: str) -> ValueError:
        return ValueError(
            f"teacher: {self._path} has another plan than MobileFaceNet, whose blocks could learn from its own: "
            f"{place} expected {expected}, got {found}. Learn from it with --method distill."
        )


class _PlanDiffersError(Exception):
    """Where a teacher leaves the plan: the place, what is expected there, what is found."""


@dataclass(frozen=True)
class _Layer:
    """What is compared of a convolution; two numbers are height and width."""

    channels: tuple[int, int]
    kernel: Any
    stride: Any
    padding: Any
    groups: int
    dilation: Any
    activated: bool

    @classmethod
    def of(cls, layer: nn.Conv2d, *, activated: bool) -> _Layer:
        channels = (layer.in_channels, layer.out_channels)
        sizes = (layer.kernel_size, layer.stride, layer.padding)
        return cls(channels, *sizes, layer.groups, layer.dilation, activated)

    def __str__(self) -> str:
        def size(pair: Any) -> str:
            return "x".join(map(str, pair))

        spread = "" if tuple(self.dilation) == (1, 1) else f", dilation {size(self.dilation)}"
        end = "an activation" if self.activated else "no activation"
        return (
            f"a convolution {self.channels[0]} to {self.channels[1]} of {size(self.kernel)}, stride "
            f"{size(self.stride)}, padding {size(self.padding)}, {self.groups} group(s){spread}, with {end}"
        )


class _Walk:
    """Follow a graph of onnx2torch layer by layer."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.convolutions = [node for node in graph.graph.nodes if isinstance(self._module(node), nn.Conv2d)]

    def settings(self) -> dict[str, Any]:
        """Those of the `MobileFaceNet` that this may be."""
        layers = [self._convolution(node) for node in self.convolutions]
        if len(layers) < 3:
            raise _PlanDiffersError(
                "at the start", "a MobileFaceNet of 50 or 51 convolutions", f"{len(layers)}"
            )
        pointwise = layers[2].out_channels == layers[2].in_channels and layers[2].kernel_size == (1, 1)
        return {"embedding_dim": layers[-1].out_channels, "stem_pointwise": pointwise}

    def maps(self, settings: dict[str, Any]) -> list[fx.Node]:
        """The nodes after the stem, after each bottleneck and at the end of the head."""
        with torch.device("meta"):
            plan = MobileFaceNet(**settings)
        place = self._follow_all(self.convolutions[0].all_input_nodes[0], plan.stem, "stem")
        maps = [place]
        for number, block in enumerate(plan.bottlenecks):
            place = self._follow_block(place, block, f"bottlenecks.{number}")
            maps.append(place)
        return [*maps, self._follow_all(place, plan.head, "head")]

    def _follow_block(self, start: fx.Node, block: Bottleneck, name: str) -> fx.Node:
        place = self._follow_all(start, block.layers, f"{name}.layers", shortcut=block.is_residual)
        if not block.is_residual:
            return place
        sums = [user for user in place.users if user in start.users and self._kind(user) == "add"]
        if len(sums) != 1 or len(place.users) != 1:
            raise _PlanDiffersError(
                f"after {name}.layers", "the block's input added", self._words(place.users)
            )
        return sums[0]

    def _follow_all(
        self, place: fx.Node, layers: nn.Sequential, name: str, *, shortcut: bool = False
    ) -> fx.Node:
        for number, layer in enumerate(layers):
            place = self._follow(
                place, cast(ConvNormAct, layer), f"at {name}.{number}", beside=int(shortcut and number == 0)
            )
        return place

    def _follow(self, place: fx.Node, expected: ConvNormAct, name: str, *, beside: int) -> fx.Node:
        """The output of the one layer that is fed by ``place``; ``beside`` it as many others are."""
        plan = _Layer.of(cast(nn.Conv2d, expected[0]), activated=len(expected) == 3)
        found = [user for user in place.users if isinstance(self._module(user), nn.Conv2d)]
        if len(found) != 1 or len(place.users) != 1 + beside:
            raise _PlanDiffersError(name, f"{plan}, and {beside} shortcut(s)", self._words(place.users))
        node = found[0]
        activations = [user for user in node.users if self._kind(user) == "activation"]
        activated = len(activations) == len(node.users) == 1
        layer = _Layer.of(self._convolution(node), activated=activated)
        if layer != plan:
            raise _PlanDiffersError(name, str(plan), str(layer))
        return activations[0] if activated else node

    def _words(self, nodes: Any) -> str:
        return ", ".join(self._describe(nodes)) or "nothing"

    def _describe(self, nodes: Any) -> Iterator[str]:
        for node in nodes:
            module = self._module(node)
            if isinstance(module, nn.Conv2d):
                yield str(_Layer.of(module, activated=False)).split(", with")[0]
            else:
                yield self._kind(node)

    def _kind(self, node: fx.Node) -> str:
        """Name what a node does: activation, add, or as its class or function is called."""
        name = type(self._module(node)).__name__ if node.op == "call_module" else str(node.target)
        if name in _ACTIVATIONS:
            return "activation"
        if name == "OnnxBinaryMathOperation":
            function = getattr(self._module(node), "math_op_function", None)
            return getattr(function, "__name__", name)
        return name

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _convolution(self, node: fx.Node) -> nn.Conv2d:
        return cast(nn.Conv2d, self._module(node))
