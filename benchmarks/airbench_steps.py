"""Steps of the GPU recipes beside those of the published scripts, on the processor; and what a step asks for.

    python benchmarks/airbench_steps.py AIRBENCH    # a clone of github.com/KellerJordan/cifar10-airbench

What the scripts define is run as it stands, in float64: networks, optimisers, Lookahead, the schedule of the rate. Of
their main functions, which need a GPU, the loop over steps is written here again. Rates are the source's own, not those
that the recipes round; batches are small, with noise for images, and losses are multiplied as if they were a batch's of
the source. Two things are made alike, since they would be seen in float64: the epsilons, and that the source's last
pooling gives the gradient to one of several equal values.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from common import save
from quickstudy.images.pixels import PixelSet
from quickstudy.learning.averages import Lookahead
from quickstudy.scratch.input import Batch, Moments, Pipeline
from quickstudy.scratch.layers import cost_of
from quickstudy.scratch.recipe import recipe_named
from quickstudy.scratch.state import Course, TrainingState

_STEPS, _STEPS_PER_EPOCH, _BATCH = 24, 5, 16
_WIDTHS = (32, 32, 48)
"""Widths of the two longer recipes' networks here; those of the first one's are as they are."""
_VIEWS = {"alias", "as_strided", "detach", "expand", "permute", "select", "slice", "squeeze", "t", "transpose"}
_VIEWS |= {"unsqueeze", "view", "_unsafe_view"}
"""Operators that ask a device for nothing."""


def main() -> None:
    """Compare, count, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    source = parser.parse_args().source
    torch.set_num_threads(1)
    for name in ("torchvision", "torchvision.transforms"):  # which the scripts import for their images alone
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
    torch.compile = lambda function, **_: function  # type: ignore[assignment,misc]
    device = _stand_in()  # before the first gradient, since autograd counts devices then
    values = {"cifar10-gpu": _with_muon(_Script(source / "airbench94_muon.py"))}
    for target in ("95", "96"):
        script = _Script(source / "legacy" / f"airbench{target}.py")
        values[f"cifar10-gpu{target}"] = _by_descent(script, f"cifar10-gpu{target}")
    save("airbench_steps", {name: {**found, **_asked(name, device)} for name, found in values.items()})


class _Script:
    """A published script: its text, and what it defines, for float64 on the processor."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text()
        # Its own code is read from the file that is run; and its networks are half and on a GPU.
        text = self.text.split('if __name__ == "__main__":')[0].replace(".half()", "").replace(".cuda()", "")
        text = re.sub(r"with open\(sys\.argv\[0\]\) as f:\n\s+code = f\.read\(\)", "", text)
        text = text.replace("(torch.half, torch.float)", "(torch.double,)").replace("G.bfloat16()", "G.clone()")
        self.defined: dict[str, Any] = {"__name__": path.stem}
        exec(compile(text, path.name, "exec"), self.defined)

    def rate_share(self, steps: int) -> Callable[[int], float]:
        """Give the function inside its main function that says which share of the rate a step has, of so many."""
        inside = {"total_train_steps": steps}
        exec("def get_lr(step):" + self.text.split("    def get_lr(step):")[1].split("    scheduler =")[0], inside)
        found: Callable[[int], float] = inside["get_lr"]  # type: ignore[assignment]
        return found


class _Largest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Take the largest value of each channel."""
        return x.amax((2, 3), keepdim=True)


