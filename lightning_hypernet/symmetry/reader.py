"""The reader: runs the exported graph of a target on identities in place of numbers."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hypernet.symmetry.graph import Graph, SymmetryError, operation_of
from lightning_hypernet.symmetry.shadow import Handler, Ids, Leaf, Shadow
from lightning_hypernet.symmetry.shapes import SHAPE_OPERATIONS, VIEWS, shape_operation


def run_shadow(graph: Graph, generated: Sequence[str], handlers: Mapping[str, Handler]) -> Shadow:
    """Run a graph on identities.

    Args:
        graph: The exported target.
        generated: Names of the parameters that symmetries may change.
        handlers: For every operation that is known, what it does to identities; the others pin what they read. Shape operations
            act on the identities themselves.

    Returns:
        The identities, what unites them and what pins them.

    Raises:
        SymmetryError: If the graph can't be read.
    """
    reader = _Reader(graph, frozenset(generated), handlers)
    try:
        with torch.random.fork_rng(devices=[]):
            reader.run()
    except Exception as error:
        reason = f"{type(error).__name__} {error}"
        raise SymmetryError(f"the graph can't be read at {reader.shadow.operation!r}: {reason}") from error
    return reader.shadow


class _Reader:
    """Follows the nodes of one graph."""

    def __init__(self, graph: Graph, generated: frozenset[str], handlers: Mapping[str, Handler]) -> None:
        self.graph = graph
        self.program = graph.program
        self.generated = generated
        self.handlers = handlers
        self.shadow = Shadow(graph.training)

    def run(self) -> None:
        signature = self.program.graph_signature
        state = {**self.program.state_dict, **self.program.constants}
        kept = signature.inputs_to_parameters | signature.inputs_to_buffers | signature.inputs_to_lifted_tensor_constants
        values = {name: state[path] for name, path in kept.items()}
        environment: dict[Node, Any] = {}
        for node in self.program.graph.nodes:
            environment[node] = None
            if node.op == "placeholder":
                environment[node] = self._placeholder(node, values)
            elif node.op == "call_function":
                environment[node] = self._call(node, environment)
                if operation_of(node).endswith("_") and isinstance(node.args[0], Node):
                    environment[node.args[0]] = environment[node]
            elif node.op == "output":
                self.shadow.operation = "output"
                for value in tree_leaves(torch.fx.node.map_arg(node.args, environment.__getitem__)):
                    self.shadow.pin(value)

    def _placeholder(self, node: Node, values: Mapping[str, Tensor]) -> Any:
        name = self.graph.parameter(node)
        if name in self.generated:
            return Leaf(name, tuple(node.meta["val"].shape))
        if node.name in values:
            return values[node.name]
        value = node.meta.get("val")
        return Ids(torch.zeros((), dtype=torch.long).expand(value.shape)) if isinstance(value, Tensor) else value

    def _call(self, node: Node, environment: Mapping[Node, Any]) -> Any:
        resolved: Any = torch.fx.node.map_arg((node.args, node.kwargs), environment.__getitem__)
        args, kwargs = resolved
        if node.target is operator.getitem:
            return args[0][args[1]]
        name = operation_of(node)
        self.shadow.in_place = name.endswith("_")
        self.shadow.on_view = self.shadow.in_place and isinstance(node.args[0], Node) and operation_of(node.args[0]) in VIEWS
        self.shadow.operation = name = name.rstrip("_")
        values = [value for value in tree_leaves((args, kwargs)) if isinstance(value, (Ids, Leaf))]
        meta = node.meta.get("val")
        if not values:
            return self._constant(node, args, kwargs, meta)
        if name in SHAPE_OPERATIONS:
            result = shape_operation(self.shadow, node, args, kwargs)
        else:
            result = self.handlers[name](self.shadow, args, kwargs, meta) if name in self.handlers else None
        if result is None or not _fits(result, meta):
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


def _fits(result: Any, meta: Any) -> bool:
    """Whether the identities have the shapes that the graph knows of the result."""
    shapes = [tuple(one.shape) for one in tree_leaves(meta) if isinstance(one, Tensor)]
    return [tuple(one.shape) for one in tree_leaves(result) if isinstance(one, (Ids, Leaf, Tensor))] == shapes
