"""Preprocessing: by name, in words, and in the graph, always the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from small_networks import photos, run

from quickstudy.backbones.graphs.cleaning import ImageInput
from quickstudy.backbones.graphs.preprocessing import PREPROCESSINGS, Preprocessing, choose_preprocessing, put_before
from quickstudy.errors import OptionError


@pytest.mark.parametrize(
    ("name", "byte", "expected"),
    [
        ("tf", (0, 51, 255), (-1, -0.6, 1)),
        ("torch", (0, 51, 255), ((0 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225)),
        ("caffe", (0, 51, 255), (255 - 103.939, 51 - 116.779, 0 - 123.68)),
        ("none", (0, 51, 255), (0, 51, 255)),
    ],
)
def test_usual_preprocessings_by_hand(
    name: str, byte: tuple[int, int, int], expected: tuple[float, float, float]
) -> None:
    found = PREPROCESSINGS[name].apply(np.array([[[byte]]], np.uint8))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-6)


numbers = st.floats(-300, 300, width=32)


@given(
    low=st.floats(-10, 10),
    span=st.floats(0.5, 300),
    mean=st.tuples(numbers, numbers, numbers) | st.tuples(numbers),
    std=st.tuples(*[st.floats(0.1, 300)] * 3) | st.tuples(st.floats(0.1, 300)),
    bgr=st.booleans(),
    layout=st.sampled_from(["NCHW", "NHWC"]),
)
def test_the_graph_does_what_the_numbers_say(
    low: float, span: float, mean: tuple[float, ...], std: tuple[float, ...], bgr: bool, layout: str
) -> None:
    chosen = Preprocessing(low=low, high=low + span, mean=mean, std=std, bgr=bgr)
    images = photos(2, 4)
    given = run(in_front(layout, chosen), "out", images)
    given = given.transpose(0, 2, 3, 1) if layout == "NCHW" else given
    channels = images[..., ::-1] if bgr else images
    expected = (low + channels / 255 * span - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(chosen.apply(images), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def in_front(layout: str, chosen: Preprocessing, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A graph that gives what it takes, with the preprocessing before it."""
    shape = ["N", 3, 4, 4] if layout == "NCHW" else ["N", 4, 4, 3]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["out"])],
        "net",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("out", kind, shape)],
    )
    image = ImageInput(name="x", layout=layout, size=4, as_bytes=kind == TensorProto.UINT8, batch=None)
    put_before(graph, image, chosen)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_bytes_stay_bytes(layout: str) -> None:
    images = photos(2, 4)
    given = run(in_front(layout, Preprocessing(), TensorProto.UINT8), "out", images)
    np.testing.assert_array_equal(given, images.transpose(0, 3, 1, 2) if layout == "NCHW" else images)


def test_words_for_it() -> None:
    assert choose_preprocessing() is None
    assert choose_preprocessing("caffe") == PREPROCESSINGS["caffe"]
    assert choose_preprocessing(value_range="-1..1") == PREPROCESSINGS["tf"]
    said = choose_preprocessing(value_range="0..1", mean="0.485,0.456,0.406", std="0.229,0.224,0.225")
    assert said == PREPROCESSINGS["torch"]
    assert choose_preprocessing(mean="128", std="128") == Preprocessing(mean=(128,), std=(128,))
    assert str(PREPROCESSINGS["tf"]) == "-1 to 1, RGB"
    assert str(PREPROCESSINGS["caffe"]) == "0 to 255, mean 103.939 116.779 123.68, BGR"
    assert str(Preprocessing(mean=(127,), std=(128,))) == "0 to 255, mean 127, standard deviation 128, RGB"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "tensorflow"}, "Unknown preprocessing 'tensorflow'; there are: tf: -1 to 1, RGB; torch: "),
        ({"name": "tf", "mean": "5"}, "--preprocessing tf says range, mean and standard deviation"),
        ({"value_range": "0-1"}, "--range is '0-1'; expected what 0 and 255 become"),
        ({"value_range": "1..0"}, "--range is '1..0'"),
        ({"value_range": "0..nan"}, "--range is '0..nan'"),
        ({"value_range": "0..inf"}, "--range is '0..inf'"),
        ({"value_range": "0..1..2"}, "--range is '0..1..2'"),
        ({"mean": "grey"}, "--mean is 'grey'; expected a number, or three"),
        ({"mean": "1,2"}, "--mean is '1,2'"),
        ({"std": "nan"}, "--std is 'nan'"),
        ({"std": "1,0,1"}, "--std 1,0,1 divides by zero"),
    ],
)
def test_words_that_cannot_be_read(options: dict[str, str], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        choose_preprocessing(options.pop("name", None), **options)
