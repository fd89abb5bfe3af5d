"""Every hook of the package, on one screen.

A plug-in is any object (usually a module) with functions that carry ``@hookimpl`` and the names below. Packages announce
theirs under the entry-point group ``lightning_hypernet``; scripts pass theirs as ``plugins=[...]``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lightning_hypernet.diversity import DiversityLoss
from lightning_hypernet.markers import hookspec
from lightning_hypernet.target.filters import Rule


@hookspec
def hypernet_register_diversity(register: Callable[[str, type[DiversityLoss]], None]) -> None:
    """Call ``register(name, cls)`` for every diversity loss; ``diversity={name: weight}`` then chooses it."""


@hookspec
def hypernet_register_filters(register: Callable[[type[nn.Module], Rule], None]) -> None:
    """Call ``register(cls, rule)`` for every layer; the rule serves the class and whatever inherits from it."""
