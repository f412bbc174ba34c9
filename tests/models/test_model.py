"""The one-file model: what is written, what any ONNX runtime makes of it, what is refused, and how it is used."""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import quickstudy
from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.named import Prefix
from quickstudy.backbones.graphs.cutting import keep_until
from quickstudy.errors import ModelError, OptionError, UnusableImageError, WriteError
from quickstudy.images.decoding import InputSpec, decode, to_input
from quickstudy.models.assemble import LinearHead, fingerprint_of, write_model
from quickstudy.models.format import golden_images, sealed
from quickstudy.models.loading import from_backbone, load
from quickstudy.models.model import Model
from small_backbones import small_graph
from small_models import write_small_model

CLASSES = ("Äpfel", "location", 'qu"ote', "zebra")
TRAINING = {"data_fingerprint": "ab" * 32, "test": {"accuracy": 0.5, "n": 10}, "views": 0}


@pytest.fixture(scope="module")
def head(backbone: Backbone) -> LinearHead:
    rng = np.random.Generator(np.random.PCG64(0))
    weights = rng.normal(0, 0.05, (backbone.cut_shape[0], len(CLASSES)))
    return LinearHead(weights=weights.astype(np.float32), biases=rng.normal(size=len(CLASSES)).astype(np.float32))


@pytest.fixture(scope="module")
def path(backbone: Backbone, head: LinearHead, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    write_model(path, backbone, head, classes=CLASSES, training=TRAINING)
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return load(path)


@pytest.fixture
def files(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.jpg"))[::5]


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


class TestTheFile:
    def test_gives_the_same_in_bare_onnx_runtime(self, path: Path, model: Model, tmp_path: Path) -> None:
        """With nothing but ONNX Runtime, NumPy and Pillow, on an image of the input's size, which needs no resizing."""
        size = model.input.size
        y, x = np.mgrid[:size, :size]
        picture = np.stack([x % 256, y % 256, (x * y) % 256], axis=2).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "picture.png")
        pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))[None]
        [probabilities] = session_of(path).run(None, {"image": pixels})
        np.testing.assert_allclose(probabilities, model.predict_proba(tmp_path / "picture.png"), atol=1e-6)

    def test_gives_the_same_on_photos_decoded_and_cut_as_in_training(
        self, path: Path, model: Model, files: list[Path]
    ) -> None:
        pixels = np.stack([to_input(decode(file.read_bytes(), model.input), model.input) for file in files])
        [probabilities] = session_of(path).run(["probabilities"], {"image": pixels})
        np.testing.assert_allclose(probabilities, model.predict_proba(files), atol=1e-6)

    def test_is_the_head_on_signed_roots_of_the_backbones_bottlenecks(
        self, model: Model, backbone: Backbone, head: LinearHead, files: list[Path]
    ) -> None:
        prefix = Prefix(backbone, backbone.cut, backbone.cut_shape)
        pixels = [to_input(decode(file.read_bytes(), model.input), model.input) for file in files]
        bottlenecks = np.concatenate([prefix(image[None]) for image in pixels]).astype(float)
        roots = np.sign(bottlenecks) * np.sqrt(np.abs(bottlenecks))
        expected = softmax(roots @ head.weights.astype(float) + head.biases)
        np.testing.assert_allclose(model.predict_proba(files), expected, atol=1e-6)

    @pytest.mark.parametrize("count", [1, 5])
    def test_takes_batches_of_uint8_rgb_and_gives_float_probabilities(self, path: Path, count: int) -> None:
        session = session_of(path)
        [taken], [given] = session.get_inputs(), session.get_outputs()
        size = taken.shape[1]
        assert (taken.name, taken.type, taken.shape[1:]) == ("image", "tensor(uint8)", [size, size, 3])
        assert (given.name, given.type, given.shape[1:]) == ("probabilities", "tensor(float)", [len(CLASSES)])
        images = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (count, size, size, 3), np.uint8)
        [probabilities] = session.run(None, {"image": images})
        assert probabilities.shape == (count, len(CLASSES))
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
        for row, image in zip(probabilities, images, strict=True):
            np.testing.assert_allclose(session.run(None, {"image": image[None]})[0][0], row, atol=1e-6)

    def test_is_valid_onnx_of_standard_operators(self, path: Path) -> None:
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
        assert {node.domain for node in proto.graph.node} == {""}

    def test_says_all_about_itself(self, path: Path, backbone: Backbone) -> None:
        properties = session_of(path).get_modelmeta().custom_metadata_map
        values = {name.removeprefix("quickstudy."): json.loads(value) for name, value in properties.items()}
        assert all(name.startswith("quickstudy.") for name in properties)
        assert values["format"] == 3
        assert values["classes"] == list(CLASSES)
        assert values["input"] == backbone.input.to_dict()
        assert values["backbone"] == {
            "name": backbone.name,
            "fingerprint": backbone.fingerprint,
            "cut": backbone.cut,
            "prefix_sha256": fingerprint_of(keep_until(onnx.load(path), backbone.cut, backbone.cut_shape)),
        }
        assert values["training"] == TRAINING
        assert values["versions"]["quickstudy"] == quickstudy.__version__
        assert set(values["versions"]) == {"quickstudy", "onnx", "onnxruntime", "numpy", "pillow", "simplejpeg"}
        golden = np.array(values["golden"]["probabilities"])
        assert golden.shape == (3, len(CLASSES))
        np.testing.assert_allclose(golden.sum(axis=1), 1, atol=1e-6)

    def test_is_the_same_to_the_byte_when_written_again(
        self, path: Path, backbone: Backbone, head: LinearHead, tmp_path: Path
    ) -> None:
        write_model(tmp_path / "again.onnx", backbone, head, classes=CLASSES, training=TRAINING)
        assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()

    def test_takes_the_place_of_an_older_one(self, backbone: Backbone, head: LinearHead, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(b"older")
        write_model(tmp_path / "model.onnx", backbone, head, classes=CLASSES, training={})
        assert load(tmp_path / "model.onnx").classes == CLASSES
        assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]

    def test_is_not_written_where_there_is_no_folder_for_it(
        self, backbone: Backbone, head: LinearHead, tmp_path: Path
    ) -> None:
        (tmp_path / "occupied").write_text("")
        with pytest.raises(WriteError, match=r"Cannot write the model '.*model.onnx': .*--output"):
            write_model(tmp_path / "occupied" / "model.onnx", backbone, head, classes=CLASSES, training={})

    def test_is_not_written_when_it_does_not_give_what_its_parts_give(
        self, backbone: Backbone, head: LinearHead, tmp_path: Path
    ) -> None:
        broken = LinearHead(weights=head.weights * np.float32(np.nan), biases=head.biases)
        with pytest.raises(ModelError, match="differs from its parts by nan; it was not written"):
            write_model(tmp_path / "model.onnx", backbone, broken, classes=CLASSES, training={})
        assert list(tmp_path.iterdir()) == []


