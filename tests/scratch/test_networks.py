"""The networks: counted by hand, pooled like TensorFlow, begun like the tutorial, in all their variants."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quickstudy.errors import OptionError
from quickstudy.scratch.layers import ACTIVATIONS, Cost, LocallyConnected, LocalResponseNorm, cost_of
from quickstudy.scratch.networks import ClassicNet, ClassicNetworkOptions, FastNet, FastNetworkOptions

CLASSIC_PARAMETERS = 1_068_298
CLASSIC_MULTIPLY_ADDS = 24 * 24 * 64 * 75 + 12 * 12 * 64 * 1600 + 2304 * 384 + 384 * 192 + 192 * 10

pytestmark = pytest.mark.usefixtures("one_thread")


def classic(*, size: int = 24, channels: int = 3, classes: int = 10, **options: object) -> ClassicNet:
    return ClassicNetworkOptions(**options).build(size=size, channels=channels, classes=classes)  # type: ignore[arg-type]


def fast(*, size: int = 32, channels: int = 3, classes: int = 10, **options: object) -> FastNet:
    return FastNetworkOptions(**options).build(size=size, channels=channels, classes=classes)  # type: ignore[arg-type]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def watched(network: nn.Module, images: Tensor, *names: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of some modules in a forward pass."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (inputs[0].detach(), output.detach())

        return hook

    handles = [network.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    network(images)
    for handle in handles:
        handle.remove()
    return seen


def pooled_as_in_tensorflow(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Windows of 3 every 2 with padding SAME, by TensorFlow's definition: the odd pixel of padding comes last."""
    n, channels, side, _ = x.shape
    out = math.ceil(side / 2)
    before = max((out - 1) * 2 + 3 - side, 0) // 2
    result = np.empty((n, channels, out, out), np.float32)
    for row, column in np.ndindex(out, out):
        top, left = row * 2 - before, column * 2 - before
        window = x[:, :, max(top, 0) : top + 3, max(left, 0) : left + 3]
        result[:, :, row, column] = window.max(axis=(2, 3))
    return result


def test_the_classic_network_is_the_tutorials_size() -> None:
    assert cost_of(classic(), size=24, channels=3) == Cost(
        parameters=CLASSIC_PARAMETERS, multiply_adds=CLASSIC_MULTIPLY_ADDS
    )


def test_the_classic_networks_parameters_by_layer() -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in classic().named_parameters()}
    assert shapes == {
        "conv1.weight": (64, 3, 5, 5), "conv1.bias": (64,),
        "conv2.weight": (64, 64, 5, 5), "conv2.bias": (64,),
        "hidden1.weight": (384, 2304), "hidden1.bias": (384,),
        "hidden2.weight": (192, 384), "hidden2.bias": (192,),
        "linear.weight": (10, 192), "linear.bias": (10,),
    }  # fmt: skip


@pytest.mark.parametrize("size", [24, 25, 26, 27, 30, 9, 8, 5, 4, 3, 2, 1])
def test_pooling_is_tensorflows(size: int) -> None:
    network = classic(size=size)
    seen = watched(network, noise(2, 3, size, size), "conv1", "norm1", "norm2", "hidden1")
    first = pooled_as_in_tensorflow(np.maximum(seen["conv1"][1].numpy(), 0))  # after the activation, as in the tutorial
    np.testing.assert_array_equal(seen["norm1"][0].numpy(), first)
    second = pooled_as_in_tensorflow(seen["norm2"][1].numpy())
    np.testing.assert_array_equal(seen["hidden1"][0].numpy(), second.reshape(2, -1))


def test_pooling_24_gives_12_and_6() -> None:
    seen = watched(classic(), noise(1, 3, 24, 24), "conv1", "norm1", "conv2", "norm2", "hidden1")
    assert seen["conv1"][1].shape == (1, 64, 24, 24)
    assert seen["norm1"][0].shape == seen["conv2"][1].shape == seen["norm2"][1].shape == (1, 64, 12, 12)
    assert seen["hidden1"][0].shape == (1, 64 * 6 * 6)


def test_the_first_norm_follows_the_pooling_and_the_second_precedes_it() -> None:
    network = classic()
    images = noise(2, 3, 24, 24)
    seen = watched(network, images, "active1", "norm1", "conv2", "active2", "norm2")
    assert torch.equal(seen["norm1"][1], seen["conv2"][0])
    assert torch.equal(seen["active2"][1], seen["norm2"][0])
    reference = nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)  # torch divides alpha by 9
    torch.testing.assert_close(seen["norm2"][1], reference(seen["norm2"][0]))


