"""Backbones from the hub, against an imitation of its API: what is fetched, read, chosen and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from local_hub import LocalHub, Repository
from PIL import Image
from small_networks import SIZE, photos, run
from small_transformers import WIDTH, save_vit

from quickstudy.backbones.loading import load_backbone
from quickstudy.backbones.sources.adding import BackboneSource, add_from, from_hub
from quickstudy.backbones.sources.hub import HubPlace, parse_place
from quickstudy.errors import BackboneError, DownloadError, QuickstudyError, UnsafeFileError
from quickstudy.images.decoding import decode, to_input

hub_package = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
constants = pytest.importorskip("huggingface_hub.constants")

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
PROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 40},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": SIZE, "width": SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": STD,
}
DINO = {"model_type": "dinov2_with_registers", "image_size": 518, "patch_size": 8, "num_register_tokens": 4}
NAME = "somebody/small-dino"
TOLERANCE = 1e-5  # of the largest value, between a bottleneck and the original's own pipeline


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """The imitation, asked instead of the hub, with an empty cache of the hub's files."""
    with LocalHub() as local:
        local.stand_in(monkeypatch, tmp_path / "hub")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        hub_package.close_session()
        yield local
        hub_package.close_session()


def vit_files(folder: Path, **options: object) -> dict[str, bytes]:
    """A repository as exporters lay it out, its input of any size."""
    folder.mkdir(exist_ok=True)
    path = save_vit(folder / "model.onnx", **{"registers": 4, "dynamic": True, **options})
    return {
        "onnx/model.onnx": path.read_bytes(),
        "config.json": json.dumps(DINO).encode(),
        "preprocessor_config.json": json.dumps(PROCESSOR).encode(),
        "README.md": b"not read",
        "pytorch_model.bin": b"never opened",
    }


def source(place: str = f"hf:{NAME}", **options: object) -> BackboneSource:
    return BackboneSource(place=place, **options)


def original(path: Path, images: np.ndarray) -> np.ndarray:
    """DINOv2's features by its own processor and model: rescaled, normalised; class token beside the patches' mean."""
    scaled = (images.astype(np.float32) * np.float32(1 / 255) - np.float32(MEAN)) / np.float32(STD)
    tokens = run(path, "last_hidden_state", np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))
    return np.concatenate([tokens[:, 0], tokens[:, 5:].mean(axis=1)], axis=1)


def test_a_network_comes_with_all_that_its_repository_says(tmp_path: Path, hub: LocalHub) -> None:
    hub.repositories[NAME] = Repository(vit_files(tmp_path / "repository"))
    added, imported = add_from(source(), tmp_path / "cache")
    commit = hub.repositories[NAME].commit
    assert added.name == "hf_somebody_small_dino"
    assert added.origin == f"hf:{NAME}@{commit}:onnx/model.onnx"
    assert added.licence == "apache-2.0"
    assert added.input.size == SIZE
    assert added.input.crop == SIZE / 40
    assert added.reading(16, "crop").input == added.input
    assert added.reading(16, "squash").input.crop == 1
    assert added.cut_shape == (2 * WIDTH,)
    assert "bicubic" in imported.found["resizing"]
    assert "4 registers" in imported.found["tokens"]
    images = photos(4)
    expected = original(tmp_path / "repository" / "model.onnx", images)
    given = run(onnx.load(added.path), "features", images)
    assert np.abs(given - expected).max() <= TOLERANCE * np.abs(expected).max()
    opened = {path.rpartition("/")[2] for _, path, _ in hub.requests if "/resolve/" in path}
    assert opened == {"model.onnx", "config.json", "preprocessor_config.json"}


def test_a_photo_passes_nearly_as_in_the_original(tmp_path: Path, hub: LocalHub) -> None:
    """All steps from the file on, with the resizing that differs: bicubic to 40 pixels, of which the middle 32."""
    hub.repositories[NAME] = Repository(vit_files(tmp_path / "repository"))
    added, _ = add_from(source(), tmp_path / "cache")
    ramp = np.linspace(0, 255, 80)
    photo = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[::-1, None]), axis=-1).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    mine = to_input(decode((tmp_path / "photo.png").read_bytes(), added.input), added.input)
    theirs = np.asarray(Image.fromarray(photo).resize((40, 40), Image.Resampling.BICUBIC))[4:36, 4:36]
    given = run(onnx.load(added.path), "features", mine[None])[0]
    expected = original(tmp_path / "repository" / "model.onnx", theirs[None])[0]
    assert given @ expected / np.linalg.norm(given) / np.linalg.norm(expected) > 0.99


