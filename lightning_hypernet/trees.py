"""BaseCallback: a callback of both of Lightning's class trees."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytorch_lightning as pl

if TYPE_CHECKING or importlib.util.find_spec("lightning") is None:
    BaseCallback = pl.Callback
else:
    from lightning.pytorch import Callback as _LightningCallback

    class BaseCallback(pl.Callback, _LightningCallback):
        """A callback of both class trees, so that both trainers and both command lines take it."""
