"""Symmetries: what leaves one target's function unchanged, read off its graphs once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lightning_hypernet.symmetry.alignment import symmetry_distance
from lightning_hypernet.symmetry.certificate import certify
from lightning_hypernet.symmetry.gauge import ScaleGauge
from lightning_hypernet.symmetry.graph import Graphs, export
from lightning_hypernet.symmetry.order import Block, blocks_of_both, propose_blocks
from lightning_hypernet.symmetry.scale import groups_of_both, read_groups
from lightning_hypernet.symmetry.structure import read_structure

Example = Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]
"""Gives a network with weights of its own, arguments and keyword arguments; it is called only when a network has to run."""


class Symmetries:
    """What leaves one target's function unchanged, in evaluation and in training.

    A symmetry counts if the graphs of both modes show it. The graphs are read at once and not kept, so that the object holds
    no weights of the target. Blocks are certified by running networks when they are first asked for. Where the graph of
    training is missing and some norm layers are frozen, all of them count as frozen.

    Args:
        graphs: The exported graphs of the target.
        generated: Names of the parameters that symmetries may change.

    Attributes:
        structure: Which norm layer scales which filters, and which layer is the last.
        groups: Channels that may be scaled.
        proposed: Blocks of channels that may be permuted, as far as the graphs show.
        unread: Why the graph of training could not be exported; None if it was: then the symmetries are those of training too.
        frozen: Paths of the norm layers that keep their running statistics in training.

    Raises:
        SymmetryError: If a graph can't be read.

    Example:
        >>> network, inputs = nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(), nn.Linear(3, 2)), (Tensor([[1, 2, 3, 4]]),)
        >>> symmetries = Symmetries.read(network, inputs, {}, ["0.weight", "0.bias", "2.weight", "2.bias"])
        >>> symmetries.groups.count
        3
        >>> symmetries.structure.output
        '2.weight'
        >>> sum(block.size for block in symmetries.blocks(lambda: (network, inputs, {})))
        3
    """

    def __init__(self, graphs: Graphs, generated: Sequence[str]) -> None:
        self.structure = read_structure(graphs.evaluation)
        self.unread, self.frozen = graphs.unread, graphs.frozen
        evaluation = replace(graphs.evaluation, training=graphs.training is None and bool(graphs.frozen))
        self.groups = read_groups(evaluation, generated)
        self.proposed = propose_blocks(evaluation, generated)
        if graphs.training is not None:
            self.groups = groups_of_both(self.groups, read_groups(graphs.training, generated))
            self.proposed = blocks_of_both(self.proposed, propose_blocks(graphs.training, generated))
        self._certified: list[Block] | None = None

    @classmethod
    def read(cls, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], generated: Sequence[str]) -> Symmetries:
        """Export a network, and read its symmetries.

        Args:
            network: The target with weights of its own; modules in evaluation mode within one in training are frozen.
            args: Example arguments.
            kwargs: Example keyword arguments.
            generated: Names of the parameters that symmetries may change.

        Returns:
            The symmetries.

        Raises:
            SymmetryError: If the network cannot be exported or its graph can't be read.
        """
        return cls(export(network, args, kwargs), generated)

    def blocks(self, example: Example) -> list[Block]:
        """The blocks of interchangeable channels, certified on first use and kept.

        Args:
            example: Gives a network and its inputs.

        Returns:
            The blocks in topological order.

        Raises:
            SymmetryError: If the network can't be run in double precision.
        """
        if self._certified is None:
            self._certified = certify(self.proposed, *example())
        return self._certified

    def distance(
        self,
        one: Mapping[str, Tensor],
        other: Mapping[str, Tensor],
        example: Example,
        scales: Mapping[str, float] | None = None,
    ) -> Tensor:
        """Distance of networks from others after scale and permutation are taken out, as `symmetry_distance` gives it.

        Args:
            one: ``{name: (S, *shape)}``.
            other: ``{name: (S, *shape)}``.
            example: Gives a network and its inputs.
            scales: What scales are fixed to, as `ScaleGauge` takes it.

        Returns:
            ``(S,)``.

        Raises:
            SymmetryError: If the blocks can't be certified.
        """
        return symmetry_distance(one, other, ScaleGauge(self.groups, scales), self.blocks(example))
