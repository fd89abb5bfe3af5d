"""TrainingStep: what goes around the `training_step` of a LightningModule."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from lightning_hypernet.diversity import WeightedDiversity
from lightning_hypernet.hypernet import Hypernet

_TARGET_KEYS = ("targets", "target", "labels", "label", "y")


class TrainingStep:
    """Takes the place of a LightningModule's `training_step` while it is fitted; copies of the module have their own step back.

    Args:
        around: What runs the step, as ``around(trainer, pl_module, original, *args, **kwargs)``; a method of the callback.
        pl_module: The LightningModule.
        original: Its step.
    """

    def __init__(self, around: Callable[..., Any], pl_module: pl.LightningModule, original: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self._around, self._pl_module, self._original = around, pl_module, original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step."""
        return self._around(self._pl_module.trainer, self._pl_module, self._original, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _own_step(memo.get(id(self._pl_module), self._pl_module))

    def __reduce__(self) -> Any:
        return _own_step, (self._pl_module,)


def _own_step(pl_module: pl.LightningModule) -> Any:
    """The `training_step` of a module's class."""
    return types.MethodType(type(pl_module).training_step, pl_module)


def call_step(step: Callable[..., Any], target: str, *args: Any, **kwargs: Any) -> Any:
    """Run a step.

    Raises:
        RuntimeError: If it calls a part of the module whose weights are generated for the whole alone.
    """
    try:
        return step(*args, **kwargs)
    except (TypeError, AttributeError) as error:
        if target != "." or "NoneType" not in str(error):
            raise
        raise RuntimeError(
            "training_step calls a part of the module whose weights are generated for self(...) alone; call self(...), or set "
            "the callback's target to that part"
        ) from error


def manual_step(hypernet: Hypernet, diversity: WeightedDiversity, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a step under manual optimization.

    Raises:
        RuntimeError: If there are diversity losses, and the step did not read them.
    """
    hypernet.diversity_read = False
    try:
        result = step(*args, **kwargs)
    finally:
        hypernet.population = None
    if diversity.losses and not hypernet.diversity_read:
        raise RuntimeError(
            "under manual optimization the diversity losses can't be added for you; add hypernet.diversity_loss() of the "
            "target to the loss in training_step"
        )
    return result


def loss_of(result: Any) -> Tensor:
    """The loss in what a step returns, a scalar.

    Raises:
        TypeError: If there is none.
        ValueError: If it is NaN.
    """
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor):
        raise TypeError(f"training_step must return a tensor or a dict with a tensor 'loss', not {type(result).__name__}")
    if loss.isnan().any():
        raise ValueError("the loss that training_step returns is NaN; lower the learning rate or clip gradients")
    return loss


def targets_of(batch: Any) -> Any:
    """What the inputs of a batch should map to, by their name or their place; None if it has neither."""
    if isinstance(batch, Mapping):
        return next((batch[key] for key in _TARGET_KEYS if key in batch), None)
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
