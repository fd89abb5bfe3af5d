"""Dropout: its rate as a hyperparameter."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_hypernet.conditions.base import Condition
from lightning_hypernet.conditions.ranges import Range, Uniform
from lightning_hypernet.values import texts


class Dropout(Condition):
    """The rate of the target's dropout layers; every network has its own.

    Args:
        range: Of the rate, within 0 to 1.
        modules: Glob patterns of the paths of dropout layers.

    Raises:
        ValueError: If the range leaves 0 to 1.
    """

    def __init__(self, range: Range, modules: str | Sequence[str] = "*") -> None:
        super().__init__(range)
        self.modules = texts("modules", modules, "pattern")
        if isinstance(range, Uniform):
            values = range.values(torch.tensor([-1.0, 1.0]))
            if values.min() < 0 or values.max() > 1:
                raise ValueError(f"a dropout rate lies in 0 to 1, and the range is {range!r}")
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
