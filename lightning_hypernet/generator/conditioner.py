"""Conditioner: what a condition adds to the filters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_hypernet.target.filters import FilterBanks

_WIDTH = 32


class Conditioner(nn.Module):
    r"""Adds to the filters of every bank a combination of matrices of rank one, which the condition weighs.

    .. math:: \Delta_l = \sum_k g_k(c) \, a_{lk} b_{lk}^\top

    g is a small network; every b starts at zero, so that a condition changes nothing then. A condition that all networks of a
    step share would vanish in the batch norms of the generator, hence this way around them.

    References:
        | Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions
        | (MacKay et al., 2019)
        | https://arxiv.org/abs/1903.03088

    Args:
        context_dim: Numbers in a condition.
        banks: The filter banks of the target.
    """

    def __init__(self, context_dim: int, banks: FilterBanks) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.features = nn.Sequential(nn.Linear(context_dim, _WIDTH), nn.Tanh(), nn.Linear(_WIDTH, _WIDTH), nn.Tanh())
            self.left = nn.ParameterList([torch.randn(_WIDTH, bank.filters) / math.sqrt(_WIDTH) for bank in banks])
            self.right = nn.ParameterList([torch.zeros(_WIDTH, bank.filter_size) for bank in banks])

    def forward(self, features: Tensor, bank: int) -> Tensor:
        """What is added to the filters of one bank.

        Args:
            features: ``(S, width)``, what `features` makes of conditions ``(S, context_dim)``.
            bank: Its number.

        Returns:
            ``(S, filters, filter_size)``.
        """
        return torch.einsum("sk,kf,kn->sfn", features, self.left[bank], self.right[bank])