def test_initial_values_are_the_tutorials() -> None:
    torch.manual_seed(3)
    network = classic()
    assert isinstance(network.hidden1, nn.Linear) and isinstance(network.hidden2, nn.Linear)
    for layer, deviation, bias in (
        (network.conv1, 0.05, 0.0),
        (network.conv2, 0.05, 0.1),
        (network.hidden1, 0.04, 0.1),
        (network.hidden2, 0.04, 0.1),
        (network.linear, 1 / 192, 0.0),
    ):
        assert isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
        values = layer.weight.detach()
        assert values.abs().max() <= 2 * deviation * (1 + 1e-6)
        assert values.std().item() == pytest.approx(0.8796 * deviation, rel=0.06)
        assert (layer.bias == bias).all()


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (classic, {"hidden1.weight", "hidden2.weight"}),
        (partial(classic, top="local", normalisation="batch_norm"), {"hidden1.weight", "hidden2.weight"}),
        (partial(classic, bottleneck=16), {"hidden1.weight", "hidden2.weight"}),
        (
            partial(fast, widths=(8,)),
            {"linear.weight"}
            | {f"blocks.0.norms.{number}.bias" for number in range(3)}
            | {f"blocks.0.convolutions.{number}.weight" for number in range(3)},
        ),
    ],
    ids=["classic", "local", "bottleneck", "fast"],
)
def test_what_is_decayed(build: Callable[[], ClassicNet | FastNet], names: set[str]) -> None:
    network = build()
    decayed = {id(parameter) for parameter in network.decayed()}
    assert {name for name, parameter in network.named_parameters() if id(parameter) in decayed} == names


BASE = {"conv1": (24 * 24 * 64 * 75, 64 * 76), "conv2": (12 * 12 * 64 * 1600, 64 * 1601)}
DENSE = (2304 * 384 + 384 * 192 + 1920, 2305 * 384 + 385 * 192 + 1930)
LOCAL = (
    36 * 576 * 64 + 36 * 576 * 32 + 36 * 32 * 10,
    36 * 576 * 64 + 36 * 64 + 36 * 576 * 32 + 36 * 32 + 36 * 32 * 10 + 10,
)
VARIANTS = {
    "top=local": ({"top": "local"}, BASE["conv1"], BASE["conv2"], LOCAL, 0),
    "batch_norm": ({"normalisation": "batch_norm"}, BASE["conv1"], BASE["conv2"], DENSE, 4 * 64),
    "none": ({"normalisation": "none"}, BASE["conv1"], BASE["conv2"], DENSE, 0),
    "bottleneck": (
        {"bottleneck": 16},
        BASE["conv1"],
        (144 * (64 * 16 + 16 * 16 * 25 + 16 * 64), 65 * 16 + (400 + 1) * 16 + 17 * 64),
        DENSE,
        0,
    ),
    "all": (
        {"top": "local", "normalisation": "batch_norm", "bottleneck": 8, "activation": "elu"},
        BASE["conv1"],
        (144 * (64 * 8 + 8 * 8 * 25 + 8 * 64), 65 * 8 + (200 + 1) * 8 + 9 * 64),
        LOCAL,
        4 * 64,
    ),
    **{name: ({"activation": name}, BASE["conv1"], BASE["conv2"], DENSE, 0) for name in ACTIVATIONS},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_and_costs_what_it_should(variant: str) -> None:
    options, *parts, norms = VARIANTS[variant]
    torch.manual_seed(0)
    network = classic(**options)
    assert cost_of(network, size=24, channels=3) == Cost(
        multiply_adds=sum(part[0] for part in parts), parameters=sum(part[1] for part in parts) + norms
    )
    logits = network(noise(4, 3, 24, 24))
    assert logits.shape == (4, 10)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or (name, options.get("normalisation")) == ("conv2.bias", "batch_norm"), name


@pytest.mark.parametrize("size", [24, 25, 32, 9])
@pytest.mark.parametrize("top", ["dense", "local"])
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 100)])
def test_the_classic_network_takes_other_images(size: int, top: str, channels: int, classes: int) -> None:
    network = classic(size=size, channels=channels, classes=classes, top=top)
    assert network(noise(2, channels, size, size)).shape == (2, classes)


