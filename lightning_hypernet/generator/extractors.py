"""Extractor: latent z -> one code per filter."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet.generator.config import GeneratorConfig
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.generator.layers import Hidden, linear
from lightning_hypernet.generator.sizes import sides
from lightning_hypernet.values import wholes


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
        self.code_size = config.codes

    @abstractmethod
    def forward(self, latents: Latents) -> Tensor:
        """Map S latents to codes, ``(S, filters, code_size)``: the filters of all banks, one bank after the other."""


class MLPExtractor(Extractor):
    """The paper's extractor: a multilayer perceptron that emits all codes side by side."""

    def __init__(self, latent_dim: int, filters: Sequence[int], config: GeneratorConfig) -> None:
        super().__init__(latent_dim, filters, config)
        self.hidden = Hidden(latent_dim, config.extractor_hidden, config)
        self.head = linear(self.hidden.outputs, sum(filters) * config.codes, config, activated=False)

    def forward(self, latents: Latents) -> Tensor:
        """Map S latents to codes, ``(S, filters, code_size)``."""
        codes: Tensor = self.head(self.hidden(latents.z))
        return codes.reshape(len(latents), -1, self.code_size)


class MatrixExtractor(Extractor):
    r"""Codes as a product of thin matrices: :math:`C = U Z V`.

    Z holds z, or what the hidden layers make of it, as a nearly square matrix; U is ``(filters, rows)`` and V ``(columns,
    code_size)``, both trained. The mean codes of the generator take the place of an additive B.

    References:
        | Variational Hyper-Encoding Networks (Nguyen et al., 2021)
        | https://arxiv.org/abs/2005.08482
    """

    def __init__(self, latent_dim: int, filters: Sequence[int], config: GeneratorConfig) -> None:
        super().__init__(latent_dim, filters, config)
        self.hidden = Hidden(latent_dim, config.extractor_hidden, config)
        self.rows, self.columns = sides(self.hidden.outputs)
        self.left = nn.Parameter(torch.randn(sum(filters), self.rows) / math.sqrt(self.rows))
        self.right = nn.Parameter(torch.randn(self.columns, self.code_size) / math.sqrt(self.columns))

    def forward(self, latents: Latents) -> Tensor:
        """Map S latents to codes, ``(S, filters, code_size)``."""
        flat = self.hidden(latents.z)
        missing = self.rows * self.columns - flat.shape[1]
        filled = F.pad(flat, (0, missing)) if missing else flat
        middle = torch.mm(filled.reshape(-1, self.columns), self.right).view(-1, self.rows, self.code_size)
        return torch.bmm(self.left.expand(len(flat), -1, -1), middle)


class LevelExtractor(Extractor):
    """Levels of z for wings of layers: the first numbers of z reach all banks, the others one wing of banks each.

    Each wing has a `MatrixExtractor` that reads the first level and its own.

    Args:
        latent_dim: Numbers in z.
        filters: Number of filters of every bank.
        config: Widths and code size.
        levels: Numbers of z in each level, that of all banks first; there are as many others as wings, and they add up to
            `latent_dim`.
        wings: How many banks each wing has, in the order of the target's parameters; None: as evenly as they can be.

    Raises:
        ValueError: If levels do not add up, or wings do not hold all banks.
    """

    def __init__(
        self,
        latent_dim: int,
        filters: Sequence[int],
        config: GeneratorConfig,
        levels: Sequence[int] = (),
        wings: Sequence[int] | None = None,
    ) -> None:
        super().__init__(latent_dim, filters, config)
        sizes = wholes("the extractor's levels", levels)
        if len(sizes) < 2 or sum(sizes) != latent_dim:
            raise ValueError(f"levels={list(sizes)} must be two or more and add up to latent_dim={latent_dim}")
        count, banks = len(sizes) - 1, len(filters)
        even = [banks // count + (index < banks % count) for index in range(count)]
        chosen = even if wings is None else list(wholes("the extractor's wings", wings))
        if len(chosen) != count or sum(chosen) != banks or min(chosen) < 1:
            raise ValueError(f"wings={chosen} must be {count}, one for each level but the first, and hold all {banks} banks")
        self.levels = list(sizes)
        ends = list(itertools.accumulate(chosen))
        parts = [list(filters)[end - size : end] for end, size in zip(ends, chosen, strict=True)]
        pairs = zip(sizes[1:], parts, strict=True)
        self.parts = nn.ModuleList(MatrixExtractor(sizes[0] + own, part, config) for own, part in pairs)

    def forward(self, latents: Latents) -> Tensor:
        """Map S latents to codes, ``(S, filters, code_size)``."""
        shared, *own = latents.z.split(self.levels, dim=1)
        pairs = zip(self.parts, own, strict=True)
        return torch.cat([part(replace(latents, z=torch.cat([shared, one], dim=1))) for part, one in pairs], dim=1)
