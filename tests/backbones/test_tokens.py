"""Networks that give tokens become backbones: which of them count, their blocks as cuts, and what blocks know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_networks import SIZE, Net, photos, run
from small_transformers import PATCH, WIDTH, save_vit

from quickstudy.backbones.backbone import add_backbone
from quickstudy.backbones.graphs.preprocessing import PREPROCESSINGS
from quickstudy.backbones.graphs.tokens import Tokens, pooling_of
from quickstudy.backbones.sources.adding import BackboneSource, add_from, import_onnx
from quickstudy.backbones.sources.graph_import import Imported
from quickstudy.errors import BackboneError, OptionError

TORCH = PREPROCESSINGS["torch"]
TOLERANCE = 1e-5  # of the largest value


def tokens_of(path: Path, images: np.ndarray) -> np.ndarray:
    """What the network itself gives, fed as its makers do: N×3×H×W, scaled by ImageNet's mean and deviation."""
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (TORCH.mean, TORCH.std))
    given = ((images.transpose(0, 3, 1, 2) / 255 - mean) / std).astype(np.float32)
    return run(path, "last_hidden_state", given)


def check(imported: Imported, expected: np.ndarray, images: np.ndarray) -> None:
    onnx.checker.check_model(imported.graph, full_check=True)
    given = run(imported.graph, "features", images)
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("take", ["cls", "mean", "both"])
def test_what_counts_of_the_tokens(tmp_path: Path, take: str, registers: int, dynamic: bool) -> None:
    path, images = save_vit(tmp_path / "vit.onnx", registers=registers, dynamic=dynamic), photos()
    wanted = Tokens(take=take, patch=PATCH, registers=registers)
    imported = import_onnx(path, size=SIZE, preprocessing=TORCH, tokens=wanted)
    tokens = tokens_of(path, images)
    assert tokens.shape == (len(images), 16 + 1 + registers, WIDTH)
    cls, mean = tokens[:, 0], tokens[:, 1 + registers :].mean(axis=1)
    expected = {"cls": cls, "mean": mean, "both": np.concatenate([cls, mean], axis=1)}[take]
    check(imported, expected, images)
    assert imported.classes == ()
    assert imported.prefix_tokens == 1 + registers


def test_both_count_where_nothing_is_said_and_registers_are_told(tmp_path: Path) -> None:
    path = save_vit(tmp_path / "vit.onnx", registers=4)
    imported = import_onnx(path, preprocessing=TORCH, tokens=Tokens(patch=PATCH))
    check(imported, np.zeros((3, 2 * WIDTH)) + run(imported.graph, "features", photos()), photos())
    assert "4 registers" in imported.found["tokens"]
    assert "16 of them patches" in imported.found["tokens"]


def test_without_a_class_token_it_is_the_mean(tmp_path: Path) -> None:
    path, images = save_vit(tmp_path / "vit.onnx", class_token=False), photos()
    imported = import_onnx(path, preprocessing=TORCH, tokens=Tokens(usual="cls"))
    check(imported, tokens_of(path, images).mean(axis=1), images)
    with pytest.raises(BackboneError, match="--tokens mean"):
        import_onnx(path, preprocessing=TORCH, tokens=Tokens(take="cls"))


@pytest.mark.parametrize("registers", [0, 4])
def test_blocks_are_cuts_and_levels_are_of_patches(tmp_path: Path, registers: int) -> None:
    path, images = save_vit(tmp_path / "vit.onnx", blocks=3, registers=registers), photos()
    added, imported = add_from(BackboneSource(place=str(path), preprocessing=TORCH), tmp_path / "cache")
    assert imported.cuts == ("stem", "block_1", "block_2", "block_3", "features")
    assert [cut.shape for cut in added.cuts[1:]] == [(17 + registers, WIDTH)] * 3 + [(2 * WIDTH,)]
    work = [cut.multiply_adds for cut in added.cuts]
    assert work == sorted(work)
    assert work[1] < work[2] < work[3]
    graph = onnx.load(added.path)
    block = run(graph, "block_2", images).astype(np.float64)[:, 1 + registers :]
    names = [level.name for level in added.levels]
    starts = np.cumsum([0, *(level.width for level in added.levels)])
    levels = run(graph, "levels", images)
    assert levels.shape == (3, starts[-1])
    for name, expected in (("mean", block.mean(axis=1)), ("deviation", block.std(axis=1))):
        start = starts[names.index(f"{name} of block_2")]
        np.testing.assert_allclose(levels[:, start : start + WIDTH], expected, atol=1e-5)


def test_any_number_of_images_gives_the_same(tmp_path: Path) -> None:
    imported = import_onnx(
        save_vit(tmp_path / "vit.onnx", registers=2), preprocessing=TORCH, tokens=Tokens(patch=PATCH)
    )
    images = photos()
    together = run(imported.graph, "features", images)
    one_by_one = np.concatenate([run(imported.graph, "features", image[None]) for image in images])
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "wanted", "take", "prefix"),
    [
        (257, Tokens(), "both", 1),
        (261, Tokens(), "both", 5),
        (201, Tokens(usual="cls"), "cls", 5),
        (196, Tokens(), "mean", 0),
        (49, Tokens(patch=4), "mean", 0),  # patches joined on the way
        (9, Tokens(patch=16, registers=4, take="mean"), "mean", 5),
    ],
)
def test_patches_are_a_square_number(count: int, wanted: Tokens, take: str, prefix: int) -> None:
    pooling = pooling_of(count, wanted, size=SIZE)
    assert (pooling.take, pooling.prefix) == (take, prefix)


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="4 registers"):
        pooling_of(257, Tokens(registers=4), size=SIZE)
    with pytest.raises(OptionError, match="first"):
        pooling_of(257, Tokens(take="first"), size=SIZE)
    net = Net()
    plain = net.save(tmp_path / "plain.onnx", net.op("Flatten", net.op("GlobalAveragePool", net.body("x"))))
    with pytest.raises(BackboneError, match="--tokens cls"):
        import_onnx(plain, preprocessing=TORCH, tokens=Tokens(take="cls"))


def test_an_embedding_among_several_outputs_is_taken_and_no_classifier(tmp_path: Path) -> None:
    path, images = save_vit(tmp_path / "clip.onnx", projects=True, text=True), photos()
    imported = import_onnx(path, preprocessing=TORCH)
    assert imported.classes == ()
    assert imported.found["output"].startswith("'image_embeds', of ")
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (TORCH.mean, TORCH.std))
    given = ((images.transpose(0, 3, 1, 2) / 255 - mean) / std).astype(np.float32)
    feeds = {"pixel_values": given, "input_ids": np.zeros((3, 4), np.int64)}
    check(imported, run(path, "image_embeds", feeds), images)


def test_a_network_for_text_says_what_to_take(tmp_path: Path) -> None:
    path = save_vit(tmp_path / "clip.onnx", text=True)
    with pytest.raises(BackboneError, match=r"vision_model\.onnx"):
        import_onnx(path, preprocessing=TORCH, output="text_embeds")


def test_the_same_network_under_two_ways_of_pooling(tmp_path: Path) -> None:
    path = save_vit(tmp_path / "vit.onnx")
    fingerprints = set()
    for take in ("cls", "mean"):
        made = import_onnx(path, preprocessing=TORCH, tokens=Tokens(take=take))
        added = add_backbone(
            take,
            made.graph,
            tmp_path / "cache",
            input_spec=made.input_spec,
            cuts=made.cuts,
            classes=(),
            origin="",
            prefix_tokens=made.prefix_tokens,
        )
        fingerprints.add(added.fingerprint)
    assert len(fingerprints) == 2
