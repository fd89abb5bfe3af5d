"""Sampler: draws networks of a target, from the prior through the weight distribution."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_hypernet import checkpoint
from lightning_hypernet.generator import DistributionPrior, GeneratorConfig, Latents, Prior, Setting, WeightDistribution, sized
from lightning_hypernet.generator.distribution import generated
from lightning_hypernet.generator.latents import as_numbers
from lightning_hypernet.generator.reweighted import ReweightedPrior
from lightning_hypernet.plugins import Plugins, plugins_with
from lightning_hypernet.population import Population
from lightning_hypernet.registry import check_options, made
from lightning_hypernet.symmetry.demand import SymmetriesOnDemand
from lightning_hypernet.symmetry.gauge import Gauge, own_scales
from lightning_hypernet.symmetry.structure import structure_of
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.choice import Choices
from lightning_hypernet.target.execution import Executor, copied_with_target
from lightning_hypernet.target.facade import StandIn
from lightning_hypernet.target.filters import Structure, find_filters
from lightning_hypernet.target.layout import BatchDim, laid_out, read_batch_dim
from lightning_hypernet.target.loaders import Feed
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.target.reduction import read_reduction
from lightning_hypernet.values import instance, shown, texts, unknown, whole

Named = str | Mapping[str, Any]
"""A choice: a name, or a mapping with the ``name`` and options."""
_FIRST_LATENTS = 64
_COUNTS = {"latent_dim": 1, "context_dim": 0, "components": 1, "samples": 1, "members": 1}
"""The counts among the options, and the least that each may be."""
_SOMEWHERE = torch.zeros(())
SHAPING = ("latent_dim", "context_dim", "components", "members", "prior", "distribution", "generator")
"""Options on which the names and shapes of tensors depend."""
HARMLESS = ("samples", "gauge", "execution", "reduce", "batch_dim")
"""Options on which they do not."""
_COMPARED = ("latent_dim", "context_dim", "components", "samples", "members", "prior", "distribution", "generator", "gauge",
             "execution", "reduce", "batch_dim")  # fmt: skip


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
        latent_dim: int,
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
    ) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(type(self)._refuse_others)  # type: ignore[no-untyped-call]
        found = plugins_with(plugins)
        gauge, execution = _shortest(gauge), _shortest(execution)
        config = config_of(generator, found)
        self.latent_dim, self.context_dim, self.components = latent_dim, context_dim, components
        self.prior = _prior(prior, latent_dim, components, found)
        make_gauge, backend = _gauge(gauge, found), found.backend(execution)
        known = structure_of(structure)
        examples = _examples(target, example_inputs, batch_dim)
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
        config = sized(config, self.banks, latent_dim, components)
        self.executor = Executor(target, self.banks.aliases, backend, execution, batch_dim)
        self.target = self.executor.target
        scales = None if config.start == "paper" else own_scales(initial)
        self.symmetries = symmetries.of(list(self.banks.shapes), self._network, make_gauge, gauge == "auto", scales)
        make, options = found.distributions.chosen(distribution)
        sizes = (latent_dim, components, context_dim)
        setting = Setting(self.banks, initial, *sizes, config, self.prior.draw(_FIRST_LATENTS), found.extractors)
        self.generator = made("weight distribution", distribution, make, setting, **options)
        self.generator.to(next(iter(initial.values())).device)
        self.prior.to(next(iter(initial.values())).device)
        given = {"prior": prior, "distribution": distribution, "generator": generator, "gauge": gauge, "execution": execution}
        self.needs = found.used(target, {**given, "generator": config.extractor})
        counts = {"latent_dim": latent_dim, "context_dim": context_dim, "components": components}
        shown = symmetries.structure and asdict(symmetries.structure)
        taken = {"batch_dim": batch_dim, "generate": ["*"], "exclude": list(self.banks.ordinary), "structure": shown}
        self.options = {**plain_options({**counts, **given}, found), **checkpoint.recorded(taken)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copied_with_target(self, memo)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that plain training would not decay, for timm's `create_optimizer_v2` and grouping of your own.

        They make the banks of norm layers alone, of tokens and of whatever else has at most one axis or is named by the
        target's own `no_weight_decay`. Where a filter holds its weights, bias and norm scale together, these decay together.
        """
        spared = set(getattr(self.target, "no_weight_decay", set)())
        names = set()
        for index, bank in enumerate(self.banks):
            parameters = {slot.parameter for slot in bank.slots}
            if all(len(self.banks.shapes[name]) <= 1 or name in spared for name in parameters):
                part = f"generator.weight_generators.{index}."
                names |= {name for name, _ in self.named_parameters() if name.startswith(part)}
        return names

    def get_extra_state(self) -> dict[str, Any]:
        """What is frozen, which backends were chosen, how batches reach the target, and the scales that the gauge fixes."""
        executor, scales = self.executor, self.symmetries.scales
        state = {"frozen": list(executor.statistics.frozen), "execution": executor.choices.made, "feed": executor.feed.seen}
        shaping = {name: self.options[name] for name in SHAPING if not list(checkpoint.unnamed(self.options[name]))}
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

    def _refuse_others(self, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        """Tell which options a state was written with, if tensors can't fit for them.

        Raises:
            ValueError: If there are some.
        """
        kept = (state.get(f"{prefix}_extra_state") or {}).get("options", {})
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


def config_of(generator: Named | GeneratorConfig | None, plugins: Plugins) -> GeneratorConfig:
    """The configuration that an argument stands for: itself, the name of a preset, or fields beside a ``preset``."""
    if isinstance(generator, GeneratorConfig):
        return generator
    given = {"preset": generator} if isinstance(generator, str) else {} if generator is None else generator
    if not isinstance(given, Mapping):
        raise TypeError(f"generator must be the name of a preset, a mapping or a GeneratorConfig, not {generator!r}")
    given = dict(given)
    preset = plugins.generators.find(given.pop("preset", "default"))
    wrong = unknown("generator", {*given, *preset}, [*(field.name for field in fields(GeneratorConfig)), "preset"])
    if wrong:
        raise TypeError(wrong)
    return replace(GeneratorConfig(**preset), **given)


def plain_options(options: Mapping[str, Any], plugins: Plugins) -> dict[str, Any]:
    """Those arguments of a Hypernet that make it what it is, in plain values."""
    chosen = {name: value for name, value in options.items() if name in _COMPARED}
    if "generator" in chosen:
        chosen["generator"] = asdict(config_of(chosen["generator"], plugins))
    readers = {"gauge": _shortest, "execution": _shortest, "reduce": read_reduction, "batch_dim": read_batch_dim}
    chosen.update({name: read(chosen[name]) for name, read in readers.items() if name in chosen})
    return checkpoint.recorded(chosen)


def counts_of(options: Mapping[str, Any]) -> dict[str, int]:
    """The counts among the options of a Hypernet, read as whole numbers: latent_dim, context_dim, components, samples, members.

    Raises:
        ValueError: If one is none, or out of range.
    """
    read: dict[str, int] = {}
    problems = []
    for name, least in _COUNTS.items():
        try:
            read |= {name: whole(name, options[name], least)} if name in options else {}
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return read


def check_options_of_hypernet(options: Mapping[str, Any], plugins: Plugins) -> None:
    """See, without a target, that what is chosen by name is there, and that numbers are in range.

    Raises:
        TypeError: If an option is of another kind.
        ValueError: If a name is unknown or a number is out of range.
    """
    counts = counts_of(options)
    for name in ("generate", "exclude"):
        texts(name, options.get(name, ()), "pattern")
    read_reduction(options.get("reduce", "mean"))
    read_batch_dim(options.get("batch_dim"))
    structure_of(options.get("structure"))
    if options.get("example_inputs") is not None:
        _inputs(options["example_inputs"])
    config = config_of(options.get("generator"), plugins)
    distribution = options.get("distribution", "generator")
    make, given = plugins.distributions.chosen(distribution)
    check_options("weight distribution", distribution, make, None, **given)
    plugins.extractors.chosen(config.extractor)
    with torch.random.fork_rng(devices=[]):
        _prior(options.get("prior", "normal"), counts.get("latent_dim", 64), counts.get("components", 1), plugins)
    _gauge(options.get("gauge", "auto"), plugins)
    plugins.backend(_shortest(options.get("execution", "auto")))


def _shortest(choice: Any) -> Any:
    """The name alone, where a mapping has nothing else."""
    return choice["name"] if isinstance(choice, Mapping) and set(choice) == {"name"} else choice


def _prior(choice: Named | Prior | Distribution, latent_dim: int, components: int, plugins: Plugins) -> Prior:
    if isinstance(choice, Distribution):
        prior: Prior = DistributionPrior(latent_dim, components, choice)
    elif isinstance(choice, Prior):
        prior = choice
    else:
        make, options = plugins.priors.chosen(choice)
        if issubclass(make, ReweightedPrior):
            options["base"] = _prior(options.get("base", "normal"), latent_dim, components, plugins)
        prior = made("prior", choice, make, latent_dim, components, **options)
    if (prior.latent_dim, prior.components) != (latent_dim, components):
        raise ValueError(
            f"the prior draws {prior.latent_dim} numbers for {prior.components} components, and the Hypernet has "
            f"latent_dim={latent_dim} and components={components}"
        )
    return prior


def _gauge(gauge: Named | Gauge, plugins: Plugins) -> Any:
    if isinstance(gauge, Gauge):
        return gauge
    make, options = plugins.gauges.chosen(gauge)
    check_options("gauge", gauge, make, None, **options)
    return functools.partial(make, **options)


def _inputs(example_inputs: Any) -> tuple[Any, ...]:
    """The arguments that example inputs are."""
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not inputs or all(one is None or isinstance(one, (str, int, float)) for one in inputs):
        raise TypeError(f"example_inputs must be a tensor, or a tuple of the target's arguments, not {example_inputs!r}")
    return inputs


def _examples(target: nn.Module, example_inputs: Any, batch_dim: BatchDim) -> Arguments | None:
    reference = next(target.parameters(), torch.zeros(()))
    if example_inputs is None:
        size = (getattr(target, "pretrained_cfg", None) or {}).get("input_size")
        if size is None:
            return None
        example_inputs = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(reference)
    arguments = laid_out(_inputs(example_inputs), {}, batch_dim, target)
    empty = [tuple(tensor.shape) for tensor in arguments.tensors if not tensor.numel()]
    if empty:
        raise ValueError(f"example_inputs must hold an example or more, not {empty[0]}")
    return arguments.head(2).map(lambda tensor: tensor.to(reference.device))