def test_variants_have_what_they_say() -> None:
    network = classic(top="local", normalisation="none", activation="tanh", bottleneck=12)
    kinds = {type(module) for module in network.modules()}
    assert {LocallyConnected, nn.Tanh} <= kinds
    assert not {nn.ReLU, LocalResponseNorm, nn.BatchNorm2d} & kinds
    assert sum(isinstance(module, nn.Tanh) for module in network.modules()) == 6
    assert network.get_submodule("conv2.conv").weight.shape == (12, 12, 5, 5)


@pytest.mark.parametrize(
    ("options", "choices"),
    [
        ({"activation": "swish"}, tuple(ACTIVATIONS)),
        ({"normalisation": "layer"}, ("lrn", "batch_norm", "none")),
        ({"top": "pooled"}, ("dense", "local")),
    ],
)
def test_an_unknown_value_is_named_with_the_choices(options: dict[str, str], choices: tuple[str, ...]) -> None:
    with pytest.raises(OptionError) as caught:
        classic(**options)
    ((name, value),) = options.items()
    assert str(caught.value) == f"{name} is '{value}'; expected one of {', '.join(choices)}"


@pytest.mark.parametrize("size", [16, 17, 24, 28, 31, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_fast_network_takes_many_sizes(size: int, channels: int) -> None:
    network = fast(size=size, channels=channels, classes=7)
    assert network(noise(2, channels, size, size)).shape == (2, 7)
    seen = watched(network, noise(2, channels, size, size), "first", *(f"blocks.{number}" for number in range(3)))
    side = size - 1
    assert seen["first"][1].shape == (2, 16 if channels == 3 else 8, side, side)
    for number, width in enumerate((16, 64, 128)):
        side //= 2
        assert seen[f"blocks.{number}"][1].shape == (2, width, side, side)


def test_the_fast_networks_cost_by_hand() -> None:
    network = fast(widths=(16, 32), convolutions=2, classes=5)
    multiply_adds = (
        31 * 31 * 16 * 12
        + 31 * 31 * 16 * 16 * 9 + 15 * 15 * 16 * 16 * 9
        + 15 * 15 * 32 * 16 * 9 + 7 * 7 * 32 * 32 * 9
        + 32 * 5
    )  # fmt: skip
    parameters = 16 * 12 + (16 * 16 + 16 * 16 + 32 * 16 + 32 * 32) * 9 + 2 * 2 * (16 + 32) + 32 * 5
    assert cost_of(network, size=32, channels=3) == Cost(parameters=parameters, multiply_adds=multiply_adds)


def test_whitening_is_taken_from_the_images_and_stays() -> None:
    torch.manual_seed(0)
    network = fast(widths=(8, 8))
    drawn = network.first.weight.clone()
    network.prepare(noise(50, 3, 32, 32))
    fitted = network.first.weight.clone()
    assert not torch.equal(fitted, drawn)
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    nn.functional.cross_entropy(network(noise(8, 3, 32, 32)), torch.arange(8)).backward()
    optimiser.step()
    assert torch.equal(network.first.weight, fitted)
    assert network.linear.weight.grad is not None and network.linear.weight.grad.any()


def test_without_whitening_the_first_layer_is_trained() -> None:
    network = fast(whitening=False)
    drawn = network.first.weight.clone()
    network.prepare(noise(50, 3, 32, 32))
    assert torch.equal(network.first.weight, drawn)
    nn.functional.cross_entropy(network(noise(8, 3, 32, 32)), torch.arange(8)).backward()
    assert network.first.weight.grad is not None and network.first.weight.grad.any()


def test_blocks_begin_as_copies_of_their_input() -> None:
    network = fast(widths=(32, 64))
    x = noise(1, 16, 8, 8)
    first = network.get_submodule("blocks.0.convolutions.0")
    torch.testing.assert_close(first(x)[:, :16], x)
    assert first(x)[:, 16:].std() > 0.05


def test_a_residual_block_adds_its_input_after_pooling() -> None:
    torch.manual_seed(0)
    images = noise(4, 3, 32, 32)
    for residual in (True, False):
        network = fast(residual=residual, widths=(8,), convolutions=2).eval()
        names = ("blocks.0", "blocks.0.actives.0", "blocks.0.actives.1")
        seen = watched(network, images, *names)
        block, first, last = (seen[name][1] for name in names)
        torch.testing.assert_close(block, last + first if residual else last)


def test_a_blocks_last_activation_may_come_after_the_sum() -> None:
    torch.manual_seed(0)
    network = fast(activate_sum=True, widths=(8,), convolutions=3).eval()
    names = ("blocks.0", "blocks.0.actives.0", "blocks.0.norms.2")
    seen = watched(network, noise(4, 3, 32, 32), *names)
    block, first, last = (seen[name][1] for name in names)
    torch.testing.assert_close(block, nn.functional.silu(last + first))


def test_the_whitening_bias_is_trained_up_to_its_last_epoch() -> None:
    torch.manual_seed(0)
    network = fast(widths=(8, 8), whitening_bias_epochs=1.5)
    bias = network.whitening_bias
    assert bias is not None and bias.shape == (16,) and not bias.any()
    network.prepare(noise(50, 3, 32, 32))
    assert not bias.any()
    changed = []
    for epoch in (0.0, 1.25, 1.5, 1.75):
        changed.append(network.stop_training_at(epoch))
        network.zero_grad()
        nn.functional.cross_entropy(network(noise(8, 3, 32, 32)), torch.arange(8)).backward()
        assert (bias.grad is not None) == (epoch < 1.5)
        assert network.get_submodule("blocks.0.convolutions.0").weight.grad.any()  # type: ignore[union-attr]
    assert changed == [False, False, True, False]
    assert any(weight is bias for weight in fast(widths=(8, 8)).decayed()) is False
    assert fast().whitening_bias is None
    assert fast(whitening=False).whitening_bias is None
    assert not fast().stop_training_at(100)


def test_a_block_of_one_convolution_is_that_with_or_without_residual() -> None:
    images, state = noise(2, 3, 32, 32), fast(convolutions=1).state_dict()
    outputs = []
    for residual in (True, False):
        network = fast(convolutions=1, residual=residual).eval()
        network.load_state_dict(state)
        outputs.append(network(images))
    assert torch.equal(*outputs)


def test_values_stay_in_half_precision_between_layers() -> None:
    network, seen = fast(activation="gelu", activate_sum=True), {}
    for name, module in network.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(lambda _module, _given, made, name=name: seen.update({name: made.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        network(noise(2, 3, 32, 32))
    assert len(seen) == 2 + 3 * 3 * 3 + 1
    assert set(seen.values()) == {torch.bfloat16}


def test_logits_are_scaled() -> None:
    torch.manual_seed(0)
    whole = fast(logit_scale=1.0).eval()
    ninth = fast(logit_scale=1 / 9).eval()
    ninth.load_state_dict(whole.state_dict())
    images = noise(2, 3, 32, 32)
    torch.testing.assert_close(ninth(images) * 9, whole(images))


@pytest.mark.parametrize(
    ("options", "size", "said"),
    [
        ({"activation": "swish"}, 32, "activation is 'swish'; expected one of relu, gelu"),
        ({"widths": ()}, 32, "widths is empty"),
        ({"widths": (8, 0)}, 32, "widths is 8,0"),
        ({"activate_sum": True, "residual": False}, 32, "activate_sum is on, but residual is off"),
        ({"whitening_bias_epochs": 2.5, "whitening": False}, 32, "whitening_bias_epochs is 2.5, but whitening is off"),
        ({}, 15, "Images of 15 pixels a side are too small for 3 blocks, which take 16"),
    ],
)
def test_the_fast_network_refuses(options: dict[str, object], size: int, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        fast(size=size, **options)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_fast_network_has_every_activation(activation: str) -> None:
    network = fast(activation=activation, widths=(8, 8))
    expected = ACTIVATIONS[activation]
    assert sum(type(module) is expected for module in network.modules()) == 1 + 2 * 3
    nn.functional.cross_entropy(network(noise(4, 3, 32, 32)), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("network", [fast(widths=(8,)), classic(normalisation="batch_norm")], ids=["fast", "classic"])
def test_counting_the_cost_leaves_the_network_as_it_was(network: nn.Module, training: bool) -> None:
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cost_of(network, size=24, channels=3)
    assert all(module.training is training for module in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_failure_while_counting_leaves_no_hooks_behind() -> None:
    network = classic()
    with pytest.raises(RuntimeError):
        cost_of(network, size=40, channels=3)
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
