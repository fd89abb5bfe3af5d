"""Turn any PyTorch module into the target of a hypernetwork and sample accurate, diverse networks from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_hypernet.diversity import DiversityLoss
from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.generator import Extractor, GeneratorConfig, Latents, Prior, WeightDistribution
from lightning_hypernet.hub import from_pretrained, push_to_hub, save_pretrained
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.markers import hookimpl
from lightning_hypernet.population import Population
from lightning_hypernet.symmetry.gauge import Gauge
from lightning_hypernet.target.backends import Backend

if TYPE_CHECKING:
    from lightning_hypernet.callback import HypernetCallback

__all__ = [
    "Backend",
    "DiversityLoss",
    "Ensemble",
    "Extractor",
    "Gauge",
    "GeneratorConfig",
    "Hypernet",
    "HypernetCallback",
    "Latents",
    "Population",
    "Prior",
    "WeightDistribution",
    "from_pretrained",
    "hookimpl",
    "push_to_hub",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    """Import the callback when it is asked for, since it brings Lightning, and read the version."""
    if name == "HypernetCallback":
        from lightning_hypernet.callback import HypernetCallback

        return HypernetCallback
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
