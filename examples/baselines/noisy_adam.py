"""Noisy Adam: a Gaussian of independent weights around any module."""

from typing import Any

import torch
from torch import Tensor

from noisy import Losses, NaturalGradient


class NoisyAdam(NaturalGradient):
    r"""Natural gradients with a diagonal curvature: the running mean of squared gradients, for the parameters of any module.

    .. math:: f \leftarrow \beta_2 f + (1 - \beta_2) \, B \Bigl(\frac{1}{B} \sum_b g_b\Bigr)^2

    What is squared is the gradient of the mean loss of B examples. With labels drawn from the network the gradients
    :math:`g_b` are independent and have mean 0, so that B times that square is right on average: the diagonal of the Fisher
    matrix of one example. Without the B the precision is B times too small. Arguments: see `NaturalGradient`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.means = [one.detach().clone() for one in self.weights]
        self.gradients = [torch.zeros_like(one) for one in self.weights]
        self.squares = [torch.zeros_like(one) for one in self.weights]

    def precisions(self) -> list[Tensor]:
        """One over the variance of every weight, shaped as the parameters."""
        return [(self.debiased(square, self.betas[1]) + self.floor) / self.share for square in self.squares]

    @torch.no_grad()
    def draw(self, scale: float = 1.0) -> None:
        """Put a sample into the parameters, its distance from the mean scaled; with 0 the mean."""
        for one, mean, precision in zip(self.weights, self.means, self.precisions(), strict=True):
            one.copy_(mean + scale * torch.randn_like(mean) * precision.rsqrt())

    def look(self, losses: Losses) -> None:
        """Add a batch to the squares."""
        each = losses()
        slopes = torch.autograd.grad(each.mean(), self.weights, materialize_grads=True)
        for square, slope in zip(self.squares, slopes, strict=True):
            square.lerp_(len(each) * slope.square(), 1 - self.betas[1])

    def move(self, gradients: list[Tensor], lr: float) -> None:
        """Add the parameters' gradients to their running mean, and move the mean."""
        for mean, running, slope, precision in zip(self.means, self.gradients, gradients, self.precisions(), strict=True):
            running.lerp_(slope, 1 - self.betas[0])
            mean -= lr * self.debiased(running, self.betas[0]) / (precision * self.share + self.damping)
