"""Generator: latent z -> one code per filter -> filters -> all the weights of a target."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet.generator.conditioner import Conditioner
from lightning_hypernet.generator.distribution import Setting, WeightDistribution
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.generator.layers import Hidden, Norm, rows_of
from lightning_hypernet.generator.weight_generators import WeightGenerator
from lightning_hypernet.registry import made
from lightning_hypernet.target.modes import evaluating

_LEAST = 1e-3
"""What is smaller at the start stays as it is: blown up, it would be rounding, and beyond what half precision holds."""


class Generator(WeightDistribution):
    r"""The paper's weight distribution: a deterministic map from latents to weights, whose density is not known.

    .. math:: z \to \mathrm{codes} = m_k + \sigma E(z) \to \mathrm{filters} = W_l(\mathrm{code}) \to \theta

    Beside trained mean weights lies what a code makes less what that of :math:`z = 0` makes: the mean weights alone are what
    all networks of a component share, and learn it under the rate and the weight decay of the plain target.

    References:
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898

    In training, the gradient of what every component has of its own, mean codes and mean weights, is multiplied by the
    number of components: in a loss that is the mean over S networks the share of a component shrinks with that number, and
    so the learning rate and the weight decay of one network fit every component.

    Args:
        setting: What the generator is made for, and of; batch norms take their first running statistics from its first latents.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        banks, initial, components, config = setting.banks, setting.initial, setting.components, setting.config
        dtypes = {value.dtype for value in initial.values()}
        if len(dtypes) > 1:
            raise ValueError(f"the generated parameters have dtypes {sorted(map(str, dtypes))}; convert the target to one")
        if components > 1 and config.start == "paper":
            raise ValueError("the paper's start has no mean codes, so components must be 1; set start='mean_weights'")
        self.banks, self.components = banks, components
        self._filters = [bank.filters for bank in banks]
        extractor, options = setting.extractors.chosen(config.extractor)
        sizes = (setting.latent_dim, self._filters, config)
        self.extractor = made("extractor", config.extractor, extractor, *sizes, **options)
        self.spread = 1.0 if config.start == "paper" else config.spread
        self.mean_codes = (
            None if config.start == "paper" else nn.Parameter(torch.randn(components, banks.filters, config.codes))
        )
        exact = torch.promote_types(next(iter(dtypes)), torch.float32)
        filters = banks.flatten({name: value.detach()[None].to(exact) for name, value in initial.items()})
        self._relative = config.relative
        self.hidden = Hidden(config.codes, config.trunk, config)
        self.weight_generators = nn.ModuleList(
            WeightGenerator(bank, values, self.hidden.outputs, config.widths(index, len(banks)), components, config)
            for index, (bank, values) in enumerate(zip(banks, filters, strict=True))
        )
        self.conditioner = self._conditioner(setting.context_dim)
        self._warm_up(setting.first)
        self.least_networks = 2 if any(isinstance(module, Norm) for module in self.modules()) else 1
        if config.start == "pretrained":
            self._keep_means(setting.first.to(next(self.parameters())), filters)
        self.to(dtypes.pop())

    def _conditioner(self, context_dim: int) -> Conditioner | None:
        widths = [generate.head.in_features for generate in self.weight_generators if isinstance(generate, WeightGenerator)]
        return Conditioner(context_dim, self.banks, widths) if context_dim else None

    @torch.no_grad()
    def focus(self, center: Tensor, spread: float) -> None:
        """Learn how weights respond to conditions near a center ``(context_dim,)``, that differ by a standard deviation."""
        if self.conditioner is not None:
            self.conditioner.center.copy_(center)
            self.conditioner.spread.fill_(spread)

    @torch.no_grad()
    def _warm_up(self, first: Latents) -> None:
        """Give the running statistics of batch norms their values at step 0, and what is beside mean weights its size."""
        norms = [module.inner for module in self.modules() if isinstance(module, Norm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        features = self.features(first.to(next(self.parameters())).given(None))
        for generate, one in zip(self.weight_generators, features, strict=True):
            assert isinstance(generate, WeightGenerator)
            if self._relative and (size := one.square().mean().sqrt()) > _LEAST:
                generate.head.weight /= size
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    @torch.no_grad()
    def _keep_means(self, first: Latents, filters: Sequence[Tensor]) -> None:
        """Let the mean network of every component be the target itself."""
        with evaluating(self):
            for component in range(self.components):
                given = replace(first.given(None), component=torch.full_like(first.component, component))
                for weight_generator, features, own in zip(self.weight_generators, self.features(given), filters, strict=True):
                    assert isinstance(weight_generator, WeightGenerator)
                    weight_generator.keep_mean(features, component, own[0])

    @torch.no_grad()
    def grow_trunk(self, filters: Sequence[Tensor] | None = None) -> None:
        """From here on let all networks be one, the mean weights of the first component, until `branch`.

        Args:
            filters: Where it starts, ``(1, filters, filter_size)`` of every bank; None: where these are.

        Raises:
            ValueError: If not every bank has trained mean weights.
        """
        if not all(isinstance(generate.means, nn.Parameter) for generate in self.weight_generators):
            raise ValueError(
                "one network can train alone where there are mean weights: set start='mean_weights' or 'pretrained'"
            )
        for generate, own in zip(self.weight_generators, filters or (), strict=filters is not None):
            generate.means[0] = own[0]  # type: ignore[operator]
        self.trunk = True

    @torch.no_grad()
    def branch(self, first: Latents, deviation: float) -> None:
        """Let every component start from the trunk: its networks lie around it.

        Args:
            first: Latents over which the mean network of a component is the trunk.
            deviation: What the deviations from it are multiplied by, relative to those of a fresh generator.
        """
        trunk = [generate.means[:1].clone() for generate in self.weight_generators]  # type: ignore[index]
        for generate in self.weight_generators:
            generate.head.weight *= deviation  # type: ignore[operator, union-attr]
        self.trunk = False
        self._keep_means(first, trunk)

    @property
    def _own_gradient(self) -> float:
        return float(self.components) if self.training else 1.0

    def codes(self, latents: Latents) -> Tensor:
        """Map S latents to codes, ``(S, filters, code_size)``: the filters of all banks, one bank after the other."""
        codes: Tensor = self.extractor(latents)
        if codes.shape != (wanted := (len(latents), self.banks.filters, codes.shape[-1])):
            raise ValueError(
                f"{type(self.extractor).__name__} must give codes {wanted}, one for every filter, not {tuple(codes.shape)}"
            )
        if self.mean_codes is None:
            return codes
        return torch.add(rows_of(self.mean_codes, latents.component, self._own_gradient), codes, alpha=self.spread)

    def _with_zeros(self, latents: Latents) -> Latents:
        """The latents, and after them a z of zeros for every component."""
        every = torch.arange(self.components, device=latents.component.device)
        more = (0, 0, 0, self.components)
        context = None if latents.context is None else F.pad(latents.context, more)
        return Latents(F.pad(latents.z, more), torch.cat([latents.component, every]), context)

    def _of_banks(self, codes: Tensor) -> list[Tensor]:
        """What the weight generators make of codes ``(S, filters, code_size)``, for every bank ``(S, filters, width)``."""
        shared: Tensor = self.hidden(codes.reshape(-1, codes.shape[-1]))
        parts = shared.view(len(codes), -1, shared.shape[-1]).split(self._filters, dim=1)
        return [generate.features(part) for generate, part in zip(self.weight_generators, parts, strict=True)]  # type: ignore[operator]

    def undecayed(self, spared: Collection[str]) -> set[str]:
        """What makes the banks whose parameters are all spared; where a filter holds several kinds, they decay together."""
        banks = [index for index, bank in enumerate(self.banks) if all(slot.parameter in spared for slot in bank.slots)]
        starts = tuple(f"weight_generators.{index}." for index in banks)
        return {name for name, _ in self.named_parameters() if name.startswith(starts)}

    def of_banks(self) -> Sequence[nn.Module]:
        """The weight generator of every bank."""
        return list(self.weight_generators)

    def forward(self, latents: Latents) -> dict[str, Tensor]:
        """Generate the weights of S networks: `weights` of `features`.

        Args:
            latents: What they are generated from.

        Returns:
            ``{name: (S, *shape)}`` for every generated parameter, in the generator's dtype also under autocast.
        """
        return self.weights(self.features(latents), latents.component)

    def features(self, latents: Latents) -> list[Tensor]:
        """All that networks share on the way to their weights, such as batch norms, lies before these.

        Args:
            latents: Of S networks.

        Returns:
            What the last layer of every bank is given, ``(S, filters, width)``, and ``(S, width)`` of a condition; nothing of
            the trunk, which has mean weights alone.
        """
        if self.trunk:
            return []
        features = self._of_banks(self.codes(self._with_zeros(latents) if self._relative else latents))
        if self._relative:
            parts = [one.split([len(latents), self.components]) for one in features]
            features = [drawn - rows_of(zeros, latents.component, 1.0) for drawn, zeros in parts]
        if self.conditioner is not None and latents.context is not None:
            given = self.conditioner.features(latents.context)
            features = [self.conditioner.gate(given, one, bank) for bank, one in enumerate(features)]
            features.append(given)
        return features

    def weights(
        self, features: Sequence[Tensor], components: Tensor, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """The last layers; every network has its weights of its own features.

        Args:
            features: As `features` gives them, of S networks.
            components: ``(S,)``, whose mean weights each network takes.
            names: The parameters that are wanted; None: all.

        Returns:
            ``{name: (S, *shape)}``, in the generator's dtype also under autocast.
        """
        parts: list[list[Tensor]] = []
        for index, (bank, generate) in enumerate(zip(self.banks, self.weight_generators, strict=True)):
            read = names is None or any(slot.parameter in names for slot in bank.slots)
            if self.trunk:
                parts.append(generate.mean(len(components)) if read else [])  # type: ignore[operator]
                continue
            parts.append(generate(features[index], components, self._own_gradient) if read else [])
            if self.conditioner is not None and read and len(features) > len(self.banks):
                changes = (generate.scale * self.conditioner(features[-1], index)).split(generate.sizes, dim=-1)
                parts[-1] = [part + change for part, change in zip(parts[-1], changes, strict=True)]
        dtype, filled = next(self.parameters()).dtype, self.banks.assemble(parts)
        return {name: value.to(dtype) for name, value in filled.items() if names is None or name in names}