class _Ours:
    """A recipe's state in float64, and its steps."""

    def __init__(self, name: str, **options: Any) -> None:
        small = {"batch": _BATCH, "steps": _STEPS, "epochs": 0, "precision": "float32", "whitening_bias_epochs": 3.0}
        self.recipe = recipe_named(name).with_options({**small, **options})
        self.state = TrainingState(self.recipe, side=32, channels=3, classes=10, device=torch.device("cpu"))
        self.state.network.double().train()
        if self.state.lookahead is not None:
            self.state.lookahead = Lookahead(self.state.network)
        self.state.prepare(torch.randn(200, 3, 32, 32).double())
        self.found: list[float] = []

    def begin_alike(self, network: nn.Module) -> None:
        """Give the source's network these weights."""
        for mine, its in zip(_layers(self.state.network), _layers(network), strict=True):
            if isinstance(mine, nn.BatchNorm2d):
                mine.eps = its.eps
            its.load_state_dict(mine.state_dict())
        network.train()

    def batches(self) -> Iterator[tuple[Batch, Tensor]]:
        """Make batches of noise, with the images in float64, too."""
        draws = np.random.Generator(np.random.PCG64(0))
        pixels = draws.integers(0, 256, (_STEPS_PER_EPOCH * _BATCH, 32, 32, 3), np.uint8)
        data = PixelSet(pixels=pixels, labels=np.arange(len(pixels)) % 10, classes=tuple("0123456789"))
        pipeline = Pipeline(data, self.recipe.augmentation, batch=_BATCH, seed=0, moments=Moments.of(pixels), threads=0)
        for batch in pipeline.batches(range(_STEPS)):
            yield batch, batch.images.double()

    def step(self, batch: Batch, images: Tensor, rate: float) -> None:
        """Make a step at this rate."""
        course = Course(step=batch.step, steps=_STEPS, epoch=batch.step / _STEPS_PER_EPOCH, rate=rate)
        self.state.network.stop_training_at(course.epoch)
        loss = _loss(self.state.network(images), batch)
        self.state.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.state.follow_gradients(course, loss)

    def compare(self, network: nn.Module, head: float = 1.0) -> None:
        """Note the largest difference of a tensor, as a share of its largest value; the source's head times `head`."""
        differences = []
        for mine, its in zip(_layers(self.state.network), _layers(network), strict=True):
            factor = head if isinstance(mine, nn.Linear) else 1.0
            for name, value in mine.state_dict().items():
                other = its.state_dict()[name] * factor
                differences.append(float((value - other).abs().max() / other.abs().max().clamp(min=1e-9)))
        self.found.append(max(differences))

    def told(self) -> dict[str, Any]:
        """Say how large differences were after the first step and after all."""
        return {"relative_differences": {"1": self.found[0], str(len(self.found)): self.found[-1]}}


def _by_descent(script: _Script, name: str) -> dict[str, Any]:
    """Compare steps of a script that descends by gradients, with Lookahead, and its rates in all steps."""
    defined, options = script.defined, script.defined["hyp"]["opt"]
    defined["hyp"]["net"]["widths"] = dict(zip(("block1", "block2", "block3"), _WIDTHS, strict=True))
    torch.manual_seed(0)
    ours, network = _Ours(name, widths=",".join(map(str, _WIDTHS))), defined["make_net"]()
    network[5] = _Largest()
    network.double()
    ours.begin_alike(network)
    batch_size, momentum = options["batch_size"], options["momentum"]
    scale = 1024 * (1 + 1 / (1 - momentum))
    rate, decay = options["lr"] / scale, options["weight_decay"] * batch_size / scale
    named = [(key, parameter) for key, parameter in network.named_parameters() if parameter.requires_grad]
    biases = [parameter for key, parameter in named if "norm" in key]
    rest = [parameter for key, parameter in named if "norm" not in key]
    groups = [(biases, rate * options["bias_scaler"]), (rest, rate)]
    optimiser = torch.optim.SGD(
        [{"params": params, "lr": own, "weight_decay": decay / own} for params, own in groups],
        momentum=momentum,
        nesterov=True,
    )
    share, slow = script.rate_share(_STEPS), defined["LookaheadState"](network)
    for batch, images in ours.batches():
        network[0].bias.requires_grad = batch.step // _STEPS_PER_EPOCH < options["whiten_bias_epochs"]
        for group, (_, own) in zip(optimiser.param_groups, groups, strict=True):
            group["lr"] = own * share(batch.step)
        optimiser.zero_grad()
        (_loss(network(images), batch) * batch_size).backward()
        optimiser.step()
        made = batch.step + 1
        if made % 5 == 0:
            slow.update(network, decay=0.95**5 * (made / _STEPS) ** 3)
        if made == _STEPS:
            slow.update(network, decay=1.0)
        ours.step(batch, images, rate * share(batch.step) * batch_size)
        ours.compare(network)
    whole = recipe_named(name)
    steps, peak = whole.total_steps(50_000), rate * batch_size
    share = script.rate_share(steps)
    rates = [(share(step), whole.schedule.at(step, steps=steps, steps_per_epoch=1) / peak) for step in range(steps)]
    return {**ours.told(), "largest_difference_of_rates": max(abs(one - other) for one, other in rates)}


