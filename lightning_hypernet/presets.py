"""Presets: whole ways of working with the callback, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning_hypernet.markers import hookimpl


@hookimpl
def hypernet_register_presets(register: Callable[[str, Mapping[str, Any]], None]) -> None:
    """Register the built-in presets."""
    register("ensemble", {"distribution": "rank_one", "components": 4})
    register("deep_ensemble", {"components": 10})
    register("manifold", {"components": 1, "diversity": {"variance": 0.1}})
