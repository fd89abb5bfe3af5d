"""Scale: channels that can be scaled together without changing a target's function, read off its exported graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import Node

from lightning_hypernet.symmetry.graph import Graph, operation_of, reading
from lightning_hypernet.symmetry.reader import run_shadow
from lightning_hypernet.symmetry.scale_rules import HANDLERS
from lightning_hypernet.symmetry.shadow import PINNED, Shadow, thin_pair


@dataclass(frozen=True)
class Level:
    """Channels that one operation writes first, and whose scale its parameters therefore fix.

    Args:
        groups: ``(n,)``, the groups it leads, in ascending order.
        rows: For every parameter that the operation writes them with, which of those n each element belongs to, n for none; of
            a shape that broadcasts against the parameter.
    """

    groups: Tensor
    rows: dict[str, Tensor]

    @cached_property
    def shares(self) -> list[float]:
        """Which share of the elements of every parameter belongs to one of its groups."""
        return [float((one < len(self.groups)).double().mean()) for one in self.rows.values()]

    def restrict(self, kept: Tensor, number: Tensor) -> Level:
        """Without the groups that are not kept; the others get new numbers."""
        led = kept[self.groups]
        count = int(led.sum())
        local = torch.cat([torch.where(led, led.cumsum(0) - 1, count), torch.tensor([count])])
        rows = {name: local[one] for name, one in self.rows.items()}
        return Level(number[self.groups[led]], {name: one for name, one in rows.items() if bool((one < count).any())})


@dataclass(frozen=True)
class ChannelGroups:
    """Channels that can be scaled together without changing the function.

    Multiplying what `producers` names by s > 0 and dividing what `consumers` names by the same s changes nothing, for each
    group by itself. A norm layer behind a producer takes the scale off: then a group has no consumers. That is exact up to
    the eps of the norm layer, and its running statistics must follow.

    Args:
        count: Number of groups.
        producers: For every parameter its elements' groups, `count` for none; of a shape that broadcasts against it.
        consumers: Likewise.
        levels: The groups in topological order.
        pinned: For every operation that pins channels, how many; under ``"training"`` those that training alone pins.
        output: The parameter that adds the bias of the output, if the output is a linear layer's.
    """

    count: int
    producers: dict[str, Tensor]
    consumers: dict[str, Tensor]
    levels: list[Level]
    pinned: dict[str, int] = field(default_factory=dict)
    output: str | None = None

    def restrict(self, kept: Tensor) -> ChannelGroups:
        """Some of the groups, ``(count,)`` booleans; the others are pinned."""
        count = int(kept.sum())
        number = torch.where(kept, kept.cumsum(0) - 1, count)
        number = torch.cat([number, torch.tensor([count])])
        producers, consumers = ({name: number[one] for name, one in ids.items()} for ids in (self.producers, self.consumers))
        names = [name for name in producers if bool((producers[name] < count).any() or (consumers[name] < count).any())]
        pinned = self.pinned | ({"training": self.count - count} if count < self.count else {})
        return replace(
            self,
            count=count,
            producers={name: producers[name] for name in names},
            consumers={name: consumers[name] for name in names},
            levels=[level.restrict(kept, number) for level in self.levels if bool(kept[level.groups].any())],
            pinned=pinned,
        )

    @cached_property
    def _places(self) -> dict[tuple[str, torch.device], list[Tensor | None]]:
        """Producers and consumers of every parameter, on the devices that asked for them; None where there are none."""
        return {}

    def transform(self, weights: Mapping[str, Tensor], factors: Tensor) -> dict[str, Tensor]:
        """Scale every group of every network.

        Args:
            weights: ``{name: (S, *shape)}``; some may be missing.
            factors: ``(S, count)``, positive.

        Returns:
            Weights of the same functions.
        """
        padded = torch.cat([factors, factors.new_ones(len(factors), 1)], dim=1)
        scaled = dict(weights)
        for name, written in self.producers.items():
            if name not in weights:
                continue
            places = self._places.get((name, factors.device))
            if places is None:
                some = [ids if bool((ids < self.count).any()) else None for ids in (written, self.consumers[name])]
                with torch.inference_mode(False):  # they are kept for training
                    places = [ids if ids is None else ids.to(factors.device) for ids in some]
                self._places[name, factors.device] = places
            for ids, own in zip(places, (padded, 1 / padded), strict=True):
                if ids is not None:
                    scaled[name] = scaled[name] * picked(own, ids).to(scaled[name].dtype)
        return scaled


def picked(factors: Tensor, ids: Tensor) -> Tensor:
    """The factors, ``(S, n)``, of ids: ``(S, *shape of the ids)``."""
    return factors.index_select(1, ids.reshape(-1)).reshape(len(factors), *ids.shape)


def read_groups(graph: Graph, generated: Sequence[str]) -> ChannelGroups:
    """Read the channel groups of a target off its exported graph.

    Args:
        graph: The graph.
        generated: Names of the parameters that may be scaled.

    Returns:
        The groups.

    Raises:
        SymmetryError: If the graph can't be read.
    """
    shadow = run_shadow(graph, generated, HANDLERS)
    with reading("the scale of channels can't be read"):
        return _groups(graph, shadow, generated)


def groups_of_both(groups: ChannelGroups, others: ChannelGroups) -> ChannelGroups:
    """The groups that the others hold too, with the same producers and the same consumers; what is not among them is pinned.

    Args:
        groups: The groups of the graph of evaluation.
        others: The groups of the graph of training.

    Returns:
        The groups that scale in both.
    """
    pairs = torch.cat([*_pairs(groups, others)]).unique(dim=0)
    one, other = pairs.unbind(1)
    alone = (one.bincount(minlength=groups.count + 1)[one] == 1) & (other.bincount(minlength=others.count + 1)[other] == 1)
    kept = torch.zeros(groups.count, dtype=torch.bool)
    kept[one[alone & (one < groups.count) & (other < others.count)]] = True
    output = groups.output if groups.output == others.output else None
    return replace(groups.restrict(kept), output=output)


def _pairs(groups: ChannelGroups, others: ChannelGroups) -> Iterator[Tensor]:
    """The groups that each element of a parameter belongs to here and there, for either role, as ``(n, 2)`` tensors."""
    none, other_none = torch.tensor(groups.count), torch.tensor(others.count)
    yield torch.stack([none, other_none])[None]
    for one, other in ((groups.producers, others.producers), (groups.consumers, others.consumers)):
        for name in {**one, **other}:
            here, there = thin_pair(*torch.broadcast_tensors(one.get(name, none), other.get(name, other_none)))
            yield torch.stack([here.reshape(-1), there.reshape(-1)], 1).unique(dim=0)


def _groups(graph: Graph, shadow: Shadow, generated: Sequence[str]) -> ChannelGroups:
    written = torch.cat([torch.arange(first, last) for first, last, _ in shadow.writers] or [torch.zeros(0, dtype=torch.long)])
    label = shadow.labels()
    scalable = label != label[PINNED]
    leaders = torch.arange(shadow.count)[scalable & (label == torch.arange(shadow.count))]
    leaders = leaders[torch.isin(leaders, written)]
    count = len(leaders)
    group = torch.full((shadow.count + 1,), count)
    group[leaders] = torch.arange(count)
    group[:-1] = group[label]
    group[-1] = count
    uses = {
        name: use for name, use in shadow.uses.items() if (group[use.rows] < count).any() or (group[use.columns] < count).any()
    }
    pinned: dict[str, int] = {}
    for operation, ids in shadow.pins:
        pinned[operation] = pinned.get(operation, 0) + len(ids)
    return ChannelGroups(
        count,
        {name: group[use.rows] for name, use in uses.items()},
        {name: group[use.columns] for name, use in uses.items()},
        list(_levels(shadow, label, leaders, group)),
        dict(sorted(pinned.items(), key=lambda item: -item[1])),
        _output_bias(graph, generated),
    )


def _levels(shadow: Shadow, label: Tensor, leaders: Tensor, group: Tensor) -> Iterator[Level]:
    """What each writer fixes: the groups whose first identity is its own."""
    for first, last, names in shadow.writers:
        led = leaders[(leaders >= first) & (leaders < last)]
        if not len(led):
            continue
        local = torch.full((shadow.count + 1,), len(led))
        own = torch.arange(first, last)[torch.isin(label[first:last], led)]
        local[own] = torch.searchsorted(led, label[own])
        rows = {name: local[shadow.uses[name].rows] for name in names}
        yield Level(group[led], {name: one for name, one in rows.items() if (one < len(led)).any()})


def _output_bias(graph: Graph, generated: Sequence[str]) -> str | None:
    """The bias of the linear layer that the output comes from, if both do nothing else; in training the first output counts."""
    output = next(iter(graph.outputs()), None) if graph.training else graph.output()
    if output is None or operation_of(output) != "linear" or len(output.args) < 3 or len(output.users) > 1:
        return None
    bias = output.args[2]
    name = graph.parameter(bias)
    return name if name in generated and isinstance(bias, Node) and len(bias.users) == 1 else None
