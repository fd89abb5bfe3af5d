"""Sampler: draws networks of a target, from the prior through the generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_hypernet import checkpoint
from lightning_hypernet.generator import Generator, GeneratorConfig, Prior
from lightning_hypernet.plugins import Plugins
from lightning_hypernet.population import Population
from lightning_hypernet.symmetry.demand import SymmetriesOnDemand
from lightning_hypernet.symmetry.gauge import Gauge, GaugeName
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.choice import Choices
from lightning_hypernet.target.execution import ExecutionMode, Executor
from lightning_hypernet.target.facade import StandIn
from lightning_hypernet.target.filters import Structure, find_filters
from lightning_hypernet.target.modes import evaluating

_FIRST_LATENTS = 64


class Sampler(StandIn):
    """A target, the generator of its weights and the prior of their latents.

    Arguments as of `Hypernet`.

    Attributes:
        banks: The filter banks of the target.
        executor: Runs the target; its `target` is the target without generated weights.
        symmetries: What leaves the target's function unchanged, and the gauge.
        prior: Draws latents.
        generator: Maps latents to weights.
        options: All arguments in plain values, as checkpoints keep them.
    """

    def __init__(
        self,
        target: nn.Module,
        example_inputs: Tensor | tuple[Any, ...] | None,
        latent_dim: int,
        prior: Literal["normal", "uniform"] | torch.distributions.Distribution,
        components: int,
        generator: GeneratorConfig | Mapping[str, Any] | None,
        generate: Sequence[str],
        exclude: Sequence[str],
        gauge: GaugeName | Gauge,
        execution: ExecutionMode,
        plugins: Sequence[object],
        structure: Structure | Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        if not isinstance(gauge, Gauge) and gauge not in get_args(GaugeName):
            raise ValueError(f"gauge must be one of {get_args(GaugeName)} or a Gauge, not {gauge!r}")
        config = checkpoint.config_of(generator)
        self.latent_dim, self.components = latent_dim, components
        self.prior = Prior(prior, latent_dim, components)
        known = Structure(**structure) if isinstance(structure, Mapping) else structure
        symmetries = SymmetriesOnDemand(target, _examples(target, example_inputs), known, guessed=example_inputs is None)
        wanted, unwanted = ((names,) if isinstance(names, str) else names for names in (generate, exclude))
        self.banks = find_filters(
            target, Plugins(plugins).rules, wanted, unwanted, config.merge, config.merge_limit, symmetries.structure
        )
        initial = {name: target.get_parameter(name) for name in self.banks.shapes}
        self.executor = Executor(target, self.banks.aliases, execution)
        self.target = self.executor.target
        self.symmetries = symmetries.of(list(self.banks.shapes), gauge, self._network)
        self.generator = Generator(self.banks, initial, config, latent_dim, components, self.prior.draw(_FIRST_LATENTS)[0])
        self.generator.to(next(iter(initial.values())).device)
        options = {"latent_dim": latent_dim, "components": components, "prior": prior, "generator": config, "gauge": gauge}
        taken = {"generate": ["*"], "exclude": list(self.banks.ordinary), "structure": symmetries.structure}
        self.options = checkpoint.recorded({**options, "execution": execution, **taken})

    def get_extra_state(self) -> dict[str, Any]:
        """Seed and number of draws of the random generator, which norm layers are frozen, and which backends were chosen."""
        prior = {"seed": self.prior.seed, "draws": self.prior.draws}
        return prior | {"frozen": list(self.executor.statistics.frozen), "execution": self.executor.choices.made}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Continue as a checkpoint left off, bit for bit."""
        self.prior.seed, self.prior.draws = state["seed"], state["draws"]
        self.executor.statistics.frozen = list(state["frozen"])
        self.executor.choices = Choices(state["execution"])

    def draw(self, n: int, component: int | None = None) -> tuple[Tensor, Tensor]:
        """Draw n latents ``(n, latent_dim)`` and their components ``(n,)``."""
        latents, components = self.prior.draw(n, component)
        reference = next(self.generator.parameters())
        return latents.to(reference), components.to(reference.device)

    def decode(self, latents: Tensor, components: Tensor | int = 0) -> Population:
        """Map latents to networks; the same latents always give the same networks.

        Args:
            latents: ``(n, latent_dim)``.
            components: ``(n,)`` or one number: which component of the prior each belongs to.

        Returns:
            The population.

        Raises:
            ValueError: If the latents have another shape or a component does not exist.
        """
        if latents.ndim != 2 or latents.shape[1] != self.latent_dim or not len(latents):
            raise ValueError(f"latents must be (n, {self.latent_dim}) with n > 0, not {tuple(latents.shape)}")
        components = torch.as_tensor(components, device=latents.device).expand(len(latents))
        if components.min() < 0 or components.max() >= self.components:
            raise ValueError(f"components must lie in 0 to {self.components - 1}, not {components.unique().tolist()}")
        with evaluating(self.generator):
            return self.populate(latents.to(next(self.generator.parameters())), components)

    def populate(self, latents: Tensor, components: Tensor, own_gradient: float = 1.0) -> Population:
        """The networks of latents ``(n, latent_dim)`` and components ``(n,)``, the generator in its present mode.

        Args:
            latents: The latents.
            components: The components.
            own_gradient: What the gradient of what components have of their own is multiplied by.
        """
        networks = self.executor.networks(self.generator(latents, components, own_gradient))
        return Population(
            latents,
            components,
            networks,
            self.banks,
            self.symmetries.gauge,
            n_components=self.components,
            run=self.executor.stacked,
            examples=self.symmetries.examples,
        )

    def sample(self, n: int, component: int | None = None) -> Population:
        """Draw networks.

        Args:
            n: How many.
            component: Draw from this component of the prior alone; None: from all, evenly.

        Returns:
            The population.

        Raises:
            ValueError: If n is not positive or the component does not exist.
        """
        if n < 1:
            raise ValueError(f"n must be 1 or more, not {n!r}")
        return self.decode(*self.draw(n, component))

    def _network(self) -> nn.Module:
        """One network, in training mode but for its frozen norm layers, to read symmetries with."""
        latents = torch.zeros(1, self.latent_dim)
        with torch.autocast(next(self.generator.parameters()).device.type, enabled=False):
            (network,) = self.executor.materialize_all(self.decode(latents).weights, {})
        return self.executor.statistics.frozen_in(network.train())


def _examples(target: nn.Module, example_inputs: Any) -> Arguments | None:
    reference = next(target.parameters(), torch.zeros(()))
    if example_inputs is None:
        size = (getattr(target, "pretrained_cfg", None) or {}).get("input_size")
        if size is None:
            return None
        example_inputs = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(reference)
    arguments = Arguments(example_inputs if isinstance(example_inputs, tuple) else (example_inputs,), {})
    return arguments.head(2).map(lambda tensor: tensor.to(reference.device))
