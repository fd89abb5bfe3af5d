"""Generator: latent z -> one code per filter -> filters -> all the weights of a target."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_hypernet.generator.config import GeneratorConfig
from lightning_hypernet.generator.extractors import EXTRACTORS
from lightning_hypernet.generator.layers import Norm, rows_of
from lightning_hypernet.generator.weight_generators import WeightGenerator
from lightning_hypernet.target.filters import FilterBanks


class Generator(nn.Module):
    r"""The whole map from latents to weights.

    .. math:: z \to \mathrm{codes} = m_k + \sigma E(z) \to \mathrm{filters} = W_l(\mathrm{code}) \to \theta

    References:
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898

    Args:
        banks: The filter banks of the target.
        initial: The target's own value of every generated parameter.
        config: What the generator is made of.
        latent_dim: Numbers in z.
        components: Mean codes per filter.
        first: ``(n, latent_dim)``, latents of the prior; the batch norms take their first running statistics from them.
    """

    def __init__(
        self,
        banks: FilterBanks,
        initial: Mapping[str, Tensor],
        config: GeneratorConfig,
        latent_dim: int,
        components: int,
        first: Tensor,
    ) -> None:
        super().__init__()
        dtypes = {value.dtype for value in initial.values()}
        if len(dtypes) > 1:
            raise ValueError(f"the generated parameters have dtypes {sorted(map(str, dtypes))}; convert the target to one")
        if components > 1 and config.start == "paper":
            raise ValueError("the paper's start has no mean codes, so components must be 1; set start='mean_weights'")
        self.banks = banks
        self.extractor = EXTRACTORS[config.extractor](latent_dim, [bank.filters for bank in banks], config)
        self.spread = 1.0 if config.start == "paper" else config.spread
        self.mean_codes = (
            None if config.start == "paper" else nn.Parameter(torch.randn(components, banks.filters, config.code_size))
        )
        filters = banks.flatten({name: value.detach()[None].float() for name, value in initial.items()})
        self.weight_generators = nn.ModuleList(
            WeightGenerator(bank, values, config.widths(index, len(banks)), components, config)
            for index, (bank, values) in enumerate(zip(banks, filters, strict=True))
        )
        self._warm_up(first, components)
        self.to(dtypes.pop())

    @torch.no_grad()
    def _warm_up(self, first: Tensor, components: int) -> None:
        """Give the running statistics of the batch norms their values at step 0."""
        norms = [module.inner for module in self.modules() if isinstance(module, Norm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        codes = self.codes(first.to(next(self.parameters())), torch.arange(len(first)) % components)
        for weight_generator, code in zip(self.weight_generators, codes, strict=True):
            assert isinstance(weight_generator, WeightGenerator)
            weight_generator.hidden(code)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def codes(self, latents: Tensor, components: Tensor, own_gradient: float = 1.0) -> list[Tensor]:
        """Map latents ``(S, latent_dim)`` and components ``(S,)`` to codes, one ``(S, filters, code_size)`` for every bank."""
        codes: list[Tensor] = self.extractor(latents)
        if self.mean_codes is None:
            return codes
        means = rows_of(self.mean_codes, components, own_gradient).split([bank.filters for bank in self.banks], dim=1)
        return [mean + self.spread * code for mean, code in zip(means, codes, strict=True)]

    def forward(self, latents: Tensor, components: Tensor, own_gradient: float = 1.0) -> dict[str, Tensor]:
        """Generate the weights of S networks.

        Args:
            latents: ``(S, latent_dim)``.
            components: ``(S,)``, integers.
            own_gradient: What the gradient of mean codes and offsets is multiplied by. In a loss that is the mean over S
                networks the share of a component shrinks with the number of components; multiplied by that number, the
                learning rate and the weight decay of one network fit every component.

        Returns:
            ``{name: (S, *shape)}`` for every generated parameter, in the generator's dtype also under autocast.
        """
        codes = self.codes(latents, components, own_gradient)
        filters = [
            generate(code, components, own_gradient) for generate, code in zip(self.weight_generators, codes, strict=True)
        ]
        dtype = next(self.parameters()).dtype
        return {name: value.to(dtype) for name, value in self.banks.assemble(filters).items()}
