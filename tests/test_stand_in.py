"""The device that stands in for a GPU refuses what a GPU refuses, and counts what makes the processor wait for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch")
import torch
from torch import Tensor
from torch.nn import functional

from stand_in import DEVICE, rounding, waits

HERE = torch.arange(12.0).reshape(3, 4)
ROWS = torch.tensor([0, 2])


def there(tensor: Tensor = HERE) -> Tensor:
    return tensor.to(DEVICE)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda: there() + HERE,
        lambda: there()[ROWS],
        lambda: HERE[there(ROWS)],
        lambda: there().index_select(0, ROWS),
        lambda: torch.add(there(), there(), out=torch.empty(3, 4)),
        lambda: torch.add(HERE, HERE, out=there()),
        lambda: torch.where(there() > 1, HERE, there()),
        lambda: torch._foreach_add_([there(), there()], [HERE, HERE]),
        lambda: torch._foreach_lerp_([there()], [HERE], 0.5),
        lambda: torch.stack([there(), HERE]),
        lambda: functional.cross_entropy(there(), torch.tensor([0, 1, 2])),
        lambda: functional.conv2d(there(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 2, 2)),
        lambda: there().numpy(),
        lambda: there().pin_memory(),
        lambda: torch.empty(3, device=DEVICE, pin_memory=True),
        lambda: torch.rand(3, device=DEVICE, generator=torch.Generator()),
        lambda: there().uniform_(generator=torch.Generator()),
    ],
)
def test_what_a_gpu_refuses(mixed: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        mixed()


def test_an_optimiser_refuses_a_state_that_was_left_behind() -> None:
    parameter = torch.nn.Parameter(there())
    optimiser = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, foreach=True)
    parameter.grad = there()
    optimiser.state[parameter]["momentum_buffer"] = HERE.clone()
    with pytest.raises(RuntimeError):
        optimiser.step()


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda x: x * 2 + x.sum() / 3, 0),
        (lambda x: x[:2], 0),
        (lambda x: x.index_select(0, x[:, 0].long() % 3), 0),
        (lambda x: torch.where(x > 3, x, -x), 0),
        (lambda x: x.topk(2).values, 0),
        (lambda x: x.copy_(HERE, non_blocking=True), 0),
        (lambda _: HERE.to(DEVICE, non_blocking=True), 0),
        (lambda _: HERE.to(DEVICE), 1),
        (lambda x: x.copy_(HERE), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.sum().item(), 1),
        (lambda x: float(x.max()), 1),
        (lambda x: bool((x > 3).all()), 1),
        (lambda x: x[x > 3], 1),
        (lambda x: x.masked_fill_(x > 3, 0), 0),
        (lambda x: x.masked_select(x > 3), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[0].long().bincount(minlength=9), 1),
        (lambda x: x.unique(), 1),
        (lambda x: torch.equal(x, x + 1), 1),
        (lambda x: HERE.clone().copy_(x), 1),
    ],
)
def test_what_makes_the_processor_wait(work: Callable[[Tensor], object], expected: int) -> None:
    x = there()
    with waits() as found:
        work(x)
    assert len(found) == expected


def test_products_of_float32_have_a_gpus_precision_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    images, kernel = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3)
    exact = functional.conv2d(images, kernel)

    def difference() -> float:
        return float((functional.conv2d(there(images), there(kernel)).cpu() - exact).abs().max() / exact.abs().max())

    assert difference() < 1e-6
    with rounding():
        assert 1e-5 < difference() < 1e-3
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        assert difference() < 1e-6
