"""Extractor: latent z -> one code per filter."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_hypernet.generator.config import GeneratorConfig
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.generator.layers import Hidden, linear


class Extractor(nn.Module, ABC):
    """A network z -> one code per filter.

    A subclass is made as ``cls(latent_dim, filters, config, **options)``.

    Args:
        latent_dim: Numbers in z.
        filters: Number of filters of every bank.
        config: Widths and code size.
    """

    def __init__(self, latent_dim: int, filters: Sequence[int], config: GeneratorConfig) -> None:
        super().__init__()
        self.filters = list(filters)
        self.code_size = config.code_size

    @abstractmethod
    def forward(self, latents: Latents) -> list[Tensor]:
        """Map S latents to codes, one ``(S, filters, code_size)`` for every bank."""


class MLPExtractor(Extractor):
    """The paper's extractor: a multilayer perceptron that emits all codes side by side."""

    def __init__(self, latent_dim: int, filters: Sequence[int], config: GeneratorConfig) -> None:
        super().__init__(latent_dim, filters, config)
        self.hidden = Hidden(latent_dim, config.extractor_hidden, config)
        self.head = linear(self.hidden.outputs, sum(filters) * config.code_size, config, activated=False)

    def forward(self, latents: Latents) -> list[Tensor]:
        """Map S latents to codes, one ``(S, filters, code_size)`` for every bank."""
        codes = self.head(self.hidden(latents.z)).reshape(len(latents), -1, self.code_size)
        return list(codes.split(self.filters, dim=1))


class MatrixExtractor(Extractor):
    r"""Codes of low rank: :math:`C = U H(z) V` for every bank.

    U is ``(filters, rank)``, H(z) is ``(rank, rank)`` and comes from z, V is ``(rank, code_size)``. The mean codes of the
    generator take the place of an additive B.

    References:
        | Variational Hyper-Encoding Networks (Nguyen et al., 2021)
        | https://arxiv.org/abs/2005.08482
    """

    def __init__(self, latent_dim: int, filters: Sequence[int], config: GeneratorConfig) -> None:
        super().__init__(latent_dim, filters, config)
        rank = self.rank = config.rank
        self.hidden = Hidden(latent_dim, config.extractor_hidden, config)
        self.head = linear(self.hidden.outputs, len(filters) * rank * rank, config, activated=False)
        self.left = nn.ParameterList([torch.randn(count, rank) / math.sqrt(rank) for count in filters])
        self.right = nn.ParameterList([torch.randn(rank, config.code_size) / math.sqrt(rank) for _ in filters])

    def forward(self, latents: Latents) -> list[Tensor]:
        """Map S latents to codes, one ``(S, filters, code_size)`` for every bank."""
        inner = self.head(self.hidden(latents.z)).reshape(len(latents), -1, self.rank, self.rank)
        return [left @ middle @ right for left, middle, right in zip(self.left, inner.unbind(1), self.right, strict=True)]
