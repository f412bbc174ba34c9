"""Models by name, and what happens when their files change under a server."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from quickstudy.errors import ModelError, OptionError
from quickstudy.models.format import sealed
from quickstudy.serving.metrics import Metrics
from quickstudy.serving.registry import Registry, parse_models
from small_models import write_small_model


@pytest.fixture
def registry(model_file: Path) -> Registry:
    return Registry({"photos": model_file}, Metrics())


def replace(target: Path, source: Path) -> None:
    shutil.copy(source, target.with_suffix(".new"))
    target.with_suffix(".new").replace(target)


def look_twice(registry: Registry) -> None:
    """A change is taken up once two looks in a row have seen the same file."""
    registry.refresh()
    registry.refresh()


def spoil(model: Path) -> None:
    """Change one weight of the head and seal the file again, so that it loads and computes something else."""
    proto = onnx.load(model)
    [weights] = [tensor for tensor in proto.graph.initializer if tensor.name == "head/weights"]
    values = onnx.numpy_helper.to_array(weights) + 0.1 * (onnx.numpy_helper.to_array(weights) > 0)
    weights.CopyFrom(onnx.numpy_helper.from_array(values.astype("float32"), "head/weights"))
    model.with_suffix(".new").write_bytes(sealed(proto))
    model.with_suffix(".new").replace(model)


def test_an_unchanged_file_is_left_alone(registry: Registry) -> None:
    before = registry.default.version
    look_twice(registry)
    assert registry.default.version is before


def test_a_new_file_is_taken_up(registry: Registry, model_file: Path, trained: Path) -> None:
    before = registry.default.version
    replace(model_file, trained / "two.onnx")
    registry.refresh()
    assert registry.default.version is before  # it might still be written
    registry.refresh()
    assert registry.default.version.model.classes == ("checks", "discs")
    assert registry.default.version.neighbours is None  # those that lie there are another model's
    assert registry.default.problem is None
    assert before.model.classes == ("checks", "discs", "stripes")


def test_thumbnails_that_come_later_are_taken_up(registry: Registry, model_file: Path) -> None:
    thumbnails = model_file.with_suffix(".neighbours.arrow")
    assert registry.default.version.neighbours is not None
    thumbnails.rename(thumbnails.with_suffix(".away"))
    look_twice(registry)
    assert registry.default.version.neighbours is None
    thumbnails.with_suffix(".away").rename(thumbnails)
    look_twice(registry)
    assert registry.default.version.neighbours is not None


@pytest.mark.parametrize("kind", ["random bytes", "half of it", "another weight", "gone", "a folder", "empty"])
def test_a_broken_new_file_keeps_the_old_model_and_says_so(
    registry: Registry, model_file: Path, trained: Path, kind: str
) -> None:
    before = registry.default.version
    if kind == "another weight":
        spoil(model_file)
    elif kind == "gone":
        model_file.unlink()
    elif kind == "a folder":
        model_file.unlink()
        model_file.mkdir()
    else:
        data = {"random bytes": bytes(range(256)) * 40, "half of it": model_file.read_bytes()[:7_000_000], "empty": b""}
        model_file.write_bytes(data[kind])
    look_twice(registry)
    assert registry.default.version is before
    assert registry.default.problem
    assert registry.default.describe()["problem"] == registry.default.problem
    if kind == "another weight":
        assert "golden checks" in registry.default.problem
    look_twice(registry)
    assert registry.default.version is before

    if kind == "a folder":
        model_file.rmdir()
    replace(model_file, trained / "two.onnx")
    look_twice(registry)
    assert registry.default.problem is None
    assert registry.default.version.model.classes == ("checks", "discs")


def test_a_file_that_is_still_being_written_is_waited_for(registry: Registry, model_file: Path, trained: Path) -> None:
    data = (trained / "two.onnx").read_bytes()
    for end in range(1_000_000, len(data), 3_000_000):
        model_file.write_bytes(data[:end])
        registry.refresh()
        assert registry.default.problem is None
    model_file.write_bytes(data)
    look_twice(registry)
    assert registry.default.version.model.classes == ("checks", "discs")


def test_metrics_tell_of_reloads_and_problems(model_file: Path, trained: Path) -> None:
    metrics = Metrics()
    registry = Registry({"photos": model_file}, metrics)
    model_file.write_bytes(b"broken")
    look_twice(registry)
    assert b'quickstudy_reloads_total{model="photos",result="refused"} 1.0' in metrics.render()
    assert b'quickstudy_model_problem{model="photos"} 1.0' in metrics.render()
    replace(model_file, trained / "two.onnx")
    look_twice(registry)
    assert b'quickstudy_reloads_total{model="photos",result="reloaded"} 1.0' in metrics.render()
    assert b'quickstudy_model_problem{model="photos"} 0.0' in metrics.render()


def test_metrics_tell_of_drift_once_a_new_file_tells_strangeness(wary: Path, tmp_path: Path) -> None:
    metrics, told = Metrics(), b'quickstudy_drift_evidence{model="m"} '
    registry = Registry({"m": write_small_model(tmp_path / "m.onnx")}, metrics)
    assert told not in metrics.render()
    replace(tmp_path / "m.onnx", wary)
    look_twice(registry)
    assert registry.default.version.watch is not None
    assert told in metrics.render()


def test_a_model_that_fails_its_checks_is_not_served_at_all(model_file: Path) -> None:
    spoil(model_file)
    with pytest.raises(ModelError, match="golden checks"):
        Registry({"photos": model_file}, Metrics())


def test_damaged_thumbnails_are_no_reason_to_guess(model_file: Path) -> None:
    model_file.with_suffix(".neighbours.arrow").write_bytes(b"ARROW1\0\0 and nonsense")
    with pytest.raises(ModelError, match="thumbnails"):
        Registry({"photos": model_file}, Metrics())


class TestNames:
    def test_come_from_the_file_or_the_user(self, tmp_path: Path) -> None:
        assert parse_models(["a/photos.onnx", "x=b/photos.onnx"]) == {
            "photos": Path("a/photos.onnx"),
            "x": Path("b/photos.onnx"),
        }
        odd = tmp_path / "a=b.onnx"
        odd.touch()
        assert parse_models([str(odd)]) == {"a=b": odd}
        assert parse_models(["Mes photos d'été.onnx"]) == {"Mes photos d'été": Path("Mes photos d'été.onnx")}
        assert parse_models([f"fine={odd}"]) == {"fine": odd}

    @pytest.mark.parametrize(
        "argument", ["=x.onnx", "../x=y.onnx", "a/b=y.onnx", "a\\b=y.onnx", ".onnx", f"{'a' * 101}=x.onnx"]
    )
    def test_that_cannot_be_part_of_an_address_are_refused(self, argument: str) -> None:
        with pytest.raises(OptionError, match="cannot be a model's name"):
            parse_models([argument])

    def test_need_a_file(self) -> None:
        with pytest.raises(OptionError, match="'photos=' names no file; expected NAME=FILE"):
            parse_models(["photos="])

    def test_must_differ(self) -> None:
        with pytest.raises(OptionError, match="Two models are called 'photos'"):
            parse_models(["a/photos.onnx", "b/photos.onnx"])