def test_the_second_time_asks_nobody_and_stays_what_it_was(tmp_path: Path, hub: LocalHub) -> None:
    hub.repositories[NAME] = Repository(vit_files(tmp_path / "repository"))
    first, imported = from_hub(f"hf:{NAME}", tmp_path / "cache")
    assert imported is not None
    asked = len(hub.requests)
    hub.repositories[NAME] = Repository(vit_files(tmp_path / "newer", blocks=1))
    assert load_backbone(f"hf:{NAME}", tmp_path / "cache") == first
    assert len(hub.requests) == asked
    newer, _ = add_from(source(), tmp_path / "cache")
    assert newer.fingerprint != first.fingerprint
    assert newer.origin != first.origin


def test_revisions_and_files_are_chosen_by_name(tmp_path: Path, hub: LocalHub) -> None:
    files = vit_files(tmp_path / "repository")
    files["onnx/other.onnx"] = save_vit(tmp_path / "other.onnx", class_token=False).read_bytes()
    hub.repositories[NAME] = Repository(files, revisions=("main", "v1"))
    _, usual = add_from(source(), tmp_path / "cache")
    assert usual.found["file"].startswith("'onnx/model.onnx'; others: 'onnx/other.onnx'")
    added, _ = add_from(source(f"hf:{NAME}@v1:onnx/other.onnx"), tmp_path / "cache")
    assert added.name == "hf_somebody_small_dino_v1_onnx_other_onnx"
    assert added.cut_shape == (WIDTH,)
    by_commit, _ = add_from(source(f"hf:{NAME}@{hub.repositories[NAME].commit}"), tmp_path / "cache")
    assert hub.repositories[NAME].commit in by_commit.origin


def test_options_say_otherwise(tmp_path: Path, hub: LocalHub) -> None:
    hub.repositories[NAME] = Repository(vit_files(tmp_path / "repository"))
    added, _ = add_from(source(tokens="cls"), tmp_path / "cache", name="dino")
    assert (added.name, added.cut_shape) == ("dino", (WIDTH,))


def test_weights_beside_the_graph_come_too(tmp_path: Path, hub: LocalHub) -> None:
    (tmp_path / "repository").mkdir()
    save_vit(tmp_path / "repository" / "model.onnx", external="model.onnx_data")
    files = {f"onnx/{path.name}": path.read_bytes() for path in (tmp_path / "repository").iterdir()}
    files["preprocessor_config.json"] = json.dumps(PROCESSOR).encode()
    hub.repositories[NAME] = Repository(files)
    added, _ = add_from(source(), tmp_path / "cache")
    inside = save_vit(tmp_path / "inside.onnx")
    hub.repositories["somebody/inside"] = Repository({**files, "onnx/model.onnx": inside.read_bytes()})
    same, _ = add_from(source("hf:somebody/inside"), tmp_path / "cache")
    assert added.fingerprint == same.fingerprint
    del files["onnx/model.onnx_data"]
    hub.repositories["somebody/lost"] = Repository(files)
    with pytest.raises(BackboneError, match=r"model\.onnx_data"):
        add_from(source("hf:somebody/lost"), tmp_path / "cache")


def test_weights_outside_the_repository_are_not_followed(tmp_path: Path, hub: LocalHub) -> None:
    save_vit(tmp_path / "model.onnx", external="weights")
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../../secret" if entry.key == "location" else entry.value
    hub.repositories[NAME] = Repository({"model.onnx": model.SerializeToString()})
    with pytest.raises(UnsafeFileError, match="secret"):
        add_from(source(), tmp_path / "cache")


