"""Every backbone that the project knows, in PyTorch and in ONNX Runtime: the same features, to 1e-5."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")
import torch
from small_networks import photos

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.backbones.graphs.cutting import keep_until
from quickstudy.backbones.graphs.preprocessing import PREPROCESSINGS
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.backbones.sources.keras_models import import_keras_model

# One or two of each family that keras.applications has, without NASNet, which Keras does not build on torch.
APPLICATIONS = [
    "ConvNeXtTiny",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Large",
    "MobileNetV3Small",
    "ResNet50",
    "ResNet50V2",
    "VGG16",
    "Xception",
]
NORMALISE_THEMSELVES = ("ConvNeXt", "EfficientNet", "MobileNetV3")


def assert_same_in_torch(graph: onnx.ModelProto, images: np.ndarray) -> None:
    expected = open_session(graph.SerializeToString()).run(None, {"image": images})[0]
    with torch.no_grad():
        found = GraphModule(graph)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["backbone", "lite2"])
def test_quickstudys_own(name: str, request: pytest.FixtureRequest) -> None:
    net: Backbone = request.getfixturevalue(name)
    assert_same_in_torch(keep_until(onnx.load(net.path), net.cut, net.cut_shape), photos(2, net.input.size))


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_keras_applications(name: str) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    size = 96
    model = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(size, size, 3))
    preprocessing = None if name.startswith(NORMALISE_THEMSELVES) else PREPROCESSINGS["tf"]
    found = import_keras_model(model, preprocessing=preprocessing)
    assert_same_in_torch(found.graph, photos(2, size))
