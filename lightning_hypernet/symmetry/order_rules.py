"""What the operations of an exported graph do to the identities of channels that may change places.

Element by element, channels stay what they are, whatever the function; what meets is one channel. None says that the channels
of what the operation reads lose their place.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hypernet.symmetry.scale_rules import HANDLERS, frozen
from lightning_hypernet.symmetry.shadow import Handler, Ids, Leaf, Shadow, thin
from lightning_hypernet.symmetry.shapes import ELEMENTWISE


def _varies(ids: Tensor) -> list[int]:
    """The axes along which identities vary."""
    return [dim for dim, (size, stride) in enumerate(zip(ids.shape, thin(ids).stride(), strict=True)) if size > 1 and stride]


def _elementwise(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    """Operands that meet element by element hold one channel; what does not vary along the channels leaves them free."""
    operands = [value for value in tree_leaves((args, kwargs)) if isinstance(value, (Ids, Leaf, Tensor))]
    known = [shadow.ids_of(value) for value in operands if not isinstance(value, Leaf)]
    known.sort(key=lambda ids: not bool(ids.any()))
    if not known or shadow.on_view:
        return None
    ids = known[0]
    for other in known[1:]:
        met = _meet(shadow, ids, other)
        if met is None:
            return None
        ids = met
    for value in operands:
        if isinstance(value, Leaf):
            _ride(shadow, ids, value)
    return tree_map(lambda one: Ids(thin(ids.expand(one.shape))) if isinstance(one, Tensor) else one, meta)


def _meet(shadow: Shadow, one: Tensor, other: Tensor) -> Tensor | None:
    """The identities of a result of two operands; None if a channel would belong to two."""
    rank = max(one.ndim, other.ndim)
    one, other = (ids[(None,) * (rank - ids.ndim)] for ids in (one, other))
    for here, there in ((one, other), (other, one)):
        if not bool(there.any()) and all(there.shape[dim] == 1 for dim in _varies(here)):
            shape = torch.broadcast_shapes(here.shape, there.shape)
            return here.expand(shape)
        if any(there.shape[dim] == 1 and bool(there.any()) for dim in _varies(here)):
            return None
    shadow.unite(one, other)
    one, other = torch.broadcast_tensors(one, other)
    return one if len(_varies(one)) <= len(_varies(other)) else other


def _ride(shadow: Shadow, ids: Tensor, leaf: Leaf) -> None:
    """A parameter that meets channels element by element is permuted with them."""
    shape = (1,) * (ids.ndim - len(leaf.shape)) + leaf.shape
    if len(shape) != ids.ndim:
        shadow.pin(leaf)
    elif math.prod(shape) > 1:
        rows = shadow.merge(thin(ids), [dim for dim, size in enumerate(shape) if size == 1])
        shadow.use(leaf, rows.expand(shape).reshape(leaf.shape))


def _ride_second(shadow: Shadow, ids: Tensor, leaf: Leaf) -> None:
    """A parameter with one number for each entry of the second axis is permuted with it."""
    if math.prod(leaf.shape) > 1:
        merged = shadow.merge(thin(ids), [dim for dim in range(ids.ndim) if dim != 1])
        shadow.use(leaf, merged.reshape(leaf.shape))


def _normalised(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    """A norm layer's scale and shift ride with the channels."""
    names = {"layer_norm": ("input", "shape", "weight", "bias"), "rms_norm": ("input", "shape", "weight")}
    named = dict(zip(names.get(shadow.operation, ("input", "weight", "bias")), args, strict=False)) | kwargs
    if shadow.operation == "group_norm":
        named = dict(zip(("input", "groups", "weight", "bias"), args, strict=False)) | kwargs
    fixed = shadow.operation in ("batch_norm", "instance_norm") and frozen(shadow, args)
    if not isinstance(named["input"], Ids) or fixed:
        return None
    ids = named["input"].ids
    behind = shadow.operation in ("layer_norm", "rms_norm")
    for key in ("weight", "bias"):
        value = named.get(key)
        if isinstance(value, Ids):
            return None
        if isinstance(value, Leaf):
            (_ride if behind else _ride_second)(shadow, ids, value)
    if shadow.operation == "group_norm":
        _together(shadow, ids.movedim(1, -1).reshape(-1, ids.shape[1])[0].reshape(named["groups"], -1))
    elif behind:
        _together(shadow, ids.reshape(-1, ids.shape[-1]))
    return tree_map(lambda one: Ids(ids) if isinstance(one, Tensor) and one.shape == ids.shape else one, _first(meta))


def _first(meta: Any) -> Any:
    return meta[0] if isinstance(meta, (tuple, list)) else meta


