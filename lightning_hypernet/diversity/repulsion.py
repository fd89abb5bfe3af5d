"""Repulsion between members, by kernels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_hypernet.diversity.base import DiversityLoss
from lightning_hypernet.population import Population
from lightning_hypernet.values import choice, real


class Repulsion(DiversityLoss):
    r"""Pushes networks apart where a kernel says that they are close, in weight or in function space.

    With :math:`k_{ij} = \exp(-|x_i - x_j|^2 / 2 h^2)` and h by the median rule, a step of size one moves network i by

    - ``"kde"``: :math:`-\sum_j \nabla_i k_{ij} \big/ \sum_j k_{ij}`, the gradient of the log density of the members;
    - ``"svgd"``: :math:`-\tfrac{1}{S} \sum_j \nabla_i k_{ij}`, the repulsive part of Stein variational gradient descent;
    - ``"gfsf"``: :math:`\sum_j [(K + \eta I)^{-1}]_{ij} \sum_l \nabla_l k_{lj}`, the score by smoothed functions.

    The value is the mean over members of :math:`\log \tfrac{1}{S} \sum_j k_{ij}` (kde, gfsf) or of :math:`\tfrac{1}{S} \sum_j
    k_{ij}` (svgd), low for members far apart. The kernels' bandwidth and the other member of each pair are constants.

    References:
        | Repulsive Deep Ensembles are Bayesian (D'Angelo and Fortuin, 2021)
        | https://arxiv.org/abs/2106.11642
        | Stein Variational Gradient Descent (Liu and Wang, 2016), https://arxiv.org/abs/1608.04471
        | Understanding and Accelerating Particle-Based Variational Inference (Liu et al., 2019), https://arxiv.org/abs/1807.01750

    Args:
        method: ``"kde"``, ``"svgd"`` or ``"gfsf"``.
        space: ``"weights"``: gauge-fixed; ``"outputs"``: on examples that all networks share.
        eta: Added to the diagonal of the kernel matrix in ``"gfsf"``.
    """

    def __init__(
        self,
        method: Literal["kde", "svgd", "gfsf"] = "kde",
        space: Literal["weights", "outputs"] = "outputs",
        eta: float = 0.1,
    ) -> None:
        super().__init__()
        self.method = choice("method", method, ("kde", "svgd", "gfsf"))
        self.space = choice("space", space, ("weights", "outputs"))
        self.reads_outputs = self.space == "outputs"
        self.eta = real("eta", eta, least=0, above=True)

    def forward(self, population: Population) -> Tensor:
        """Map a population to how crowded it is."""
        points = population.gauged if self.space == "weights" else population.outputs.flatten(1)
        with torch.autocast(points.device.type, enabled=False):
            return repulsion(points.to(torch.promote_types(points.dtype, torch.float32)), self.method, self.eta)


def repulsion(points: Tensor, method: Literal["kde", "svgd", "gfsf"], eta: float = 0.1) -> Tensor:
    """How crowded points are: a scalar whose gradient is minus the force of the method, over S.

    Args:
        points: ``(S, D)``, S > 1.
        method: As of `Repulsion`.
        eta: As of `Repulsion`.

    Raises:
        ValueError: If there are fewer than two points.
    """
    count = len(points)
    if count < 2:
        raise ValueError(f"repulsion needs two networks or more, not {count}; raise `samples`")
    squares = _squared_distances(points)
    with torch.no_grad():
        others = squares[~torch.eye(count, dtype=torch.bool, device=points.device)]
        bandwidth = others.median() / (2 * torch.tensor(count + 1.0).log()).to(others)
        bandwidth = bandwidth.clamp(min=1e-12)
    kernel = (-squares / (2 * bandwidth)).exp()
    crowding: Tensor = kernel.mean() if method == "svgd" else kernel.mean(1).log().mean()
    if method != "gfsf":
        return crowding
    inverse = torch.linalg.inv(kernel.detach() + eta * torch.eye(count).to(kernel))
    attraction = inverse @ _row_gradients(points, kernel.detach(), bandwidth)
    surrogate = (attraction * points).sum()
    value: Tensor = crowding.detach() + (surrogate - surrogate.detach()) / count
    return value


def _squared_distances(points: Tensor) -> Tensor:
    """Of every point, which alone passes gradients, to every other: ``(S, S)``."""
    fixed = points.detach()
    centre = fixed.mean(0)
    here, there = points - centre, fixed - centre
    return (here.square().sum(1, keepdim=True) + there.square().sum(1) - 2 * here @ there.T).clamp(min=0)


def _row_gradients(points: Tensor, kernel: Tensor, bandwidth: Tensor) -> Tensor:
    """For every j the sum over l of the gradient at j of its kernel with l: ``(S, D)``."""
    fixed = points.detach()
    return (kernel @ fixed - kernel.sum(1, keepdim=True) * fixed) / bandwidth
