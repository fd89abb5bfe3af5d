"""Variational posteriors over the weights of a target: a Gaussian, and multiplicative normalizing flows."""

import copy
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


class Posterior(nn.Module, ABC):
    """A target whose weights are a function of Gaussian noise; every call in training draws one network.

    Args:
        target: Linear and convolution layers, each with a bias.
        prior_variance: Of every weight.
        log_variance: Of every weight, at the start.
    """

    divergence: Tensor

    def __init__(self, target: nn.Module, prior_variance: float = 1.0, log_variance: float = -9.0) -> None:
        super().__init__()
        self.target = copy.deepcopy(target).requires_grad_(False)
        self.prior_variance = prior_variance
        shapes = {name: value.shape for name, value in target.named_parameters()}
        self.names = list(shapes)
        self.means = nn.ParameterList([value.detach().clone() for value in target.parameters()])
        self.log_variances = nn.ParameterList([torch.full(shape, log_variance) for shape in shapes.values()])
        self.sizes = [shape.numel() for shape in shapes.values()]
        self.noise_size = sum(self.sizes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a network drawn anew; keeps its share of KL(posterior, prior), in nats, as `divergence`."""
        weights, self.divergence = self.draw(torch.randn(self.noise_size, device=self.means[0].device))
        logits: Tensor = functional_call(self.target, weights, (images,))
        return logits

    @abstractmethod
    def draw(self, noise: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The network that belongs to noise ``(noise_size,)``, and the divergence as it is estimated there."""

    def _gaussian(self, noise: Tensor, means: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        weights, divergence = {}, noise.new_zeros(())
        parts = zip(self.names, means, self.log_variances, noise.split(self.sizes), strict=True)
        for name, mean, log_variance, part in parts:
            variance = log_variance.exp().clamp(max=0.25)
            weights[name] = mean + variance.sqrt() * part.view_as(mean)
            ratio = variance / self.prior_variance
            divergence = divergence + 0.5 * (ratio + mean**2 / self.prior_variance - 1 - ratio.log()).sum()
        return weights, divergence


class MeanField(Posterior):
    """Every weight an independent Gaussian.

    References:
        | Weight Uncertainty in Neural Networks (Blundell et al., 2015)
        | https://arxiv.org/abs/1505.05424
    """

    def draw(self, noise: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The network that belongs to noise ``(noise_size,)``, and the divergence."""
        return self._gaussian(noise, list(self.means))


class Flow(nn.Module):
    """Masked steps of a normalizing flow on vectors; the masks are drawn once.

    Args:
        size: Of the vectors.
        hidden: Width of each step.
        steps: Number of steps.
    """

    masks: Tensor

    def __init__(self, size: int, hidden: int = 50, steps: int = 2) -> None:
        super().__init__()
        self.register_buffer("masks", torch.bernoulli(torch.full((steps, size), 0.5)))
        self.inner = nn.ModuleList(nn.Linear(size, hidden) for _ in range(steps))
        self.outer = nn.ModuleList(nn.Linear(hidden, 2 * size) for _ in range(steps))
        for layer in self.outer:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias[size:], 2.0)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map z ``(size,)``; returns its image and the logarithm of the determinant."""
        determinant = z.new_zeros(())
        for mask, inner, outer in zip(self.masks, self.inner, self.outer, strict=True):
            shift, gate = outer(torch.tanh(inner(mask * z))).chunk(2)
            kept = torch.sigmoid(gate)
            z = mask * z + (1 - mask) * (kept * z + (1 - kept) * shift)
            determinant = determinant + ((1 - mask) * F.logsigmoid(gate)).sum()
        return z, determinant


class MNF(Posterior):
    """Gaussians whose means are multiplied by vectors out of a flow.

    A vector holds one number for each filter of a convolution, one for each input of a linear layer.

    References:
        | Multiplicative Normalizing Flows for Variational Bayesian Neural Networks (Louizos and Welling, 2017)
        | https://arxiv.org/abs/1703.01961
    """

    def __init__(self, target: nn.Module, prior_variance: float = 1.0, log_variance: float = -9.0) -> None:
        super().__init__(target, prior_variance, log_variance)
        self.axes = {
            index: 0 if mean.ndim == 4 else 1 for index, mean in enumerate(self.means) if mean.ndim > 1
        }  # which axis of a weight z multiplies
        lengths = [self.means[index].shape[axis] for index, axis in self.axes.items()]
        self.lengths = lengths
        self.base = nn.ParameterList([torch.stack([torch.ones(n), torch.full((n,), -4.0)]) for n in lengths])
        self.forward_flows = nn.ModuleList(Flow(n) for n in lengths)
        self.backward_flows = nn.ModuleList(Flow(n, hidden=100) for n in lengths)
        self.auxiliary = nn.ParameterList([torch.randn(3, n) / math.sqrt(n) for n in lengths])
        self.noise_size += sum(lengths)

    def draw(self, noise: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The network that belongs to noise ``(noise_size,)``, and the divergence with its bound for the flows."""
        own, rest = noise.split([sum(self.sizes), sum(self.lengths)])
        zero = noise.new_zeros(())
        means, densities, multipliers = list(self.means), zero, []
        for (index, axis), part, base, flow in zip(
            self.axes.items(), rest.split(self.lengths), self.base, self.forward_flows, strict=True
        ):
            mean, log_variance = base
            z, determinant = flow(mean + (0.5 * log_variance).exp() * part)
            densities = densities + _log_normal(part, zero, zero) - 0.5 * log_variance.sum() - determinant
            shape = [1] * means[index].ndim
            shape[axis] = -1
            means[index] = means[index] * z.view(shape)
            multipliers.append(z)
        weights, divergence = self._gaussian(own, means)
        for (index, axis), z, flow, (mix, center, spread) in zip(
            self.axes.items(), multipliers, self.backward_flows, self.auxiliary, strict=True
        ):
            rows = weights[self.names[index]].movedim(axis, 0).flatten(1)
            summary = torch.tanh(mix @ rows).mean()
            last, determinant = flow(z)
            densities = densities - _log_normal(last, center * summary, spread * summary) - determinant
        return weights, divergence + densities


def _log_normal(value: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + log_variance + (value - mean) ** 2 / log_variance.exp()).sum()
