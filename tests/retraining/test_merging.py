"""Files of taught classes become a model; what is damaged, another network's or contradictory is named."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import quickstudy
from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.cuts import FEATURES
from quickstudy.cli.main import app
from quickstudy.errors import ImageSetError, ModelError, WriteError
from quickstudy.learning.selection import fit_head
from quickstudy.models.teaching import STRENGTH, Network, TaughtClass, Teaching, read_taught, written
from quickstudy.retraining.merging import merge
from small_backbones import add_small_backbone
from small_models import write_small_model


@pytest.fixture
def net(cache: Path) -> Backbone:
    return add_small_backbone(cache).at(FEATURES)


@pytest.fixture
def teaching(net: Backbone) -> Teaching:
    network = Network(name=net.name, fingerprint=net.fingerprint)
    return Teaching(backbone=network, input=net.input.to_dict(), widths=net.widths, l2=STRENGTH)


def taught(name: str, pictures: range, teaching: Teaching) -> TaughtClass:
    """A class whose pictures and their bottlenecks follow from their numbers."""
    draws = [np.random.Generator(np.random.PCG64(number)) for number in pictures]
    rows = np.stack([one.normal(len(name), 1, sum(teaching.widths)) for one in draws])
    digests = [hashlib.sha256(bytes([number])).digest() for number in pictures]
    named = tuple((f"{number}.jpg", digest) for number, digest in zip(pictures, digests, strict=True))
    return TaughtClass(name=name, pictures=named, bottlenecks=rows.astype(np.float16))


def save(path: Path, teaching: Teaching, *classes: TaughtClass) -> Path:
    path.write_text(written(teaching, classes))
    return path


def resealed(values: dict[str, Any]) -> str:
    """A file with these values and a checksum that fits."""
    body = json.dumps(values)[1:]
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f'{{"quickstudy":"classes","version":1,"sha256":"{digest}",\n{body}'


def test_what_was_saved_is_read(teaching: Teaching, tmp_path: Path) -> None:
    one = taught("Äpfel | </script>", range(3), teaching)
    read = read_taught(save(tmp_path / "a.json", teaching, one))
    assert read.teaching == teaching
    assert [(c.name, c.pictures) for c in read.classes] == [(one.name, one.pictures)]
    assert (read.classes[0].bottlenecks == one.bottlenecks).all()
    assert "</script" not in (tmp_path / "a.json").read_text()


def test_classes_of_several_people(teaching: Teaching, net: Backbone, cache: Path, tmp_path: Path) -> None:
    cup, mug = taught("cup", range(30), teaching), taught("mug", range(30, 60), teaching)
    more, lid = taught("cup", range(20, 40), teaching), taught("lid", range(60, 61), teaching)
    more = replace(more, bottlenecks=np.vstack([cup.bottlenecks[20:], more.bottlenecks[10:]]))
    anna = save(tmp_path / "anna.json", teaching, cup, mug)
    ben = save(tmp_path / "ben.json", teaching, more, lid)
    merged = merge([anna, ben], tmp_path / "m.onnx", cache=cache)
    with pytest.raises(ModelError, match="retrain photos/ --report"):  # of its pictures there are features only
        quickstudy.report(tmp_path / "m.onnx", cache=cache)
    assert merged.counts == {"cup": 30, "lid": 1, "mug": 20}
    assert merged.copies == 10
    assert len(merged.contradictions) == 10
    assert merged.contradictions[0].places == ((anna, "mug", "30.jpg"), (ben, "cup", "30.jpg"))
    merge([ben, anna], tmp_path / "other.onnx", cache=cache)
    merge([anna], tmp_path / "other.onnx", cache=cache)  # a merged model is replaced, nothing else
    merge([ben, anna], tmp_path / "other.onnx", cache=cache)
    write_small_model(tmp_path / "photos.onnx")
    before = (tmp_path / "photos.onnx").read_bytes()
    with pytest.raises(WriteError, match=r"'.*photos\.onnx' already, which is no merged model and would be lost"):
        merge([ben, anna], tmp_path / "photos.onnx", cache=cache)
    assert (tmp_path / "photos.onnx").read_bytes() == before
    assert (tmp_path / "other.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()

    model = quickstudy.load(tmp_path / "m.onnx")
    kept = [(d, r, c) for k, c in ((cup, 0), (mug, 2)) for (_, d), r in zip(k.pictures, k.bottlenecks, strict=True)]
    kept = [one for one in kept if one[0] not in {digest for _, digest in more.pictures[10:]}]
    kept.append((lid.pictures[0][1], lid.bottlenecks[0], 1))
    head = fit_head(
        np.stack([row for _, row, _ in kept]),
        np.array([number for _, _, number in kept], np.intp),
        [digest for digest, _, _ in kept],
        classes=3,
        widths=net.widths,
        l2=STRENGTH,
    )
    assert merged.cross_validation.right == head.held_out_right
    assert (merged.never_held_out, merged.to_dict()["never_held_out"]) == (1, 1)
    assert merged.cross_validation.n + 1 == sum(merged.counts.values())
    assert model.metadata["training"]["never_held_out"] == 1
    assert model.metadata["training"]["temperature"] == pytest.approx(head.temperature, rel=1e-6)
    assert model.metadata["training"]["train_counts"] == merged.counts
    assert model.verify() < 1e-5


def test_what_cannot_be_read_is_named(teaching: Teaching, tmp_path: Path) -> None:
    good = save(tmp_path / "a.json", teaching, taught("cup", range(2), teaching))
    text = good.read_text()
    values = {k: v for k, v in json.loads(text).items() if k not in ("quickstudy", "version", "sha256")}
    [one] = values["classes"]
    cases = {
        "it is no file of classes": "[]",
        "it is of version 7; this quickstudy reads version 1": text.replace('"version":1', '"version":7'),
        "it has changed since it was saved": text.replace('"cup"', '"cap"'),
        "it is no JSON": broken(text),
        "its widths are \\[\\]": resealed(values | {"widths": []}),
        "its strength is -1": resealed(values | {"l2": -1.0}),
        "resize is": resealed(values | {"input": values["input"] | {"resize": "other"}}),
        "its classes are \\['cup', 'cup'\\]": resealed(values | {"classes": [one, one]}),
        "its class 'cup' has 2 pictures and 100 bytes": resealed(
            values | {"classes": [one | {"bottlenecks": "AAAA" * 33 + "AA=="}]}
        ),
        "'cup' has bottlenecks that are not finite": resealed(
            values | {"classes": [one | {"bottlenecks": all_of(0x7C00, teaching, 2)}]}
        ),
        "'xy' is no content hash": resealed(
            values | {"classes": [one | {"pictures": [{"name": "1", "sha256": "xy"}] * 2}]}
        ),
        "object missing required field `l2`": resealed({k: v for k, v in values.items() if k != "l2"}),
    }
    for words, damaged in cases.items():
        (tmp_path / "bad.json").write_text(damaged)
        with pytest.raises(ImageSetError, match=rf"'.*bad\.json' cannot be used: .*{words}"):
            read_taught(tmp_path / "bad.json")
    with pytest.raises(ImageSetError, match=r"Cannot read '.*none\.json'"):
        read_taught(tmp_path / "none.json")


def all_of(half: int, teaching: Teaching, count: int) -> str:
    return base64.b64encode(np.full(count * sum(teaching.widths), half, "<u2").tobytes()).decode()


def broken(text: str) -> str:
    """A file that ends early, with a checksum that fits."""
    body = text.partition("\n")[2][:-10]
    return f'{{"quickstudy":"classes","version":1,"sha256":"{hashlib.sha256(body.encode()).hexdigest()}",\n{body}'


def test_what_cannot_be_joined_is_named(teaching: Teaching, cache: Path, tmp_path: Path) -> None:
    cup, mug = taught("cup", range(2), teaching), taught("mug", range(2, 4), teaching)
    first = save(tmp_path / "a.json", teaching, cup)
    for named, other in {
        "network": replace(teaching, backbone=Network(name="small", fingerprint="0" * 64)),
        "input": replace(teaching, input=teaching.input | {"fit": "pad"}),
        "strength": replace(teaching, l2=0.5),
    }.items():
        second = save(tmp_path / "b.json", other, mug)
        with pytest.raises(
            ImageSetError, match=rf"'.*a\.json' and '.*b\.json' cannot be joined: their {named} differs"
        ):
            merge([first, second], tmp_path / "m.onnx", cache=cache)
    with pytest.raises(ImageSetError, match=r"needs two classes; there is 1 with pictures in '.*a\.json': \['cup'\]"):
        merge([first], tmp_path / "m.onnx", cache=cache)
    with pytest.raises(ModelError, match=r"must be named \*\.onnx; got '.*m\.pt'"):
        merge([first], tmp_path / "m.pt", cache=cache)
    unknown = replace(teaching, backbone=Network(name="small", fingerprint="0" * 64))
    with pytest.raises(ModelError, match=r"is 'small' with the fingerprint 000000000000…, but here 'small' has"):
        merge([save(tmp_path / "b.json", unknown, cup, mug)], tmp_path / "m.onnx", cache=cache)
    assert not (tmp_path / "m.onnx").exists()


def test_the_command(teaching: Teaching, cache: Path, tmp_path: Path, photo_source: Path) -> None:
    cup, mug = taught("cup", range(9), teaching), taught("mug", range(8, 20), teaching)
    files = [str(save(tmp_path / f"{one.name}.json", teaching, one)) for one in (cup, mug)]
    output = tmp_path / "m.onnx"
    command = ["merge", *files, "-o", str(output), "--cache", str(cache)]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert "Left out, since it is of two classes: 'cup' in " in told.output
    assert "  mug          11" in told.output
    merged = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert merged["counts"] == {"cup": 8, "mug": 11}
    assert merged["contradictions"][0][1] == {"file": files[1], "class": "mug", "picture": "8.jpg"}
    [label] = quickstudy.load(output).predict([photo_source / "discs" / "00.jpg"])
    assert label in ("cup", "mug")
