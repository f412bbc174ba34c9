"""The fully connected network on MNIST in plain PyTorch: the steps and evaluations of a sweep, and nothing beside them.

Reads a JSON list of runs from standard input, each with depth, batch_norm, activation and steps; carries them out in
as many processes as the argument says, one thread each; prints the seconds that this took, imports included.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()
WIDTHS = (500, 400, 300, 200, 100, 50, 25)


def work(queue: multiprocessing.Queue[dict[str, object] | None]) -> None:
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(1)
    activations = {
        "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU,
    }  # fmt: skip

    def read(name: str, offset: int) -> torch.Tensor:
        path = Path(os.environ["QUICKSTUDY_DATA"]) / "mnist" / f"{name}.gz"
        return torch.from_numpy(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=offset).copy())

    images = read("train-images-idx3-ubyte", 16).reshape(-1, 784).float() / 255
    labels = read("train-labels-idx1-ubyte", 8).long()
    test_images = read("t10k-images-idx3-ubyte", 16).reshape(-1, 784).float() / 255
    test_labels = read("t10k-labels-idx1-ubyte", 8).long()
    while (run := queue.get()) is not None:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        inputs = 784
        for width in WIDTHS[: run["depth"]]:
            norm = run["batch_norm"] == "before"
            layers += [nn.Linear(inputs, width, bias=not norm), *([nn.BatchNorm1d(width)] if norm else [])]
            nn.init.xavier_uniform_(layers[-2 if norm else -1].weight)
            layers.append(activations[run["activation"]]())
            inputs = width
        network = nn.Sequential(*layers, nn.Linear(inputs, 10))
        optimiser = torch.optim.Adam(network.parameters(), lr=0.001, fused=True)
        order = torch.randperm(len(images))
        for step in range(run["steps"]):
            place = step * 500 % len(images)
            rows = order[place : place + 500]
            loss = functional.cross_entropy(network(images[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if (step + 1) % 10 == 0:
                network.eval()
                with torch.inference_mode():
                    right = sum(
                        int((network(part).argmax(1) == truth).sum())
                        for part, truth in zip(test_images.split(500), test_labels.split(500), strict=True)
                    )
                    right / len(test_labels)
                network.train()


def main() -> None:
    runs = json.load(sys.stdin)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=work, args=(queue,)) for _ in range(int(sys.argv[1]))]
    for process in processes:
        process.start()
    for run in [*runs, *(None for _ in processes)]:
        queue.put(run)
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("a worker failed")
    print(json.dumps({"seconds": time.perf_counter() - STARTED}))


if __name__ == "__main__":
    main()
