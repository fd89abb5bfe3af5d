"""Feeding: batches as the steps of a validation get them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl

from lightning_hypernet.target.modes import evaluating


class Fed:
    """The batches of a loader in the precision of a trainer, through the transfer hooks of its module, on its device.

    Args:
        trainer: The trainer.
        pl_module: Its module.
        loader: The loader.
    """

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loader: Iterable[Any]) -> None:
        self.trainer, self.pl_module, self.loader = trainer, pl_module, loader

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            batch = self.trainer.precision_plugin.convert_input(batch)
            batch = self.pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
            yield self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)


@contextmanager
def validating(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """Within, hooks see a trainer and a module that validate.

    Args:
        trainer: The trainer.
        pl_module: Its module.
    """
    stage = trainer.state.stage
    trainer.validating = True
    try:
        with evaluating(pl_module):
            yield
    finally:
        trainer.state.stage = stage
