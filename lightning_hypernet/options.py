"""Options: what the arguments of a Hypernet stand for."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from lightning_hypernet import checkpoint
from lightning_hypernet.generator import DistributionPrior, GeneratorConfig, NormalPrior, Prior, WeightDistribution
from lightning_hypernet.generator.reweighted import ReweightedPrior
from lightning_hypernet.plugins import Plugins
from lightning_hypernet.registry import check_options, made
from lightning_hypernet.symmetry.gauge import Gauge
from lightning_hypernet.symmetry.structure import structure_of
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.layout import BatchDim, laid_out, read_batch_dim
from lightning_hypernet.target.reduction import read_reduction
from lightning_hypernet.tasks import Encoder
from lightning_hypernet.values import number, texts, unknown, whole

Named = str | Mapping[str, Any]
"""A choice: a name, or a mapping with the ``name`` and options."""
_LATENT_DIM = 64
_SEVERAL = 8
"""Networks of a step where they differ by their conditions, at least, unless it is said."""
_LEFT_OPEN = ("latent_dim", "samples")
"""Counts that may be None: what suits the rest."""
_COUNTS = {"latent_dim": 1, "context_dim": 0, "components": 1, "samples": 1, "members": 1}
"""The counts among the options, and the least that each may be."""
HARMLESS = ("samples", "gauge", "execution", "reduce", "batch_dim")
"""Options on which they do not."""
_COMPARED = ("latent_dim", "context_dim", "components", "samples", "members", "prior", "distribution", "generator", "gauge",
             "execution", "reduce", "batch_dim", "encoder")  # fmt: skip


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


def check_context(context: Any, conditions: Any, context_dim: Any) -> None:
    """See that what gives conditions goes with how many numbers they have.

    Raises:
        TypeError: If `context` is no function.
        ValueError: If it does not.
    """
    if context is not None and not callable(context):
        raise TypeError(f"context must be a function of a batch, which gives the condition, not {context!r}")
    if conditions is not None and (context is not None or number(context_dim)):
        raise ValueError("conditions make the context themselves: leave out context and context_dim")
    if context is not None and not number(context_dim):
        raise ValueError("context gives a condition, and context_dim is 0: set it to how many numbers the condition has")


def with_preset(
    preset: str, options: Mapping[str, Any], defaults: Mapping[str, Any], plugins: Plugins
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a Hypernet with those of a preset beneath what is not the default, and the preset's own of the callback.

    Raises:
        ValueError: If the name is that of a preset of generators.
    """
    if isinstance(preset, str) and preset in plugins.generators:
        raise ValueError(f"{preset!r} is a preset of generators, none of the callback: pass generator={preset!r}")
    chosen = copy.deepcopy(dict(plugins.presets.find(preset)))
    own = {name: chosen.pop(name, None) for name in ("diversity", "branch")}
    plain, default = checkpoint.recorded(options), checkpoint.recorded(defaults)
    given = {name: value for name, value in options.items() if plain[name] != default.get(name)}
    return {**options, **chosen, **given}, own


def plain_options(options: Mapping[str, Any], plugins: Plugins) -> dict[str, Any]:
    """Those arguments of a Hypernet that make it what it is, in plain values."""
    told = {name: value for name, value in options.items() if value is not None or name not in _LEFT_OPEN}
    chosen = {name: value for name, value in told.items() if name in _COMPARED}
    if "generator" in chosen:
        chosen["generator"] = asdict(config_of(chosen["generator"], plugins))
    readers = {"gauge": shortest, "execution": shortest, "reduce": read_reduction, "batch_dim": read_batch_dim}
    chosen.update({name: read(chosen[name]) for name, read in readers.items() if name in chosen})
    return checkpoint.recorded(chosen)


def latent_dim_of(given: int | None, noise: int | None, distribution: Named) -> int:
    """How many numbers z has: as many as were given, or as a distribution takes its noise from."""
    if noise is None:
        return _LATENT_DIM if given is None else given
    if given not in (None, noise):
        raise ValueError(
            f"distribution={distribution!r} takes its noise from z, {noise:,} numbers: leave out latent_dim={given}"
        )
    return noise


def samples_of(components: int, context_dim: int, compared: int = 0, least: int = 1) -> int:
    """How many networks a training step draws where it is not said: one of every component.

    Args:
        components: Of the prior.
        context_dim: Numbers in a condition; with some networks differ, and are compared.
        compared: How many networks of a step diversity losses compare at least; then there are two of every component.
        least: How many networks the weight distribution is trained with at least.
    """
    compared = max(compared, _SEVERAL if context_dim else 0)
    return max(2 * components, compared) if compared else max(components, least)


def counts_of(options: Mapping[str, Any]) -> dict[str, int]:
    """The counts among the options of a Hypernet, read as whole numbers: latent_dim, context_dim, components, samples, members.

    Raises:
        ValueError: If one is none, or out of range.
    """
    read: dict[str, int] = {}
    problems = []
    for name, least in _COUNTS.items():
        try:
            given = name in options and not (name in _LEFT_OPEN and options[name] is None)
            read |= {name: whole(name, options[name], least)} if given else {}
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return read


