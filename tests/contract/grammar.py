"""A small grammar of modules, from which hypothesis draws targets.

A module maps ``(N, C, L)`` to ``(N, C, L)`` with four channels, so that any two may stand one behind the other, beside each
other, or be one layer at two places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.contract.parts import BATCH, normal

CHANNELS, LENGTH = 4, 3

Maker = Callable[["Shared"], nn.Module]
"""Makes a module, with what modules share at hand."""


class Shared:
    """Layers that stand at several places of one target."""

    def __init__(self) -> None:
        self.made: dict[str, nn.Module] = {}

    def layer(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        return self.made.setdefault(name, make())


class RootMeanSquare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Branches(nn.Module):
    """Branches whose outputs are added, or concatenated and mixed."""

    def __init__(self, branches: Sequence[nn.Module], mix: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.mix = nn.Conv1d(CHANNELS * len(branches), CHANNELS, 1) if mix else None

    def forward(self, x: Tensor) -> Tensor:
        found = [branch(x) for branch in self.branches]
        return self.mix(torch.cat(found, 1)) if self.mix is not None else torch.stack(found).sum(0)


class Constant(nn.Module):
    """Buffers that no run changes: a mask, a table, and an order of the channels."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("order", torch.tensor([2, 0, 3, 1]))
        self.register_buffer("table", torch.linspace(-1, 1, CHANNELS)[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "order":
            return x[:, self.order]
        return x + self.table if self.kind == "sum" else x * (self.table > 0)


class Tied(nn.Module):
    """A layer there and back with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(LENGTH, LENGTH, bias=False), nn.Linear(LENGTH, LENGTH)
        self.back.weight = self.there.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.there(x).relu())


class Net(nn.Module):
    """What was drawn, around it the inputs and outputs that were drawn."""

    def __init__(self, body: nn.Module, second: bool, outputs: str) -> None:
        super().__init__()
        self.body, self.outputs = body, outputs
        self.other = nn.Linear(2, CHANNELS) if second else None
        self.head = nn.Linear(CHANNELS, 2)

    def forward(self, x: Tensor, y: Tensor | None = None):
        if self.other is not None:
            x = x + self.other(y)[..., None]
        x = self.body(x)
        logits = self.head(x.mean(-1))
        if self.outputs == "one":
            return logits
        if self.outputs == "dictionary":
            return {"logits": logits, "features": [x, None]}
        return logits, x.flatten(1), logits.square().mean()


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1),
    "grouped": lambda: nn.Conv1d(CHANNELS, CHANNELS, 1, groups=2, bias=False),
    "transposed": lambda: nn.ConvTranspose1d(CHANNELS, CHANNELS, 3, padding=1),
    "rows": lambda: nn.Linear(LENGTH, LENGTH),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv1d(CHANNELS, CHANNELS, 1)),
    "batch": lambda: nn.BatchNorm1d(CHANNELS),
    "batch_plain": lambda: nn.BatchNorm1d(CHANNELS, affine=False),
    "instance": lambda: nn.InstanceNorm1d(CHANNELS, affine=True),
    "group": lambda: nn.GroupNorm(2, CHANNELS),
    "layer": lambda: nn.LayerNorm([CHANNELS, LENGTH]),
    "root_mean_square": RootMeanSquare,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "prelu": lambda: nn.PReLU(CHANNELS),
    "dropout": lambda: nn.Dropout(0.2),
    "order": lambda: Constant("order"),
    "sum": lambda: Constant("sum"),
    "mask": lambda: Constant("mask"),
    "tied": Tied,
}
SHARED = ("conv", "rows", "prelu", "root_mean_square", "tied")
"""Layers that may stand at several places; norm layers with statistics are situations of their own."""


@dataclass(frozen=True)
class Drawn:
    """A target that was drawn, told by what it is made of."""

    text: str
    maker: Maker
    second: bool
    outputs: str

    def __repr__(self) -> str:
        return f"{self.text} -> {self.outputs}{' of two inputs' if self.second else ''}"

    def make(self) -> nn.Module:
        return Net(nn.Sequential(nn.Conv1d(CHANNELS, CHANNELS, 1), self.maker(Shared())), self.second, self.outputs)

    def inputs(self) -> tuple:
        x = normal(BATCH, CHANNELS, LENGTH)
        return (x, normal(BATCH, 2)) if self.second else (x,)

    @property
    def drawn(self) -> bool:
        return "dropout" in self.text


Part = tuple[str, Maker]


def _own(name: str) -> Part:
    return name, lambda _: LAYERS[name]()


def _shared(name: str) -> Part:
    return f"shared {name}", lambda shared: shared.layer(name, LAYERS[name])


def _sequence(parts: list[Part]) -> Part:
    return f"({', '.join(text for text, _ in parts)})", lambda shared: nn.Sequential(*(make(shared) for _, make in parts))


def _residual(part: Part) -> Part:
    return f"residual {part[0]}", lambda shared: Residual(part[1](shared))


def _branches(parts: list[Part], mix: bool) -> Part:
    text = f"{'cat' if mix else 'sum'}[{', '.join(text for text, _ in parts)}]"
    return text, lambda shared: Branches([make(shared) for _, make in parts], mix)


LEAVES = st.sampled_from(sorted(LAYERS)).map(_own) | st.sampled_from(SHARED).map(_shared)
PARTS = st.recursive(
    LEAVES,
    lambda parts: (
        st.lists(parts, min_size=2, max_size=4).map(_sequence)
        | parts.map(_residual)
        | st.builds(_branches, st.lists(parts, min_size=2, max_size=3), st.booleans())
    ),
    max_leaves=8,
)
TARGETS = st.builds(
    lambda parts, second, outputs: Drawn(*_sequence(parts), second, outputs),
    st.lists(PARTS, min_size=2, max_size=4),
    st.booleans(),
    st.sampled_from(["one", "dictionary", "several"]),
)
