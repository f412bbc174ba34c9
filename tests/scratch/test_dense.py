"""Dense layers through oneDNN: the same values and gradients as PyTorch's own, and its own wherever graphs are made."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quickstudy.scratch import layers as dense
from quickstudy.scratch.layers import Dense


@pytest.fixture(params=[True, False], ids=["oneDNN", "own"])
def layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Dense, nn.Linear]:
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(dense, "onednn_is_faster", lambda: request.param)
    torch.manual_seed(0)
    ours, theirs = Dense(37, 11), nn.Linear(37, 11)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_linear(layers: tuple[Dense, nn.Linear], bias: bool) -> None:
    x = torch.randn(20, 37)
    found = []
    for layer in layers:
        if not bias:
            layer.bias = None
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        y.square().sum().backward()
        found.append([y.detach(), inputs.grad, *(parameter.grad for parameter in layer.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_other_types_and_shapes_are_left_to_pytorch(layers: tuple[Dense, nn.Linear]) -> None:
    ours, theirs = layers
    x = torch.randn(2, 5, 37)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.double()(x.double()), theirs.double()(x.double()))


def test_traced_and_exported_graphs_have_the_standard_operator(layers: tuple[Dense, nn.Linear]) -> None:
    ours, _ = layers
    x = torch.randn(20, 37)
    traced = torch.jit.trace(ours, x)
    assert "mkldnn" not in str(traced.graph)
    exported = torch.export.export(ours, (x,))
    assert "aten.linear" in str(exported.graph)
    torch.testing.assert_close(traced(x), ours(x), rtol=1e-4, atol=1e-4)
