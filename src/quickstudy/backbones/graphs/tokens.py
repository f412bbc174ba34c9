"""Tokens: what vision transformers give, a vector for each patch of the image, and before them a few for no patch.

A classifier needs one vector an image. Families differ in where they have put it: in the first token, the class token
(ViT, CLIP, DINOv3), in the mean of the patches (BEiT, networks without a class token), or in both side by side, as
DINOv2's own linear heads take them (Oquab et al., 2023, arXiv:2304.07193, appendix B.3). Registers, between class token
and patches, are the network's scratch paper and say nothing (Darcet et al., 2023, arXiv:2309.16588): they are left out.

Images are square here, so patches are a square number, and what is over comes first: 257 tokens are 16×16 patches and a
class token, 261 have four registers, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from quickstudy.backbones.graphs.cutting import opset_of
from quickstudy.errors import BackboneError, OptionError

TOKENS = {
    "cls": "the class token",
    "mean": "the mean of the patches",
    "both": "the class token and the mean of the patches, side by side",
}
"""The ways to make one vector of tokens, and what each takes."""
_POOLED = "tokens/pooled"
_TO_THE_END = 2**31 - 1  # one of the numbers that models are allowed to have for it
# The first opsets in which ReduceMean's axes and Slice's bounds are inputs.
_AXES_ARE_INPUTS, _BOUNDS_ARE_INPUTS = 18, 10


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What to make of tokens, as far as somebody says so."""

    take: str = ""
    """A name in `TOKENS`; empty: what is usual."""
    usual: str = "both"
    """What the family's own classifiers take, a name in `TOKENS`; without a class token, it is the mean anyway."""
    patch: int | None = None
    """Side of a patch in pixels; None where it is not known: patches are then the largest square the tokens hold."""
    registers: int | None = None
    """Number of registers after the class token; None where it is not known."""


