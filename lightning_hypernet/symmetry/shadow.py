"""Shadow: what a graph does to the identities of channels, in place of numbers.

Next to every activation goes an integer tensor of the same shape, the identity of the channel that each element belongs to.
Layers write fresh identities, shape operations act on them, sums unite them, and what is not known to scale pins them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PINNED = 0
"""The identity of what cannot be scaled: its factor is 1."""

FEW = 1 << 20
"""A parameter with more elements than this does not get an identity for each."""


@dataclass(frozen=True, eq=False)
class Leaf:
    """A parameter, after shape operations alone.

    Args:
        name: Name of the parameter.
        whole: Shape of the parameter.
        index: For every element of the view its position in the parameter; None: the view is the parameter.
        repeated: Whether a position may stand in the view more than once.
    """

    name: str
    whole: tuple[int, ...]
    index: Tensor | None = None
    repeated: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the view."""
        return self.whole if self.index is None else tuple(self.index.shape)

    def positions(self) -> Tensor:
        """For every element of the view its position in the parameter."""
        return torch.arange(math.prod(self.whole)).reshape(self.whole) if self.index is None else self.index


@dataclass
class Ids:
    """An activation: for every element the identity of its channel."""

    ids: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape of the activation."""
        return self.ids.shape


@dataclass
class Use:
    """What a parameter's elements are multiplied with and divided by, as identities."""

    rows: Tensor
    columns: Tensor


class Shadow:
    """Identities, what unites them and what pins them.

    Attributes:
        count: Number of identities so far.
        edges: Pairs of identities that scale alike, as ``(2, n)`` tensors.
        pins: For every pinning operation the identities that it pins.
        uses: For every parameter what its elements scale with and against.
        writers: Ranges of identities with the parameters that write them, in topological order.
        together: For every operation that takes channels together in sets, one row of identities for each set.
        operation: Name of the operation at hand.
        in_place: Whether it overwrites its first argument.
        on_view: Whether that is a view of another activation.
        training: Whether the graph is that of training.
        normalised: For the identity of running statistics these, and what the first layer that takes them reads.
    """

    def __init__(self, training: bool = False) -> None:
        self.training = training
        self.count = 1
        self.edges: list[Tensor] = []
        self.pins: list[tuple[str, Tensor]] = []
        self.uses: dict[str, Use] = {}
        self.writers: list[tuple[int, int, list[str]]] = []
        self.together: list[tuple[str, Tensor]] = []
        self.operation = ""
        self.in_place = self.on_view = False
        self.normalised: dict[int, tuple[Any, Tensor]] = {}

    def fresh(self, count: int) -> Tensor:
        """New identities: ``(count,)``."""
        first, self.count = self.count, self.count + count
        return torch.arange(first, self.count)

    def write(self, leaf: Leaf, shape: tuple[int, ...], columns: Tensor | None = None) -> Tensor:
        """New identities, as many as the shape holds, that a parameter writes in that shape.

        What the parameter reads scales against `columns`.
        """
        fresh = self.fresh_writer(math.prod(shape))
        self.use(leaf, fresh.reshape(shape), columns)
        self.also_written(fresh, leaf)
        return fresh

    def fresh_writer(self, count: int) -> Tensor:
        """New identities whose writers are still to be noted."""
        fresh = self.fresh(count)
        self.writers.append((int(fresh[0]), int(fresh[-1]) + 1, []))
        return fresh

    def also_written(self, ids: Tensor, leaf: Leaf) -> None:
        """Note that a parameter takes part in writing the newest identities."""
        if self.writers and ids.numel() and int(ids.reshape(-1)[0]) == self.writers[-1][0]:
            self.writers[-1][2].append(leaf.name)

    def labels(self, more: Sequence[Tensor] = ()) -> Tensor:
        """For every identity the least that it is united with, `PINNED` if it is pinned: ``(count,)``.

        Args:
            more: Further pairs of identities that scale alike, as ``(2, n)`` tensors.
        """
        pins = [torch.stack([ids, torch.full_like(ids, PINNED)]) for _, ids in self.pins]
        return components(self.count, [*self.edges, *pins, *more])

    def zeros(self, shape: Sequence[int]) -> Tensor:
        """What is pinned, in any shape."""
        return torch.zeros((), dtype=torch.long).expand(tuple(shape))

    def pin(self, value: Any) -> None:
        """Let nothing scale the value; a parameter that meets an unknown operation is not scaled either."""
        if isinstance(value, Leaf):
            self.use(value, self.zeros(value.shape))
        elif isinstance(value, Ids):
            ids = thin(value.ids).unique()
            self.pins.append((self.operation, ids[ids != PINNED]))

    def unite(self, one: Tensor, other: Tensor) -> None:
        """Elements at the same place scale alike."""
        one, other = torch.broadcast_tensors(one, other)
        one, other = thin_pair(one, other)
        pairs = torch.stack([one.reshape(-1), other.reshape(-1)])
        pairs = pairs[:, pairs[0] != pairs[1]]
        if pairs.numel():
            self.edges.append(torch.unique(pairs, dim=1))

    def merge(self, ids: Tensor, dims: Sequence[int]) -> Tensor:
        """Unite along dimensions, which keep the size 1."""
        merged = ids
        for dim in dims:
            if merged.shape[dim] > 1:
                first = merged.narrow(dim, 0, 1)
                if merged.stride(dim):
                    self.unite(merged, first)
                merged = first
        return merged

    def use(self, leaf: Leaf, rows: Tensor, columns: Tensor | None = None) -> None:
        """Note that a parameter's elements scale with the rows' identities and against the columns', pinned if None."""
        columns = self.zeros(leaf.shape) if columns is None else columns.expand(leaf.shape)
        rows = rows.expand(leaf.shape)
        if leaf.index is not None:
            rows, columns = (self._scatter(leaf, ids) for ids in (rows, columns))
        rows, columns = compact(thin(rows)), compact(thin(columns))
        known = self.uses.get(leaf.name)
        if known is None:
            self.uses[leaf.name] = Use(rows, columns)
            return
        partial = (known.rows < 0) | (rows < 0)
        both = ~partial
        self.unite(torch.where(both, known.rows, PINNED), torch.where(both, rows, PINNED))
        self.unite(torch.where(both, known.columns, PINNED), torch.where(both, columns, PINNED))
        if partial.any():
            self.uses[leaf.name] = Use(
                torch.where(known.rows < 0, rows, known.rows), torch.where(known.rows < 0, columns, known.columns)
            )

    def _scatter(self, leaf: Leaf, ids: Tensor) -> Tensor:
        """Bring the identities of a view back into the parameter's own order; -1 where the view does not reach."""
        assert leaf.index is not None
        full = torch.full((math.prod(leaf.whole),), -1)
        positions, values = leaf.index.reshape(-1), ids.reshape(-1)
        full[positions] = values
        if leaf.repeated:
            self.unite(full[positions], values)
        return full.reshape(leaf.whole)

    def ids_of(self, value: Ids | Leaf | Tensor) -> Tensor:
        """The identities of any operand; a parameter's elements get fresh ones, a constant is pinned."""
        if isinstance(value, Ids):
            return value.ids
        if isinstance(value, Leaf):
            if math.prod(value.shape) > FEW:
                self.pin(value)
                return self.zeros(value.shape)
            return self.write(value, value.shape).reshape(value.shape)
        return self.zeros(value.shape)


