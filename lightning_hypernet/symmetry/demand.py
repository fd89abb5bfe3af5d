"""Demand: the symmetries of a target, read when somebody first asks, and the gauge that was chosen."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hypernet.symmetry.gauge import Gauge, NoGauge, Symmetric
from lightning_hypernet.symmetry.graph import Graphs, SymmetryError, export, reading
from lightning_hypernet.symmetry.order import Block
from lightning_hypernet.symmetry.scale import ChannelGroups
from lightning_hypernet.symmetry.structure import read_structure
from lightning_hypernet.symmetry.symmetries import Symmetries
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.compiler import Compiler
from lightning_hypernet.target.filters import Structure

NO_INPUTS = (
    "the symmetries are read with example inputs: give example_inputs, or call the target itself in a training step; of a "
    "checkpoint, pass loader= to from_checkpoint"
)


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
        scales: For every generated parameter the root mean square of the target's own values, by which the gauge fixes
            scales; None: they are fixed to 1.
        compiler: Compiles the gauge of all weights, once it was applied, if that was asked for.
    """

    def __init__(self, target: nn.Module, examples: Arguments | None, structure: Structure | None, guessed: bool) -> None:
        self.examples = examples
        self.structure = structure
        self.scales: Mapping[str, float] | None = None
        self._graphs: Graphs | None = None
        self._symmetries: Symmetries | None = None
        self._failure: str | None = None
        self._gauge: Gauge | None = None
        self._applied = False
        self.compiler = Compiler()
        self._told: set[str] = set()
        self._frozen: Collection[str] | None = None
        if examples is None or structure is not None:
            return
        try:
            self._graphs = export(target, *examples.of(0))
            self.structure = read_structure(self._graphs.evaluation)
        except SymmetryError as error:
            if guessed:
                self.examples = None
            else:
                _check_inputs(target, examples)
                self._failure = str(error)
                warnings.warn(f"the order of the modules shows the filters, since {error}", stacklevel=4)

    def of(
        self,
        generated: Sequence[str],
        network: Callable[[], nn.Module],
        gauge: Gauge | Callable[[Symmetric], Gauge],
        automatic: bool,
        scales: Mapping[str, float] | None,
    ) -> SymmetriesOnDemand:
        """The same symmetries, of parameters that are generated now.

        Args:
            generated: Names of the parameters that symmetries may change.
            network: Gives a network of the target, in training mode, its frozen layers in evaluation mode.
            gauge: A gauge, or what makes it of the symmetries when it is first needed.
            automatic: Whether there is no gauge where anything goes wrong, of which a warning tells; else it is an error.
            scales: For every parameter the root mean square of the target's own values; None: scales are fixed to 1.
        """
        self._generated, self._network, self._automatic, self.scales = list(generated), network, automatic, scales
        self._given = gauge
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: no graphs, which hold the target's weights."""
        return {**vars(self), "_graphs": None}

    def fix(self, scales: Mapping[str, float] | None) -> None:
        """Let the gauge fix scales by other root mean squares, such as a checkpoint brings."""
        self.scales = scales
        self._gauge = None

    def train_with(self, frozen: Collection[str]) -> None:
        """Note which norm layers are frozen in training; what was read while others were is read anew."""
        before, self._frozen = self._frozen, frozenset(frozen)
        read = self._graphs or self._symmetries
        if read is not None and self._frozen not in (before, read.frozen):
            self._graphs = self._symmetries = self._gauge = None

    @property
    def unread(self) -> str | None:
        """Why the symmetries can't be read; None if they can."""
        try:
            self._read()
        except SymmetryError as error:
            return str(error)
        return None

    @property
    def groups(self) -> ChannelGroups:
        """The channel groups of the target: what may be scaled; none, and a warning, where they can't be read.

        Raises:
            SymmetryError: If there are no inputs to read them with.
        """
        try:
            return self.known_groups()
        except SymmetryError as error:
            self._tell(error)
            return ChannelGroups(0, {}, {}, [])

    @property
    def blocks(self) -> Sequence[Block]:
        """The blocks of interchangeable channels of the target, certified when they are first read; else as `groups`."""
        try:
            return self.known_blocks()
        except SymmetryError as error:
            self._tell(error)
            return []

    def known_groups(self) -> ChannelGroups:
        """The groups, or a `SymmetryError` that says why there are none."""
        return self._read().groups

    def known_blocks(self) -> Sequence[Block]:
        """The blocks, or a `SymmetryError` that says why there are none."""
        with reading("the order of channels can't be certified"):
            return self._read().blocks(self._example)

    def _tell(self, error: Exception) -> None:
        """Warn of what went wrong, once."""
        if self.examples is None:
            raise error
        self._warn(f"no gauge is fixed: {error}" if self._automatic else f"no symmetries are known: {error}", 5)

    def _warn(self, message: str, stacklevel: int) -> None:
        if message not in self._told:
            self._told.add(message)
            warnings.warn(message, stacklevel=stacklevel)

    def _read(self) -> Symmetries:
        if self._symmetries is None:
            if self._failure is not None:
                raise SymmetryError(self._failure)
            try:
                with reading("the symmetries can't be read"), torch.inference_mode(False), torch.no_grad():
                    graphs, self._graphs = self._graphs, None
                    self._symmetries = Symmetries(graphs or export(*self._example()), self._generated)
            except SymmetryError as error:
                if self.examples is not None:
                    self._failure = str(error)
                raise
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
        whole = type(weights) is dict and names is not None and len(names) == len(weights)  # else they may be others every time
        try:
            gauge = self._chosen()
            fixed = self.compiler(_apply, self._applied and whole)(gauge, weights, names)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            if self._applied or not self._automatic:
                raise
            reason = error if isinstance(error, SymmetryError) else f"{type(error).__name__} {error}"
            self._warn(f"no gauge is fixed: {reason}", 4)
            if self.examples is None:
                return _apply(NoGauge(), weights, names)  # there may be some later
            self._gauge = NoGauge()
            fixed = _apply(self._gauge, weights, names)
        self._applied = True
        return fixed

    @property
    def fixed(self) -> bool:
        """Whether the weights that were last gauged went through a gauge that fixes something."""
        return self._gauge is not None and not isinstance(self._gauge, NoGauge)

    def _chosen(self) -> Gauge:
        if self._gauge is None:
            gauge = self._given if isinstance(self._given, Gauge) else self._given(_Known(self))
            if not isinstance(gauge, Gauge):
                raise TypeError(f"a gauge must be made as an instance of Gauge, not {type(gauge).__name__}")
            self._gauge, self._applied = gauge, False
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
        return self._read().distance(one, other, self._example, self.scales)


