"""timm's networks become backbones. timm itself cannot be imported where torchvision cannot, as on the machines that
these tests run on; a small module with the same functions stands in for it here.
"""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_networks import photos, run, softmax

from quickstudy.backbones.timm_models import import_timm
from quickstudy.errors import BackboneError
from quickstudy.extras import installation_of

torch = pytest.importorskip("torch")

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The networks that a stand-in for timm has made."""
    networks: list[Any] = []

    def create_model(name: str, *, pretrained: bool, exportable: bool, num_classes: int = 4) -> torch.nn.Module:
        if name == "offline" and pretrained:
            raise RuntimeError("cannot reach the hub\nand more")
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
        networks.append(network)
        return network

    timm = types.ModuleType("timm")
    timm.create_model = create_model
    timm.is_model = lambda name: name in ("tiny_net", "offline")
    timm.list_models = lambda: ["tiny_net", "offline"]
    timm.data = types.ModuleType("timm.data")
    timm.data.resolve_model_data_config = lambda model: {"input_size": (3, 40, 40), "mean": MEAN, "std": STD}
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.data", timm.data)
    return networks


def normalised(images: np.ndarray) -> Any:
    return torch.from_numpy(((images / 255 - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2).copy())


def test_a_network_with_its_training_normalisation(made: list[Any]) -> None:
    found = import_timm("tiny_net.in1k")
    images = photos(3, 40)
    with torch.no_grad():
        expected = softmax(made[0](normalised(images)).numpy())
    np.testing.assert_allclose(run(found.graph, "probabilities", images), expected, atol=1e-6)
    assert (found.name, found.origin, found.input_spec.size) == ("tiny_net_in1k", "timm:tiny_net.in1k", 40)
    assert found.cuts == ("block_1", "block_2", "features")
    assert len(found.classes) == 4


def test_without_the_classifier_and_with_weights_from_a_file(made: list[Any], tmp_path: Path) -> None:
    import_timm("tiny_net", top=False)
    other = {name: value + 0.1 for name, value in made[0].state_dict().items()}
    torch.save(other, tmp_path / "weights.pth")
    found = import_timm("offline", top=False, weights=tmp_path / "weights.pth", size=32)
    images = photos(2)
    made[0].load_state_dict(other)
    with torch.no_grad():
        expected = made[0].eval()(normalised(images)).numpy()
    np.testing.assert_allclose(run(found.graph, "features", images), expected, rtol=1e-4)
    assert found.classes == ()
    assert found.origin == "timm:offline with the weights of weights.pth"


def test_what_goes_wrong_is_explained(made: list[Any], tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="timm has no network 'tiny_nett'; there are: tiny_net"):
        import_timm("tiny_nett")
    with pytest.raises(BackboneError, match=r"cannot build 'offline': cannot reach the hub\. Without a network"):
        import_timm("offline")
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    with pytest.raises(BackboneError, match=r"weights\.pth' does not hold the network's weights"):
        import_timm("tiny_net", weights=tmp_path / "weights.pth")


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
from quickstudy.errors import BackboneError
from quickstudy.backbones.timm_models import import_timm
try:
    import_timm("resnet18")
except BackboneError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "cannot be imported here" in done.stdout
    assert installation_of("timm") in done.stdout
