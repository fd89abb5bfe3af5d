"""SWAG: a Gaussian around the mean of weights that SGD passes through, diagonal plus low rank."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel


class SWAG:
    r"""Mean, variances and last deviations of a module's weights, collected along a training.

    .. math::
        w \sim \mathcal N\Bigl(\bar w, \frac{1}{2} \operatorname{diag}\bigl(\overline{w^2} - \bar w^2\bigr)
        + \frac{1}{2 (K - 1)} D D^\top\Bigr)

    where the K columns of D are what the last weights collected differed by from the mean at that time. A network with norm
    statistics needs them estimated for each draw: `torch.optim.swa_utils.update_bn`.

    Args:
        module: Whose parameters are collected; draws are put into it.
        rank: K.

    References:
        | A Simple Baseline for Bayesian Uncertainty in Deep Learning (Maddox et al., 2019)
        | https://arxiv.org/abs/1902.02476
    """

    def __init__(self, module: nn.Module, rank: int = 20) -> None:
        if rank < 2:
            raise ValueError(f"rank must be 2 or more, since it is divided by one less, not {rank}")
        self.module, self.rank = module, rank
        self.averaged = AveragedModel(module)
        self.squares: Tensor | float = 0.0
        self.deviations: list[Tensor] = []

    @property
    def mean(self) -> Tensor:
        """The mean of what was collected, ``(weights,)``."""
        return parameters_to_vector(self.averaged.module.parameters()).detach()

    @torch.no_grad()
    def collect(self) -> None:
        """Add the module's weights as they are."""
        weights = parameters_to_vector(self.module.parameters())
        seen = int(self.averaged.n_averaged)
        self.averaged.update_parameters(self.module)
        self.squares = self.squares + (weights**2 - self.squares) / (seen + 1)
        self.deviations = [*self.deviations, weights - self.mean][-self.rank :]

    @torch.no_grad()
    def draw(self) -> None:
        """Put a sample into the module's parameters.

        Raises:
            RuntimeError: Before two networks were collected.
        """
        if len(self.deviations) < 2:
            raise RuntimeError(
                f"SWAG needs two networks or more, and collected {len(self.deviations)}: call collect() as you train"
            )
        variances = (self.squares - self.mean**2).clamp(min=0)
        deviations = torch.stack(self.deviations)
        low = torch.randn(len(deviations)).to(deviations) @ deviations / (len(deviations) - 1) ** 0.5
        noise = variances.sqrt() * torch.randn_like(variances) + low
        vector_to_parameters(self.mean + noise / 2**0.5, self.module.parameters())
