"""Networks in evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """The network is in evaluation mode inside this context, and in the mode it was in after it."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
