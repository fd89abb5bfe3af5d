"""The exported graph of a target, run on identities in place of numbers."""

from __future__ import annotations

import copy
import itertools
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hypernet.symmetry.operations import SHAPE_OPERATIONS, VIEWS, shape_operation
from lightning_hypernet.symmetry.shadow import Ids, Leaf, Shadow

Handler = Callable[[Shadow, Any, Any, Any], Any]
"""Maps the shadow, arguments, keyword arguments and the result's meta data to identities; None: what it reads is pinned."""


class SymmetryError(RuntimeError):
    """The graph of a target can't be read; the message says why."""


@dataclass(frozen=True)
class Graph:
    """The exported graph of a target.

    Args:
        program: The exported program.
        parameters: For every placeholder that is a parameter, the parameter's first name in the target.
    """

    program: ExportedProgram
    parameters: Mapping[str, str]

    def parameter(self, node: Any) -> str | None:
        """The name of the parameter that a node stands for; None if it is something else."""
        return self.parameters.get(node.name) if isinstance(node, Node) else None

    def output(self) -> Node | None:
        """The node that the output is; None if there are several."""
        (last,) = [node for node in self.program.graph.nodes if node.op == "output"]
        nodes = [node for node in tree_leaves(last.args) if isinstance(node, Node)]
        return nodes[0] if len(nodes) == 1 else None


def export(target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """Export a target in evaluation mode, on the CPU; it is left as it was.

    Args:
        target: The target with its own weights.
        args: Example arguments.
        kwargs: Example keyword arguments.

    Returns:
        The graph.

    Raises:
        SymmetryError: If the target cannot be exported.
    """
    if any(tensor.device.type != "cpu" for tensor in itertools.chain(target.parameters(), target.buffers())):
        target = copy.deepcopy(target).cpu()
    args, kwargs = tree_map(lambda one: one.cpu() if isinstance(one, Tensor) else one, (args, kwargs))
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
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(one), name) for name, one in target.named_parameters(remove_duplicate=False)}
    return Graph(program, {node: names[name] for node, name in program.graph_signature.inputs_to_parameters.items()})


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
        reader.run()
    except Exception as error:
        raise SymmetryError(f"the graph can't be read at {reader.shadow.operation!r}: {error}") from error
    return reader.shadow


class _Reader:
    """Follows the nodes of one graph."""

    def __init__(self, graph: Graph, generated: frozenset[str], handlers: Mapping[str, Handler]) -> None:
        self.graph = graph
        self.program = graph.program
        self.generated = generated
        self.handlers = handlers
        self.shadow = Shadow()

    def run(self) -> None:
        signature = self.program.graph_signature
        state = {**self.program.state_dict, **self.program.constants}
        environment: dict[Node, Any] = {}
        for node in self.program.graph.nodes:
            environment[node] = None
            if node.op == "placeholder":
                environment[node] = self._placeholder(node, signature, state)
            elif node.op == "call_function":
                environment[node] = self._call(node, environment)
                if operation_of(node).endswith("_") and isinstance(node.args[0], Node):
                    environment[node.args[0]] = environment[node]
            elif node.op == "output":
                self.shadow.operation = "output"
                for value in tree_leaves(torch.fx.node.map_arg(node.args, environment.__getitem__)):
                    self.shadow.pin(value)

    def _placeholder(self, node: Node, signature: Any, state: Mapping[str, Tensor]) -> Any:
        name = self.graph.parameter(node)
        if name in self.generated:
            return Leaf(name, tuple(node.meta["val"].shape))
        fixed = (
            signature.inputs_to_parameters.get(node.name)
            or signature.inputs_to_buffers.get(node.name)
            or signature.inputs_to_lifted_tensor_constants.get(node.name)
        )
        if fixed is not None:
            return state[fixed]
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


def operation_of(node: Node) -> str:
    """The operation, as in aten.NAME.overload; in-place ones end in an underscore."""
    parts = str(node.target).split(".")
    return parts[1] if parts[0] == "aten" else str(node.target)


def components(count: int, edges: Sequence[Tensor]) -> Tensor:
    """For every node the least node that it is connected with: ``(count,)``, from edges ``(2, n)``."""
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
