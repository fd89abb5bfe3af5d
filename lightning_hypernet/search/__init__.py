"""Search: hyperparameters for a low validation loss, and networks with a wanted property."""

from lightning_hypernet.search.between import interpolate, perturb
from lightning_hypernet.search.hyperparameters import HyperparameterSearch, SearchStep
from lightning_hypernet.search.latents import LatentSearch, search
from lightning_hypernet.search.surrogate import search_surrogate

__all__ = [
    "HyperparameterSearch",
    "LatentSearch",
    "SearchStep",
    "interpolate",
    "perturb",
    "search",
    "search_surrogate",
]
