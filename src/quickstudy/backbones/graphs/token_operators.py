"""Operators of the ONNX standard in PyTorch: those that transformers are made of besides what `operators.py` has.

They are what attention is written with (Attention, RotaryEmbedding, Einsum), masks (Where and comparisons), and what
works out shapes where a graph was made for any number of images (Shape, Expand, Tile, Range).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from quickstudy.errors import BackboneError

Inputs = Sequence[Any]
"""A node's inputs: tensors, or None where an optional one is left out."""
Attributes = Mapping[str, Any]
"""A node's attributes by name, with `opset` and `num_outputs` among them."""
Operator = Callable[[Inputs, Attributes], Any]
"""An operator: it takes a node's inputs and attributes, and returns its output, or a tuple of several."""


def _attention(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Compute scaled dot-product attention: N×heads×T×d, or N×T×(heads·d) with the number of heads as an attribute."""
    queries, keys, values, mask, *past = (*inputs, None, None, None)[:6]
    if any(one is not None for one in past) or attributes["num_outputs"] > 1 or attributes.get("softcap", 0.0):
        raise BackboneError("Attention is run without what came before (past_key), softcap and further outputs")
    flat = queries.ndim == 3
    if flat:
        queries = _heads(queries, attributes["q_num_heads"])
        keys, values = (_heads(one, attributes["kv_num_heads"]) for one in (keys, values))
    shared = queries.shape[1] // keys.shape[1]  # several queries' heads share one of the keys'
    keys, values = (one.repeat_interleave(shared, dim=1) if shared > 1 else one for one in (keys, values))
    found = functional.scaled_dot_product_attention(
        queries,
        keys,
        values,
        mask,
        is_causal=bool(attributes.get("is_causal", 0)),
        scale=attributes.get("scale") or 1 / math.sqrt(queries.shape[-1]),
    )
    return found.transpose(1, 2).flatten(2) if flat else found


def _heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _rotary_embedding(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Turn pairs of features by angles that depend on the position (Su et al., 2021, arXiv:2104.09864)."""
    x, cosines, sines, positions = (*inputs, None)[:4]
    if positions is not None:
        cosines, sines = cosines[positions], sines[positions]
    flat = x.ndim == 3
    tokens = _heads(x, attributes["num_heads"]) if flat else x
    tokens = tokens.transpose(1, 2)  # N×T×heads×d
    turned = attributes.get("rotary_embedding_dim", 0) or tokens.shape[-1]
    pairs, rest = tokens[..., :turned], tokens[..., turned:]
    cosines, sines = (one[..., None, : turned // 2] for one in (cosines, sines))
    if attributes.get("interleaved", 0):
        first, second = pairs[..., 0::2], pairs[..., 1::2]
    else:
        first, second = pairs.chunk(2, dim=-1)
    both = [cosines * first - sines * second, sines * first + cosines * second]
    pairs = torch.stack(both, dim=-1).flatten(-2) if attributes.get("interleaved", 0) else torch.cat(both, dim=-1)
    found = torch.cat([pairs, rest], dim=-1)
    return found.flatten(2) if flat else found.transpose(1, 2)


def _rms_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, scale = inputs
    axis = attributes.get("axis", -1) % x.ndim
    normalised: Tensor = functional.rms_norm(x, x.shape[axis:], None, attributes.get("epsilon", 1e-5))
    scaled: Tensor = normalised * scale
    return scaled


def _einsum(inputs: Inputs, attributes: Attributes) -> Tensor:
    equation = attributes["equation"]
    return torch.einsum(equation.decode() if isinstance(equation, bytes) else equation, *inputs)


def _shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Tensor = inputs[0]
    sides = list(x.shape)[slice(attributes.get("start", 0), attributes.get("end"))]
    return torch.tensor(sides, dtype=torch.int64, device=x.device)


def _expand(inputs: Inputs, _attributes: Attributes) -> Tensor:
    x: Tensor = inputs[0]
    sides = [1] * (x.ndim - len(inputs[1])) + inputs[1].tolist()
    own = [1] * (len(sides) - x.ndim) + list(x.shape)
    return x.expand([max(pair) if 0 not in pair else 0 for pair in zip(own, sides, strict=True)])


def _constant_of_shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    value = torch.zeros(1)
    if "value" in attributes:
        value = torch.from_numpy(numpy_helper.to_array(attributes["value"]).copy())
    return value.to(inputs[0].device).expand(inputs[0].tolist())


def _range(inputs: Inputs, _attributes: Attributes) -> Tensor:
    return torch.arange(*(one.item() for one in inputs), dtype=inputs[0].dtype, device=inputs[0].device)


def _modulo(inputs: Inputs, attributes: Attributes) -> Tensor:
    return (torch.fmod if attributes.get("fmod", 0) else torch.remainder)(*inputs)


def plain(function: Callable[..., Any]) -> Operator:
    """Make an operator whose inputs are the function's arguments, and which has no attributes."""
    return lambda inputs, _attributes: function(*inputs)


TOKEN_OPERATORS: dict[str, Operator] = {
    "And": plain(torch.logical_and),
    "Attention": _attention,
    "ConstantOfShape": _constant_of_shape,
    "Cos": plain(torch.cos),
    "Einsum": _einsum,
    "Equal": plain(torch.eq),
    "Expand": _expand,
    "Floor": plain(torch.floor),
    "Greater": plain(torch.gt),
    "GreaterOrEqual": plain(torch.ge),
    "Less": plain(torch.lt),
    "LessOrEqual": plain(torch.le),
    "Mod": _modulo,
    "Not": plain(torch.logical_not),
    "Or": plain(torch.logical_or),
    "RMSNormalization": _rms_norm,
    "Range": _range,
    "RotaryEmbedding": _rotary_embedding,
    "Shape": _shape,
    "Sin": plain(torch.sin),
    "Tile": plain(lambda x, times: x.repeat(times.tolist())),
    "Where": plain(torch.where),
}
"""Operators that can be run, by the names that the ONNX standard gives them."""
