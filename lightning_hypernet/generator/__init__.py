"""Generator: latents to weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning_hypernet.generator.config import GeneratorConfig
from lightning_hypernet.generator.distribution import Setting, WeightDistribution
from lightning_hypernet.generator.explicit import FullGaussian, LowRankGaussian, MeanField
from lightning_hypernet.generator.extractors import Extractor, LevelExtractor, MatrixExtractor, MLPExtractor
from lightning_hypernet.generator.flows import FilterNorms, FlowDistribution, MultiplicativeFlows
from lightning_hypernet.generator.generator import Generator
from lightning_hypernet.generator.latents import (
    PRIORS,
    DistributionPrior,
    Latents,
    MixturePrior,
    NormalPrior,
    Prior,
    UniformPrior,
)
from lightning_hypernet.generator.noisy import NoisyGenerator
from lightning_hypernet.generator.rank_one import RankOne
from lightning_hypernet.generator.reweighted import PriorFit, ReweightedPrior
from lightning_hypernet.generator.sizes import settled
from lightning_hypernet.generator.weight_generators import WeightGenerator
from lightning_hypernet.markers import hookimpl

__all__ = [
    "DistributionPrior",
    "Extractor",
    "FilterNorms",
    "FlowDistribution",
    "FullGaussian",
    "Generator",
    "GeneratorConfig",
    "Latents",
    "LevelExtractor",
    "LowRankGaussian",
    "MLPExtractor",
    "MatrixExtractor",
    "MeanField",
    "MixturePrior",
    "MultiplicativeFlows",
    "NoisyGenerator",
    "NormalPrior",
    "Prior",
    "PriorFit",
    "RankOne",
    "ReweightedPrior",
    "Setting",
    "UniformPrior",
    "WeightDistribution",
    "WeightGenerator",
    "settled",
]


@hookimpl
def hypernet_register_priors(register: Callable[[str, type[Prior]], None]) -> None:
    """Register the built-in priors."""
    for name, prior in PRIORS.items():
        register(name, prior)
    register("reweighted", ReweightedPrior)


@hookimpl
def hypernet_register_extractors(register: Callable[[str, type[Extractor]], None]) -> None:
    """Register the built-in extractors."""
    register("mlp", MLPExtractor)
    register("matrix", MatrixExtractor)
    register("levels", LevelExtractor)


@hookimpl
def hypernet_register_distributions(register: Callable[[str, type[WeightDistribution]], None]) -> None:
    """Register the built-in weight distributions."""
    register("generator", Generator)
    register("noisy", NoisyGenerator)
    register("rank_one", RankOne)
    register("mean_field", MeanField)
    register("low_rank", LowRankGaussian)
    register("full", FullGaussian)
    register("flow", FlowDistribution)
    register("filter_norms", FilterNorms)
    register("mnf", MultiplicativeFlows)


@hookimpl
def hypernet_register_generators(register: Callable[[str, Mapping[str, Any]], None]) -> None:
    """Register the built-in presets of generators: fields of `GeneratorConfig`."""
    register("default", {})
    register("compact", vars(GeneratorConfig.compact()))
    register("adapter", vars(GeneratorConfig.adapter()))
    register("pretrained", vars(GeneratorConfig.pretrained()))
    for target in ("mnist", "cifar_lenet", "cifar_resnet32"):
        register(f"paper_{target}", vars(GeneratorConfig.paper(target)))
