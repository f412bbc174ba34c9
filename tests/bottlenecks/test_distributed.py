"""Extraction on a cluster: the local results to the bit, each computed once, whoever dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quickstudy.backbones.backbone import Backbone
from quickstudy.bottlenecks.distributed import Ledger, Order, Worker, extract_on_cluster
from quickstudy.bottlenecks.extraction import Extraction, extract, source_spec
from quickstudy.bottlenecks.shared import open_shared_store
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import ClusterError, OptionError, StoreError
from quickstudy.images.distortions import Distortions
from quickstudy.images.views import view_key
from quickstudy.learning.scores import Score
from quickstudy.retraining.config import RetrainConfig
from quickstudy.retraining.on_cluster import require_cluster_can
from quickstudy.retraining.retrain import retrain
from ray_processes import NO_RAY, private_ray, ray_workers, without_rays


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with private_ray() as address:
        yield address


@pytest.fixture
def paths(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.jpg"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "shared"


@pytest.fixture
def order(backbone: Backbone, place: Path) -> Order:
    return Order(
        place=str(place), source=source_spec(backbone, "float16"), backbone=backbone, views=1, distortions=Distortions()
    )


def block(paths: list[Path]) -> pa.Table:
    return pa.table({"number": range(len(paths)), "path": pa.array(map(os.fsencode, paths), pa.binary())})


def files_of(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def assert_same(here: Extraction, place: Path, *, views: int) -> None:
    """The store at `place` has the bottlenecks that `here` has, bit for bit, and all its shards are whole."""
    digests = [digest for digest in here.digests if digest is not None]
    keys = [view_key(digest, view, here.distortions) for digest in digests for view in range(views + 1)]
    there = Store(place).source(here.source.spec)
    assert there.gather(keys).tobytes() == here.source.gather(keys).tobytes()
    assert len(there) == len(set(keys))
    assert Store(place).verify().damaged == ()


def unreadable_name(image: Path, folder: Path) -> Path:
    """A copy of an image under a name that is no valid text, where the file system has such names."""
    try:
        return Path(shutil.copy(image, os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")))
    except OSError:
        return Path(shutil.copy(image, folder / "coffee.jpg"))


class TestOnACluster:
    @pytest.fixture(autouse=True)
    def _cluster(self, cluster: str) -> None:
        pass

    def test_results_are_the_local_ones_to_the_bit_and_each_is_computed_once(
        self, paths: list[Path], backbone: Backbone, place: Path, cache: Path, tmp_path: Path
    ) -> None:
        copies = [Path(shutil.copy(path, tmp_path / f"copy-{path.parent.name}-{path.name}")) for path in paths[:9]]
        cut = [tmp_path / f"cut-{number}.jpg" for number in range(3)]
        for path in cut:
            path.write_bytes(paths[0].read_bytes()[:3000])
        images = [
            cut[0],
            *paths,
            cut[1],
            tmp_path / "missing.jpg",
            *copies,
            unreadable_name(paths[0], tmp_path),
            cut[2],
        ]
        there = extract_on_cluster(images, backbone, place, views=1)
        here = extract(images, backbone, Store(cache), views=1)
        assert (there.computed, there.cached) == (72, 20)
        assert (there.workers, there.nodes) == (2, 1)
        assert there.reasons == here.reasons
        assert list(there.reasons) == [0, 37, 38, 49]
        assert "truncated" in there.reasons[0]
        assert "no such file" in there.reasons[38]
        hashes = [None if digest is None else digest.hex() for digest in here.digests]
        shared = {number: digest for number, digest in enumerate(hashes) if digest and hashes.count(digest) > 1}
        assert {number: digest.hex() for number, digest in there.repeated.items()} == shared
        assert_same(here, place, views=1)

    @pytest.mark.slow
    def test_a_store_by_uri_is_filled_up_and_pulled(
        self, paths: list[Path], backbone: Backbone, place: Path, cache: Path
    ) -> None:
        extract(paths[:20], backbone, Store(place), dtype="float32")
        done = extract_on_cluster(paths, backbone, place.as_uri(), dtype="float32")
        assert (done.computed, done.cached) == (16, 20)
        assert open_shared_store(place.as_uri()).pull(Store(cache)).bottlenecks == 36
        assert extract(paths, backbone, Store(cache), dtype="float32").computed == 0

    @pytest.mark.slow
    def test_a_second_filling_from_another_program_computes_nothing(
        self, photos: Path, paths: list[Path], backbone: Backbone, cluster: str, cache: Path
    ) -> None:
        extract(paths, backbone, Store(cache / "bottlenecks"))
        before = files_of(cache / "bottlenecks")
        command = [sys.executable, "-m", "quickstudy", "cache", "fill", str(photos), "--ray", cluster, "--json"]
        # On Linux, Ray takes the loopback address for the machine's outward one, unless it is told not to.
        environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "QUICKSTUDY_CACHE": str(cache)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, without_rays(done.stderr)) == (0, "")
        result = json.loads(done.stdout)
        assert (result["forward_passes"], result["from_store"], result["workers"]) == (0, 36, 2)
        assert files_of(cache / "bottlenecks") == before

    def test_no_images_are_no_trouble(self, backbone: Backbone, place: Path) -> None:
        done = extract_on_cluster([], backbone, place)
        assert (done.computed, done.cached, done.reasons, done.repeated, done.workers) == (0, 0, {}, {}, 0)

    def test_a_place_that_cannot_be_written_is_told_before_anything_is_computed(
        self, paths: list[Path], backbone: Backbone, tmp_path: Path
    ) -> None:
        (tmp_path / "occupied").write_text("")
        with pytest.raises(StoreError, match="Cannot write to the store"):
            extract_on_cluster(paths, backbone, tmp_path / "occupied" / "store")

    @pytest.mark.parametrize(("workers_died", "kind"), [(False, StoreError), (True, ClusterError)])
    def test_what_keeps_a_worker_from_its_work_ends_everything_with_its_reason(
        self,
        paths: list[Path],
        backbone: Backbone,
        place: Path,
        monkeypatch: pytest.MonkeyPatch,
        workers_died: bool,
        kind: type[Exception],
    ) -> None:
        rows = ({"failure": "the disk is full", "workers_died": workers_died} for _ in range(2))
        monkeypatch.setattr("quickstudy.bottlenecks.distributed.finished_blocks", lambda *_: rows)
        with pytest.raises(kind, match="the disk is full"):
            extract_on_cluster(paths, backbone, place)
        assert next(rows, None) is None, "the rest is called off"

    def test_a_block_at_which_workers_die_again_and_again_is_given_up(self, order: Order, paths: list[Path]) -> None:
        import ray

        open_shared_store(order.place).prepare(order.source)
        ledger = ray.remote(Ledger).options(num_cpus=0).remote(order)
        for _ in range(5):
            ray.get(ledger.begin.remote(0))
        [row] = Worker(order, graph=None, ledger=ledger)(block(paths[:3])).to_pylist()
        assert row["workers_died"]
        assert row["failure"].startswith("5 workers died")
        assert str(paths[0]) in row["failure"]

    def test_a_ridge_head_of_sums_is_the_same_file_however_the_store_is_cut(
        self, photos: Path, place: Path, cache: Path, tmp_path: Path
    ) -> None:
        (photos / "discs" / "cut.jpg").write_bytes((photos / "discs" / "00.jpg").read_bytes()[:3000])
        first = retrain(photos, tmp_path / "first.onnx", ray="auto", store=str(place), cache=cache, preset="fast")
        assert (first.computed, [item.path.name for item in first.skipped]) == (36, ["cut.jpg"])
        assert first.cross_validation == Score(right=first.census.counts("train").total(), n=first.head.held_out_count)
        assert first.test is not None
        assert first.test.score.accuracy == 1
        [spec] = open_shared_store(place).specs()
        source = Store(place).source(spec)
        digests = sorted(first.census.digests("train", "test"))
        again = Store(tmp_path / "again").source(spec)
        for start in range(0, len(digests), 7):
            again.append(digests[start : start + 7], source.gather(digests[start : start + 7]))
        store = (tmp_path / "again").as_uri()
        second = retrain(photos, tmp_path / "second.onnx", ray="auto", store=store, cache=cache, preset="fast")
        assert (second.computed, second.cached) == (0, 36)
        assert second.model.read_bytes() == first.model.read_bytes()

    @pytest.mark.slow
    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the worker in /proc")
    def test_a_killed_worker_is_replaced_and_the_result_complete(
        self, paths: list[Path], backbone: Backbone, place: Path, cache: Path
    ) -> None:
        killed: list[int] = []

        def kill() -> None:
            deadline = time.monotonic() + 60
            while not killed and time.monotonic() < deadline:
                if list(place.glob("*/*.arrow")) and (workers := ray_workers()):
                    os.kill(workers[0], signal.SIGKILL)
                    killed.append(workers[0])
                time.sleep(0.01)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            done = extract_on_cluster(paths, backbone, place, views=5)
        finally:
            killer.join()
        assert killed
        assert (done.computed, done.cached, done.reasons) == (216, 0, {})
        assert_same(extract(paths, backbone, Store(cache), views=5), place, views=5)


def test_the_ledger_gives_each_bottleneck_to_one_image(order: Order) -> None:
    stored, a, b = (order.keys(bytes([letter]) * 32) for letter in b"sab")
    shared = open_shared_store(order.place)
    width = order.source.width
    shared.append(order.source, [*stored, a[0]], np.ones((3, width)))
    ledger = Ledger(order)
    assert ledger.claim([(0, stored), (1, a), (2, b)]) == [None, [1], [0, 1]]
    assert ledger.claim([(3, b), (4, a), (5, stored)]) == [[], [], None]
    assert ledger.claim([(2, b), (1, a)]) == [[0, 1], [1]], "who asks again was lost, and is told the same"
    assert [ledger.begin(block) for block in (0, 7, 7)] == [1, 1, 2]


def test_a_node_that_does_not_see_the_store_says_so(order: Order, paths: list[Path]) -> None:
    pytest.importorskip("ray", reason=NO_RAY)
    [row] = Worker(order, graph=None, ledger=None)(block(paths[:1])).to_pylist()
    assert "does not see the store" in row["failure"]
    assert order.place in row["failure"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cut": "block_12"}, "--cut"),
        ({"views": 2}, "--views"),
        ({"levels": "all"}, "--levels all"),
        ({"backbone": "auto"}, "--backbone auto"),
        ({"fit": "auto"}, "--fit auto"),
        ({"class_weight": "balanced"}, "--class-weight"),
        ({"engine": "openvino"}, "--engine openvino"),
        ({"keep_thumbnails": True}, "--keep-thumbnails"),
    ],
)
def test_what_is_not_done_on_a_cluster_is_refused_before_one_is_looked_for(
    photos: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(OptionError, match=named):
        retrain(photos, ray="auto", **options)


def test_what_names_a_store_names_a_cluster(photos: Path) -> None:
    require_cluster_can(RetrainConfig(preset="best", l2=0.1))
    with pytest.raises(OptionError, match="--ray auto"):
        retrain(photos, store="s3://bucket/here")
