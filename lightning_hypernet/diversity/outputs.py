"""Entropy of what the networks compute."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lightning_hypernet.diversity.base import DiversityLoss
from lightning_hypernet.diversity.entropy import entropy, read_norm
from lightning_hypernet.population import Population
from lightning_hypernet.values import switch


class OutputEntropy(DiversityLoss):
    """Minus the entropy of the concatenated outputs on examples that all networks share (the paper's eq. 3).

    No gauge is needed: networks that compute the same function have the same outputs.

    References:
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898

    Args:
        p: 2 for Euclidean distances, 1 for sums of absolute differences.
        softmax: Read class probabilities instead of the raw outputs; the last axis holds the classes.
    """

    def __init__(self, p: Literal[1, 2] = 2, softmax: bool = False) -> None:
        super().__init__()
        self.p, self.softmax = read_norm(p), switch("softmax", softmax)

    def forward(self, population: Population) -> Tensor:
        """Map a population to minus the entropy of its outputs, in nats."""
        outputs = population.outputs.softmax(-1) if self.softmax else population.outputs
        # the networks of another rank have seen other examples
        return -entropy(outputs.flatten(1), population.latents.z.shape[1], self.p, all_ranks=False)