def _together(shadow: Shadow, rows: Tensor) -> None:
    """Note that the channels of each row are taken together, so that those of different rows are different."""
    rows = rows.unique(dim=0)
    if len(rows) > 1:
        shadow.together.append((shadow.operation, rows))


def _depthwise_or_layer(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    named = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, strict=False)) | kwargs
    weight, groups = named["weight"], named.get("groups", 1)
    if groups == 1 or not isinstance(named["input"], Ids):
        return HANDLERS[shadow.operation](shadow, args, kwargs, meta)
    if not isinstance(weight, Leaf) or weight.shape[0] != groups or weight.shape[1] != 1:
        return None
    space = list(range(-len(weight.shape) + 2, 0))
    ids = named["input"].ids
    merged = shadow.merge(ids, [0, *space]) if ids.ndim == meta.ndim else ids
    channels = merged.reshape(-1)
    shadow.use(weight, channels.reshape(-1, *(1,) * (len(weight.shape) - 1)))
    if isinstance(named.get("bias"), Leaf):
        shadow.use(named["bias"], channels)
    return Ids(channels.reshape(-1, *(1,) * len(space)).expand(meta.shape))


def _contract(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    """A matrix product of two activations: what it sums over is one channel, what else they hold is passed on."""
    one, other = args[:2]
    if isinstance(one, Leaf) or isinstance(other, Leaf):
        return HANDLERS["matmul"](shadow, args, kwargs, meta) if isinstance(one, Ids) else None
    left, right = (thin(shadow.ids_of(value)) for value in (one, other))
    if left.ndim < 2 or right.ndim < 2 or left.ndim != right.ndim:
        return None
    rank = left.ndim
    if rank - 1 in _varies(left) or rank - 2 in _varies(right):
        if rank - 2 in _varies(left) or rank - 1 in _varies(right):
            return None
        one_of_each = left.narrow(-2, 0, 1).squeeze(-2), right.narrow(-1, 0, 1).squeeze(-1)
        shadow.unite(*one_of_each)
        _together(shadow, one_of_each[0].reshape(-1, left.shape[-1]))
        return Ids(shadow.zeros(meta.shape))
    if rank - 1 in _varies(right) and rank - 2 not in _varies(left):
        ids = right.narrow(-2, 0, 1).expand(meta.shape)
        _together(shadow, ids.reshape(-1, ids.shape[-1]))
        return Ids(ids)
    if rank - 2 in _varies(left) and rank - 1 not in _varies(right):
        return Ids(left.narrow(-1, 0, 1).expand(meta.shape))
    return None if _varies(left) or _varies(right) else Ids(shadow.zeros(meta.shape))


def _attention(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    """Queries and keys meet channel by channel; values pass theirs on; each head by itself."""
    if not all(isinstance(value, Ids) for value in args[:3]):
        return None
    query, key, value = (thin(one.ids) for one in args[:3])
    if any(ids.ndim - 2 in _varies(ids) for ids in (query, key, value)) or value.shape[:-2] != meta.shape[:-2]:
        return None
    if query.shape[:-2] != key.shape[:-2]:
        return None
    query, key, value = (ids.narrow(-2, 0, 1) for ids in (query, key, value))
    shadow.unite(query, key)
    for ids in (query, value):
        _together(shadow, ids.reshape(-1, ids.shape[-1]))
    return Ids(value.expand(meta.shape))


def _reduced(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    """A sum over channels holds none."""
    if not isinstance(args[0], Ids) or not isinstance(meta, Tensor):
        return None
    ids = thin(args[0].ids)
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    dims = list(range(ids.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    dims = [dim % ids.ndim for dim in dims]
    if any(dim in dims for dim in _varies(ids)):
        if any(dim not in dims for dim in _varies(ids)):
            return None
        return Ids(shadow.zeros(meta.shape))
    return HANDLERS["mean"](shadow, args, kwargs, meta)


def _prelu(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    if not isinstance(args[0], Ids):
        return None
    if isinstance(args[1], Leaf):
        _ride_second(shadow, args[0].ids, args[1])
    return Ids(args[0].ids)


def _softmax(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    return Ids(args[0].ids) if isinstance(args[0], Ids) and isinstance(meta, Tensor) else None


_MEETING = ("add", "sub", "rsub", "mul", "div", "maximum", "minimum", "where", "masked_fill")

PERMUTING: dict[str, Handler] = {
    **HANDLERS,
    **dict.fromkeys((*ELEMENTWISE, *_MEETING), _elementwise),
    **dict.fromkeys(("batch_norm", "instance_norm", "layer_norm", "rms_norm", "group_norm"), _normalised),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _depthwise_or_layer),
    **dict.fromkeys(("matmul", "bmm"), _contract),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std"), _reduced),
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    "scaled_dot_product_attention": _attention,
    "prelu": _prelu,
}
