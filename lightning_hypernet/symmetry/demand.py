"""Demand: the symmetries of a target, read when somebody first asks, and the gauge that was chosen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hypernet.symmetry.gauge import Gauge, NoGauge
from lightning_hypernet.symmetry.graph import Graphs, SymmetryError, export
from lightning_hypernet.symmetry.order import Block
from lightning_hypernet.symmetry.scale import ChannelGroups
from lightning_hypernet.symmetry.structure import read_structure
from lightning_hypernet.symmetry.symmetries import Symmetries
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.filters import Structure

NO_INPUTS = "the symmetries are read with example inputs: give example_inputs, or call the target itself in a training step"


class SymmetriesOnDemand:
    """The symmetries of a target and the gauge that fixes them.

    Args:
        target: The target with its own weights.
        examples: Inputs of the target; None while there are none.
        structure: What the graph shows of its filters, if that is known; else it is read, if the target can be exported.
        guessed: Whether the inputs are a guess, which is given up if the target does not take them.

    Attributes:
        examples: Inputs to read the symmetries with.
        structure: Which norm layer scales which filters and which layer is the last; None: not known.
    """

    def __init__(self, target: nn.Module, examples: Arguments | None, structure: Structure | None, guessed: bool) -> None:
        self.examples = examples
        self.structure = structure
        self._graphs: Graphs | None = None
        self._symmetries: Symmetries | None = None
        self._gauge: Gauge | None = None
        if examples is None or structure is not None:
            return
        try:
            self._graphs = export(target, *examples.of(0))
            self.structure = read_structure(self._graphs.evaluation)
        except SymmetryError as error:
            if guessed:
                self.examples = None
            else:
                warnings.warn(f"the order of the modules shows the filters, since {error}", stacklevel=4)

    def of(
        self,
        generated: Sequence[str],
        network: Callable[[], nn.Module],
        gauge: Gauge | Callable[[SymmetriesOnDemand], Gauge],
        automatic: bool,
    ) -> SymmetriesOnDemand:
        """The same symmetries, of parameters that are generated now.

        Args:
            generated: Names of the parameters that symmetries may change.
            network: Gives a network of the target, in training mode, its frozen layers in evaluation mode.
            gauge: A gauge, or what makes it of the symmetries when it is first needed.
            automatic: Whether a target whose graph can't be read has no gauge, of which a warning tells; else it is an error.
        """
        self._generated, self._network, self._automatic = list(generated), network, automatic
        if isinstance(gauge, Gauge):
            self._gauge = gauge
        else:
            self._make = gauge
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: no graphs, which hold the target's weights."""
        return {**vars(self), "_graphs": None}

    @property
    def groups(self) -> ChannelGroups:
        """The channel groups of the target: what may be scaled.

        Raises:
            SymmetryError: If there are no inputs to read them with, or the target can't be exported.
        """
        return self._read().groups

    @property
    def blocks(self) -> Sequence[Block]:
        """The blocks of interchangeable channels of the target, certified when they are first read; errors as of `groups`."""
        return self._read().blocks(self._example)

    def _read(self) -> Symmetries:
        if self._symmetries is None:
            with torch.inference_mode(False), torch.no_grad():
                graphs, self._graphs = self._graphs, None
                self._symmetries = Symmetries(graphs or export(*self._example()), self._generated)
        return self._symmetries

    def _example(self) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        if self.examples is None:
            raise SymmetryError(NO_INPUTS)
        with torch.inference_mode(False), torch.no_grad():
            return self._network(), *self.examples.of(0)

    def gauge(self, weights: Mapping[str, Tensor], names: Collection[str] | None = None) -> Mapping[str, Tensor]:
        """Map weights ``{name: (S, *shape)}`` to their gauge-fixed form, which computes the same functions.

        Args:
            weights: All weights.
            names: Which of them are returned; None: all.

        Returns:
            The gauge-fixed weights.

        Raises:
            SymmetryError: If the gauge that was chosen needs symmetries that the target does not show.
        """
        gauge = self._chosen()
        return gauge(weights) if names is None else gauge.select(weights, names)

    def _chosen(self) -> Gauge:
        if self._gauge is None:
            try:
                gauge = self._make(self)
                if not isinstance(gauge, Gauge):
                    raise TypeError(f"a gauge must be made as an instance of Gauge, not {type(gauge).__name__}")
                self._gauge = gauge
            except SymmetryError as error:
                if not self._automatic:
                    raise
                warnings.warn(f"no gauge is fixed: {error}", stacklevel=4)
                if self.examples is None:
                    return NoGauge()  # there may be some later
                self._gauge = NoGauge()
        return self._gauge

    @torch.no_grad()
    def distance(self, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
        """Distance of networks from others, relative to their size, after scale and permutation symmetries are taken out.

        Args:
            one: Weights ``{name: (S, *shape)}``.
            other: Weights ``{name: (S, *shape)}``.

        Returns:
            ``(S,)``: 0 for networks that a symmetry maps to each other, up to about 1.41 for independent ones.

        Raises:
            SymmetryError: If there are no inputs to read the symmetries with, or the target can't be exported.
        """
        return self._read().distance(one, other, self._example)
