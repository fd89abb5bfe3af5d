"""Storing: a Hypernet in a trainer's checkpoint."""

from __future__ import annotations

import warnings
from typing import Any

import pytorch_lightning as pl

from lightning_hypernet.checkpoint import differences, recipe_of, write
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.options import HARMLESS
from lightning_hypernet.placing import averages_of
from lightning_hypernet.sharding import add_state, take_others


def settle_averages(trainer: pl.Trainer, hypernet: Hypernet) -> None:
    """Estimate the norm statistics of what averages a Hypernet's weights."""
    for average in averages_of(trainer, hypernet):
        average.members.recent = hypernet.members.recent
        average.members.estimated.zero_()
        average.settle_statistics()


def store(checkpoint: dict[str, Any], target: str, hypernet: Hypernet, trainer: pl.Trainer) -> None:
    """Put the state and the plain recipe of a Hypernet into a checkpoint; arguments as of `take`."""
    name = _name(target)
    add_state(checkpoint, name, hypernet, trainer)
    write(checkpoint, target, f"{name}.", hypernet.options, hypernet.needs)


def take(checkpoint: dict[str, Any], target: str, hypernet: Hypernet) -> None:
    """Take what is no tensor of a checkpoint, and tell of options that are others there but do not matter.

    Args:
        checkpoint: The checkpoint.
        target: Path of the target.
        hypernet: The Hypernet there.
    """
    take_others(checkpoint, _name(target), hypernet)
    kept = recipe_of(checkpoint, target)
    different = kept and differences(kept, {name: hypernet.options[name] for name in HARMLESS})
    if different:
        warnings.warn(f"the checkpoint was written with {'; '.join(different)}", stacklevel=3)


def _name(target: str) -> str:
    """Where the Hypernet of a target is in the LightningModule."""
    return "hypernet" if target == "." else target
