"""torch modules become ONNX graphs, one way or the other, and nothing is printed about it."""

from __future__ import annotations

import os

import numpy as np
import pytest
from small_networks import run

from quickstudy.backbones.sources import torch_export
from quickstudy.backbones.sources.torch_export import export_module
from quickstudy.errors import BackboneError

torch = pytest.importorskip("torch")


@pytest.fixture
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5))


def fail(*_: object, any_batch: bool) -> None:
    print("pages and pages")
    os.write(1, b"and more")
    raise RuntimeError("cannot\nbecause")


@pytest.mark.parametrize("first", [True, False])
def test_either_way_gives_the_module_in_inference_mode(
    module: torch.nn.Module, first: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if not first:
        pytest.importorskip("onnxscript")
        monkeypatch.setattr(torch_export, "by_torchscript", fail)
    model = export_module(module, torch.zeros(2, 3, 8, 8), any_batch=True)
    given = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        expected = module.eval()(given).numpy()
    np.testing.assert_allclose(run(model, model.graph.output[0].name, given.numpy()), expected, atol=1e-5)
    assert capfd.readouterr().out == ""


def test_what_cannot_be_exported_is_an_error_of_ours(
    module: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch_export, "by_torchscript", fail)
    monkeypatch.setattr(torch_export, "by_dynamo", fail)
    with pytest.raises(BackboneError, match=r"torch cannot export the network to ONNX: cannot$"):
        export_module(module, torch.zeros(1, 3, 8, 8))
    print("heard again", flush=True)
    assert capfd.readouterr().out == "heard again\n"