def test_without_the_hub_its_cache_is_asked(tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME] = Repository(vit_files(tmp_path / "repository"))
    online, _ = add_from(source(), tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    offline, _ = add_from(source(), tmp_path / "other_cache")
    assert (offline.fingerprint, offline.origin) == (online.fingerprint, online.origin)
    assert len(hub.requests) == asked
    with pytest.raises(DownloadError, match="backbone pack"):
        add_from(source("hf:somebody/unknown"), tmp_path / "cache")


def test_a_cut_connection_goes_on_where_it_ended(
    tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.repositories[NAME] = Repository(vit_files(tmp_path / "repository"), cut_once=True)
    added, _ = add_from(source(), tmp_path / "cache")
    assert added.cut_shape == (2 * WIDTH,)
    assert any(asked for _, path, asked in hub.requests if path.endswith("model.onnx"))


def test_a_file_of_another_hash_is_refused_and_forgotten(tmp_path: Path, hub: LocalHub) -> None:
    files = vit_files(tmp_path / "repository")
    other = bytearray(files["onnx/model.onnx"])
    other[-200] ^= 1
    hub.repositories[NAME] = Repository(files, served={"onnx/model.onnx": bytes(other)})
    with pytest.raises(DownloadError, match="not the file that the hub lists"):
        add_from(source(), tmp_path / "cache")
    hub.repositories[NAME] = Repository(files)
    added, _ = add_from(source(), tmp_path / "cache")
    assert added.cut_shape == (2 * WIDTH,)


def test_a_file_of_another_size_is_refused(tmp_path: Path, hub: LocalHub) -> None:
    files = vit_files(tmp_path / "repository")
    hub.repositories[NAME] = Repository(files, announced={"onnx/model.onnx": 10})
    with pytest.raises(DownloadError, match=r"onnx/model\.onnx"):
        add_from(source(), tmp_path / "cache")


@pytest.mark.parametrize(
    ("repository", "kind", "way_out"),
    [
        (Repository({}, status=404, code="RepoNotFound"), BackboneError, "check the name"),
        (Repository({}, status=401), BackboneError, "hf auth login"),
        (Repository({}, status=403, code="GatedRepo"), BackboneError, "accept its terms"),
        (Repository({"model.onnx": b"0"}, gated_files=True), BackboneError, "accept its terms"),
        (Repository({}, status=429), DownloadError, "wait"),
        (Repository({"pytorch_model.bin": b"0"}), BackboneError, "optimum-cli export onnx"),
        (Repository({"model.safetensors": b"0"}), BackboneError, "no config.json that says what its"),
        (Repository({"model.onnx": b"0", "config.json": b"[1"}), BackboneError, "take another revision"),
        (Repository({}, revisions=("main",)), BackboneError, "commit, branch or tag"),
    ],
)
def test_what_the_hub_refuses_comes_with_a_way_out(
    tmp_path: Path, hub: LocalHub, repository: Repository, kind: type[QuickstudyError], way_out: str
) -> None:
    hub.repositories[NAME] = repository
    place = f"hf:{NAME}@v2" if way_out.startswith("commit") else f"hf:{NAME}"
    with pytest.raises(kind, match=way_out) as raised:
        add_from(source(place), tmp_path / "cache")
    assert NAME in str(raised.value) or "of the repository" in str(raised.value)


def test_text_networks_and_files_that_are_not_there_are_told(tmp_path: Path, hub: LocalHub) -> None:
    path = save_vit(tmp_path / "clip.onnx", text=True)
    hub.repositories[NAME] = Repository({"model.onnx": path.read_bytes()})
    with pytest.raises(BackboneError, match=r"vision_model\.onnx"):
        add_from(source(output="text_embeds"), tmp_path / "cache")
    with pytest.raises(BackboneError, match=r"it has: 'model\.onnx'"):
        add_from(source(f"hf:{NAME}:onnx/model.onnx"), tmp_path / "cache")


def test_what_would_not_fit_into_memory_is_not_fetched(
    tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[NAME] = Repository(vit_files(tmp_path / "repository"))
    pages = {"SC_PHYS_PAGES": 2, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    with pytest.raises(BackboneError, match="memory"):
        add_from(source(), tmp_path / "cache")
    assert not any("/resolve/" in path for _, path, _ in hub.requests)


@pytest.mark.parametrize("place", ["hf:", "hf:dino", "hf:a/b/c", "hf:a/../b", "hf:a/b@", "hf:a/b:", "hf:a/b:../c.onnx"])
def test_what_is_no_place_is_told(place: str) -> None:
    with pytest.raises(BackboneError, match="hf:OWNER/REPO"):
        parse_place(place)


def test_places_have_three_parts() -> None:
    assert parse_place("hf:a/b") == HubPlace(repository="a/b")
    assert parse_place("hf:a/b@v1.0:onnx/c.onnx") == HubPlace(repository="a/b", revision="v1.0", path="onnx/c.onnx")


def test_the_commands_as_typed(tmp_path: Path) -> None:
    """In a process of its own, with the hub's own variables, and then without any hub."""
    draws = np.random.Generator(np.random.PCG64(1))
    for label in ("dark", "light"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(12):
            pixels = draws.integers(0, 120, (48, 40, 3)) + (120 if label == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / label / f"{number}.png")
    with LocalHub() as local:
        local.repositories[NAME] = Repository(vit_files(tmp_path / "repository"))
        variables = {
            **os.environ,
            "HF_ENDPOINT": local.url,
            "HF_HOME": str(tmp_path / "home"),
            "QUICKSTUDY_CACHE": str(tmp_path / "cache"),
        }
        arguments = ["retrain", "photos", "--backbone", f"hf:{NAME}", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "quickstudy", *arguments],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stderr
        commit = local.repositories[NAME].commit
    assert f"Added hf_somebody_small_dino from hf:{NAME}@{commit}:onnx/model.onnx" in done.stderr
    assert sum(json.loads(done.stdout)["train_counts"].values()) > 12
    assert (tmp_path / "photos.onnx").is_file()
    assert (tmp_path / "home" / "hub" / "models--somebody--small-dino").is_dir()
