"""Retraining from a cut before the features: what is kept, what must not move, stages, budgets, kills."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.named import Prefix
from quickstudy.backbones.graphs.cutting import keep_until
from quickstudy.errors import BackboneError, ImageSetError, PlanError
from quickstudy.images.identity import read_image_file
from quickstudy.models.assemble import fingerprint_of
from quickstudy.models.loading import load
from quickstudy.retraining import finetune, planning, tuning
from quickstudy.retraining.record import load_record
from quickstudy.retraining.result import RetrainResult
from quickstudy.retraining.retrain import retrain
from small_backbones import add_small_backbone, method_of

METHOD = method_of(epochs=6, rate=3e-3)
BLUNT = 300.0
"""A regularisation so strong that the linear head leaves something for fine-tuning to gain."""


@pytest.fixture
def small(cache: Path) -> Backbone:
    return add_small_backbone(cache)


def run(photos: Path, cache: Path, output: Path, **options: object) -> RetrainResult:
    settings = {"cut": "block_1", "method": METHOD} | options
    return retrain(photos, output, backbone="small", cache=cache, **settings)


def arrange(photos: Path, given: Path, **splits: range) -> Path:
    """Some of the photos of each class, by number, as splits."""
    for split, numbers in splits.items():
        for name in ("checks", "discs", "stripes"):
            (given / split / name).mkdir(parents=True)
            for number in numbers:
                shutil.copy(photos / name / f"{number:02}.jpg", given / split / name)
    return given


def test_from_photos_to_a_model_that_predicts_what_was_evaluated(
    small: Backbone, photos: Path, cache: Path, tmp_path: Path
) -> None:
    result = run(photos, cache, tmp_path / "m.onnx", l2=BLUNT, method=method_of(epochs=12, rate=5e-3))
    (stage,) = result.tuning
    assert (result.cut, result.views, stage["cut"], stage["validation"]) == ("block_1", 1, "block_1", "held out")
    assert [epoch["epoch"] for epoch in stage["epochs"]] == list(range(13))
    assert stage["kept"]["right"] > stage["start"]["right"]
    assert result.test is not None
    model = load(tmp_path / "m.onnx")
    assert model.verify() < 1e-5
    assert model.roles is not None
    evaluated = result.test.score
    kinds = {path: model.roles.relation(read_image_file(path)[1]) for path in sorted(photos.rglob("*.jpg"))}
    tests = [path for path, kind in kinds.items() if kind == "tested_on"]
    assert sum(kind == "chosen_by" for kind in kinds.values()) == stage["start"]["n"]
    assert sum(kind == "trained_on" for kind in kinds.values()) == 36 - evaluated.n - stage["start"]["n"]
    assert len(tests) == evaluated.n
    assert sum(a == p.parent.name for a, p in zip(model.predict(tests), tests, strict=True)) == evaluated.right
    assert not list(cache.glob("finetuning/*"))
    described = model.metadata["training"]["fine_tuning"][0]
    assert described["kept"] == stage["kept"]


def test_what_was_frozen_has_not_moved_and_what_follows_has(
    small: Backbone, photos: Path, cache: Path, tmp_path: Path
) -> None:
    result = run(photos, cache, tmp_path / "m.onnx", l2=BLUNT, method=method_of(epochs=12, rate=5e-3))
    assert result.tuning[0]["kept"]["epoch"] > 0
    merged, before = onnx.load(tmp_path / "m.onnx"), onnx.load(small.path)
    shape = small.at("block_1").cut_shape
    prefix = keep_until(before, "block_1", shape)
    assert fingerprint_of(keep_until(merged, "block_1", shape)) == fingerprint_of(prefix)
    recorded = json.loads({p.key: p.value for p in merged.metadata_props}["quickstudy.backbone"])
    assert recorded["prefix_sha256"] == fingerprint_of(prefix)
    assert recorded["cut"] == "block_1"
    onnx.checker.check_model(merged, full_check=True)


def test_the_merged_graph_gives_what_torch_gives(
    small: Backbone, photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    original = finetune.write_model

    def spy(path: Path, net: Backbone, head: object, **options: object) -> None:
        seen.update(net=net, tail=options["tail"])
        original(path, net, head, **options)

    monkeypatch.setattr(finetune, "write_model", spy)
    run(photos, cache, tmp_path / "m.onnx", l2=BLUNT, method=method_of(epochs=12, rate=5e-3))
    net = seen["net"]
    pixels = np.random.Generator(np.random.PCG64(9)).integers(0, 256, (8, 32, 32, 3), np.uint8)
    expected = seen["tail"](Prefix(net, net.cut, net.cut_shape)(pixels))
    found = load(tmp_path / "m.onnx").predict_proba(list(pixels))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_second_time_nothing_passes_through_the_prefix(
    small: Backbone, photos: Path, cache: Path, tmp_path: Path
) -> None:
    first = run(photos, cache, tmp_path / "a.onnx")
    second = run(photos, cache, tmp_path / "b.onnx")
    assert (first.computed, first.cached) == (72, 0)
    assert (second.computed, second.cached) == (0, 72)
    assert first.tuning[0]["epochs"] == second.tuning[0]["epochs"]
    assert first.test == second.test
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_given_validation_split_validates_and_is_not_trained_on(
    small: Backbone, photos: Path, cache: Path, tmp_path: Path
) -> None:
    given = arrange(photos, tmp_path / "given", train=range(6), validation=range(6, 9), test=range(9, 12))
    result = run(given, cache, tmp_path / "m.onnx")
    (stage,) = result.tuning
    assert (stage["validation"], stage["start"]["n"]) == ("given", 9)
    assert stage["steps"] == METHOD.epochs  # 18 images, in one batch
    assert result.test is not None
    assert result.test.score.n == 9


def test_without_a_test_split_nothing_is_tested(small: Backbone, photos: Path, cache: Path, tmp_path: Path) -> None:
    given = arrange(photos, tmp_path / "given", train=range(6), validation=range(6, 9))
    result = run(given, cache, tmp_path / "m.onnx", method=method_of(epochs=1))
    assert result.test is None
    assert [unseen.by for unseen in load_record(cache, result.model).unseen][:1] == ["cross-validation"]


def require_linear_model(result: RetrainResult, photos: Path, cache: Path, tmp_path: Path) -> None:
    """Check that fine-tuning has changed nothing: the model is the one without a cut."""
    plain = run(photos, cache, tmp_path / "plain.onnx", cut="features", method=None)
    assert result.tuning[0]["kept"]["epoch"] == 0
    assert result.cross_validation == plain.cross_validation
    assert result.test == plain.test
    paths = sorted(photos.rglob("*.jpg"))[::7]
    found, expected = (load(tmp_path / name).predict_proba(paths) for name in ("m.onnx", "plain.onnx"))
    np.testing.assert_allclose(found, expected, atol=2e-3)  # the features of one of them passed the store in float16


def test_what_is_no_better_than_the_linear_head_is_not_kept(
    small: Backbone, photos: Path, cache: Path, tmp_path: Path
) -> None:
    """The linear head has all validation images right, so fine-tuning can only be as good, and worse elsewhere."""
    result = run(photos, cache, tmp_path / "m.onnx")
    (stage,) = result.tuning
    assert stage["start"]["right"] == stage["start"]["n"]
    assert max(epoch["right"] for epoch in stage["epochs"][1:]) == stage["start"]["right"]
    assert stage["kept"] == stage["start"]
    require_linear_model(result, photos, cache, tmp_path)


def test_where_nothing_helps_the_model_is_the_linear_one_of_all_training_images(
    small: Backbone, photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning.FineTuning, "is_borne", lambda _self, candidate: candidate.epoch == 0)
    require_linear_model(run(photos, cache, tmp_path / "m.onnx"), photos, cache, tmp_path)


def test_going_deeper_step_by_step_keeps_the_last_stage_that_helped(
    small: Backbone, photos: Path, cache: Path, tmp_path: Path
) -> None:
    result = run(photos, cache, tmp_path / "m.onnx", cut="features", progressive=True)
    cuts = [stage["cut"] for stage in result.tuning]
    order = [cut.name for cut in small.cuts]
    assert [order.index(cut) for cut in cuts] == sorted((order.index(cut) for cut in cuts), reverse=True)
    helped = [stage["kept"]["right"] > stage["start"]["right"] for stage in result.tuning]
    assert all(helped[:-1])
    assert result.cut == (cuts[-1] if helped[-1] else cuts[max(len(cuts) - 2, 0)])
    for before, after in zip(result.tuning, result.tuning[1:], strict=False):
        assert after["start"]["right"] == before["kept"]["right"]
        assert after["trained_parameters"] > before["trained_parameters"]
    load(tmp_path / "m.onnx").verify()


def test_a_budget_chooses_what_fits_and_says_what_was_predicted(
    small: Backbone, photos: Path, cache: Path, tmp_path: Path
) -> None:
    result = run(photos, cache, tmp_path / "m.onnx", cut=None, method=None, budget_seconds=120)
    assert result.plan is not None
    assert result.plan["cut"] == result.cut == "stem"
    assert result.plan["seconds"] <= 120
    assert result.plan["views"] == result.views
    assert len(result.tuning[0]["epochs"]) <= result.plan["epochs"] + 1
    with pytest.raises(PlanError, match=r"No fine-tuning fits 2 s; "):
        run(photos, cache, tmp_path / "m.onnx", cut=None, method=None, budget_seconds=2)


def test_a_budget_in_which_nothing_fits_is_refused_without_torch(small: Backbone, photos: Path, cache: Path) -> None:
    script = (
        "import sys, quickstudy\n"
        "try:\n"
        "    quickstudy.retrain(sys.argv[1], sys.argv[2], backbone='small', cache=sys.argv[3], budget_seconds=2)\n"
        "except quickstudy.errors.PlanError as error:\n"
        "    print('torch' in sys.modules, error)\n"
    )
    command = [sys.executable, "-c", script, str(photos), str(cache / "m.onnx"), str(cache)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert re.match(r"False No fine-tuning fits 2 s; the least, from '\w+' on, would take \d+ s\.", told)


def test_a_plan_takes_no_longer_than_it_may_and_says_how_far_it_is(small: Backbone) -> None:
    class Told:
        def __init__(self) -> None:
            self.notes: list[str] = []

        def start(self, task: str, total: int) -> None: ...

        def update(self, *, done: int, note: str) -> None:
            self.notes.append(note)

        def finish(self) -> None: ...

    told = Told()
    found = planning.measure_costs(small, batch=4, latest=0, progress=told)
    names = [cut.name for cut in small.cuts]
    trainable = next(cost for cost in found if cost.trainable)
    assert [cost.cut.name for cost in found] == names[names.index(trainable.cut.name) :], "the last, and no more"
    assert told.notes[-1] == f"'{trainable.cut.name}'"
    enough = planning.measure_costs(small, batch=4, is_enough=lambda cost: cost.cut.name == names[1])
    assert [cost.cut.name for cost in enough] == names[1:]


def test_an_estimate_is_of_the_same_cuts(small: Backbone) -> None:
    found = planning.estimate_costs(small)
    assert [cost.cut.name for cost in found] == [cut.name for cut in small.cuts]
    training = [cost.training_seconds for cost in found]
    assert training == sorted(training, reverse=True)
    assert found[-1].training_seconds == 0 < found[-1].prefix_seconds


def test_costs_grow_before_the_cut_and_fall_behind_it(small: Backbone) -> None:
    found = planning.measure_costs(small, batch=4)
    assert [cost.cut.name for cost in found] == [cut.name for cut in small.cuts]
    assert [cost.trainable for cost in found] == [True] * 3 + [False] * 2
    prefix = [cost.prefix_seconds for cost in found]
    training = [cost.training_seconds for cost in found]
    assert prefix == sorted(prefix)
    assert training == sorted(training, reverse=True)
    assert found[-1].evaluation_seconds == 0


def test_mistakes_are_named_with_a_way_out(small: Backbone, photos: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="'small' cannot be cut at 'block_9'; its cuts are: stem, block_1, block_2"):
        run(photos, cache, tmp_path / "m.onnx", cut="block_9")
    for path in sorted(photos.rglob("*.jpg")):
        if int(path.stem) > 1:
            path.unlink()
    with pytest.raises(ImageSetError, match="too few to fine-tune"):
        run(photos, cache, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.heavy
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_kill_nine_in_the_midst_and_the_same_command_again(
    small: Backbone, photos: Path, cache: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from quickstudy.retraining import tuning; tuning.CHECKPOINT_SECONDS = 0.0\n"
        "from quickstudy.retraining.retrain import retrain\n"
        "retrain(sys.argv[1], sys.argv[2], backbone='small', cut='block_1', cache=sys.argv[3],\n"
        "        epochs=int(sys.argv[4]), rate=3e-3)\n"
    )
    epochs = 100
    command = [sys.executable, "-c", script, str(photos), str(tmp_path / "m.onnx"), str(cache), str(epochs)]
    process = subprocess.Popen(command)
    try:
        while process.poll() is None and not list(cache.glob("finetuning/*/step-*.pt")):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait()
    assert process.returncode == -signal.SIGKILL
    saved = max(int(path.stem.removeprefix("step-")) for path in cache.glob("finetuning/*/step-*.pt"))
    assert saved > 0
    retrain(photos, tmp_path / "m.onnx", backbone="small", cut="block_1", cache=cache, epochs=epochs, rate=3e-3)
    model = load(tmp_path / "m.onnx")
    model.verify()
    described = model.metadata["training"]["fine_tuning"][0]
    assert described["steps"] >= saved
    assert not list(cache.glob("finetuning/*"))