class TestVerify:
    def test_passes_on_what_was_written(self, model: Model) -> None:
        assert model.verify() < 1e-5

    @pytest.mark.parametrize("name", ["head/weights", "head/biases", "_conv_head.weight", "_bn0.running_mean"])
    def test_fails_when_weights_were_tampered_with(self, path: Path, tmp_path: Path, name: str) -> None:
        def change(proto: onnx.ModelProto) -> None:
            [tensor] = [tensor for tensor in proto.graph.initializer if tensor.name == name]
            values = numpy_helper.to_array(tensor).copy()
            values.flat[::3] += 0.3
            tensor.CopyFrom(numpy_helper.from_array(values, name))

        with pytest.raises(ModelError, match="fails its golden checks: a probability differs by"):
            load(altered(path, tmp_path, change)).verify()

    @pytest.mark.parametrize("value", [None, "{}", '{"probabilities": "none"}', "[]"])
    def test_fails_without_golden_checks(self, path: Path, tmp_path: Path, value: str | None) -> None:
        with pytest.raises(ModelError, match="has no golden checks"):
            load(altered(path, tmp_path, lambda proto: set_property(proto, "golden", value))).verify()

    def test_fails_on_golden_checks_of_another_shape(self, path: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"of shape \(2, 2\); the model gives \(3, 4\)"):
            load(
                altered(
                    path, tmp_path, lambda proto: set_property(proto, "golden", '{"probabilities": [[1, 0], [0, 1]]}')
                )
            ).verify()

    def test_a_backbone_as_it_stands_has_no_golden_checks(self, backbone: Backbone) -> None:
        model = from_backbone(backbone)
        assert len(model.classes) == 1000
        assert model.predict_proba(np.zeros((50, 50, 3), np.uint8)).shape == (1, 1000)
        with pytest.raises(ModelError, match="has no golden checks"):
            model.verify()


