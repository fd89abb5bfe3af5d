"""Conditioner: what a condition adds to the filters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet.target.filters import FilterBanks

_WIDTH = 32
_ONE = math.log(math.e - 1)
"""What softplus makes 1 of."""


class Conditioner(nn.Module):
    r"""Adds to the filters of every bank a combination of matrices of rank one, which the condition weighs.

    .. math:: \Delta_l = \sum_k \phi_k \, a_{lk} b_{lk}^\top, \qquad
        h_l \to h_l \odot \log(1 + (e - 1) e^{D_l \phi}), \qquad \phi = g((c - m) / s) - g(0)

    and multiplies what the last layer of every bank is given, h, so that a condition may widen or narrow what z does. g is a
    small network; every b and D starts at zero, so that a condition changes nothing then. m and s are the center and the spread
    of conditions: at the center nothing is added, so that the response to a condition and the weights at the center are learnt
    apart. A condition that all networks of a step share would vanish in batch norms of the generator, where it has any, hence
    this way around them.

    References:
        | Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions
        | (MacKay et al., 2019)
        | https://arxiv.org/abs/1903.03088

    Args:
        context_dim: Numbers in a condition.
        banks: The filter banks of the target.
        widths: For every bank the width of what its last layer is given.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, context_dim: int, banks: FilterBanks, widths: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(context_dim))
        self.register_buffer("spread", torch.tensor(1 / 3))
        with torch.random.fork_rng(devices=[]):
            self.network = nn.Sequential(nn.Linear(context_dim, _WIDTH), nn.Tanh(), nn.Linear(_WIDTH, _WIDTH), nn.Tanh())
            self.left = nn.ParameterList([torch.randn(_WIDTH, bank.filters) / math.sqrt(_WIDTH) for bank in banks])
            self.right = nn.ParameterList([torch.zeros(_WIDTH, bank.filter_size) for bank in banks])
        self.gates = nn.ParameterList([torch.zeros(_WIDTH, width) for width in widths])

    def features(self, context: Tensor) -> Tensor:
        """What conditions ``(S, context_dim)`` are to the banks: ``(S, width)``, zeros at the center."""
        centred = (context - self.center) / self.spread
        features: Tensor = self.network(centred) - self.network(torch.zeros_like(self.center))
        return features

    def gate(self, features: Tensor, inputs: Tensor, bank: int) -> Tensor:
        """What the last layer of one bank is given, ``(S, filters, width)``, under conditions whose features are given."""
        gated: Tensor = inputs * F.softplus(features @ self.gates[bank] / _WIDTH + _ONE)[:, None]
        return gated

    def forward(self, features: Tensor, bank: int) -> Tensor:
        """What is added to the filters of one bank.

        Args:
            features: ``(S, width)``, what `features` makes of conditions ``(S, context_dim)``.
            bank: Its number.

        Returns:
            ``(S, filters, filter_size)``.
        """
        return torch.einsum("sk,kf,kn->sfn", features, self.left[bank], self.right[bank])
