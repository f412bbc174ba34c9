"""timm's networks become backbones. timm itself cannot be imported where torchvision cannot, as on the machines that
these tests run on; a small module with the same functions stands in for it here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_hub import LocalHub, Repository
from small_networks import photos, run, softmax

from quickstudy.backbones.sources.adding import BackboneSource, add_from
from quickstudy.backbones.sources.timm_models import import_timm
from quickstudy.errors import BackboneError
from quickstudy.extras import installation_of
from quickstudy.images.decoding import InputSpec

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The networks that a stand-in for timm has made."""
    networks: list[Any] = []

    def create_model(
        name: str, *, pretrained: bool, exportable: bool, num_classes: int = 4, pretrained_cfg: Any = None, **_: Any
    ) -> torch.nn.Module:
        torch.manual_seed(0)
        layers: list[torch.nn.Module] = [
            torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 16, 3, stride=2, padding=1),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
        ]
        network = torch.nn.Sequential(*layers, torch.nn.Linear(16, num_classes) if num_classes else torch.nn.Identity())
        network.pretrained_cfg = {"input_size": (3, 40, 40), "mean": MEAN, "std": STD}
        if pretrained:
            network.pretrained_cfg = pretrained_cfg
            network.load_state_dict(safetensors.load_file(pretrained_cfg["file"]), strict=False)
        networks.append(network)
        return network

    timm = types.ModuleType("timm")
    timm.__version__ = "1"
    timm.create_model = create_model
    timm.is_model = lambda name: name in ("tiny_net", "offline")
    timm.list_models = lambda: ["tiny_net", "offline"]
    known = {"tiny_net.in1k": types.SimpleNamespace(hf_hub_id="timm/tiny_net.in1k")}
    timm.get_pretrained_cfg = known.get
    timm.data = types.ModuleType("timm.data")
    timm.data.resolve_model_data_config = lambda model: model.pretrained_cfg
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.data", timm.data)
    return networks


@pytest.fixture
def hub(made: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """An imitation of the hub with the weights of one of timm's networks, as timm lays them out, and a pickle."""
    network = sys.modules["timm"].create_model("tiny_net", pretrained=False, exportable=True)
    weights = {name: value + 0.1 for name, value in network.state_dict().items()}
    config = {"input_size": [3, 40, 40], "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 0.9}
    files = {
        "model.safetensors": safetensors.save(weights),
        "config.json": json.dumps({"architecture": "tiny_net", "num_classes": 4, "pretrained_cfg": config}).encode(),
        "pytorch_model.bin": b"never opened",
    }
    with LocalHub() as local:
        local.repositories["timm/tiny_net.in1k"] = Repository(files)
        local.stand_in(monkeypatch, tmp_path / "hub")
        yield local


def normalised(images: np.ndarray) -> Any:
    return torch.from_numpy(((images / 255 - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("place", ["timm:tiny_net.in1k", "hf:timm/tiny_net.in1k", "hf-hub:timm/tiny_net.in1k"])
def test_weights_from_the_hub_with_all_that_timm_says(
    made: list[Any], hub: LocalHub, tmp_path: Path, place: str
) -> None:
    added, imported = add_from(BackboneSource(place=place), tmp_path / "cache")
    images = photos(3, 40)
    with torch.no_grad():
        expected = softmax(made[-1](normalised(images)).numpy())
    np.testing.assert_allclose(run(added.path, "probabilities", images), expected, atol=1e-6)
    assert not any(path.endswith(".bin") for _, path, _ in hub.requests)
    assert added.input == InputSpec(size=40, crop=40 / 44, resize="torchvision-bicubic-1")
    assert (added.licence, imported.cuts) == ("apache-2.0", ("block_1", "block_2", "features"))
    assert len(added.classes) == 4
    commit = hub.repositories["timm/tiny_net.in1k"].commit
    assert added.origin.endswith(f"hf:timm/tiny_net.in1k@{commit}:model.safetensors")
    assert added.name == ("tiny_net_in1k" if place.startswith("timm:") else "hf_timm_tiny_net_in1k")


def test_without_the_classifier_and_with_weights_from_a_file(made: list[Any], tmp_path: Path) -> None:
    import_timm("tiny_net", top=False, weights=_saved(made, tmp_path, 0))
    other = {name: value + 0.1 for name, value in made[-1].state_dict().items()}
    torch.save(other, tmp_path / "weights.pth")
    found = import_timm("offline", top=False, weights=tmp_path / "weights.pth", size=32)
    images = photos(2)
    made[-1].load_state_dict(other)
    with torch.no_grad():
        expected = made[-1].eval()(normalised(images)).numpy()
    np.testing.assert_allclose(run(found.graph, "features", images), expected, rtol=1e-4)
    assert found.classes == ()
    assert found.origin == "timm:offline with the weights of weights.pth"
    safetensors.save_file(other, tmp_path / "weights.safetensors")
    same = import_timm("offline", top=False, weights=tmp_path / "weights.safetensors", size=32)
    np.testing.assert_array_equal(run(same.graph, "features", images), run(found.graph, "features", images))


def _saved(made: list[Any], folder: Path, classes: int) -> Path:
    network = sys.modules["timm"].create_model("tiny_net", pretrained=False, exportable=True, num_classes=classes)
    torch.save(network.state_dict(), folder / "first.pth")
    return folder / "first.pth"


def test_what_goes_wrong_is_explained(made: list[Any], hub: LocalHub, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="timm has no network 'tiny_nett'; there are: tiny_net"):
        import_timm("tiny_nett")
    with pytest.raises(BackboneError, match=r"no weights on the hub for 'offline'; .* --weights"):
        import_timm("offline")
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    with pytest.raises(BackboneError, match=r"weights\.pth' does not hold the network's weights"):
        import_timm("tiny_net", weights=tmp_path / "weights.pth")
    files = dict(hub.repositories["timm/tiny_net.in1k"].files)
    hub.repositories["me/newer"] = Repository(
        {**files, "config.json": files["config.json"].replace(b"tiny_net", b"unheard_of")}
    )
    with pytest.raises(BackboneError, match="has no network 'unheard_of'"):
        add_from(BackboneSource(place="hf:me/newer"), tmp_path / "cache")
    hub.repositories["me/broken"] = Repository({**files, "model.safetensors": b"\x80\x04K\x01."})
    with pytest.raises(BackboneError, match="cannot build 'tiny_net'"):
        add_from(BackboneSource(place="hf:me/broken"), tmp_path / "cache")


def test_weights_that_are_programs_are_not_run(made: list[Any], tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"weight": Program()}, tmp_path / "weights.pth")
    with pytest.raises(BackboneError, match="does not hold the network's weights"):
        import_timm("tiny_net", weights=tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


def test_a_timm_that_cannot_be_imported_is_explained() -> None:
    code = """
import sys
sys.modules["timm"] = None
from quickstudy.errors import MissingExtraError
from quickstudy.backbones.sources.timm_models import import_timm
try:
    import_timm("resnet18")
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "cannot be imported here" in done.stdout
    assert installation_of("timm") in done.stdout
