"""Very many rows are kept in steps of 16 bits, read from the store shard by shard: what that changes, and what not."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quickstudy.bottlenecks.shards import SourceSpec
from quickstudy.bottlenecks.store import KeptRows, Source
from quickstudy.errors import HeadError
from quickstudy.learning import spaces
from quickstudy.learning.features import Features, prepare_features, signed_sqrt
from quickstudy.learning.ridge import leave_one_out
from quickstudy.learning.softmax import fit_softmax

SPEC = SourceSpec(backbone="small", fingerprint="f" * 64, cut="features", input={"size": 8}, shape=(40,))


def drawn(n: int, seed: int = 3) -> tuple[NDArray[np.float16], NDArray[np.intp]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    values = rng.standard_normal((n, 40)) * rng.uniform(0.2, 4, 40) + rng.standard_normal((3, 40))[labels]
    return np.maximum(values, -0.5).astype(np.float16), labels


def stored(folder: Path, values: NDArray[np.float16], cuts: list[int]) -> tuple[Source, list[bytes]]:
    source = Source(folder, SPEC)
    keys = [bytes([7]) * 24 + row.to_bytes(8, "big") for row in range(len(values))]
    for first, last in zip([0, *cuts], [*cuts, len(values)], strict=True):
        source.append(keys[first:last], values[first:last])
    return source, keys


def in_steps(values: NDArray[np.floating] | KeptRows, **options: object) -> Features:
    return prepare_features(values, most=0, **options)  # type: ignore[arg-type]


def test_each_value_is_within_half_a_step_of_what_it_was() -> None:
    values, _ = drawn(700)
    order = np.random.default_rng(0).permutation(700)
    exact, rounded = prepare_features(values, order, widths=[10, 30]), in_steps(values, order=order, widths=[10, 30])
    assert rounded.stored.dtype == np.int16
    assert rounded.steps is not None
    np.testing.assert_allclose(rounded.mean, exact.mean, atol=1e-4)
    np.testing.assert_allclose(rounded.scale, exact.scale, rtol=1e-4)
    off = np.abs(rounded.values - exact.values) * exact.scale
    assert (off <= 0.51 * rounded.steps[0] * rounded.scale + 2e-4).all()
    np.testing.assert_array_equal(rounded.rows(np.array([5, 2]))[:, -1], 1)
    np.testing.assert_array_equal(rounded.take(np.array([5, 2])).values, rounded.values[[5, 2]])
    assert rounded.rows(slice(3), np.float64).dtype == np.float64


def test_however_the_store_is_cut_the_features_are_the_same_to_the_bit(tmp_path: Path) -> None:
    values, _ = drawn(1500)
    order = np.random.default_rng(0).permutation(1500)
    found = []
    for number, cuts in enumerate(([], [1], [600, 601, 1499])):
        source, keys = stored(tmp_path / str(number), values, cuts)
        found.append(in_steps(source.rows(keys), order=order))
    found.append(in_steps(values, order=order))
    for other in found[1:]:
        np.testing.assert_array_equal(other.stored, found[0].stored)
        np.testing.assert_array_equal(other.mean, found[0].mean)
        np.testing.assert_array_equal(other.scale, found[0].scale)


def test_rows_come_in_any_order_also_narrower_and_after_a_merge(tmp_path: Path) -> None:
    values, _ = drawn(1300)
    source, keys = stored(tmp_path, values, list(range(100, 1300, 100)))
    chosen = np.random.default_rng(1).permutation(1300)[:900]
    rows = source.rows([keys[row] for row in chosen])
    assert rows.shape == (900, 40)
    assert Source(tmp_path, SPEC).compact() == 13
    for part, width in ((rows, 40), (rows.first(7), 7)):
        assert part.shape == (900, width)
        found = np.full((900, width), np.nan, np.float16)
        for piece, numbers in enumerate(part.pieces()):
            found[numbers] = part.read(piece)
        np.testing.assert_array_equal(found, values[chosen, :width])
        np.testing.assert_array_equal(part.all(), values[chosen, :width])


def test_a_head_is_the_same_but_for_rounding() -> None:
    values, labels = drawn(3000)
    weights = np.full((3000, 1), 1 / 3000, np.float32)
    probabilities = []
    for features in (prepare_features(values), in_steps(values)):
        fit = fit_softmax(features, labels, weights, classes=3, l2=0.01, precision=1e-4)
        assert fit.gap < 1e-6
        raised = np.exp(fit.logits[:, 0])
        probabilities.append(raised / raised.sum(axis=1, keepdims=True))
    assert np.abs(probabilities[0] - probabilities[1]).max() < 1e-4


def test_leaving_one_out_is_the_same_but_for_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = drawn(5000)
    expected = leave_one_out(values, labels, classes=3)
    source, keys = stored(tmp_path, values, [1234])
    found = leave_one_out(source.rows(keys), labels, classes=3)
    np.testing.assert_array_equal(found.predicted, expected.predicted)
    assert found.best.squared_error == pytest.approx(expected.best.squared_error, rel=1e-9)


def test_very_many_rows_in_the_main_directions_are_in_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    values, _ = drawn(900)
    exact, back = spaces.in_main_space(prepare_features(values), 12)
    monkeypatch.setattr(spaces, "MOST_AS_NUMBERS", 0)
    rounded, _ = spaces.in_main_space(in_steps(values), 12)
    assert rounded.stored.dtype == np.int16
    assert np.abs(rounded.values - exact.values).max() < 0.01
    np.testing.assert_array_equal(rounded.rows(slice(None))[:, -1], 1)
    assert back(np.eye(12, dtype=np.float32)).shape == (40, 12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    values, _ = drawn(50)
    values[3, 5] = value
    with pytest.raises(HeadError, match="not finite"):
        in_steps(values)


def test_the_roots_of_halves_are_those_of_numbers() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    np.testing.assert_array_equal(signed_sqrt(finite), signed_sqrt(finite.astype(np.float32)))
    np.testing.assert_array_equal(
        signed_sqrt(finite.reshape(2, -1)[:, ::3]), signed_sqrt(finite).reshape(2, -1)[:, ::3]
    )