def altered(path: Path, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of the model with a change to its protocol buffer, sealed again as by somebody who knows how."""
    proto = onnx.load(path)
    change(proto)
    copy = folder / "altered.onnx"
    copy.write_bytes(sealed(proto))
    return copy


def set_property(proto: onnx.ModelProto, name: str, value: str | None) -> None:
    kept = {entry.key: entry.value for entry in proto.metadata_props if entry.key != f"quickstudy.{name}"}
    helper.set_model_props(proto, kept if value is None else {**kept, f"quickstudy.{name}": value})


class TestLoad:
    def test_names_a_missing_file_and_how_to_make_one(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"No such model: '.*'; make one with: quickstudy retrain"):
            load(tmp_path / "none.onnx")
        with pytest.raises(ModelError, match="is a folder, no model"):
            load(tmp_path)

    @pytest.mark.parametrize(
        "data", [b"", b"\x00", b"not a model at all", bytes(range(256)) * 99, b"\x08\x08\x12\x00"], ids=len
    )
    def test_refuses_what_is_no_model(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "bad.onnx").write_bytes(data)
        with pytest.raises(ModelError, match=r"bad\.onnx' is (not )?an ONNX"):
            load(tmp_path / "bad.onnx")

    @pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999, 0.9999999])
    def test_refuses_a_truncated_model(self, path: Path, tmp_path: Path, share: float) -> None:
        data = path.read_bytes()
        (tmp_path / "cut.onnx").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ModelError, match=r"cut\.onnx' is (not )?an ONNX"):
            load(tmp_path / "cut.onnx")

    def test_refuses_an_onnx_file_of_other_making(self, backbone: Backbone) -> None:
        with pytest.raises(ModelError, match="is an ONNX file, but not a model that quickstudy wrote"):
            load(backbone.path)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("format", None),
            ("format", "4"),
            ("format", "nonsense"),
            ("classes", None),
            ("classes", '["a", "b"]'),
            ("classes", "7"),
            ("roles", "7"),
            ("roles", '{"train": "AAAA", "validation": "", "test": ""}'),
            ("input", None),
            ("input", '{"size": 96, "crop": 1.0, "resize": "reduce-bilinear-1"}'),
            ("input", '{"size": 288, "crop": 1.0, "resize": "of the future"}'),
            ("input", '"square"'),
        ],
    )
    def test_refuses_metadata_that_do_not_fit(self, path: Path, tmp_path: Path, name: str, value: str | None) -> None:
        with pytest.raises(ModelError, match="not a model that quickstudy wrote"):
            load(altered(path, tmp_path, lambda proto: set_property(proto, name, value)))

    def test_refuses_another_input_or_output(self, path: Path, tmp_path: Path) -> None:
        def rename_input(proto: onnx.ModelProto) -> None:
            proto.graph.input[0].name = "picture"
            for node in proto.graph.node:
                node.input[:] = ["picture" if name == "image" else name for name in node.input]

        def take_floats(proto: onnx.ModelProto) -> None:
            proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT

        def give_logits(proto: onnx.ModelProto) -> None:
            proto.graph.output.insert(0, helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4]))

        for change, complaint in (
            (rename_input, "its input is not 'image' in uint8"),
            (take_floats, "its input is not 'image' in uint8"),
            (give_logits, "its output is not 'probabilities' of its classes"),
        ):
            with pytest.raises(ModelError, match=complaint):
                load(altered(path, tmp_path, change))

    @pytest.mark.parametrize("place", ["beside", "below", "above", "absolute"])
    @pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph"])
    def test_follows_no_path_to_data_outside_the_file(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, where: str
    ) -> None:
        """ONNX Runtime would read them: from bytes, it takes paths as starting in the working folder."""
        work = tmp_path / "work"
        (work / "below").mkdir(parents=True)
        location = {
            "beside": "data.bin",
            "below": "below/../data.bin",
            "above": "../data.bin",
            "absolute": str(work / "data.bin"),
        }[place]
        bias = np.zeros(len(CLASSES), np.float32)
        for folder in (work, tmp_path):
            (folder / "data.bin").write_bytes(bias.tobytes())
        outside = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=bias.shape)
        outside.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": "0", "length": str(bias.nbytes)}.items():
            outside.external_data.add(key=key, value=value)

        def refer(proto: onnx.ModelProto) -> None:
            if where == "initializer":
                [tensor] = [tensor for tensor in proto.graph.initializer if tensor.name == "head/biases"]
                outside.name = tensor.name
                tensor.CopyFrom(outside)
            elif where == "attribute":
                proto.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=outside))
            else:
                value = helper.make_tensor_value_info("unused", TensorProto.FLOAT, bias.shape)
                branch = helper.make_graph(
                    [helper.make_node("Constant", [], ["unused"], value=outside)], "b", [], [value]
                )
                proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
                node = helper.make_node("If", ["always"], ["unused2"], then_branch=branch, else_branch=branch)
                proto.graph.node.insert(0, node)

        altered(path, work, refer)
        monkeypatch.chdir(work)
        with pytest.raises(ModelError, match="it refers to data in other files, which are not read"):
            load(work / "altered.onnx")


class TestPredict:
    def test_keeps_the_order_of_the_images(self, model: Model, files: list[Path]) -> None:
        forth, back = model.predict_proba(files), model.predict_proba(files[::-1])
        np.testing.assert_array_equal(forth, back[::-1])
        assert model.predict(files) == [CLASSES[row.argmax()] for row in forth]
        assert [prediction.image for prediction in model.predict_each(files, threads=3)] == files

    def test_takes_one_image_or_several(self, model: Model, files: list[Path]) -> None:
        one = model.predict_proba(files[0])
        assert one.shape == (1, len(CLASSES))
        assert one.dtype == np.float32
        for several in ([files[0]], (files[0],), iter([files[0]]), {files[0]: 1}):
            np.testing.assert_array_equal(model.predict_proba(several), one)
        np.testing.assert_array_equal(model.predict_proba(str(files[0])), one)
        assert model.predict(files[0]) == model.predict([files[0]])

    def test_gives_nothing_for_no_images(self, model: Model) -> None:
        assert model.predict_proba([]).shape == (0, len(CLASSES))
        assert model.predict([]) == []
        assert list(model.predict_each([])) == []

    def test_a_bad_file_in_the_middle_is_named_and_ends_nothing(
        self, model: Model, files: list[Path], tmp_path: Path
    ) -> None:
        (tmp_path / "bad.jpg").write_bytes(b"<html>not found</html>")
        mixed = [files[0], tmp_path / "bad.jpg", files[1], tmp_path / "gone.jpg", files[2]]
        predictions = list(model.predict_each(mixed))
        assert [prediction.probabilities is None for prediction in predictions] == [False, True, False, True, False]
        assert predictions[1].image == tmp_path / "bad.jpg"
        assert "an HTML page" in predictions[1].reason
        assert "no such file" in predictions[3].reason
        good = np.stack([prediction.probabilities for prediction in predictions[::2]])
        np.testing.assert_array_equal(good, model.predict_proba(files[:3]))
        with pytest.raises(UnusableImageError, match=r"Cannot use '.*bad\.jpg': an HTML page"):
            model.predict_proba(mixed)

    def test_takes_paths_pictures_and_arrays_alike(self, model: Model, files: list[Path], tmp_path: Path) -> None:
        picture = Image.open(files[0]).convert("RGB")
        picture.save(tmp_path / "picture.png")
        expected = model.predict_proba(tmp_path / "picture.png")
        np.testing.assert_array_equal(model.predict_proba(picture), expected)
        np.testing.assert_array_equal(model.predict_proba(np.asarray(picture)), expected)
        np.testing.assert_array_equal(
            model.predict_proba([picture, np.asarray(picture)]), np.repeat(expected, 2, axis=0)
        )

    def test_takes_any_mode_of_picture(self, model: Model, files: list[Path]) -> None:
        picture = Image.open(files[0]).convert("RGB")
        grey, alpha = picture.convert("L"), picture.convert("RGBA")
        np.testing.assert_array_equal(model.predict_proba(grey), model.predict_proba(grey.convert("RGB")))
        np.testing.assert_array_equal(model.predict_proba(np.asarray(grey)), model.predict_proba(grey))
        np.testing.assert_array_equal(model.predict_proba(alpha), model.predict_proba(picture))
        np.testing.assert_array_equal(model.predict_proba(np.asarray(alpha)), model.predict_proba(picture))
        for mode in ("1", "P", "LA", "CMYK", "YCbCr", "HSV", "I", "F"):
            assert np.isfinite(model.predict_proba(picture.convert("L" if mode in "IF" else "RGB").convert(mode))).all()

    def test_turns_pictures_upright_as_it_does_files(self, model: Model, files: list[Path], tmp_path: Path) -> None:
        picture = Image.open(files[0]).convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
        expected = model.predict_proba(picture)
        np.testing.assert_array_equal(model.predict_proba(tmp_path / "turned.png"), expected)
        np.testing.assert_array_equal(model.predict_proba(Image.open(tmp_path / "turned.png")), expected)

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((5, 5, 3), np.uint16),
            np.zeros((5, 5, 2), np.uint8),
            np.zeros((2, 5, 5, 2), np.uint8),
            np.zeros(5, np.uint8),
            np.zeros((0, 5, 3), np.uint8),
            np.zeros((5, 0), np.uint8),
        ],
        ids=lambda array: f"{array.dtype}-{array.shape}",
    )
    def test_says_which_arrays_it_takes(self, model: Model, array: NDArray[Any]) -> None:
        with pytest.raises(UnusableImageError, match=r"an array of .* and shape .*; expected uint8, height×width×3"):
            model.predict_proba(array)

    def test_a_damaged_or_empty_picture_is_an_unusable_image(self, model: Model, files: list[Path]) -> None:
        cut = Image.open(io.BytesIO(files[0].read_bytes()[:4000]))  # Pillow reads no further than the header here
        bad = [cut, Image.new("RGB", (0, 7))]
        first, second = model.predict_each(bad)
        assert "truncated" in first.reason
        assert "0x7 pixels" in second.reason
        with pytest.raises(UnusableImageError, match="Cannot use an image: truncated"):
            model.predict_proba(bad)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2, 3)])
    def test_takes_pictures_of_any_size(self, model: Model, shape: tuple[int, ...]) -> None:
        probabilities = model.predict_proba(np.full(shape, 200, np.uint8))
        np.testing.assert_allclose(probabilities.sum(), 1, atol=1e-5)

    def test_takes_no_more_images_than_it_is_asked_for(self, model: Model) -> None:
        taken = 0

        def endless() -> Any:
            nonlocal taken
            while True:
                taken += 1
                yield np.full((4, 4, 3), taken % 256, np.uint8)

        first = list(itertools.islice(model.predict_each(endless(), threads=1), 10))
        assert len(first) == 10
        assert taken < 20

    def test_is_safe_in_several_threads(self, model: Model, files: list[Path]) -> None:
        expected, before = model.predict_proba(files), set(threading.enumerate())
        with ThreadPoolExecutor(4) as pool:
            for result in pool.map(lambda _: model.predict_proba(files), range(8)):
                np.testing.assert_array_equal(result, expected)
        assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("size", "digest"),
    [
        (8, "c01ab44799a9fdc20376e9c3fa767fb7572b87a4a8aec69cdfc0edfe1074ef08"),
        (224, "369e3bf38f3b5298294b260314f37afecca5fa0e76308118ab6c13608e17ab72"),
        (288, "10d0e37a13aa5ca35a5df0ffb378c7c0b546a244fdcb21ad4c73e296ed825cd3"),
    ],
)
def test_golden_images_never_change(size: int, digest: str) -> None:
    """Every model out there was checked with these."""
    import hashlib

    images = golden_images(InputSpec(size=size))
    assert images.shape == (3, size, size, 3)
    assert images.dtype == np.uint8
    assert hashlib.sha256(images.tobytes()).hexdigest() == digest


def test_no_model_is_written_that_could_not_be_loaded(tmp_path: Path) -> None:
    graph = small_graph(classes=4)
    given = helper.make_tensor("given", TensorProto.FLOAT, [1], [1.0])
    value = helper.make_node("Constant", [], ["one"], value=given)
    body = helper.make_graph([value], "body", [], [helper.make_tensor_value_info("one", TensorProto.FLOAT, [1])])
    graph.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    graph.graph.node.append(helper.make_node("If", ["always"], ["either"], then_branch=body, else_branch=body))
    with pytest.raises(ModelError, match="branches are not allowed"):
        write_small_model(tmp_path / "small.onnx", graph)
    assert not any(tmp_path.iterdir())


def _in_other_processes(model: Model, pixels: NDArray[np.uint8], folder: Path) -> list[Any]:
    import joblib
    from joblib.externals.loky import get_reusable_executor

    joblib.dump(model, folder / "model.joblib")
    remembered = joblib.Memory(folder / "memory", verbose=0).cache(_probabilities)
    found = [
        joblib.load(folder / "model.joblib").predict_proba(pixels),
        remembered(model, pixels),
        remembered(load(folder / "small.onnx"), pixels),  # the same file is the same argument
        *joblib.Parallel(2)([joblib.delayed(_probabilities)(model, pixels)]),
    ]
    get_reusable_executor().shutdown(wait=True)  # its processes would wait for minutes
    return found


def _probabilities(model: Model, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return model.predict_proba(pixels)


def test_a_model_is_its_file_where_it_is_copied_pickled_or_kept(tmp_path: Path) -> None:
    model = load(write_small_model(tmp_path / "small.onnx"))
    pixels = np.random.Generator(np.random.PCG64(2)).integers(0, 256, (3, 40, 40, 3), np.uint8)
    expected = model.predict_proba(pixels)
    copies = [copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for found in [*(one.predict_proba(pixels) for one in copies), *_in_other_processes(model, pixels, tmp_path)]:
        np.testing.assert_array_equal(found, expected)
    assert len(pickle.dumps(model)) < 2 * (tmp_path / "small.onnx").stat().st_size


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_in_place_of_a_session_is_told_the_way_to_load_it(kind: type) -> None:
    with pytest.raises(OptionError, match=r"quickstudy\.load\('photos\.onnx'\)"):
        Model(kind("photos.onnx"))  # type: ignore[call-arg]
