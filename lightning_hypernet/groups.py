"""Groups: networks of one population that have weights a few at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_hypernet.generator.generator import Generator
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.population import Population, some_parameters
from lightning_hypernet.target.modes import apart
from lightning_hypernet.target.networks import Networks
from lightning_hypernet.target.replicas import Replicas, version_of


@dataclass(frozen=True, eq=False)
class Group:
    """A few networks that have weights now.

    Args:
        rows: Which of the population they are.
        features: Their features, leaves of the graph of their weights.
        networks: The networks.
    """

    rows: slice
    features: Sequence[Tensor]
    networks: Networks


class GeneratedWeights(Mapping[str, Tensor]):
    """Weights ``{name: (n, *shape)}`` that are generated when they are read, without gradient, and kept if they are few.

    Args:
        networks: The networks.
        rows: Which of them.
        kept: Whether what was read is kept.
    """

    def __init__(self, networks: GroupedNetworks, rows: slice | Tensor, kept: bool = False) -> None:
        self._networks, self._rows = networks, rows
        self._kept: dict[str, Tensor] | None = {} if kept else None

    def __getitem__(self, name: str) -> Tensor:
        if self._kept is not None and name in self._kept:
            return self._kept[name]
        if name not in self._networks.names:
            raise KeyError(name)
        value = self._networks.generated(self._rows, [name])[name]
        if self._kept is not None:
            self._kept[name] = value
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._networks.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._networks.names)

    def __len__(self) -> int:
        return len(self._networks.names)


class GroupedNetworks(Networks):
    """S networks of one target that have weights a group at a time; a new group takes the place of the last.

    Args:
        replicas: The target's replicas.
        generator: Gives the weights.
        drawn: The latents of all networks; their features are computed here, once.
        size: Networks in a group.
    """

    def __init__(self, replicas: Replicas, generator: Generator, drawn: Latents, size: int) -> None:
        self.generator, self.drawn, self.size = generator, drawn, size
        self.names = generator.banks.shapes
        super().__init__(replicas, GeneratedWeights(self, slice(None)))
        self.features = _once(generator, drawn)
        self._group: Group | None = None

    def __len__(self) -> int:
        return len(self.drawn)

    def __reduce__(self) -> Any:
        with torch.no_grad():
            return Networks, (self.replicas, self.generated(slice(None), self.names), self.buffers)

    @property
    def recorded(self) -> bool:
        """Whether the weights of all have gradients: they have not."""
        return False

    @property
    def groups(self) -> list[slice]:
        """Which networks are together."""
        return [slice(start, min(start + self.size, len(self))) for start in range(0, len(self), self.size)]

    def group(self, index: int) -> Group:
        """The group of a network, with a graph from its features on."""
        rows = self.groups[index // self.size]
        if self._group is None or self._group.rows != rows:
            self._group = None
            with torch.inference_mode(False), torch.enable_grad():
                features = [one.detach()[rows].requires_grad_(one.requires_grad) for one in self.features]
                weights = self.generator.weights(features, self.drawn.component[rows])
            self._group = Group(rows, features, self.others(weights))
        return self._group

    def release(self) -> None:
        """Let the weights go."""
        self._group = None

    def at(self, index: int) -> tuple[Networks, int]:
        """The networks that one of them runs with, and its place among them."""
        group = self.group(index)
        return group.networks, index - group.rows.start

    def some(self, index: slice | Tensor) -> Networks:
        """Some of the networks, n of S, in replicas of their own, without gradient."""
        return self.others(self.generated(index, self.names))

    def generated(self, rows: slice | Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """Weights of some networks, ``{name: (n, *shape)}``.

        Raises:
            RuntimeError: If gradients are wanted.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backward='two_pass' keeps no weights that gradients go through, but those of the network that runs: read them "
                "under torch.no_grad(), or set backward='one_pass'"
            )
        return self.generator.weights([one[rows] for one in self.features], self.drawn.component[rows], names)


