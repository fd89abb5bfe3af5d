"""Turn any PyTorch module into the target of a hypernetwork and sample accurate, diverse networks from it."""

from lightning_hypernet.callback import HypernetCallback
from lightning_hypernet.diversity import DiversityLoss
from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.generator import GeneratorConfig
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.markers import hookimpl
from lightning_hypernet.population import Population
from lightning_hypernet.symmetry.gauge import Gauge

__all__ = [
    "DiversityLoss",
    "Ensemble",
    "Gauge",
    "GeneratorConfig",
    "Hypernet",
    "HypernetCallback",
    "Population",
    "hookimpl",
]
