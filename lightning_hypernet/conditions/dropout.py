"""Dropout: its rate as a hyperparameter."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_hypernet.conditions.base import Condition
from lightning_hypernet.conditions.ranges import Range
from lightning_hypernet.values import texts


class Dropout(Condition):
    """The rate of the target's dropout layers; every network has its own.

    Args:
        range: Of the rate, within 0 to 1.
        modules: Glob patterns of the paths of dropout layers.

    Raises:
        ValueError: If the range leaves 0 to 1.
    """

    least: ClassVar[float] = 0.0
    most: ClassVar[float] = 1.0

    def __init__(self, range: Range, modules: str | Sequence[str] = "*") -> None:
        super().__init__(range)
        self.modules = texts("modules", modules, "pattern")
        self._paths: list[str] = []

    def count(self, target: nn.Module) -> int:
        """One rate for all layers that match.

        Raises:
            ValueError: If none does.
        """
        layers = [path for path, module in target.named_modules() if isinstance(module, _DropoutNd)]
        self._paths = [path for path in layers if any(fnmatch.fnmatchcase(path, one) for one in self.modules)]
        if not self._paths:
            raise ValueError(
                f"no dropout layer matches {', '.join(self.modules)}; there are {', '.join(layers) or 'none'}: layers such as "
                "nn.Dropout have a rate that can be set, calls of F.dropout have none"
            )
        return 1

    def settings(self, values: Tensor) -> Mapping[tuple[str, str], Tensor]:
        """The rate of every network, ``(S,)``, for every layer."""
        return {(path, "p"): values[:, 0] for path in self._paths}
