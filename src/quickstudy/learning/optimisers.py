"""The optimisers of torch without its compiler, so that a training begins two seconds sooner.

torch hides an optimiser's methods from the compiler, which it imports for that where one of them is called; steps are
not compiled here, so these are called as they were written.
"""

from __future__ import annotations

import inspect

import torch


class PlainOptimiser(torch.optim.Optimizer):
    """An optimiser whose methods are called as they were written."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class Descent(PlainOptimiser, torch.optim.SGD):
    """Gradient descent, with momentum or without."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Adam(PlainOptimiser, torch.optim.Adam):
    """Adam (Kingma and Ba, 2015, arXiv:1412.6980)."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class AdamW(PlainOptimiser, torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