def check_options_of_hypernet(options: Mapping[str, Any], plugins: Plugins) -> GeneratorConfig:
    """See, without a target, that what is chosen by name is there, and that numbers are in range.

    Returns:
        What the generator is made of; what follows from the target and from its purpose left open.

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
        inputs_of(options["example_inputs"])
    config = config_of(options.get("generator"), plugins)
    distribution = options.get("distribution", "generator")
    make, given = plugins.distributions.chosen(distribution)
    check_options("weight distribution", distribution, make, None, **given)
    check_parts(distribution, make, config, plugins)
    plugins.extractors.chosen(config.extractor)
    with torch.random.fork_rng(devices=[]):
        prior_of(options.get("prior", "normal"), counts.get("latent_dim", _LATENT_DIM), counts.get("components", 1), plugins)
    gauge_of(options.get("gauge", "auto"), plugins)
    plugins.backend(shortest(options.get("execution", "auto")))
    return config


def check_parts(distribution: Named, make: type[WeightDistribution], config: GeneratorConfig, plugins: Plugins) -> None:
    """See that a generator's parts are left as they are where a distribution is not made of them.

    Raises:
        ValueError: If they are not.
    """
    if not make.configured and asdict(config) != asdict(config_of(None, plugins)):
        raise ValueError(
            f"distribution={distribution!r} has none of a generator's parts: leave out generator=, or the preset that sets one "
            "of the two"
        )


def shortest(choice: Any) -> Any:
    """The name alone, where a mapping has nothing else."""
    return choice["name"] if isinstance(choice, Mapping) and set(choice) == {"name"} else choice


def prior_of(choice: Named | Prior | Distribution, latent_dim: int, components: int, plugins: Plugins) -> Prior:
    """The prior that an argument stands for: itself, a distribution, or a name with its options."""
    if isinstance(choice, Distribution):
        prior: Prior = DistributionPrior(latent_dim, components, choice)
    elif isinstance(choice, Prior):
        prior = choice
    else:
        make, options = plugins.priors.chosen(choice)
        if issubclass(make, ReweightedPrior):
            options["base"] = prior_of(options.get("base", "normal"), latent_dim, components, plugins)
        prior = made("prior", choice, make, latent_dim, components, **options)
    if (prior.latent_dim, prior.components) != (latent_dim, components):
        raise ValueError(
            f"the prior draws {prior.latent_dim} numbers for {prior.components} components, and the Hypernet has "
            f"latent_dim={latent_dim} and components={components}"
        )
    return prior


def encoder_of(choice: Named | None, prior: Prior, context_dim: int, noise: int | None, plugins: Plugins) -> Encoder | None:
    """The encoder that an argument stands for, a name with its options.

    Raises:
        ValueError: If latents are drawn from another prior than the normal one, or there are conditions.
    """
    if choice is None:
        return None
    if not isinstance(prior, NormalPrior) or prior.components > 1 or context_dim:
        raise ValueError("an encoder takes the prior's place: leave prior, components and conditions as they are")
    if noise is not None:
        raise ValueError("an encoder gives z, from which this distribution takes its noise: take distribution='generator'")
    make, options = plugins.encoders.chosen(choice)
    encoder: Encoder = made("encoder", choice, make, prior.latent_dim, **options)
    return encoder


def gauge_of(gauge: Named | Gauge, plugins: Plugins) -> Any:
    """What makes the gauge that an argument stands for, of symmetries; or the gauge itself."""
    if isinstance(gauge, Gauge):
        return gauge
    make, options = plugins.gauges.chosen(gauge)
    check_options("gauge", gauge, make, None, **options)
    return functools.partial(make, **options)


def inputs_of(example_inputs: Any) -> tuple[Any, ...]:
    """The arguments that example inputs are."""
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not inputs or all(one is None or isinstance(one, (str, int, float)) for one in inputs):
        raise TypeError(f"example_inputs must be a tensor, or a tuple of the target's arguments, not {example_inputs!r}")
    return inputs


def example_arguments(target: nn.Module, example_inputs: Any, batch_dim: BatchDim) -> Arguments | None:
    """The example inputs of a target, two examples of them; those that a timm model names where none are given."""
    reference = next(target.parameters(), torch.zeros(()))
    if example_inputs is None:
        size = (getattr(target, "pretrained_cfg", None) or {}).get("input_size")
        if size is None:
            return None
        example_inputs = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(reference)
    arguments = laid_out(inputs_of(example_inputs), {}, batch_dim, target)
    empty = [tuple(tensor.shape) for tensor in arguments.tensors if not tensor.numel()]
    if empty:
        raise ValueError(f"example_inputs must hold an example or more, not {empty[0]}")
    return arguments.head(2).map(lambda tensor: tensor.to(reference.device))
