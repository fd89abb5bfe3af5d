"""Search: hyperparameters for a low validation loss."""

from lightning_hypernet.search.hyperparameters import HyperparameterSearch, SearchStep

__all__ = ["HyperparameterSearch", "SearchStep"]
