"""Averages against their formulas, and that a network always gets its own parameters back."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quickstudy.learning.averages import Lookahead, ParameterAverages, choose_precision


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def change(module: nn.Module, seed: int) -> None:
    """Other parameters, and other running statistics."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws))
    module.train()
    module(torch.randn(4, 2, 2, 2, generator=draws))


def averaged(averages: ParameterAverages, module: nn.Module) -> dict[str, Tensor]:
    with averages.applied():
        return values(module)


@pytest.mark.parametrize("decay", [0.9999, 0.5, 0.15, 0.0])
def test_averages_are_the_formula_with_its_warm_up(decay: float) -> None:
    module = network()
    averages = ParameterAverages(module, decay)
    expected = {name: value.double().numpy() for name, value in values(module).items()}
    for n in range(30):
        change(module, n)
        averages.update()
        weight = min(decay, (1 + n) / (10 + n))
        for name, value in values(module).items():
            expected[name] = weight * expected[name] + (1 - weight) * value.double().numpy()
    found = averaged(averages, module)
    for name, value in expected.items():
        if name != "1.num_batches_tracked":
            np.testing.assert_allclose(found[name].double().numpy(), value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert averages.updates == 30


def test_one_number_by_hand() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(10.0)
    averages = ParameterAverages(module, 0.2)
    for value, expected in ((0.0, 1.0), (0.0, 2 / 11), (1.0, 0.2 * 2 / 11 + 0.8)):  # decays 1/10, 2/11, 3/12 → 0.2
        module.weight.data.fill_(value)
        averages.update()
        with averages.applied():
            assert module.weight.item() == pytest.approx(expected)


def test_running_statistics_are_averaged_and_counts_are_not() -> None:
    module = network()
    averages = ParameterAverages(module, 0.9)
    for n in range(3):
        change(module, n)
        averages.update()
    own, found = values(module), averaged(averages, module)
    different = {name for name in own if not torch.equal(own[name], found[name])}
    assert different == set(own) - {"1.num_batches_tracked"}
    assert found["1.num_batches_tracked"].item() == 3


def test_the_network_gets_its_own_parameters_back() -> None:
    module = network()
    averages = ParameterAverages(module, 0.9)
    change(module, 1)
    own = values(module)
    places = [parameter.data_ptr() for parameter in module.parameters()]
    with averages.applied():
        assert not torch.equal(module[0].weight, own["0.weight"])
    assert all(torch.equal(own[name], value) for name, value in values(module).items())
    assert [parameter.data_ptr() for parameter in module.parameters()] == places
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_it_gets_them_back_when_evaluation_fails(error: type[BaseException]) -> None:
    module = network()
    averages = ParameterAverages(module, 0.9)
    change(module, 1)
    own = values(module)
    with pytest.raises(error), averages.applied():
        raise error
    assert all(torch.equal(own[name], value) for name, value in values(module).items())


def test_applying_changes_no_average() -> None:
    module = network()
    averages = ParameterAverages(module, 0.9)
    change(module, 1)
    averages.update()
    first = averaged(averages, module)
    with averages.applied():
        change(module, 7)  # whatever happens inside
    after = averaged(averages, module)
    assert all(torch.equal(value, after[name]) for name, value in first.items() if name != "1.num_batches_tracked")


def test_the_averages_survive_a_checkpoint_bit_for_bit() -> None:
    module = network()
    averages = ParameterAverages(module, 0.9)
    for n in range(5):
        change(module, n)
        averages.update()
    buffer = io.BytesIO()
    torch.save({"network": module.state_dict(), "averages": averages.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other = network()
    restored = ParameterAverages(other, 0.9)
    other.load_state_dict(saved["network"])
    restored.load_state_dict(saved["averages"])
    for n in range(5, 8):
        for mine, its in ((module, averages), (other, restored)):
            change(mine, n)
            its.update()
    assert restored.updates == averages.updates == 8
    expected = averaged(averages, module)
    assert all(torch.equal(expected[name], value) for name, value in averaged(restored, other).items())


def test_restored_averages_do_not_share_memory_with_the_checkpoint() -> None:
    module = network()
    averages = ParameterAverages(module, 0.9)
    saved = copy.deepcopy(averages.state_dict())
    averages.load_state_dict(saved)
    change(module, 0)
    averages.update()
    kept = saved["averages"]
    assert isinstance(kept, dict)
    assert not torch.equal(kept["0.weight"], averaged(averages, module)["0.weight"])


def test_averages_of_another_network_are_refused() -> None:
    averages = ParameterAverages(network(), 0.9)
    with pytest.raises(KeyError):
        averages.load_state_dict(ParameterAverages(nn.Linear(2, 2), 0.9).state_dict())


def test_training_goes_on_through_the_averages() -> None:
    module = network()
    averages = ParameterAverages(module, 0.9)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.ones(2, 2, 2, 2)).square().sum().backward()
    with averages.applied():
        pass
    optimiser.step()
    averages.update()
    assert all(parameter.grad is not None for parameter in module.parameters())


# Slow values


def test_parameters_are_set_to_slow_values_that_follow_them() -> None:
    module = network()
    lookahead = Lookahead(module)
    slow = {name: value.double().numpy() for name, value in values(module).items()}
    places = [value.data_ptr() for value in module.state_dict().values()]
    for n, kept in enumerate((0.0, 0.25, 0.75, 1.0)):
        change(module, n)
        fast = values(module)
        lookahead.update(kept)
        for name, value in values(module).items():
            if name == "1.num_batches_tracked":
                assert value == fast[name] == n + 1
                continue
            slow[name] = kept * slow[name] + (1 - kept) * fast[name].double().numpy()
            np.testing.assert_allclose(value.double().numpy(), slow[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert [value.data_ptr() for value in module.state_dict().values()] == places


def test_slow_values_begin_with_the_parameters_as_they_are() -> None:
    module = network()
    lookahead = Lookahead(module)
    change(module, 0)
    lookahead.restart()
    own = values(module)
    change(module, 1)
    lookahead.update(1.0)
    assert all(torch.equal(own[name], value) for name, value in values(module).items() if value.is_floating_point())


def test_slow_values_survive_a_checkpoint_bit_for_bit() -> None:
    module = network()
    lookahead = Lookahead(module)
    change(module, 0)
    lookahead.update(0.5)
    change(module, 1)
    buffer = io.BytesIO()
    torch.save({"network": module.state_dict(), "lookahead": lookahead.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other = network()
    restored = Lookahead(other)
    other.load_state_dict(saved["network"])
    restored.load_state_dict(saved["lookahead"])
    for mine, its in ((module, lookahead), (other, restored)):
        change(mine, 2)
        its.update(0.5)
    assert all(torch.equal(value, values(other)[name]) for name, value in values(module).items())


@pytest.mark.parametrize(("by_itself", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_is_faster_in_bfloat16_where_it_multiplies_it_itself(
    by_itself: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch says by default of older ones, too, that they can, since many steps of theirs amount to it."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: by_itself or including_emulation
    )
    assert choose_precision("auto", "cuda") is expected
    assert choose_precision("bfloat16", "cuda") is torch.bfloat16
