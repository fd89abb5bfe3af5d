"""Given: a hyperparameter that training_step reads."""

from __future__ import annotations

from lightning_hypernet.conditions.base import Condition


class Given(Condition):
    """A hyperparameter that acts in `training_step` alone, which reads it by `Hypernet.hyperparameters()`.

    Args:
        range: Its values.
    """
