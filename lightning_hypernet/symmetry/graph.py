"""The exported graphs of a target: what it computes in evaluation, and in training."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves, tree_map


class SymmetryError(RuntimeError):
    """The graph of a target can't be read; the message says why."""


@dataclass(frozen=True)
class Graph:
    """The exported graph of a target in one mode.

    Args:
        program: The exported program.
        parameters: For every placeholder that is a parameter, the parameter's first name in the target.
        training: Whether it is the graph of training. A norm layer that uses its running statistics there is frozen.
    """

    program: ExportedProgram
    parameters: Mapping[str, str]
    training: bool = False

    def parameter(self, node: Any) -> str | None:
        """The name of the parameter that a node stands for; None if it is something else."""
        return self.parameters.get(node.name) if isinstance(node, Node) else None

    def outputs(self) -> list[Node]:
        """The nodes that the outputs are."""
        (last,) = [node for node in self.program.graph.nodes if node.op == "output"]
        return [node for node in tree_leaves(last.args) if isinstance(node, Node)]

    def output(self) -> Node | None:
        """The node that the output is; None if there are several."""
        nodes = self.outputs()
        return nodes[0] if len(nodes) == 1 else None


@dataclass(frozen=True)
class Graphs:
    """The exported graphs of a target.

    Args:
        evaluation: What it computes in evaluation.
        training: What it computes in training; None if that can't be exported.
        unread: Why it can't be exported in training; None if it can.
        frozen: Paths of the norm layers that keep their running statistics in training.
    """

    evaluation: Graph
    training: Graph | None
    unread: str | None = None
    frozen: frozenset[str] = frozenset()


def export(target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graphs:
    """Export a target on the CPU, once in evaluation and once in training mode; it is left as it was.

    Modules in evaluation mode within a target in training mode are frozen: they stay so in the graph of training.

    Args:
        target: The target with its own weights.
        args: Example arguments.
        kwargs: Example keyword arguments.

    Returns:
        The graphs.

    Raises:
        SymmetryError: If the target cannot be exported in evaluation mode.
    """
    failure = f"{type(target).__name__} cannot be exported"
    with reading(failure):
        network = _light_copy(target).eval()
    evaluation = _export(network, args, kwargs, failure, training=False)
    with reading(failure):
        network = in_training(_light_copy(target))
        norms = {path: one for path, one in network.named_modules() if isinstance(one, _NormBase) and one.track_running_stats}
        frozen = frozenset(path for path, norm in norms.items() if not norm.training)
    try:
        return Graphs(evaluation, _export(network, args, kwargs, f"{failure} in training mode", training=True), frozen=frozen)
    except SymmetryError as error:
        return Graphs(evaluation, None, str(error), frozen)


def _export(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], failure: str, training: bool) -> Graph:
    with reading(failure):
        args, kwargs = tree_map(lambda one: one.cpu() if isinstance(one, Tensor) else one, (args, kwargs))
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(network, args, kwargs, strict=False)
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(one), name) for name, one in network.named_parameters(remove_duplicate=False)}
    parameters = {node: names[name] for node, name in program.graph_signature.inputs_to_parameters.items()}
    return Graph(program, parameters, training)


def in_training(network: nn.Module) -> nn.Module:
    """Put a network in training mode; one that is in it already may hold frozen modules, which stay so."""
    return network if network.training else network.train()


def _light_copy(target: nn.Module) -> nn.Module:
    """A copy on the CPU, so that what a run keeps does not reach the target; it shares tensors that lie there."""
    if any(tensor.device.type != "cpu" for tensor in itertools.chain(target.parameters(), target.buffers())):
        return copy.deepcopy(target).cpu()
    places = (place for module in target.modules() for place in (vars(module), module._parameters, module._buffers))
    tensors = {id(one): one for place in places for one in place.values() if isinstance(one, Tensor)}
    return copy.deepcopy(target, tensors)


@contextmanager
def reading(failure: str) -> Iterator[None]:
    """Within, whatever goes wrong is told as a `SymmetryError`: the sentence, and the first line of the reason."""
    try:
        yield
    except SymmetryError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        kind = "" if isinstance(error, RuntimeError) and reason else f"{type(error).__name__} "
        raise SymmetryError(f"{failure}: {kind}{reason}".rstrip()) from error


def operation_of(node: Node) -> str:
    """The operation, as in aten.NAME.overload; in-place ones end in an underscore."""
    parts = str(node.target).split(".")
    return parts[1] if parts[0] == "aten" else str(node.target)
