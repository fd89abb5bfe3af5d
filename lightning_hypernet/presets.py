"""Presets: whole ways of working with the callback, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning_hypernet.markers import hookimpl

PAPER: Mapping[str, Any] = {
    "latent_dim": 300,
    "prior": "uniform",
    "samples": 32,
    "generator": {"preset": "paper_mnist", "hidden": [100, 100]},
    "diversity": {"entropy": 1e-3},
}
"""How the paper trains its MNIST network, with generators of one width for all layers; its own are ``"paper_mnist"``."""


@hookimpl
def hypernet_register_presets(register: Callable[[str, Mapping[str, Any]], None]) -> None:
    """Register the built-in presets."""
    register("ensemble", {"distribution": "rank_one", "components": 4})
    register("deep_ensemble", {"components": 10})
    register("finetune", {"generator": "pretrained", "components": 3})
    register("reproduce", PAPER)
    register("manifold", {"components": 1, "diversity": {"variance": 0.1}})
