"""A plain PyTorch training loop of the classic network on one batch in memory; prints examples a second.

    python torch_classic.py [--steps 60] [--channels-last]

What somebody writes who follows the tutorial with torch's own layers: no input pipeline, no averages, no summaries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch import nn


def network() -> nn.Sequential:
    """The deep-CNN tutorial's network."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        # torch divides alpha by the size, TensorFlow does not.
        nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0),
        nn.Conv2d(64, 64, 5, padding=2),
        nn.ReLU(),
        nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(2304, 384),
        nn.ReLU(),
        nn.Linear(384, 192),
        nn.ReLU(),
        nn.Linear(192, 10),
    )


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    net, images = network(), torch.randn(options.batch, 3, 24, 24)
    labels = torch.randint(0, 10, (options.batch,))
    if options.channels_last:
        net, images = net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    assert sum(parameter.numel() for parameter in net.parameters()) == 1_068_298
    hidden = [net[9].weight, net[11].weight]
    others = [p for p in net.parameters() if not any(p is weight for weight in hidden)]
    optimiser = torch.optim.SGD([{"params": hidden, "weight_decay": 0.004}, {"params": others}], lr=0.01)
    seconds = []
    for _ in range(options.steps):
        started = time.perf_counter()
        loss = nn.functional.cross_entropy(net(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"examples_per_second": options.batch / statistics.median(seconds[10:])}))


if __name__ == "__main__":
    main()
