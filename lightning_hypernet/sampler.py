"""Sampler: draws networks of a target, from the prior through the weight distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_hypernet import checkpoint
from lightning_hypernet.generator import (
    GeneratorConfig,
    Latents,
    NormalPrior,
    Prior,
    Setting,
    WeightDistribution,
    settled,
)
from lightning_hypernet.generator.distribution import generated
from lightning_hypernet.generator.latents import as_numbers
from lightning_hypernet.options import (
    Named,
    check_parts,
    config_of,
    encoder_of,
    example_arguments,
    gauge_of,
    latent_dim_of,
    plain_options,
    prior_of,
    shortest,
)
from lightning_hypernet.plugins import plugins_with
from lightning_hypernet.population import Population
from lightning_hypernet.registry import check_options, made
from lightning_hypernet.shards import is_left_out
from lightning_hypernet.symmetry.demand import SymmetriesOnDemand
from lightning_hypernet.symmetry.gauge import Gauge, own_scales
from lightning_hypernet.symmetry.structure import structure_of
from lightning_hypernet.target.choice import Choices
from lightning_hypernet.target.execution import Executor, copied_with_target
from lightning_hypernet.target.facade import StandIn
from lightning_hypernet.target.filters import Structure, find_filters
from lightning_hypernet.target.layout import BatchDim
from lightning_hypernet.target.loaders import Feed
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.tasks import Encoded
from lightning_hypernet.values import instance, shown, texts, whole

_FIRST_LATENTS = 64
_SOMEWHERE = torch.zeros(())
SHAPING = ("latent_dim", "context_dim", "components", "members", "prior", "distribution", "generator", "encoder")
"""Options on which the names and shapes of tensors depend."""


class Sampler(StandIn):
    """A target, the distribution of its weights and the prior of their latents.

    Arguments as of `Hypernet`.

    Attributes:
        banks: The filter banks of the target.
        executor: Runs the target; its `target` is the target without generated weights.
        symmetries: What leaves the target's function unchanged, and the gauge.
        prior: Draws latents.
        generator: Maps latents to weights.
        options: All arguments in plain values, as checkpoints keep them.
        needs: What it has of plug-ins: the option, what was chosen, the plug-in's name.
    """

    prior: Prior
    generator: WeightDistribution

    def __init__(
        self,
        target: nn.Module,
        example_inputs: Tensor | tuple[Any, ...] | None,
        *,
        latent_dim: int | None,
        context_dim: int,
        prior: Named | Prior | Distribution,
        components: int,
        distribution: Named,
        generator: Named | GeneratorConfig | None,
        generate: Sequence[str],
        exclude: Sequence[str],
        gauge: Named | Gauge,
        execution: Named,
        plugins: Sequence[object],
        structure: Structure | Mapping[str, Any] | None,
        batch_dim: BatchDim = None,
        encoder: Named | None = None,
    ) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(type(self)._refuse_others)  # type: ignore[no-untyped-call]
        found = plugins_with(plugins)
        gauge, execution = shortest(gauge), shortest(execution)
        config = config_of(generator, found)
        make, options = found.distributions.chosen(distribution)
        check_options("weight distribution", distribution, make, None, **options)
        make_gauge, backend = gauge_of(gauge, found), found.backend(execution)
        known = structure_of(structure)
        examples = example_arguments(target, example_inputs, batch_dim)
        symmetries = SymmetriesOnDemand(target, examples, known, guessed=example_inputs is None)
        wanted, unwanted = texts("generate", generate, "pattern"), texts("exclude", exclude, "pattern")
        self.banks = find_filters(
            target,
            found.rules,
            wanted,
            unwanted,
            config.merge,
            config.merge_limit,
            symmetries.structure,
            frozen=config.start == "adapter",
        )
        initial = {name: target.get_parameter(name) for name in self.banks.shapes}
        noise = make.noise(self.banks, options)
        self.latent_dim = latent_dim = latent_dim_of(latent_dim, noise, distribution)
        self.context_dim, self.components = context_dim, components
        self.prior = prior_of(prior, latent_dim, components, found)
        if noise is not None and not isinstance(self.prior, NormalPrior):
            raise ValueError(f"distribution={distribution!r} takes its noise from z: leave the prior at 'normal'")
        check_parts(distribution, make, config, found)
        config = settled(config, self.banks, latent_dim, components, answers=bool(context_dim) or encoder is not None)
        self.executor = Executor(target, self.banks.aliases, backend, execution, batch_dim)
        self.target = self.executor.target
        scales = None if config.start == "paper" else own_scales(initial)
        self.symmetries = symmetries.of(list(self.banks.shapes), self._network, make_gauge, gauge == "auto", scales)
        sizes, first = (latent_dim, components, context_dim), self.prior.draw(_FIRST_LATENTS if noise is None else 1)
        setting = Setting(self.banks, initial, *sizes, config, first, found.extractors)
        self.generator = made("weight distribution", distribution, make, setting, **options)
        self.generator.to(next(iter(initial.values())).device)
        self.prior.to(next(iter(initial.values())).device)
        self.task_encoder = encoder_of(encoder, self.prior, context_dim, noise, found)
        if self.task_encoder is not None:
            self.task_encoder.to(next(iter(initial.values())))
        given = {"prior": prior, "distribution": distribution, "generator": generator, "gauge": gauge, "execution": execution,
                 "encoder": encoder}  # fmt: skip
        self.needs = found.used(target, {**given, "generator": config.extractor})
        counts = {"latent_dim": latent_dim, "context_dim": context_dim, "components": components}
        shown = symmetries.structure and asdict(symmetries.structure)
        taken = {"batch_dim": batch_dim, "generate": ["*"], "exclude": list(self.banks.ordinary), "structure": shown}
        self.options = {**plain_options({**counts, **given}, found), **checkpoint.recorded(taken)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copied_with_target(self, memo)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that plain training would not decay, for timm's `create_optimizer_v2` and grouping of your own.

        They make norm layers, tokens and whatever else has at most one axis or is named by the target's own `no_weight_decay`.
        Where a filter of the built-in generator holds its weights, bias and norm scale together, these decay together.
        """
        spared = set(getattr(self.target, "no_weight_decay", set)())
        spared |= {name for name, shape in self.banks.shapes.items() if len(shape) <= 1}
        return {f"generator.{name}" for name in self.generator.undecayed(spared)}

    def get_extra_state(self) -> dict[str, Any]:
        """What is frozen, which backends were chosen, how batches reach the target, the scales and the trunk."""
        executor, scales = self.executor, self.symmetries.scales
        state: dict[str, Any] = {
            "frozen": list(executor.statistics.frozen),
            "execution": executor.choices.made,
            "feed": executor.feed.seen,
        }
        shaping = {name: self.options[name] for name in SHAPING if not list(checkpoint.unnamed(self.options[name]))}
        state |= {"trunk": True} if self.generator.trunk else {}
        return {**state, "scales": scales and dict(scales), "options": shaping}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Continue as a checkpoint left off."""
        modules = dict(self.executor.target.named_modules())
        odd = [path for path in state["frozen"] if path not in modules]
        if odd:
            raise ValueError(f"frozen holds {shown(odd[0])}, which is no module of {type(self.executor.target).__name__}")
        self.executor.statistics.frozen = list(state["frozen"])
        self.executor.choices = Choices(state["execution"])
        self.executor.feed = Feed(state["feed"])
        self.symmetries.train_with(self.executor.statistics.frozen_norms)
        self.symmetries.fix(state["scales"])
        if state.get("trunk"):
            self.generator.grow_trunk()
        else:
            self.generator.trunk = False

    def _refuse_others(self, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        """Tell which options a state was written with, if tensors can't fit for them.

        Raises:
            ValueError: If there are some.
        """
        extra = state.get(f"{prefix}_extra_state") or {}
        if is_left_out(extra):
            return
        kept = extra.get("options", {})
        different = checkpoint.differences(kept, {name: self.options[name] for name in kept})
        losses = [sorted({key.removeprefix(f"{start}diversity.losses.").partition(".")[0] for key in keys
                          if key.startswith(f"{start}diversity.losses.")})
                  for keys, start in ((state, prefix), (self.state_dict(), ""))]  # fmt: skip
        if losses[0] != losses[1]:
            named = [f"of {', '.join(names)}" if names else "without any" for names in losses]
            different.append(f"diversity losses {named[0]}, not {named[1]}")
        if different:
            raise ValueError(f"the state of {prefix.rstrip('.') or 'the Hypernet'} was written with {'; '.join(different)}")

    def draw(self, n: int, component: int | None = None, context: Tensor | None = None) -> Latents:
        """Draw n latents; arguments as in `sample`.

        Raises:
            ValueError: If the condition has another shape than ``(context_dim,)`` or ``(n, context_dim)``.
        """
        latents = self.prior.draw(n, component).to(self._reference)
        if context is None:
            return latents.given(latents.z.new_zeros(n, self.context_dim)) if self.context_dim else latents
        context = torch.atleast_1d(as_numbers("the context", context)).to(latents.z)
        if context.shape not in ((self.context_dim,), (n, self.context_dim)):
            raise ValueError(
                f"the context must be ({self.context_dim},) or ({n}, {self.context_dim}), not {tuple(context.shape)}; "
                "context_dim says how many numbers it has"
            )
        return latents.given(context) if self.context_dim else latents

    def encode_tasks(self, *supports: Any, sample: bool = True) -> Encoded:
        """What the encoder makes of data sets; ``decode(encoded.latents)`` gives their networks.

        Args:
            supports: The data sets: inputs ``(n, ...)``, or pairs of these and their targets.
            sample: Whether z is drawn, or the mean of every level.

        Raises:
            RuntimeError: If there is no encoder.
            ValueError: If there is no data set, or examples are of another size.
        """
        if self.task_encoder is None:
            raise RuntimeError("the Hypernet has no encoder: pass encoder={'name': 'deep_sets', 'inputs': ...}")
        if not supports:
            raise ValueError("encode_tasks() takes one data set or more")
        encoded: Encoded = self.task_encoder(supports, sample)
        return encoded

    def decode(self, latents: Latents | Tensor) -> Population:
        """Map latents to networks; the same latents always give the same networks.

        Args:
            latents: What they are generated from, or a tensor z ``(n, latent_dim)`` alone, of the first component.

        Returns:
            The population.

        Raises:
            ValueError: If the latents or their condition have another shape, or a component does not exist.
        """
        if not isinstance(latents, (Tensor, Latents)):
            raise TypeError(f"networks are made of Latents or of a tensor z, not of a {type(latents).__name__}")
        z = latents if isinstance(latents, Tensor) else latents.z
        if z.ndim != 2 or z.shape[1] != self.latent_dim or not len(z):
            raise ValueError(f"latents must be (n, {self.latent_dim}) with n > 0, not {tuple(z.shape)}")
        if isinstance(latents, Tensor):
            latents = Latents(z, torch.zeros(len(z), dtype=torch.long, device=z.device))
        component = latents.component
        instance("the latents' component", component, Tensor, "a tensor of integers")
        if component.is_floating_point() or component.dtype == torch.bool or component.shape != z.shape[:1]:
            raise ValueError(
                f"the latents' component must be integers ({len(z)},), not {component.dtype} {tuple(component.shape)}"
            )
        if component.min() < 0 or component.max() >= self.components:
            raise ValueError(f"components must lie in 0 to {self.components - 1}, not {component.unique().tolist()}")
        if not z.is_floating_point():
            raise ValueError(f"latents must be floating-point numbers, not {z.dtype}")
        if not bool(z.isfinite().all()):
            raise ValueError("latents must be finite, and these hold NaN or infinite numbers")
        context = z.new_zeros(len(z), self.context_dim) if latents.context is None else latents.context
        context = as_numbers("the context", context)
        if context.shape != (len(z), self.context_dim):
            raise ValueError(f"conditions must be ({len(z)}, {self.context_dim}), not {tuple(context.shape)}: see context_dim")
        with evaluating(self.generator):
            return self.populate(latents.given(context if self.context_dim else None).to(self._reference))

    @property
    def _reference(self) -> Tensor:
        """A tensor of the device and type of the generated weights."""
        return next(chain(self.generator.parameters(), self.generator.buffers(), self.executor.target.parameters()), _SOMEWHERE)

    def populate(self, latents: Latents) -> Population:
        """The networks of latents, the generator in its present mode."""
        generate = self.executor.replicas.compiler(generated, self.generator.training)
        return Population(
            latents,
            self.executor.networks(generate(self.generator, latents)),
            self.banks,
            self.symmetries.gauge,
            n_components=self.components,
            run=self.executor.stacked,
            examples=self.symmetries.examples,
            distribution=self.generator,
        )

    def sample(self, n: int, component: int | None = None, context: Tensor | None = None) -> Population:
        """Draw networks.

        Args:
            n: How many.
            component: Draw from this component of the prior alone; None: from all, evenly.
            context: The condition of all, ``(context_dim,)``, or of each, ``(n, context_dim)``; None: zeros.

        Returns:
            The population.

        Raises:
            ValueError: If n is not positive, the component does not exist or the condition has another shape.
        """
        return self.decode(self.draw(whole("n", n), component, context))

    def _network(self) -> nn.Module:
        """One network, in training mode but for its frozen norm layers, to read symmetries with."""
        with torch.autocast(self._reference.device.type, enabled=False):
            (network,) = self.executor.materialize_all(self.decode(torch.zeros(1, self.latent_dim)).weights, {})
        return self.executor.statistics.frozen_in(network.train())
