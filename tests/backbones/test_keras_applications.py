"""Keras applications become backbones that compute what Keras computes, with cuts named after its layers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_networks import photos, run

from lazily import lazily
from quickstudy.backbones.backbone import add_backbone, imagenet_classes
from quickstudy.backbones.graphs.preprocessing import PREPROCESSINGS, Preprocessing
from quickstudy.backbones.sources import keras_models
from quickstudy.backbones.sources.graph_import import Imported
from quickstudy.backbones.sources.keras_models import import_keras, import_keras_model, snake_case
from quickstudy.errors import BackboneError, UnsafeFileError
from quickstudy.extras import installation_of

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("torch")
keras = lazily("keras")
pytestmark = pytest.mark.heavy

SMALL = "MobileNetV3Small"


def unlike_new(model: keras.Model) -> keras.Model:
    """The model with weights in which nothing is 0 or 1 any more, so that nothing can be mixed up or left out."""
    draws = np.random.Generator(np.random.PCG64(0))
    model.set_weights([value + draws.uniform(0, 0.03, value.shape).astype(np.float32) for value in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def small() -> keras.Model:
    return unlike_new(keras.applications.MobileNetV3Small(weights=None, input_shape=(96, 96, 3)))


@pytest.fixture(scope="module")
def imported(small: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    path = tmp_path_factory.mktemp("weights") / "small.h5"
    small.save(path)
    return import_keras(SMALL.lower(), weights=path, size=96)


def test_a_classifier_from_an_h5_file(imported: Imported, small: keras.Model) -> None:
    images = photos(3, 96)
    expected = keras.ops.convert_to_numpy(small(images.astype(np.float32), training=False))
    found = run(imported.graph, "probabilities", images)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    onnx.checker.check_model(imported.graph, full_check=True)
    assert imported.name == "mobilenet_v3_small"
    assert imported.origin == "keras:MobileNetV3Small with the weights of small.h5"
    assert imported.classes == imagenet_classes()
    assert imported.top1 is None
    assert imported.found["preprocessing"] == "0 to 255, RGB"
    assert 0 < imported.difference < 1e-5


def test_cuts_hold_what_the_layers_of_their_name_give(imported: Imported, small: keras.Model) -> None:
    assert [cut for cut in imported.cuts if "add" in cut] == [
        f"expanded_conv_{number}_add" for number in (2, 4, 5, 7, 9, 10)
    ]
    images = photos(2, 96)
    for cut in ("expanded_conv_2_add", "expanded_conv_8_project_bn"):
        layer = keras.Model(small.input, small.get_layer(cut).output)
        expected = keras.ops.convert_to_numpy(layer(images.astype(np.float32), training=False))
        found = run(imported.graph, cut, images)
        np.testing.assert_allclose(found.transpose(0, 2, 3, 1), expected, atol=1e-4 * np.abs(expected).max())


def test_batch_norms_are_whole_and_apart(imported: Imported) -> None:
    operators = [node.op_type for node in imported.graph.graph.node]
    assert operators.count("BatchNormalization") >= 34
    assert operators.count("Sub") == 0


def test_without_the_classifier_from_a_keras_file(tmp_path: Path) -> None:
    model = unlike_new(keras.applications.MobileNet(weights=None, include_top=False, input_shape=(64, 64, 3)))
    model.save(tmp_path / "own.keras")
    found = import_keras("MobileNet", weights=tmp_path / "own.keras", top=False, size=64)
    images = photos(2, 64)
    expected = keras.ops.convert_to_numpy(model(images.astype(np.float32), training=False)).mean(axis=(1, 2))
    np.testing.assert_allclose(run(found.graph, "features", images), expected, rtol=1e-3, atol=1e-4)
    assert found.classes == ()
    with pytest.raises(BackboneError, match=r"of MobileNet with its classifier .* need --no-top"):
        import_keras("MobileNet", weights=tmp_path / "own.keras", size=64)


@pytest.mark.slow
def test_inception_v3_to_mixed8_with_its_real_weights(test_data: Path, tmp_path: Path) -> None:
    if not (test_data / "inception_v3").is_dir():
        pytest.skip(f"no InceptionV3 weights in '{test_data}'")
    whole = keras.applications.InceptionV3(include_top=False, weights=None, input_shape=(139, 139, 3))
    fill_inception(whole, test_data / "inception_v3")
    model = keras.Model(whole.input, whole.get_layer("mixed8").output)
    found = import_keras_model(model, preprocessing=Preprocessing(mean=(128,), std=(128,)))
    assert found.cuts[-10:] == (*(f"mixed{number}" for number in range(9)), "features")
    images = photos(2, 139)
    expected = keras.ops.convert_to_numpy(model(((images - 128.0) / 128).astype(np.float32), training=False))
    np.testing.assert_allclose(run(found.graph, "features", images), expected.mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)
    added = add_backbone(
        "inception_v3_mixed8",
        found.graph,
        tmp_path,
        input_spec=found.input_spec,
        cuts=found.cuts,
        classes=found.classes,
        origin="keras",
    )
    assert {cut.name: cut.shape for cut in added.cuts}["mixed7"] == (768, 7, 7)
    assert added.cut_shape == (1280,)
    operators = [node.op_type for node in found.graph.graph.node]
    assert (operators.count("Conv"), operators.count("BatchNormalization"), operators.count("Transpose")) == (76, 76, 1)


def fill_inception(model: keras.Model, folder: Path) -> None:
    """As ../shared/README.md says; layers in the order in which Keras makes them, which their numbers tell."""
    weights = np.load(folder / "inception_v3_to_mixed8_float16.npz")
    names = [line.split("\t")[1] for line in (folder / "keras_order.txt").read_text().splitlines()]

    def numbered(kind: type) -> list[keras.Layer]:
        layers = [layer for layer in model.layers if isinstance(layer, kind)]
        return sorted(layers, key=lambda layer: int(re.findall(r"\d*$", f"0{layer.name}")[0] or 0))

    convolutions, norms = numbered(keras.layers.Conv2D), numbered(keras.layers.BatchNormalization)
    for name, convolution, norm in zip(names, convolutions, norms, strict=False):
        bias = weights[f"{name}/bias"].astype(np.float32)
        convolution.set_weights([weights[f"{name}/kernel"].astype(np.float32)])
        norm.set_weights([bias, np.zeros_like(bias), np.full_like(bias, 1 - norm.epsilon)])


@pytest.mark.parametrize(
    ("application", "name"),
    [
        ("InceptionV3", "tf"),
        ("ResNet50V2", "tf"),
        ("MobileNetV2", "tf"),
        ("ResNet50", "caffe"),
        ("VGG16", "caffe"),
        ("DenseNet121", "torch"),
        ("EfficientNetB0", "none"),
        ("EfficientNetV2B0", "none"),
        ("MobileNetV3Large", "none"),
        ("ConvNeXtTiny", "none"),
    ],
)
def test_the_preprocessing_of_each_family(application: str, name: str) -> None:
    function = getattr(keras.applications, application)
    assert keras_models._preprocessing_of(function) == PREPROCESSINGS[name]
    images = photos(1, 8)
    own = sys.modules[function.__module__].preprocess_input(images.astype(np.float32))
    np.testing.assert_allclose(PREPROCESSINGS[name].apply(images), own, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("InceptionV3", "inception_v3"),
        ("MobileNet", "mobilenet"),
        ("MobileNetV2", "mobilenet_v2"),
        ("MobileNetV3Small", "mobilenet_v3_small"),
        ("EfficientNetB0", "efficientnet_b0"),
        ("EfficientNetV2B0", "efficientnet_v2b0"),
        ("EfficientNetV2S", "efficientnet_v2s"),
        ("ResNet50", "resnet50"),
        ("ResNet152V2", "resnet152_v2"),
        ("InceptionResNetV2", "inception_resnet_v2"),
        ("DenseNet121", "densenet121"),
        ("VGG16", "vgg16"),
        ("NASNetMobile", "nasnet_mobile"),
        ("ConvNeXtXLarge", "convnext_xlarge"),
        ("Xception", "xception"),
    ],
)
def test_names_in_small_letters(name: str, expected: str) -> None:
    assert snake_case(name) == expected


def test_every_application_has_a_published_accuracy_and_a_name_of_its_own() -> None:
    names = [name for name in dir(keras.applications) if callable(getattr(keras.applications, name))]
    assert len(names) > 30
    assert not [name for name in names if keras_models._published_accuracy(name) is None]
    assert len({snake_case(name) for name in names}) == len(names)


def test_an_unknown_application_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no application 'InceptionV4'; there are: InceptionV3"):
        import_keras("InceptionV4")


def test_what_keras_will_not_build_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackboneError, match="Keras cannot build NASNetMobile: NASNetMobile is not available with the"):
        import_keras("NASNetMobile")
    with pytest.raises(BackboneError, match="Keras cannot build VGG16: When setting `include_top=True`"):
        import_keras("VGG16", size=64)


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise Exception("URL fetch failure on https://example.com/weights.h5: None -- no network")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", no_network)
    with pytest.raises(
        BackboneError, match=r"cannot download the weights of MobileNetV3Small \(URL fetch failure .*\)"
    ):
        import_keras(SMALL, size=96)


@pytest.mark.parametrize("name", ["weights.pth", "none.h5", "folder.h5"])
def test_files_that_hold_no_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / "weights.pth").touch()
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(BackboneError, match=rf"No weights in '.*{name}'; expected a file \*\.weights\.h5, \*\.h5"):
        import_keras(SMALL, weights=tmp_path / name, size=96)


@pytest.mark.parametrize("name", ["damaged.h5", "damaged.weights.h5", "damaged.keras"])
def test_damaged_weights_are_an_error_of_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(BackboneError, match="does not hold the weights of MobileNetV3Small with its classifier"):
        import_keras(SMALL, weights=tmp_path / name, size=96)


def test_weights_from_other_files_are_refused(tmp_path: Path) -> None:
    """HDF5 can name other files as homes of its data in three ways."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = np.zeros(4, np.float32)
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["group/link"] = h5py.ExternalLink("secret.h5", "/data")
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("group/data", (4,), "f4", external=[(tmp_path / "secret.bin", 0, 16)])
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "data", shape=(4,))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
    for name, words in (("link", "group/link"), ("external", "group/data"), ("virtual", "data")):
        with pytest.raises(UnsafeFileError, match=f"takes what is at '{words}' from elsewhere"):
            import_keras(SMALL, weights=tmp_path / f"{name}.h5", size=96)


