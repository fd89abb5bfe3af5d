"""What situations are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 12


def numbers(*shape: int) -> Callable[[], tuple]:
    """Inputs: a batch of numbers of some shape."""
    return lambda: (normal(BATCH, *shape),)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Function(nn.Module):
    """Layers, and a function of these and the arguments."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


class Own(nn.Module):
    """Has its own way of being copied, and attributes that are made when they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.options = nn.Linear(3, 4), {"scale": 2.0}

    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        twin = Own()
        twin.load_state_dict(self.state_dict())
        return twin.to(self.layer.weight.dtype)

    def __getattr__(self, name: str) -> Any:
        if name in ("scale", "twice"):
            return self.options["scale"] * (2 if name == "twice" else 1)
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale + self.twice