def _with_muon(script: _Script) -> dict[str, Any]:
    """Compare steps of the script with Muon, whose last layer has weights of deviation 1."""
    batch_size, bias_rate, head_rate, peak, decay = 2000, 0.053, 0.67, 0.24, 2e-6 * 2000
    torch.manual_seed(0)
    deviation = float(_Ours("cifar10-gpu").state.network.linear.weight.detach().std())
    torch.manual_seed(0)
    biases = bias_rate * batch_size / peak
    ours = _Ours(
        "cifar10-gpu", bias_rate=biases, whitening_bias_rate=biases, weight_decay=decay / peak,
        head_rate=head_rate * batch_size * deviation**2 / peak, logit_scale=1 / (256 * deviation),
    )  # fmt: skip
    ours.state.optimisers[0].precision = torch.float64  # type: ignore[attr-defined]
    network = script.defined["CifarNet"]()
    network.layers[4] = _Largest()
    network.double()
    ours.begin_alike(network)
    network.head.weight.data.div_(deviation)
    named = list(network.named_parameters())
    norms = [parameter for name, parameter in named if "norm" in name and parameter.requires_grad]
    groups = [([network.whiten.bias], bias_rate), (norms, bias_rate), ([network.head.weight], head_rate)]
    descent = torch.optim.SGD(
        [{"params": params, "lr": own, "weight_decay": decay / own} for params, own in groups],
        momentum=0.85,
        nesterov=True,
    )
    filters = [parameter for _, parameter in named if parameter.ndim == 4 and parameter.requires_grad]
    # Its epsilon beside the norm of a sum's gradient is this loop's beside that of a mean's.
    newton_schulz = script.defined["zeropower_via_newtonschulz5"]
    script.defined["zeropower_via_newtonschulz5"] = lambda update: newton_schulz(update, eps=1e-7 * batch_size)
    muon = script.defined["Muon"](filters, lr=peak, momentum=0.6, nesterov=True)
    last_bias_step = 3 * _STEPS_PER_EPOCH
    for batch, images in ours.batches():
        logits = network(images, whiten_bias_grad=batch.step < last_bias_step)
        (_loss(logits, batch) * batch_size).backward()
        left = 1 - batch.step / _STEPS
        for number, (group, (_, own)) in enumerate(zip(descent.param_groups, groups, strict=True)):
            group["lr"] = own * (left if number else 1 - batch.step / last_bias_step)
        muon.param_groups[0]["lr"] = peak * left
        descent.step()
        muon.step()
        network.zero_grad()
        ours.step(batch, images, peak * left)
        ours.compare(network, head=deviation)
    return ours.told()


def _layers(network: nn.Module) -> list[nn.Module]:
    """List what has parameters: convolutions, then batch norms, then the last layer, each in their order."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    return list(itertools.chain(*([one for one in network.modules() if isinstance(one, kind)] for kind in kinds)))


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    return functional.cross_entropy(logits, batch.labels, label_smoothing=0.2)


class _Asked(TorchDispatchMode):
    """Counts operators that ask a device for something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += operator._schema.name.partition("::")[2] not in _VIEWS
        return operator(*args, **(kwargs or {}))


def _asked(name: str, device: torch.device) -> dict[str, Any]:
    """What a whole training of a recipe computes, and what a step in bfloat16 asks a device for, its batch included."""
    recipe = recipe_named(name)
    state = TrainingState(recipe, side=32, channels=3, classes=10, device=device)
    steps, cost = recipe.total_steps(50_000), cost_of(state.network, size=32, channels=3)
    images = steps * recipe.optimiser.batch
    pixels = np.zeros((8, 32, 32, 3), np.uint8)
    data = PixelSet(pixels=pixels, labels=np.arange(8) % 2, classes=("a", "b"))
    pipeline = Pipeline(data, recipe.augmentation, batch=2, seed=0, moments=Moments.of(pixels), device=device)

    def step(number: int) -> None:
        batch = pipeline.make(number)
        with torch.autocast(device.type, torch.bfloat16):
            logits = state.network(batch.images)
        loss = _loss(logits.float(), batch)
        state.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        state.follow_gradients(Course(step=number, steps=100, epoch=0.0, rate=0.01), loss)

    step(0)
    with _Asked() as asked:
        step(1)
    return {
        "steps": steps,
        "parameters": cost.parameters,
        "operations_of_all_steps": 6.0 * cost.multiply_adds * images,
        "operators_of_a_step": asked.count,
    }


def _stand_in() -> torch.device:
    """Give the device that the tests have in place of a GPU, on which all of a step stays."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from stand_in import DEVICE

    return torch.device(DEVICE)


if __name__ == "__main__":
    main()
