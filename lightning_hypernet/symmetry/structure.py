"""What a target's graph shows of its filters: which layer each norm layer scales, and which layer is the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor
from torch.fx import Node

from lightning_hypernet.symmetry.graph import Graph, operation_of, reading
from lightning_hypernet.symmetry.shapes import ELEMENTWISE, IDENTITY
from lightning_hypernet.target.filters import Structure
from lightning_hypernet.values import instance, unknown

_NORMS = {"batch_norm": 1, "instance_norm": 1, "group_norm": 1, "layer_norm": -1, "rms_norm": -1}
_PASSING = ELEMENTWISE | IDENTITY | {"softmax", "log_softmax"}
_REGROUPING = {"view", "reshape", "flatten", "_unsafe_view", "unflatten", "squeeze", "unsqueeze"}
_POOLING = {
    f"{kind}_pool{dims}d": dims for dims in (1, 2, 3) for kind in ("avg", "max", "adaptive_avg", "adaptive_max")
}  # fmt: skip


def read_structure(graph: Graph) -> Structure:
    """Follow the graph of a target back from every norm layer and from the output to the layer whose output units they hold.

    Between the two may lie functions of single elements, and what moves axes or joins others.

    Args:
        graph: The graph of evaluation.

    Returns:
        The structure, which names parameters by the target's own first names.

    Raises:
        SymmetryError: If the graph can't be read.
    """
    with reading("the structure of filters can't be read"):
        return _structure(graph)


def _structure(graph: Graph) -> Structure:
    norms: dict[str, str] = {}
    for node in graph.program.graph.nodes:
        operation = operation_of(node)
        if operation in _NORMS:
            layer = _layer_behind(graph, node.args[0], _NORMS[operation])
            parameters = [graph.parameter(one) for one in (*node.args[1:], *node.kwargs.values())]
            norms |= {name: layer for name in parameters if name and layer}
    last = graph.output()
    return Structure(norms, _layer_behind(graph, last, 1) or _layer_behind(graph, last, -1))


def _layer_behind(graph: Graph, node: Any, axis: int) -> str | None:
    """The weight of the linear or convolution layer whose output units lie along an axis of a node; None if there is none."""
    while isinstance(node, Node) and node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
        shape = node.meta["val"].shape
        axis %= max(len(shape), 1)
        operation = operation_of(node).rstrip("_")
        if operation == "linear" and axis == len(shape) - 1:
            return _source(graph, node.args[1])
        if operation.startswith("conv") and axis == 1 and len(node.args) > 1:
            return _source(graph, node.args[1])
        source: Any = node.args[0] if node.args else None
        if not isinstance(source, Node) or len(source.users) > 1 or not isinstance(source.meta.get("val"), Tensor):
            return None
        before = source.meta["val"].shape
        if operation == "permute":
            order: Any = node.args[1]
            axis = order[axis] % len(shape)
        elif operation == "transpose":
            one, other = (int(dim) % len(shape) for dim in node.args[1:3])  # type: ignore[arg-type]
            axis = {one: other, other: one}.get(axis, axis)
        elif operation in _REGROUPING:
            if shape[: axis + 1] != before[: axis + 1]:
                if shape[axis:] != before[len(before) - (len(shape) - axis) :]:
                    return None
                axis += len(before) - len(shape)
        elif operation not in _PASSING and not (operation in _POOLING and axis < len(shape) - _POOLING[operation]):
            return None
        node = source
    return None


def _source(graph: Graph, node: Any) -> str | None:
    """The parameter that a weight is, or is computed from."""
    while isinstance(node, Node) and node.op == "call_function":
        node = node.args[0]
    return graph.parameter(node)


def structure_of(structure: Any) -> Structure | None:
    """What the graph shows, of itself or of a mapping with its fields.

    Raises:
        TypeError: If it is neither.
    """
    if structure is None or isinstance(structure, Structure):
        return structure
    instance("structure", structure, Mapping, "a Structure or a mapping with its norms and output")
    if wrong := unknown("structure", structure, [field.name for field in fields(Structure)]):
        raise TypeError(wrong)
    read = Structure(structure.get("norms", {}), structure.get("output"))
    instance("structure's norms", read.norms, Mapping, "a mapping of names of parameters")
    instance("structure's output", read.output, (str, type(None)), "the name of a parameter, or None")
    return read
