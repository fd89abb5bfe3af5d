"""Shared: methods whose networks have most of their weights in common, or lie between a few."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from frontier_problems import Task
from frontier_training import MEMBERS, Trained, descend, fit, renormed, standard, together

LATE = 0.6
"""Share of the steps that late-phase weights come after."""


class RankOne(nn.Module):
    """A linear or convolution layer whose members scale inputs and outputs, each with factors and biases of its own.

    The batch is dealt out in equal parts, one after the other.

    Args:
        layer: The layer; its weight is shared.
        members: How many.
        initial: Maps a shape to the factors at the start.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, members: int, initial: Callable[..., Tensor]) -> None:
        super().__init__()
        outputs, inputs = layer.weight.shape[:2]
        bias = torch.zeros(outputs).to(layer.weight) if layer.bias is None else layer.bias.detach()
        self.layer, self.members = layer, members
        self.layer.bias = None
        self.inputs = nn.Parameter(initial(members, inputs).to(layer.weight))
        self.outputs = nn.Parameter(initial(members, outputs).to(layer.weight))
        self.bias = nn.Parameter(bias.repeat(members, 1))

    def forward(self, x: Tensor) -> Tensor:
        member = torch.arange(len(x), device=x.device) * self.members // len(x)
        inputs, outputs, bias = (
            one[member].view(len(x), -1, *[1] * (x.ndim - 2)) for one in (self.inputs, self.outputs, self.bias)
        )
        return self.layer(x * inputs) * outputs + bias

    def collapsed(self) -> nn.Module:
        """The layer with the mean factors and the mean bias of all members."""
        layer, ones = copy.deepcopy(self.layer), [1] * (self.layer.weight.ndim - 2)
        factors = self.outputs.mean(0)[:, None] * self.inputs.mean(0)[None]
        layer.weight = nn.Parameter(self.layer.weight.detach() * factors.detach().view(*factors.shape, *ones))
        layer.bias = nn.Parameter(self.bias.detach().mean(0))
        return layer


def exchanged(module: nn.Module, kind: type | tuple[type, ...], make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The module with all its parts of a kind replaced, in place."""
    for name, child in module.named_children():
        if isinstance(child, kind):
            setattr(module, name, make(child))
        else:
            exchanged(child, kind, make)
    return module


def signs(*shape: int) -> Tensor:
    """One or minus one at random."""
    return torch.randint(0, 2, shape) * 2.0 - 1.0


def near_one(*shape: int) -> Tensor:
    """Close to one."""
    return 1 + 0.05 * torch.randn(shape)


def dealt(module: nn.Module, members: int) -> Callable[[Tensor], Tensor]:
    """The logits of all members of layers of rank one."""
    return lambda images: module(images.repeat(members, *[1] * (images.ndim - 1))).unflatten(0, (members, len(images)))


def batch_ensemble(task: Task, lr: float, members: int, weight_decay: float = 0.05) -> Trained:
    """BatchEnsemble: one weight in every layer, and for each member factors of its own that begin as signs.

    References:
        | BatchEnsemble: an Alternative Approach to Efficient Ensemble and Lifelong Learning (Wen et al., 2020)
        | https://arxiv.org/abs/2002.06715
    """
    module = exchanged(task.network(), (nn.Linear, nn.Conv2d), lambda layer: RankOne(layer, members, signs))
    fit(module, task, task.steps, lr, weight_decay)
    return Trained(dealt(module, members))


def late_phase(task: Task, lr: float, weight_decay: float) -> Trained:
    """Late-phase weights: for the last part of the steps ten factors of rank one, whose mean makes the one network.

    References:
        | Neural networks with late-phase weights (von Oswald et al., 2021)
        | https://arxiv.org/abs/2007.12927
    """
    module, first = task.network(), round(LATE * task.steps)
    fit(module, task, first, lr, weight_decay, schedule=lambda progress: standard(LATE * progress))
    exchanged(module.train(), (nn.Linear, nn.Conv2d), lambda layer: RankOne(layer, MEMBERS, near_one))
    rest = task.steps - first
    fit(module, task, rest, lr, weight_decay, schedule=lambda progress: standard(LATE + (1 - LATE) * progress))
    one = exchanged(copy.deepcopy(module), RankOne, lambda layer: layer.collapsed())  # type: ignore[operator]
    return Trained(dealt(module, MEMBERS), renormed(one, task))


def dropout(task: Task, lr: float, rate: float, weight_decay: float = 0.05) -> Trained:
    """MC-dropout after every ReLU: ten passes with dropout on; the one network is the one without.

    References:
        | Dropout as a Bayesian Approximation (Gal and Ghahramani, 2016)
        | https://arxiv.org/abs/1506.02142
    """
    module = exchanged(task.network(), nn.ReLU, lambda act: nn.Sequential(act, nn.Dropout(rate)))
    fit(module, task, task.steps, lr, weight_decay)
    noisy = copy.deepcopy(module)
    for one in noisy.modules():
        if isinstance(one, nn.Dropout):
            one.train()
    return Trained(lambda images: torch.stack([noisy(images) for _ in range(MEMBERS)]), module)


def simplex(task: Task, lr: float, corners: int, weight_decay: float = 0.05, penalty: float = 1.0) -> Trained:
    """A simplex of low loss: a random point of it at every step, and the squared cosine of its corners kept small.

    Two corners are a line. The ten networks are points of it at random, the one network is its middle.

    References:
        | Learning Neural Network Subspaces (Wortsman et al., 2021)
        | https://arxiv.org/abs/2102.10472
    """
    module = task.network()
    every = [dict(task.network().named_parameters()) for _ in range(corners)]
    even = torch.distributions.Dirichlet(torch.ones(corners))

    def point(shares: Tensor) -> dict[str, Tensor]:
        return {name: sum(share * one[name] for share, one in zip(shares, every, strict=True)) for name in every[0]}  # type: ignore[misc]

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        fitted = F.cross_entropy(functional_call(module, point(even.sample().to(images)), (images,)), labels)
        one, other = (every[index] for index in torch.randperm(corners)[:2].tolist())
        products = [sum((a[name] * b[name]).sum() for name in a) for a, b in ((one, other), (one, one), (other, other))]
        return fitted + penalty * products[0] ** 2 / (products[1] * products[2])

    parameters = [value for one in every for value in one.values()]
    descend(task, task.steps, parameters, loss, lr, weight_decay)

    def network(shares: Tensor) -> nn.Module:
        found = copy.deepcopy(module)
        found.load_state_dict({name: value.detach() for name, value in point(shares).items()}, strict=False)
        return renormed(found, task)

    return Trained(together([network(even.sample()) for _ in range(MEMBERS)]), network(torch.full((corners,), 1 / corners)))
