"""Validation in the middle of training: its batches, and what must not notice."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torchmetrics import Metric

from lightning_hypernet.hypernet import Hypernet


def transferred(trainer: pl.Trainer, batch: Any, loader: int) -> Any:
    """A batch of a validation loader, by its number, as the trainer hands it to a step."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=loader)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=loader)


def validation_batches(trainer: pl.Trainer) -> Iterator[tuple[Any, int, int]]:
    """Validation batches of a trainer, as many as it validates on, each with its number and that of its loader."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    if trainer.val_dataloaders is None and trainer.training and loop._data_source.is_defined():
        trainer.validating = True  # Lightning sets loaders up before the first validation
        loop.setup_data()
        trainer.training = True
    loaders = [] if trainer.val_dataloaders is None else CombinedLoader(trainer.val_dataloaders).flattened
    return (
        (batch, number, index)
        for index, (loader, limit) in enumerate(zip(loaders, trainer.num_val_batches, strict=False))
        for number, batch in enumerate(islice(loader, None if limit == float("inf") else int(limit)))
    )


@contextmanager
def validating(trainer: pl.Trainer) -> Iterator[None]:
    """Within, the trainer says that it validates, as hooks ask it that change batches in training alone."""
    training = trainer.training
    trainer.validating = True
    try:
        yield
    finally:
        if training:
            trainer.training = True


@contextmanager
def metrics_kept(pl_module: pl.LightningModule) -> Iterator[None]:
    """Afterwards the metrics of a module stand as before."""
    kept = [(one, {name: _own(getattr(one, name)) for name in (*one.metric_state, "_update_count", "_computed")})
            for one in pl_module.modules() if isinstance(one, Metric)]  # fmt: skip
    try:
        yield
    finally:
        for metric, state in kept:
            for name, value in state.items():
                setattr(metric, name, value)


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.copy(value)


@contextmanager
def without_dropout(pl_module: pl.LightningModule, hypernet: Hypernet) -> Iterator[None]:
    """Within, all but the Hypernet evaluates, and its networks drop nothing; norm layers use the batch, as in training."""
    target = list(hypernet.target.modules())
    kept = {id(module) for module in hypernet.modules()} - {id(module) for module in target}
    kept |= {id(module) for module in target if isinstance(module, (_BatchNorm, _InstanceNorm))}
    changed = [module for module in pl_module.modules() if module.training and id(module) not in kept]
    for module in changed:
        module.training = False
    try:
        yield
    finally:
        for module in changed:
            module.training = True