@dataclass(frozen=True)
class _Known(Symmetric):
    """What gauges are made from: what is not known is an error here."""

    symmetries: SymmetriesOnDemand

    @property
    def groups(self) -> ChannelGroups:
        return self.symmetries.known_groups()

    @property
    def blocks(self) -> Sequence[Block]:
        return self.symmetries.known_blocks()

    @property
    def scales(self) -> Mapping[str, float] | None:
        return self.symmetries.scales


def _apply(gauge: Gauge, weights: Mapping[str, Tensor], names: Collection[str] | None) -> Mapping[str, Tensor]:
    return gauge(weights) if names is None else gauge.select(weights, names)


def _check_inputs(target: nn.Module, examples: Arguments) -> None:
    """See that example inputs go through a copy of the target, in evaluation or as it is.

    Raises:
        ValueError: If they do not.
    """
    first = None
    for mode in sorted({False, target.training}):
        try:
            args, kwargs = examples.of(0)
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                copy.deepcopy(target).train(mode)(*args, **kwargs)
            return
        except Exception as error:  # whatever the target raises
            first = first or error
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in examples.tensors)
    raise ValueError(
        f"example_inputs of {shapes or 'no tensors'} do not go through {type(target).__name__}: {' '.join(str(first).split())}"
    ) from first
