"""The checksum at the end of a model file: any changed bit is noticed, wherever it is, and nothing is run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from quickstudy.errors import ModelError
from quickstudy.models import loading as model_module
from quickstudy.models.format import examine_seal, sealed
from quickstudy.models.loading import load
from small_models import write_small_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("seal") / "small.onnx")


def test_is_the_last_property_and_the_hash_of_all_before_it(path: Path) -> None:
    data, proto = path.read_bytes(), onnx.load(path)
    last = proto.metadata_props[-1]
    assert last.key == "quickstudy.sha256"
    # 0x72, a length; 0x0a, 17 and the key; 0x12, 66 and the value in quotes.
    assert len(last.SerializeToString()) == 2 + 17 + 2 + 66
    body = data[: -(2 + 2 + 17 + 2 + 66)]
    assert json.loads(last.value) == hashlib.sha256(body).hexdigest()
    del proto.metadata_props[-1]
    assert onnx.ModelProto.FromString(body) == proto
    assert examine_seal(data) == "intact"


def test_sealing_again_changes_nothing(path: Path) -> None:
    assert sealed(onnx.load(path)) == path.read_bytes()


def test_every_flipped_bit_of_the_seal_is_noticed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in range(len(data) - 89, len(data)):
        for bit in range(8):
            data[place] ^= 1 << bit
            assert examine_seal(bytes(data)) != "intact"
            data[place] ^= 1 << bit
    assert examine_seal(bytes(data)) == "intact"


def test_a_thousand_flipped_bits_are_refused_and_nothing_is_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("ONNX Runtime was given a damaged graph")

    monkeypatch.setattr(model_module, "open_session", never)
    original = path.read_bytes()
    draws = np.random.Generator(np.random.PCG64(0))
    # Half of them anywhere, half where names, shapes and metadata are: weights are most of a file.
    places = [*draws.integers(0, len(original), 500), *draws.integers(len(original) - 4000, len(original), 500)]
    copy = tmp_path / "flipped.onnx"
    for place, bit in zip(places, draws.integers(0, 8, 1000), strict=True):
        data = bytearray(original)
        data[place] ^= 1 << bit
        copy.write_bytes(data)
        with pytest.raises(ModelError, match=r"flipped\.onnx' (has changed since it was written|is (not )?an ONNX)"):
            load(copy)


def test_says_what_to_do_about_a_changed_file(path: Path, tmp_path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "changed.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=r"has changed since it was written: its checksum does not fit.*copy it anew"):
        load(tmp_path / "changed.onnx")


def test_files_without_one_are_refused_by_name(path: Path, tmp_path: Path) -> None:
    proto = onnx.load(path)
    del proto.metadata_props[-1]
    onnx.save(proto, tmp_path / "unsealed.onnx")
    with pytest.raises(ModelError, match="it does not end with a checksum"):
        load(tmp_path / "unsealed.onnx")
    [entry] = [entry for entry in proto.metadata_props if entry.key == "quickstudy.format"]
    for earlier in ("1", "2"):
        entry.value = earlier
        onnx.save(proto, tmp_path / "earlier.onnx")
        with pytest.raises(ModelError, match=rf"earlier version .*\(format {earlier}\).*quickstudy retrain"):
            load(tmp_path / "earlier.onnx")
