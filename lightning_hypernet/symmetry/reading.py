"""What `Hypernet` reads of symmetries until it holds `Symmetries`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_hypernet.symmetry import structure
from lightning_hypernet.symmetry.graph import export
from lightning_hypernet.symmetry.order import Block
from lightning_hypernet.symmetry.scale import ChannelGroups
from lightning_hypernet.symmetry.symmetries import Symmetries
from lightning_hypernet.target.filters import Structure


def read_structure(target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Structure:
    """What the graph of a target shows of its filters."""
    return structure.read_structure(export(target, args, kwargs).evaluation)


def read_symmetries(
    target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], generated: Sequence[str]
) -> ChannelGroups:
    """The channel groups of a target."""
    return Symmetries.read(target, args, kwargs, generated).groups


def read_permutations(
    target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], generated: Sequence[str]
) -> list[Block]:
    """The certified blocks of a target."""
    return Symmetries.read(target, args, kwargs, generated).blocks(lambda: (target, args, kwargs))
