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
    """The rate of the target's dropout, also within attention and recurrent layers; every network has its own.

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
        self._places: list[tuple[str, str]] = []

    def count(self, target: nn.Module) -> int:
        """One rate for all layers that match.

        Raises:
            ValueError: If none does.
        """
        layers = {path: name for path, module in target.named_modules() if (name := _rate_of(module))}
        self._places = [one for one in layers.items() if any(fnmatch.fnmatchcase(one[0], glob) for glob in self.modules)]
        if not self._places:
            raise ValueError(
                f"no dropout layer matches {', '.join(self.modules)}; there are {', '.join(layers) or 'none'}: layers such as "
                "nn.Dropout have a rate that can be set, calls of F.dropout have none"
            )
        return 1

    def settings(self, values: Tensor) -> Mapping[tuple[str, str], Tensor]:
        """The rate of every network, ``(S,)``, for every layer."""
        return dict.fromkeys(self._places, values[:, 0])


def _rate_of(module: nn.Module) -> str:
    """The attribute of a layer that holds its dropout rate; empty if it has none."""
    if isinstance(module, _DropoutNd):
        return "p"
    drops = isinstance(module, nn.MultiheadAttention) or (isinstance(module, nn.RNNBase) and module.num_layers > 1)
    return "dropout" if drops else ""
