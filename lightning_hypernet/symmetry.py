"""Symmetries of a target: what scaling leaves the function unchanged, read off its exported graph."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hypernet.operations import HANDLERS, SHAPE_OPERATIONS, shape_operation
from lightning_hypernet.shadow import PINNED, Ids, Leaf, Shadow


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
            weights: ``{name: (S, *shape)}``.
            factors: ``(S, count)``, positive.

        Returns:
            Weights of the same functions.
        """
        padded = torch.cat([factors, factors.new_ones(len(factors), 1)], dim=1)
        scaled = dict(weights)
        for name, written in self.producers.items():
            device = factors.device
            scaled[name] = scaled[name] * (padded[:, written.to(device)] / padded[:, self.consumers[name].to(device)])
        return scaled


class SymmetryError(RuntimeError):
    """The graph of a target can't be read; the message says why."""


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
    modes = [(module, module.training) for module in target.modules()]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(target.eval(), args, kwargs, strict=False)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise SymmetryError(f"{type(target).__name__} cannot be exported: {reason}") from error
    finally:
        for module, mode in modes:
            module.training = mode
    reader = _Reader(program, frozenset(generated))
    try:
        return reader.read()
    except Exception as error:
        operation = reader.shadow.operation
        raise SymmetryError(f"the graph of {type(target).__name__} can't be read at {operation!r}: {error}") from error


class _Reader:
    """Runs a graph on identities."""

    def __init__(self, program: ExportedProgram, generated: frozenset[str]) -> None:
        self.program = program
        self.generated = generated
        self.shadow = Shadow()

    def read(self) -> ChannelGroups:
        signature = self.program.graph_signature
        state = {**self.program.state_dict, **self.program.constants}
        environment: dict[Node, Any] = {}
        for node in self.program.graph.nodes:
            environment[node] = None
            if node.op == "placeholder":
                environment[node] = self._placeholder(node, signature, state)
            elif node.op == "call_function":
                environment[node] = self._call(node, environment)
                if _name(node).endswith("_") and isinstance(node.args[0], Node):
                    environment[node.args[0]] = environment[node]
            elif node.op == "output":
                self.shadow.operation = "output"
                for value in tree_leaves(torch.fx.node.map_arg(node.args, environment.__getitem__)):
                    self.shadow.pin(value)
        return self._finish()

    def _placeholder(self, node: Node, signature: Any, state: Mapping[str, Tensor]) -> Any:
        name = signature.inputs_to_parameters.get(node.name)
        if name in self.generated:
            return Leaf(name, tuple(state[name].shape))
        fixed = name or signature.inputs_to_buffers.get(node.name) or signature.inputs_to_lifted_tensor_constants.get(node.name)
        if fixed is not None:
            return state[fixed]
        value = node.meta.get("val")
        return Ids(torch.zeros((), dtype=torch.long).expand(value.shape)) if isinstance(value, Tensor) else value

    def _call(self, node: Node, environment: Mapping[Node, Any]) -> Any:
        resolved: Any = torch.fx.node.map_arg((node.args, node.kwargs), environment.__getitem__)
        args, kwargs = resolved
        if node.target is operator.getitem:
            return args[0][args[1]]
        name = _name(node)
        self.shadow.in_place = name.endswith("_")
        self.shadow.operation = name = name.rstrip("_")
        values = [value for value in tree_leaves((args, kwargs)) if isinstance(value, (Ids, Leaf))]
        meta = node.meta.get("val")
        if not values:
            return self._constant(node, args, kwargs, meta)
        if name in SHAPE_OPERATIONS:
            result = shape_operation(self.shadow, node, args, kwargs)
        else:
            result = HANDLERS[name](self.shadow, args, kwargs, meta) if name in HANDLERS else None
        if result is None:
            for value in values:
                self.shadow.pin(value)
            return self._pinned(meta)
        return result

    def _pinned(self, meta: Any) -> Any:
        return tree_map(lambda one: Ids(self.shadow.zeros(one.shape)) if isinstance(one, Tensor) else one, meta)

    def _constant(self, node: Node, args: Any, kwargs: Any, meta: Any) -> Any:
        """Constants are computed, so that indices are known; what can't be is pinned."""
        args, kwargs = tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, (args, kwargs))
        try:
            return node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception:
            return self._pinned(meta)

    def _finish(self) -> ChannelGroups:
        label = _components(self.shadow.count, self.shadow.edges + [torch.stack([ids, ids * 0]) for _, ids in self.shadow.pins])
        scalable = label != label[PINNED]
        leaders = torch.arange(self.shadow.count)[scalable & (label == torch.arange(self.shadow.count))]
        leaders = leaders[torch.isin(leaders, self._written_ids())]
        count = len(leaders)
        group = torch.full((self.shadow.count + 1,), count)
        group[leaders] = torch.arange(count)
        group[:-1] = group[label]
        group[-1] = count
        uses = {
            name: use
            for name, use in self.shadow.uses.items()
            if (group[use.rows] < count).any() or (group[use.columns] < count).any()
        }
        levels = []
        for first, last, names in self.shadow.writers:
            led = leaders[(leaders >= first) & (leaders < last)]
            if not len(led):
                continue
            local = torch.full((self.shadow.count + 1,), len(led))
            own = torch.arange(first, last)[torch.isin(label[first:last], led)]
            local[own] = torch.searchsorted(led, label[own])
            rows = {name: local[self.shadow.uses[name].rows] for name in names}
            levels.append(Level(group[led], {name: one for name, one in rows.items() if (one < len(led)).any()}))
        pinned: dict[str, int] = {}
        for operation, ids in self.shadow.pins:
            pinned[operation] = pinned.get(operation, 0) + len(ids)
        return ChannelGroups(
            count,
            {name: group[use.rows] for name, use in uses.items()},
            {name: group[use.columns] for name, use in uses.items()},
            levels,
            dict(sorted(pinned.items(), key=lambda item: -item[1])),
            self._output_bias(),
        )

    def _written_ids(self) -> Tensor:
        return torch.cat(
            [torch.arange(first, last) for first, last, _ in self.shadow.writers] or [torch.zeros(0, dtype=torch.long)]
        )

    def _output_bias(self) -> str | None:
        """The bias of the linear layer that the output comes from."""
        (output,) = [node for node in self.program.graph.nodes if node.op == "output"]
        nodes = [node for node in tree_leaves(output.args) if isinstance(node, Node)]
        if len(nodes) != 1 or not str(nodes[0].target).startswith("aten.linear") or len(nodes[0].args) < 3:
            return None
        name = self.program.graph_signature.inputs_to_parameters.get(getattr(nodes[0].args[2], "name", ""))
        return name if name in self.generated else None


def _name(node: Node) -> str:
    """The operation, as in aten.NAME.overload."""
    parts = str(node.target).split(".")
    return parts[1] if parts[0] == "aten" else str(node.target)


def _components(count: int, edges: Sequence[Tensor]) -> Tensor:
    """For every node the least node that it is connected with."""
    label = torch.arange(count)
    if not edges:
        return label
    one, other = torch.cat(list(edges), dim=1)
    while True:
        least = torch.minimum(label[one], label[other])
        updated = label.scatter_reduce(0, label[one], least, "amin").scatter_reduce(0, label[other], least, "amin")
        updated = updated[updated]
        if torch.equal(updated, label):
            return label
        label = updated
