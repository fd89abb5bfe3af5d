"""Symmetries of a target: what scaling leaves the function unchanged, read off its exported graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hypernet.symmetry.graph import Graph, components, export, operation_of, run_shadow
from lightning_hypernet.symmetry.operations import HANDLERS
from lightning_hypernet.symmetry.shadow import PINNED, Shadow


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
        pinned: For every operation that pins channels, how many.
        output: The parameter that adds the bias of the output, if the output is a linear layer's.
    """

    count: int
    producers: dict[str, Tensor]
    consumers: dict[str, Tensor]
    levels: list[Level]
    pinned: dict[str, int] = field(default_factory=dict)
    output: str | None = None

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
            device = factors.device
            ratio = padded[:, written.to(device)] / padded[:, self.consumers[name].to(device)]
            scaled[name] = scaled[name] * ratio.to(scaled[name].dtype)
        return scaled


def read_symmetries(
    target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], generated: Sequence[str]
) -> ChannelGroups:
    """Read the channel groups of a target off its exported graph.

    Args:
        target: The target with its own weights.
        args: Example arguments.
        kwargs: Example keyword arguments.
        generated: Names of the parameters that may be scaled.

    Returns:
        The groups.

    Raises:
        SymmetryError: If the target cannot be exported or its graph can't be read.
    """
    graph = export(target, args, kwargs)
    shadow = run_shadow(graph, generated, HANDLERS)
    written = torch.cat([torch.arange(first, last) for first, last, _ in shadow.writers] or [torch.zeros(0, dtype=torch.long)])
    label = components(shadow.count, shadow.edges + [torch.stack([ids, ids * 0]) for _, ids in shadow.pins])
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
    """The bias of the linear layer that the output comes from."""
    output = graph.output()
    if output is None or operation_of(output) != "linear" or len(output.args) < 3:
        return None
    name = graph.parameter(output.args[2])
    return name if name in generated else None