@dataclass(eq=False, repr=False)
class GroupedPopulation(Population):
    """A population whose networks have weights a group at a time; what is read of all has no gradient.

    Args as of `Population`.
    """

    networks: GroupedNetworks

    def __getitem__(self, index: slice | Tensor) -> Population:
        plain = Population(**{one.name: getattr(self, one.name) for one in fields(Population)})
        return Population.__getitem__(plain, index)

    def gauged_parts(self, names: Sequence[str]) -> list[Tensor]:
        """Some parameters of every network in their gauge-fixed form, each ``(S, numbers)``."""
        wholes: list[Tensor] = []
        for rows in self.networks.groups:
            parts = self.parts_of(GeneratedWeights(self.networks, rows, kept=True), names)
            wholes = wholes or [part.new_empty(len(self), part.shape[1]) for part in parts]
            for whole, part in zip(wholes, parts, strict=True):
                whole[rows] = part
        return wholes

    @torch.no_grad()
    def distance(self, coordinates: int | None = 1_000_000) -> Tensor:
        """As `Population.distance`, a group at a time: of differences from the first network."""
        names = some_parameters(self.banks.shapes, coordinates, seed=0)
        origin: list[Tensor] = []
        sums: list[Tensor] = []
        squares, sizes = [], []
        for rows in self.networks.groups:
            parts = self.parts_of(GeneratedWeights(self.networks, rows, kept=True), names)
            origin = origin or [part[:1].clone() for part in parts]
            apart = [part - first for part, first in zip(parts, origin, strict=True)]
            sizes += [part.square().sum() for part in parts]
            squares += [part.square().sum() for part in apart]
            own = [part.sum(0) for part in apart]
            sums = [total + more for total, more in zip(sums, own, strict=True)] if sums else own
        size, means = torch.stack(sizes).sum() / len(self), torch.stack([total.square().sum() for total in sums]).sum()
        spread = (torch.stack(squares).sum() - means / len(self)).clamp(min=0) * 2 / max(len(self) - 1, 1)
        return (spread / size.clamp(min=torch.finfo(size.dtype).tiny)).sqrt()

    def _run_on(self, arguments: Any, remedy: str) -> Tensor:
        raise RuntimeError(
            "backward='two_pass' keeps no outputs of all networks, which this reads: choose what reads weights, or set "
            "backward='one_pass'"
        )


class ReadPopulation(GroupedPopulation):
    """What diversity losses read of the weights of a population, as leaves of a graph of its own."""

    @cached_property
    def leaves(self) -> dict[tuple[str, ...] | str, list[Tensor]]:
        """What was read: for some names their gauge-fixed parts, and for one name the parameter as it is."""
        return {}

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """``{name: (S, *shape)}`` for every generated parameter of the target."""
        return _ReadWeights(self)

    def gauged_parts(self, names: Sequence[str]) -> list[Tensor]:
        """Some parameters of every network in their gauge-fixed form, each ``(S, numbers)``."""
        key = tuple(names)
        if key not in self.leaves:
            with torch.no_grad():
                parts = super().gauged_parts(names)
            self.leaves[key] = [part.requires_grad_() for part in parts]
        return self.leaves[key]

    def parameter(self, name: str) -> Tensor:
        """One parameter of every network, ``(S, *shape)``."""
        if name not in self.leaves:
            with torch.no_grad():
                self.leaves[name] = [self.networks.weights[name].requires_grad_()]
        return self.leaves[name][0]


class _ReadWeights(Mapping[str, Tensor]):
    """The weights of a population, each a leaf once it is read."""

    def __init__(self, population: ReadPopulation) -> None:
        self._population = population

    def __getitem__(self, name: str) -> Tensor:
        return self._population.parameter(name)

    def __contains__(self, name: object) -> bool:
        return name in self._population.banks.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._population.banks.shapes)

    def __len__(self) -> int:
        return len(self._population.banks.shapes)


def _once(generator: Generator, drawn: Latents) -> list[Tensor]:
    """The features of all networks, whose graph is made again in the backward pass; statistics see them once."""
    if not torch.is_grad_enabled():
        return generator.features(drawn)
    before = [(module, _versions(module)) for module in generator.modules()]
    changing: list[nn.Module] = []
    features: list[Tensor] = checkpoint(
        generator.features, drawn, use_reentrant=False, context_fn=lambda: (nullcontext(), apart(changing))
    )
    changing += [module for module, versions in before if versions != _versions(module)]
    return features


def _versions(module: nn.Module) -> list[int]:
    """How often each buffer of a module itself was written to, as far as that is counted: a batch norm counts its batches."""
    return [version_of(value) for value in module.buffers(recurse=False)]


def leaf_latents(latents: Latents) -> Latents:
    """The same latents, where a graph ends that would go on to what made them."""

    def leaf(value: Tensor) -> Tensor:
        return value.detach().requires_grad_() if value.requires_grad else value

    return Latents(leaf(latents.z), latents.component, None if latents.context is None else leaf(latents.context))