def test_keras_own_file_is_not_loaded_without_its_own_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "efficientnetb0.h5").write_bytes(b"official")
    module = sys.modules[keras.applications.EfficientNetB0.__module__]
    monkeypatch.setattr(module, "WEIGHTS_HASHES", {"b0": ("0", "6ac6cbf7f3a0bd8bb7a8d0b2bcf6ac6a")})
    with pytest.raises(BackboneError, match="does not hold the weights of EfficientNetB0"):
        import_keras("EfficientNetB0", weights=tmp_path / "efficientnetb0.h5", size=64)
    import hashlib

    digest = hashlib.md5(b"official").hexdigest()
    monkeypatch.setattr(module, "WEIGHTS_HASHES", {"b0": ("0", digest)})
    with pytest.raises(BackboneError, match="is Keras' own file for EfficientNetB0"):
        import_keras("EfficientNetB0", weights=tmp_path / "efficientnetb0.h5", size=64)


def test_models_that_do_not_take_square_images() -> None:
    taken = keras.Input((8, 16, 3))
    model = keras.Model(taken, keras.layers.GlobalAveragePooling2D()(taken))
    with pytest.raises(BackboneError, match=r"takes \(None, 8, 16, 3\); expected \(None, size, size, 3\)"):
        import_keras_model(model, preprocessing=PREPROCESSINGS["none"])


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ("sys.modules['keras'] = None", "MissingExtraError", f"install them: {installation_of('keras')}"),
        (
            "sys.modules['keras'] = types.SimpleNamespace(backend=types.SimpleNamespace(backend=lambda: 'jax'))",
            "BackboneError",
            "Keras runs on jax; set the environment variable KERAS_BACKEND to torch",
        ),
    ],
)
def test_a_keras_that_will_not_do_is_explained(code: str, error: str, words: str) -> None:
    program = f"""
import sys, types
{code}
from quickstudy.errors import {error}
from quickstudy.backbones.sources.keras_models import import_keras
try:
    import_keras("VGG16")
except {error} as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert words in done.stdout, done.stderr
