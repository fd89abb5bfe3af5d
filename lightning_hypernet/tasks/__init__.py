"""Tasks: networks for data sets."""

from __future__ import annotations

from collections.abc import Callable

from lightning_hypernet.markers import hookimpl
from lightning_hypernet.tasks.codes import accuracy_bound, code_length, novel
from lightning_hypernet.tasks.encoder import DeepSets, Encoded, Encoder, SetAttention

__all__ = ["DeepSets", "Encoded", "Encoder", "SetAttention", "accuracy_bound", "code_length", "novel"]


@hookimpl
def hypernet_register_encoders(register: Callable[[str, type[Encoder]], None]) -> None:
    """Register the built-in encoders."""
    register("deep_sets", DeepSets)
    register("attention", SetAttention)