def thin(ids: Tensor) -> Tensor:
    """The same identities with stride 0 along every axis on which they do not vary."""
    for dim in range(ids.ndim):
        if ids.shape[dim] > 1 and ids.stride(dim):
            first = ids.narrow(dim, 0, 1)
            if bool((compact(ids) == compact(first, ids)).all()):
                ids = first.expand(ids.shape)
    return ids


def compact(ids: Tensor, like: Tensor | None = None) -> Tensor:
    """Without the axes of stride 0 (of `like`)."""
    for dim, stride in enumerate((ids if like is None else like).stride()):
        if not stride and ids.shape[dim] > 1:
            ids = ids.narrow(dim, 0, 1)
    return ids


def thin_pair(one: Tensor, other: Tensor, keep: bool = False) -> tuple[Tensor, Tensor]:
    """Both without the axes along which neither varies; with `keep` those are expanded again."""
    shape = one.shape
    for dim in range(one.ndim):
        if not one.stride(dim) and not other.stride(dim) and shape[dim] > 1:
            one, other = one.narrow(dim, 0, 1), other.narrow(dim, 0, 1)
    return (one.expand(shape), other.expand(shape)) if keep else (one, other)


def components(count: int, edges: Sequence[Tensor]) -> Tensor:
    """For every node the least node that it is connected with: ``(count,)``, from edges ``(2, n)``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = torch.cat([torch.zeros(2, 0, dtype=torch.long), *edges], dim=1).numpy()
    adjacency = coo_array((one >= 0, (one, other)), shape=(count, count))
    number, component = connected_components(adjacency, directed=False)
    component = torch.from_numpy(component).long()
    least = torch.full((number,), count).scatter_reduce(0, component, torch.arange(count), "amin")
    return least[component]


Handler = Callable[[Shadow, Any, Any, Any], Any]
"""Maps the shadow, arguments, keyword arguments and the result's meta data to identities; None: what it reads is pinned."""