@dataclass(frozen=True, kw_only=True)
class TokenPooling:
    """How one vector is made of an image's tokens."""

    take: str
    """A name in `TOKENS`."""
    prefix: int
    """Number of tokens before the patches: the class token and the registers."""
    count: int
    """Number of all tokens."""

    def apply(self, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Make features (N×F, or N×2F for both) of tokens (N×T×F)."""
        parts = [tokens[:, 0]] if self.take in ("cls", "both") else []
        if self.take in ("mean", "both"):
            parts.append(tokens[:, self.prefix :].mean(axis=1))
        return np.concatenate(parts, axis=1)

    def __str__(self) -> str:
        left_out = self.prefix - (self.take in ("cls", "both"))
        patches = self.count - self.prefix
        told = f"{TOKENS[self.take]}, of {self.count:,} tokens, {patches:,} of them patches"
        if self.take == "cls" or not left_out:
            return told
        registers = self.prefix - 1
        what = [] if self.take == "both" else ["the class token"]
        if registers:
            what.append(f"{registers} register{'s' * (registers != 1)}")
        return f"{told}; left out: {' and '.join(what)}"


def pooling_of(count: int, wanted: Tokens, *, size: int) -> TokenPooling:
    """Decide how one vector is made of `count` tokens of an image of `size`×`size` pixels.

    Raises:
        OptionError: there is no such way.
        BackboneError: there is no class token, or what is known of the tokens contradicts their number.
    """
    if wanted.take and wanted.take not in TOKENS:
        ways = "; ".join(f"{name}: {what}" for name, what in TOKENS.items())
        raise OptionError(f"Unknown tokens '{wanted.take}'; there are: {ways}")
    # Networks that join neighbouring patches on the way (Swin) end with fewer of them than they begin with.
    known = (size // wanted.patch) ** 2 if wanted.patch else 0
    patches = known if 0 < known <= count else math.isqrt(count) ** 2
    prefix = count - patches
    if wanted.registers is not None and prefix not in (0, 1 + wanted.registers):
        raise BackboneError(
            f"The network gives {count} tokens, {patches} of them patches, but is said to have {wanted.registers} "
            "registers and a class token; import its .onnx file by itself, and say what counts with --tokens"
        )
    if not prefix and wanted.take in ("cls", "both"):
        raise BackboneError(
            f"The network gives {count} tokens, all of them patches, and no class token; take --tokens mean"
        )
    return TokenPooling(take=wanted.take or (wanted.usual if prefix else "mean"), prefix=prefix, count=count)


def append_pooling(model: onnx.ModelProto, tensor: str, pooling: TokenPooling) -> str:
    """Let a graph make one vector (N×F or N×2F) of tokens (N×T×F), and return the name of that tensor.

    Args:
        model: gets the nodes.
        tensor: name of the tokens.
        pooling: how.
    """
    graph, parts = model.graph, []
    if pooling.take in ("cls", "both"):
        graph.initializer.append(numpy_helper.from_array(np.array(0), f"{_POOLED}/first"))
        parts.append(f"{_POOLED}/cls")
        graph.node.append(helper.make_node("Gather", [tensor, f"{_POOLED}/first"], parts[-1:], axis=1))
    if pooling.take in ("mean", "both"):
        patches = patches_of(model, tensor, pooling.prefix, f"{_POOLED}/patches")
        parts.append(mean_of(model, patches, f"{_POOLED}/mean", keep=False))
    if len(parts) == 1:
        return parts[0]
    graph.node.append(helper.make_node("Concat", parts, [_POOLED], axis=1))
    return _POOLED


def mean_of(model: onnx.ModelProto, tokens: str, result: str, *, keep: bool) -> str:
    """Let a graph give the mean of tokens (N×T×F) under the name `result`: N×F or, to `keep` the axis, N×1×F."""
    graph = model.graph
    if opset_of(model) < _AXES_ARE_INPUTS:
        graph.node.append(helper.make_node("ReduceMean", [tokens], [result], name=result, axes=[1], keepdims=int(keep)))
    else:
        inputs = [tokens, f"{result}/axis"]
        graph.initializer.append(numpy_helper.from_array(np.array([1]), inputs[1]))
        graph.node.append(helper.make_node("ReduceMean", inputs, [result], name=result, keepdims=int(keep)))
    return result


def patches_of(model: onnx.ModelProto, tensor: str, prefix: int, result: str) -> str:
    """Let a graph give the tokens behind the first `prefix` ones; return their name, `tensor` where all of them are."""
    if not prefix:
        return tensor
    graph = model.graph
    if opset_of(model) < _BOUNDS_ARE_INPUTS:
        node = helper.make_node("Slice", [tensor], [result], name=result, axes=[1], starts=[prefix], ends=[_TO_THE_END])
    else:
        bounds = {"starts": prefix, "ends": _TO_THE_END, "axes": 1}
        graph.initializer.extend(numpy_helper.from_array(np.array([v]), f"{result}/{n}") for n, v in bounds.items())
        node = helper.make_node("Slice", [tensor, *(f"{result}/{n}" for n in bounds)], [result], name=result)
    graph.node.append(node)
    return result


def without_the_rest(model: onnx.ModelProto) -> None:
    """Leave out of a graph what its outputs do not need, such as the text tower of CLIP and its inputs."""
    graph = model.graph
    used, kept_nodes = {info.name for info in graph.output}, []
    for node in reversed(graph.node):
        if used & set(node.output):
            kept_nodes.append(node)
            used |= _taken_by(node)
    del graph.node[:]
    graph.node.extend(kept_nodes[::-1])
    for part in (graph.input, graph.initializer):
        kept = [entry for entry in part if entry.name in used]
        del part[:]
        part.extend(kept)


def _taken_by(node: onnx.NodeProto) -> set[str]:
    """Name all tensors that a node takes, those of the graphs inside it, too."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            names.update(*(_taken_by(one) for one in inner.node), (info.name for info in inner.output))
    return names
