"""Shape operations: what moves the elements of an activation moves their identities."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hypernet.symmetry.shadow import Ids, Leaf, Shadow, thin

_REPEATING = {"expand", "expand_as", "repeat", "repeat_interleave", "index", "index_select", "tile", "unfold"}
IDENTITY = {
    "to", "_to_copy", "contiguous", "clone", "alias", "detach", "dropout", "feature_dropout", "type_as", "float"
}  # fmt: skip
ELEMENTWISE = {
    "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "elu", "selu", "mish",
    "softplus", "softsign", "exp", "log", "log1p", "sqrt", "rsqrt", "pow", "square", "abs", "neg", "clamp", "clamp_min",
    "clamp_max", "erf", "leaky_relu", "logsigmoid", "log_sigmoid", "celu", "reciprocal", "sin", "cos", "threshold",
    "hardshrink", "softshrink", "tanhshrink", "rrelu",
}  # fmt: skip
"""Functions of single elements."""

_SELECTING = {"index", "index_select"}
_JOINING = {"cat", "stack", "concat", "concatenate"}
SHAPE_OPERATIONS = IDENTITY | {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand",
    "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "narrow", "roll", "flip", "repeat", "repeat_interleave",
    "pixel_shuffle", "pixel_unshuffle", "movedim", "view_as", "reshape_as", "expand_as", "channel_shuffle", "numpy_T",
    "swapaxes", "diagonal", "unfold", "tile", *_SELECTING, *_JOINING,
}  # fmt: skip

VIEWS = SHAPE_OPERATIONS - IDENTITY
"""What may give another view of the same numbers."""


def shape_operation(shadow: Shadow, node: Node, args: Any, kwargs: Any) -> Any:
    """Reordering elements reorders their identities: the operation itself acts on them; a constant has none to reorder."""
    if shadow.operation.endswith("_as"):
        args = (args[0], shadow.zeros(args[1].shape))
    if shadow.operation in _SELECTING and any(isinstance(value, (Ids, Leaf)) for value in tree_leaves((args[1:], kwargs))):
        return None
    joining = shadow.operation in _JOINING
    leaf = args[0] if isinstance(args[0], Leaf) else None
    if not joining and not isinstance(args[0], (Ids, Leaf)):
        return Ids(shadow.zeros(node.meta["val"].shape)) if shadow.operation.endswith("_as") else None

    def plain(value: Any) -> Any:
        if isinstance(value, Leaf) and not joining:
            return value.positions()
        return shadow.ids_of(value) if isinstance(value, (Leaf, Ids)) or (joining and isinstance(value, Tensor)) else value

    args, kwargs = tree_map(plain, (args, kwargs))
    kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "device", "memory_format", "copy", "layout")}
    if shadow.operation in IDENTITY:
        result: Any = args[0]
    elif shadow.operation in ("view", "_unsafe_view"):
        result = args[0].reshape(args[1])
    else:
        result = node.target(*args, **kwargs)  # type: ignore[operator]

    def wrapped(ids: Any) -> Any:
        if not isinstance(ids, Tensor):
            return ids
        if leaf is None:
            return Ids(thin(ids))
        return Leaf(leaf.name, leaf.whole, ids, leaf.repeated or shadow.operation in _REPEATING)

    return tree_map(wrapped, result)
