"""Distributions that are fitted to a posterior of z."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_hypernet.generator.flows import Flow

Family = Literal["gaussian", "mean_field", "flow"]


class Variational(nn.Module):
    r"""A distribution of free numbers u, to be fitted.

    .. math:: u = m + s \odot L \epsilon, \qquad \epsilon \sim N(0, I)

    with a lower triangular L whose diagonal is 1, or none under ``"mean_field"``; of a ``"flow"``, the inverse of zuko's map
    takes L's place. The log density of a Gaussian's draw has no gradient through its own parameters but that of the draw, which
    vanishes where it is the posterior.

    References:
        Sticking the Landing (Roeder, Wu and Duvenaud, 2017), https://arxiv.org/abs/1703.09194

    Args:
        family: ``"gaussian"``, ``"mean_field"`` or ``"flow"``.
        like: ``(n, numbers)``, draws of the prior, whose mean and deviations it starts with.
        seed: Of a flow's first weights.
    """

    def __init__(self, family: Family, like: Tensor, seed: int = 0) -> None:
        super().__init__()
        self.family = family
        self.mean = nn.Parameter(like.mean(0))
        self.log_std = nn.Parameter(like.std(0).clamp(min=1e-3).log())
        size = like.shape[1]
        if family == "gaussian":
            self.lower = nn.Parameter(like.new_zeros(size, size))
        if family == "flow":
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                self.flow = Flow(size).to(like)

    def draw(self, n: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n vectors, ``(n, numbers)``, and the log density of each, ``(n,)``, in nats."""
        noise = torch.randn(n, len(self.mean), generator=source, dtype=self.mean.dtype).to(self.mean)
        if self.family == "flow":
            inner, density = self.flow.draw(noise)
            return self.mean + self.log_std.exp() * inner, density - self.log_std.sum()
        factor = self.factor()
        u = self.mean + noise @ factor.T
        with torch.no_grad():
            held = factor.clone()
        standard = torch.linalg.solve_triangular(held, (u - self.mean.detach()).T, upper=False)
        constant = 0.5 * len(self.mean) * math.log(2 * math.pi) + self.log_std.detach().sum()
        return u, -0.5 * standard.square().sum(0) - constant

    def factor(self) -> Tensor:
        """The Cholesky factor of a Gaussian's covariance."""
        scale = self.log_std.exp()
        if self.family != "gaussian":
            return scale.diag()
        return scale[:, None] * (self.lower.tril(-1) + torch.eye(len(scale), dtype=scale.dtype, device=scale.device))
