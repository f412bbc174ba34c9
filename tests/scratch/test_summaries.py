"""What people watch: read back with TensorBoard's own reader and as JSON lines, and compared with slow counts."""

from __future__ import annotations

import io
import json
import math
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from quickstudy.scratch.networks import ClassicNetworkOptions, FastNetworkOptions
from quickstudy.scratch.summaries import Summaries


@pytest.fixture
def summaries(tmp_path: Path) -> Iterator[Summaries]:
    made = Summaries(tmp_path / "events", tmp_path / "metrics.jsonl")
    yield made
    made.close()


def events(summaries: Summaries) -> Any:
    """What TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summaries.close()
    accumulator = EventAccumulator(str(summaries.lines.parent / "events"), {"scalars": 0, "images": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def lines(summaries: Summaries) -> list[dict[str, Any]]:
    if not summaries.lines.exists():
        return []
    return [json.loads(line) for line in summaries.lines.read_text(encoding="utf-8").splitlines()]


def histogram_of(summaries: Summaries, values: Tensor) -> Any:
    summaries.histogram(4, "values", values)
    (found,) = events(summaries).Histograms("values")
    assert found.step == 4
    return found.histogram_value


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def limits_by_hand() -> list[float]:
    """Upper ends: from 1e-8 on, 10 % from one to the next; zero; and the same below it."""
    positive = [1e-8 * 1.1**power for power in range(500)]
    return [-limit for limit in reversed(positive)] + [0.0, *positive]


def clear_of_limits(count: int, *, seed: int = 0, span: int = 499) -> list[float]:
    """Values of all sizes and both signs in the middle parts of buckets, where float32 cannot tell them wrong."""
    draws = np.random.Generator(np.random.PCG64(seed))
    powers = draws.integers(1, span, count) - 0.5 + draws.uniform(-0.4, 0.4, count)
    return [float(np.float32(value)) for value in draws.choice([-1, 1], count) * 1e-8 * 1.1**powers]


def test_a_histogram_counts_as_a_slow_one_does(summaries: Summaries) -> None:
    values = [*clear_of_limits(3000), *clear_of_limits(3000, seed=1, span=200), 0.0, 0.0, 3e-9, -3e-9, 1e-30, -1e-30]
    limits = limits_by_hand()
    expected: dict[float, int] = {}
    for value in values:
        limit = limits[bisect_left(limits, value)]  # the smallest that is not below the value
        expected[limit] = expected.get(limit, 0) + 1
    found = histogram_of(summaries, torch.tensor(values).reshape(2, 3, -1))
    counted = {limit: count for limit, count in zip(found.bucket_limit, found.bucket, strict=True) if count}
    assert sum(counted.values()) == len(values)
    assert len(counted) == len(expected) > 500
    for (limit, count), (wanted, wanted_count) in zip(sorted(counted.items()), sorted(expected.items()), strict=True):
        assert limit == pytest.approx(wanted, rel=1e-9)
        assert count == wanted_count


def test_a_histograms_facts(summaries: Summaries) -> None:
    found = histogram_of(summaries, torch.tensor([-2.0, 0.0, 0.5, 4.0]))
    assert (found.min, found.max, found.num, found.sum, found.sum_squares) == (-2.0, 4.0, 4.0, 2.5, 20.25)
    # From one bucket before the first that holds something, so that a reader knows where that one begins.
    assert tuple(found.bucket)[:2] == (0, 1)
    assert found.bucket_limit[0] < -2.0 <= found.bucket_limit[1]
    assert found.bucket[-1] == 1 and found.bucket_limit[-2] < 4.0 <= found.bucket_limit[-1]
    assert list(found.bucket_limit) == sorted(found.bucket_limit)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-12, -1e-12, 1e-8, 7.5e5])
def test_a_constant_tensor_is_in_one_bucket(summaries: Summaries, value: float) -> None:
    found = histogram_of(summaries, torch.full((5, 4), value))
    counted = [(limit, count) for limit, count in zip(found.bucket_limit, found.bucket, strict=True) if count]
    assert len(counted) == 1 and counted[0][1] == 20
    assert abs(counted[0][0] - value) <= 0.1001 * abs(value) + 1e-8
    assert found.min == found.max == pytest.approx(value)


@pytest.mark.parametrize("sign", [1, -1])
def test_values_beyond_the_last_bucket_count_in_it(summaries: Summaries, sign: int) -> None:
    found = histogram_of(summaries, sign * torch.tensor([1e20, 3e30]))
    assert sum(found.bucket) == 2
    assert len([count for count in found.bucket if count]) == 1


def test_what_is_no_number_is_left_out(summaries: Summaries) -> None:
    found = histogram_of(summaries, torch.tensor([math.nan, 1.0, math.inf, -math.inf, 2.0, math.nan]))
    assert (found.num, found.min, found.max, sum(found.bucket)) == (2.0, 1.0, 2.0, 2.0)


def test_nothing_to_count_is_no_histogram(summaries: Summaries) -> None:
    summaries.histogram(1, "none", torch.zeros(0))
    summaries.histogram(1, "never", torch.full((3,), math.nan))
    summaries.histogram(1, "endless", torch.tensor([math.inf, -math.inf]))
    assert events(summaries).Tags()["histograms"] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_histograms_of_other_types(summaries: Summaries, dtype: torch.dtype) -> None:
    found = histogram_of(summaries, torch.tensor([-3, 1, 2, 2], dtype=dtype))
    assert (found.num, found.sum, found.sum_squares) == (4.0, 2.0, 18.0)
    assert [count for count in found.bucket if count] == [1, 1, 2]


def test_a_histogram_leaves_its_values_alone(summaries: Summaries) -> None:
    values = noise(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    before = values.clone()
    summaries.histogram(1, "values", values)
    assert torch.equal(values, before)


def test_scalars_are_in_both_places_and_facts_in_one(summaries: Summaries) -> None:
    summaries.scalars(10, {"loss/total": 4.5, "learning_rate": 0.1})
    summaries.scalars(20, {"loss/total": 3.25}, split="test", n=7)
    assert lines(summaries) == [
        {"step": 10, "loss/total": 4.5, "learning_rate": 0.1},
        {"step": 20, "split": "test", "n": 7, "loss/total": 3.25},
    ]
    found = events(summaries)
    assert sorted(found.Tags()["scalars"]) == ["learning_rate", "loss/total"]
    assert [(event.step, event.value) for event in found.Scalars("loss/total")] == [(10, 4.5), (20, 3.25)]


def test_lines_are_there_before_it_is_closed(summaries: Summaries) -> None:
    summaries.scalars(1, {"loss": 1.0})
    assert lines(summaries) == [{"step": 1, "loss": 1.0}]
    other = Summaries(None, summaries.lines)
    other.scalars(2, {"loss": 0.5})
    assert [line["step"] for line in lines(summaries)] == [1, 2]


def test_without_tensorboard_there_are_lines_only(tmp_path: Path) -> None:
    quiet = Summaries(None, tmp_path / "metrics.jsonl")
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    quiet.scalars(1, {"loss": 1.0})
    quiet.images(1, "images", torch.zeros(2, 3, 4, 4))
    quiet.picture(1, "picture", torch.zeros(1, 4, 4))
    quiet.histogram(1, "values", torch.ones(3))
    quiet.graph(network, torch.zeros(1, 2))
    with quiet.activations(1, network):
        network(torch.ones(1, 2)).sum().backward()
    quiet.network(1, network)
    quiet.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    written = {name for line in lines(quiet) for name in line}
    assert written == {"step", "loss", "sparsity/1"}


@pytest.mark.parametrize("checkpoint", [0, 15])
def test_what_a_killed_process_wrote_after_its_checkpoint_is_purged(tmp_path: Path, checkpoint: int) -> None:
    first = Summaries(tmp_path / "events", tmp_path / "metrics.jsonl")
    for step in (10, 20, 30):
        first.scalars(step, {"loss": float(step)})
    first.close()
    second = Summaries(tmp_path / "events", tmp_path / "metrics.jsonl", first_step=checkpoint)
    second.scalars(20, {"loss": -20.0})
    found = [(event.step, event.value) for event in events(second).Scalars("loss")]
    assert found == [*([(10, 10.0)] if checkpoint else []), (20, -20.0)]


def decoded(image: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_stretched_each_to_its_own_range(summaries: Summaries, channels: int) -> None:
    batch = noise(12, channels, 6, 6) * torch.arange(1, 13)[:, None, None, None]
    batch[2] = 5.0  # one colour
    summaries.images(3, "images", batch.contiguous(memory_format=torch.channels_last))
    (image,) = events(summaries).Images("images")
    assert (image.step, image.width, image.height) == (3, 8 * 6, 6)  # the first ones, side by side
    pixels = decoded(image).astype(float).reshape(6, 48, -1)[..., :channels]
    for number in range(8):
        shown = batch[number].permute(1, 2, 0).numpy()
        stretched = (shown - shown.min()) / max(float(np.ptp(shown)), 1e-6)
        assert abs(pixels[:, number * 6 : number * 6 + 6] - stretched * 255).max() <= 1


def test_a_picture(summaries: Summaries) -> None:
    summaries.picture(5, "confusion", torch.tensor([[[0.0, 1.0], [0.5, 0.25]]]))
    (image,) = events(summaries).Images("confusion")
    assert image.step == 5
    assert abs(decoded(image).reshape(2, 2, -1)[..., 0] - np.array([[0, 255], [127, 64]])).max() <= 1


class HandMade(nn.Module):
    """Passes its input through two ReLUs, the second after a shift of -1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.other = nn.ReLU(), nn.ReLU(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.other(self.second(self.first(x) - 1))
        return result


def test_sparsity_is_the_share_of_zeros_exactly(summaries: Summaries) -> None:
    images = torch.tensor([[-1.0, 0.0, 0.5, 2.0], [3.0, 4.0, 1.0, -5.0]])
    network = HandMade()
    with summaries.activations(7, network):
        network(images)
    # First: -1, 0 and -5 give zeros. Second: these, and 0.5 and 1.
    assert lines(summaries) == [{"step": 7, "sparsity/first": 3 / 8, "sparsity/second": 5 / 8}]
    found = events(summaries)
    assert [event.value for event in found.Scalars("sparsity/second")] == [5 / 8]
    (histogram,) = found.Histograms("activations/first")
    value = histogram.histogram_value
    assert (histogram.step, value.num, value.min, value.max, value.sum) == (7, 8.0, 0.0, 4.0, 10.5)


def test_of_a_large_batch_the_first_images_are_watched(summaries: Summaries) -> None:
    images = torch.cat([torch.ones(16, 4), -torch.ones(100, 4)])
    network = HandMade()
    with summaries.activations(0, network):
        network(images)
    assert lines(summaries)[0]["sparsity/first"] == 0.0


def test_watching_ends_with_its_context(summaries: Summaries) -> None:
    network = HandMade()
    with summaries.activations(1, network):
        network(torch.ones(1, 2))
    network(torch.ones(1, 2))
    with pytest.raises(ValueError, match="mine"), summaries.activations(2, network):
        raise ValueError("mine")
    assert not any(module._forward_hooks for module in network.modules())
    assert [line["step"] for line in lines(summaries)] == [1]


def test_watching_changes_nothing(summaries: Summaries) -> None:
    network = ClassicNetworkOptions(activation="elu").build(size=8, channels=3, classes=4)
    images = noise(2, 3, 8, 8)
    plain = network(images)
    with summaries.activations(1, network):
        watched = network(images)
    assert torch.equal(plain, watched)
    assert set(lines(summaries)[0]) == {"step", *(f"sparsity/active{number}" for number in (1, 2, 3, 4))}


@pytest.mark.parametrize("activation", ["gelu", "leaky_relu"])
def test_every_activation_of_the_fast_network_is_watched(summaries: Summaries, activation: str) -> None:
    network = FastNetworkOptions(widths=(4, 4), activation=activation).build(size=8, channels=1, classes=2)
    with summaries.activations(1, network):
        network(noise(2, 1, 8, 8))
    assert len(lines(summaries)[0]) - 1 == sum(
        type(module).__name__.lower() == activation.replace("_", "") for module in network.modules()
    )


def test_parameters_and_gradients(summaries: Summaries) -> None:
    network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1))
    network[1].bias.requires_grad = False
    network[0].weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    network[1].weight.data.fill_(2.0)
    network(torch.tensor([[3.0, 4.0]])).sum().backward()  # gradients 2·(3, 4); and 9 − 4
    summaries.network(9, network)
    found = events(summaries)
    assert sorted(found.Tags()["histograms"]) == [
        "gradients/0.weight", "gradients/1.weight", "parameters/0.weight", "parameters/1.bias", "parameters/1.weight",
    ]  # fmt: skip
    (gradients,) = found.Histograms("gradients/0.weight")
    assert (gradients.histogram_value.min, gradients.histogram_value.max) == (6.0, 8.0)
    (parameters,) = found.Histograms("parameters/0.weight")
    assert (parameters.histogram_value.min, parameters.histogram_value.max) == (-1.0, 3.0)


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize(
    ("network", "named"),
    [
        (
            ClassicNetworkOptions().build(size=24, channels=3, classes=10),
            {"conv1", "conv2", "hidden1", "hidden2", "linear"},
        ),
        (FastNetworkOptions(widths=(4,)).build(size=24, channels=3, classes=10), {"first", "linear", "blocks"}),
    ],
    ids=["classic", "fast"],
)
def test_the_graph_shows_the_layers(summaries: Summaries, network: nn.Module, named: set[str]) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    summaries.graph(network, noise(4, 3, 24, 24))
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    names = [part for node in events(summaries).Graph().node for part in node.name.split("/")]
    parts = {name.partition("[")[2].rstrip("]") or name for name in names}
    assert named <= parts
