"""Noisy K-FAC: a Gaussian whose covariance is a Kronecker product in each layer, for linear layers and convolutions."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from noisy import Losses, NaturalGradient
from unfolding import inputs_of, known, matrix_of, outputs_of, put


class NoisyKFAC(NaturalGradient):
    r"""Natural gradients with a curvature :math:`S \otimes A` in each layer, of its outputs' gradients and of its inputs.

    .. math:: A = E\Bigl[\sum_t a_t a_t^\top\Bigr], \qquad S = E\Bigl[\frac{1}{T} \sum_t g_t g_t^\top\Bigr]

    over the T places where a layer's weights meet its inputs, of a convolution its patches. The prior is added exactly, in the
    eigenvectors of both, where the paper splits it between them. Other arguments: see `NaturalGradient`.

    Args:
        module: Its parameters are all of `Linear` and `Conv2d` layers; with others it is refused.

    References:
        | A Kronecker-factored approximate Fisher matrix for convolution layers (Grosse and Martens, 2016)
        | https://arxiv.org/abs/1602.01407
    """

    def __init__(self, module: nn.Module, *args: Any, **options: Any) -> None:
        self.layers = [layer for layer in module.modules() if known(layer)]
        self.own = [list(layer.parameters(recurse=False)) for layer in self.layers]
        whole = [one for some in self.own for one in some]
        for name, one in module.named_parameters():
            if not any(one is other for other in whole):
                raise ValueError(
                    f"noisy K-FAC knows Linear and plain Conv2d, not the layer of {name!r}: take NoisyAdam instead"
                )
        super().__init__(whole, *args, **options)
        self.means = [matrix_of(some) for some in self.own]
        self.gradients = [torch.zeros_like(mean) for mean in self.means]
        self.factors = [[mean.new_zeros(size, size) for size in mean.shape] for mean in self.means]
        self.eigen = [[torch.linalg.eigh(factor) for factor in pair] for pair in self.factors]

    def scaled(self, at: int, matrix: Tensor, power: float, floor: float) -> Tensor:
        """A power of a layer's curvature and a floor, times a matrix of its shape."""
        (low, left), (high, right) = self.eigen[at]
        return left @ ((left.mT @ matrix @ right) * (low.clamp(0)[:, None] * high.clamp(0) + floor) ** power) @ right.mT

    def draw(self, scale: float = 1.0) -> None:
        """Put a sample into the parameters, its distance from the mean scaled; with 0 the mean."""
        for at, (mean, own) in enumerate(zip(self.means, self.own, strict=True)):
            put(mean + scale * self.share**0.5 * self.scaled(at, torch.randn_like(mean), -0.5, self.floor), own)

    def look(self, losses: Losses) -> None:
        """Add a batch to the factors."""
        seen: list[tuple[nn.Module, Tensor, Tensor]] = []

        def keep(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            seen.append((layer, inputs_of(layer, inputs[0].detach()), output))
            return output.clone()  # which what follows may change in place

        with ExitStack() as hooks:
            for layer in self.layers:
                hooks.enter_context(layer.register_forward_hook(keep))
            slopes = torch.autograd.grad(losses().sum(), [output for *_, output in seen])
        for at, layer in enumerate(self.layers):
            met = [(outputs_of(one, slope), a) for (one, a, _), slope in zip(seen, slopes, strict=True) if one is layer]
            g, a = (torch.cat(part, 1) for part in zip(*met, strict=True))
            for factor, new in zip(self.factors[at], (g / g.shape[1] ** 0.5, a), strict=True):
                factor.lerp_(torch.einsum("bti,btj->ij", new, new) / len(new), 1 - self.betas[1])
            weight = 1 - self.betas[1] ** (self.taken + 1)
            self.eigen[at] = [torch.linalg.eigh(factor / weight) for factor in self.factors[at]]

    def move(self, gradients: list[Tensor], lr: float) -> None:
        """Add the parameters' gradients to their running mean, and move the mean."""
        rest = iter(gradients)
        for at, own in enumerate(self.own):
            running = self.gradients[at].lerp_(matrix_of([next(rest) for _ in own]), 1 - self.betas[0])
            self.means[at] -= lr * self.scaled(at, self.debiased(running, self.betas[0]), -1, self.floor + self.damping)
