"""Every hook of the package, on one screen.

A plug-in is any object (usually a module) with functions that carry ``@hookimpl`` and the names below. Packages announce
theirs under the entry-point group ``lightning_hypernet``; scripts pass theirs as ``plugins=[...]``. What is registered is
chosen by its name, or by a mapping with its ``name`` and options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lightning_hypernet.conditions import Condition
from lightning_hypernet.diversity import DiversityLoss
from lightning_hypernet.generator import Extractor, Prior, WeightDistribution
from lightning_hypernet.markers import hookspec
from lightning_hypernet.symmetry.gauge import Gauge
from lightning_hypernet.target.backends import Backend
from lightning_hypernet.target.filters import Rule
from lightning_hypernet.tasks import Encoder


@hookspec
def hypernet_register_diversity(register: Callable[[str, type[DiversityLoss]], None]) -> None:
    """Call ``register(name, cls)`` for every diversity loss; ``diversity={name: weight}`` then chooses it."""


@hookspec
def hypernet_register_conditions(register: Callable[[str, type[Condition]], None]) -> None:
    """Call ``register(name, cls)`` for every condition, made as ``cls(range, **options)``; see `conditions` of the callback."""


@hookspec
def hypernet_register_filters(register: Callable[[type[nn.Module], Rule], None]) -> None:
    """Call ``register(cls, rule)`` for every layer; the rule serves the class and whatever inherits from it."""


@hookspec
def hypernet_register_priors(register: Callable[[str, type[Prior]], None]) -> None:
    """Call ``register(name, cls)`` for every prior, made as ``cls(latent_dim, components, **options)``; ``prior=name``."""


@hookspec
def hypernet_register_extractors(register: Callable[[str, type[Extractor]], None]) -> None:
    """Call ``register(name, cls)`` for every extractor of the generator; ``generator={"extractor": name}``."""


@hookspec
def hypernet_register_distributions(register: Callable[[str, type[WeightDistribution]], None]) -> None:
    """Call ``register(name, cls)`` for every weight distribution, made as ``cls(setting, **options)``; `distribution`."""


@hookspec
def hypernet_register_encoders(register: Callable[[str, type[Encoder]], None]) -> None:
    """Call ``register(name, cls)`` for every encoder of data sets, made as ``cls(latent_dim, **options)``; ``encoder=name``."""


@hookspec
def hypernet_register_gauges(register: Callable[[str, Callable[..., Gauge]], None]) -> None:
    """Call ``register(name, make)`` for every gauge, made as ``make(symmetries, **options)``; ``gauge=name``."""


@hookspec
def hypernet_register_backends(register: Callable[[str, type[Backend]], None]) -> None:
    """Call ``register(name, cls)`` for every backend, made as ``cls(**options)``; ``execution=name``."""


@hookspec
def hypernet_register_generators(register: Callable[[str, Mapping[str, Any]], None]) -> None:
    """Call ``register(name, fields)`` for every preset of `GeneratorConfig`; ``generator=name``."""


@hookspec
def hypernet_register_presets(register: Callable[[str, Mapping[str, Any]], None]) -> None:
    """Call ``register(name, options)`` for every preset of `HypernetCallback`; ``preset=name``."""
