"""What the operations of an exported graph do to the identities of channels that may be scaled.

A handler takes the shadow, the arguments and what the graph knows of the result, and returns the identities of the result; None
says that the operation pins what it reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_hypernet.symmetry.shadow import FEW, PINNED, Handler, Ids, Leaf, Shadow, thin, thin_pair

_SPATIAL = {
    **{f"{name}{dims}d": dims for dims in (1, 2, 3) for name in ("conv", "conv_transpose", "avg_pool", "adaptive_avg_pool",
       "adaptive_max_pool", "max_pool")},
    "max_pool2d_with_indices": 2, "upsample_nearest2d": 2, "upsample_bilinear2d": 2, "upsample_bicubic2d": 2,
    "upsample_nearest1d": 1, "upsample_linear1d": 1, "upsample_nearest3d": 3, "upsample_trilinear3d": 3,
}  # fmt: skip
_READING_SHAPES = {
    *(f"new_{kind}" for kind in ("empty", "zeros", "ones", "full")),
    *(f"{kind}_like" for kind in ("empty", "zeros", "ones", "full", "rand", "randn")),
}


def frozen(shadow: Shadow, args: Any) -> bool:
    """Whether a batch or instance norm, of these arguments, keeps its running statistics in training."""
    return shadow.training and args[3] is not None and not args[5]


def _shape_alone(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    """What is made in the shape of an activation does not read it."""
    return Ids(shadow.zeros(meta.shape))


def _homogeneous(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    return Ids(shadow.ids_of(args[0]).expand(meta.shape))


def _pool(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    """Windows take elements of one channel together; the channel may have several identities only if they are one."""
    ids = shadow.ids_of(args[0])
    merged = shadow.merge(ids, list(range(-_SPATIAL[shadow.operation], 0)))
    return tree_map(lambda one: Ids(merged.expand(one.shape)), meta)


def _reduce(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    """Mean, sum and maximum over dimensions."""
    if not isinstance(meta, Tensor):
        return None
    ids = shadow.ids_of(args[0])
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    dims = list(range(ids.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    return Ids(_reshape(shadow.merge(ids, dims), meta.shape))


def _add(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    one, other = args[:2]
    if isinstance(one, Leaf):
        one, other = other, one
    if isinstance(one, Leaf) or not isinstance(one, Ids):
        return None
    if isinstance(other, Leaf):
        ids = one.ids.expand(meta.shape)
        shape = (1,) * (ids.ndim - len(other.shape)) + other.shape
        rows = shadow.merge(ids, [dim for dim, size in enumerate(shape) if size == 1])
        shadow.use(other, rows.reshape(other.shape))
        return Ids(thin(rows.expand(meta.shape)))
    if not isinstance(other, Ids):
        return None
    shadow.unite(one.ids, other.ids)
    return Ids(thin(torch.broadcast_to(_pick(one.ids, other.ids), meta.shape)))


def _multiply(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    one, other = args[:2]
    if not isinstance(one, (Ids, Leaf)):
        one, other = other, one
    if not isinstance(other, (Ids, Leaf)):
        return Ids(shadow.ids_of(one).expand(meta.shape))
    if isinstance(one, Leaf):
        one, other = other, one
    if isinstance(one, Leaf):
        return None
    if isinstance(other, Leaf):
        return None if shadow.in_place else _scale_by(shadow, one.ids.expand(meta.shape), other, meta)
    if shadow.in_place and bool((other.ids != PINNED).any()):
        return None
    return _gate(shadow, one.ids.expand(meta.shape), other.ids.expand(meta.shape))


def _divide(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    """A quotient scales with its numerator if nothing scales its denominator."""
    one, other = args[:2]
    fixed = not isinstance(other, (Ids, Leaf)) or (isinstance(other, Ids) and not bool(other.ids.any()))
    if not isinstance(one, (Ids, Leaf)) or not fixed or kwargs.get("rounding_mode"):
        return None
    return Ids(shadow.ids_of(one).expand(meta.shape))


def _scale_by(shadow: Shadow, ids: Tensor, leaf: Leaf, meta: Any) -> Ids:
    """A parameter that multiplies an activation element by element reads and writes its channels."""
    if math.prod(leaf.shape) > FEW:
        shadow.pin(leaf)
        shadow.pin(Ids(ids))
        return Ids(shadow.zeros(meta.shape))
    shape = (1,) * (ids.ndim - len(leaf.shape)) + leaf.shape
    columns = shadow.merge(ids, [dim for dim, size in enumerate(shape) if size == 1])
    fresh = shadow.write(leaf, leaf.shape, columns.reshape(leaf.shape))
    return Ids(fresh.reshape(shape).expand(meta.shape))


def _gate(shadow: Shadow, one: Tensor, other: Tensor) -> Ids:
    """A product with something pinned passes the other factor on; of two that could scale, both are pinned."""
    one, other = torch.broadcast_tensors(one, other)
    one, other = thin_pair(one, other, keep=True)
    clash = (one != PINNED) & (other != PINNED)
    if clash.any():
        for ids in (one, other):
            shadow.pins.append((shadow.operation, ids[clash].unique()))
    return Ids(torch.where(clash, PINNED, torch.where(one == PINNED, other, one)))


def _affine(shadow: Shadow, weight: Any, bias: Any, count: int) -> Tensor:
    """The identities that a norm layer writes, from its scale and shift."""
    if isinstance(weight, Leaf):
        return _shifted(shadow, shadow.write(weight, weight.shape), bias)
    ids = shadow.zeros((count,)) if weight is None else shadow.ids_of(weight).reshape(-1)
    return _shifted(shadow, ids, bias)


def _shifted(shadow: Shadow, ids: Tensor, bias: Any) -> Tensor:
    """Let a bias scale with what it is added to; a constant one pins it."""
    if isinstance(bias, Leaf):
        shadow.use(bias, ids.reshape(bias.shape))
        shadow.also_written(ids, bias)
    elif bias is not None:
        shadow.unite(ids, shadow.ids_of(bias))
    return ids


def _read_leaf(shadow: Shadow, value: Any, kept: Sequence[int]) -> Tensor:
    """Identities of what a norm layer reads; a parameter gets one for each entry of the kept axes."""
    if not isinstance(value, Leaf):
        return shadow.ids_of(value)
    shape = tuple(size if dim in kept else 1 for dim, size in enumerate(value.shape))
    return shadow.write(value, shape).reshape(shape).expand(value.shape)


def _share_statistics(shadow: Shadow, running: Any, ids: Tensor) -> None:
    """What several calls of one layer read scales together, since it keeps one set of running statistics for all."""
    if running is not None:
        flat = ids.reshape(-1)
        _, first = shadow.normalised.setdefault(id(running), (running, flat))
        shadow.unite(flat, first)


def _batch_norm(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    ids = _read_leaf(shadow, args[0], [1])
    if frozen(shadow, args):
        shadow.pin(Ids(ids))
    _share_statistics(shadow, args[3], shadow.merge(ids, [dim for dim in range(ids.ndim) if dim != 1]))
    meta = meta[0] if isinstance(meta, (tuple, list)) else meta
    written = _affine(shadow, args[1], args[2], ids.shape[1])
    return Ids(written.reshape(1, -1, *(1,) * (ids.ndim - 2)).expand(meta.shape))


def _instance_norm(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    ids = _read_leaf(shadow, args[0], [0, 1])
    if frozen(shadow, args):
        shadow.pin(Ids(ids))
    _share_statistics(shadow, args[3], shadow.merge(ids, list(range(2, ids.ndim)))[:1])
    written = _affine(shadow, args[1], args[2], ids.shape[1])
    return Ids(written.reshape(1, -1, *(1,) * (ids.ndim - 2)).expand(meta.shape))


def _layer_norm(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    shape = list(args[1])
    ids = _read_leaf(shadow, args[0], list(range(len(meta.shape) - len(shape))))
    shadow.merge(ids, list(range(ids.ndim - len(shape), ids.ndim)))
    weight = args[2] if len(args) > 2 else kwargs.get("weight")
    bias = args[3] if len(args) > 3 and shadow.operation == "layer_norm" else kwargs.get("bias")
    return Ids(_affine(shadow, weight, bias, math.prod(shape)).reshape(shape).expand(meta.shape))


def _group_norm(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    ids = _read_leaf(shadow, args[0], [0])
    shadow.merge(ids.reshape(ids.shape[0], args[1], -1), [2])
    weight = args[2] if len(args) > 2 else kwargs.get("weight")
    bias = args[3] if len(args) > 3 else kwargs.get("bias")
    written = _affine(shadow, weight, bias, ids.shape[1])
    return Ids(written.reshape(1, -1, *(1,) * (ids.ndim - 2)).expand(meta.shape))


def _layer(shadow: Shadow, weight: Any, bias: Any, read: Tensor, columns: Tensor, axis: int) -> Tensor:
    """What a linear or convolution layer writes.

    Args:
        shadow: The shadow.
        weight: The weight.
        bias: The bias, or None.
        read: Identities of the input channels.
        columns: Identities of what each element of the weight reads, of a shape that broadcasts against it.
        axis: Axis of the weight that enumerates them.

    Returns:
        ``(outputs,)`` identities.
    """
    if isinstance(weight, Leaf):
        shape = tuple(size if dim == axis else 1 for dim, size in enumerate(weight.shape))
        return _shifted(shadow, shadow.write(weight, shape, columns), bias)
    shadow.pin(Ids(read))
    ids = shadow.ids_of(weight)
    return _shifted(shadow, shadow.merge(ids, [dim for dim in range(ids.ndim) if dim != axis]).reshape(-1), bias)


def _linear(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    if isinstance(args[0], Leaf):
        return None
    ids = shadow.ids_of(args[0])
    read = shadow.merge(ids, list(range(ids.ndim - 1))).reshape(-1)
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    written = _layer(shadow, args[1], bias, read, read[None], 0)
    return Ids(written.expand(meta.shape))


def _conv(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    named = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, strict=False)) | kwargs
    if isinstance(named["input"], Leaf):
        return None
    ids, groups = shadow.ids_of(named["input"]), named.get("groups", 1)
    channel = meta.ndim - 1 - _SPATIAL[shadow.operation]
    read = shadow.merge(ids, [dim for dim in range(ids.ndim) if dim != channel]).reshape(-1)
    outputs = meta.shape[channel]
    spatial = (1,) * _SPATIAL[shadow.operation]
    columns = read.reshape(groups, 1, -1)
    if groups > 1:
        columns = columns.expand(groups, outputs // groups, -1).reshape(outputs, 1, -1)
    columns = columns.reshape(-1, columns.shape[-1], *spatial)
    return _over_space(shadow, _layer(shadow, named["weight"], named.get("bias"), read, columns, 0), meta)


def _conv_transpose(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups")
    named = dict(zip(names, args, strict=False)) | kwargs
    if isinstance(named["input"], Leaf) or not isinstance(named["weight"], Leaf) or named["weight"].index is not None:
        return None
    ids, groups, weight = shadow.ids_of(named["input"]), named.get("groups", 1), named["weight"]
    channel = meta.ndim - 1 - _SPATIAL[shadow.operation]
    read = shadow.merge(ids, [dim for dim in range(ids.ndim) if dim != channel]).reshape(-1)
    outputs = meta.shape[channel]
    inputs, spatial = weight.shape[0], (1,) * _SPATIAL[shadow.operation]
    fresh = shadow.fresh_writer(outputs)
    rows = fresh.reshape(groups, 1, -1).expand(groups, inputs // groups, -1).reshape(inputs, -1, *spatial)
    shadow.use(weight, rows, read.reshape(-1, 1, *spatial))
    shadow.also_written(fresh, weight)
    return _over_space(shadow, _shifted(shadow, fresh, named.get("bias")), meta)


def _over_space(shadow: Shadow, written: Tensor, meta: Any) -> Ids:
    return Ids(written.reshape(-1, *(1,) * _SPATIAL[shadow.operation]).expand(meta.shape))


def _embedding(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    if not isinstance(args[0], Leaf):
        return None
    return Ids(shadow.write(args[0], (1, meta.shape[-1])).expand(meta.shape))


def _matmul(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    one, other = args[:2]
    if isinstance(other, Leaf) and isinstance(one, Ids) and len(other.shape) == 2:
        read = shadow.merge(one.ids, list(range(one.ids.ndim - 1))).reshape(-1)
        return Ids(_layer(shadow, other, None, read, read[:, None], 1).expand(meta.shape))
    if isinstance(one, Leaf) or isinstance(other, Leaf):
        return None
    left, right = shadow.ids_of(one), shadow.ids_of(other)
    if not left.any() and right.ndim > 1:
        return Ids(shadow.merge(right, [right.ndim - 2]).expand(meta.shape))
    if not right.any() and left.ndim > 1:
        return Ids(shadow.merge(left, [left.ndim - 1]).expand(meta.shape))
    return None


def _attention(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    query, key, value = args[:3]
    for other in (query, key, *args[3:], *kwargs.values()):
        shadow.pin(other)
    if isinstance(value, Leaf):
        return None
    ids = shadow.ids_of(value)
    if ids.shape[:-2] != meta.shape[:-2]:
        return None
    return Ids(shadow.merge(ids, [ids.ndim - 2]).expand(meta.shape))


def _prelu(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    shadow.pin(args[1])
    return Ids(shadow.ids_of(args[0]))


def _pad(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    """Padding with zeros, which fit any scale: along axes of one identity they take it, else they get their own."""
    mode = args[2] if len(args) > 2 and isinstance(args[2], str) else kwargs.get("mode", "constant")
    value = args[3] if len(args) > 3 else kwargs.get("value")
    if shadow.operation == "constant_pad_nd":
        value = args[2] if len(args) > 2 else 0
    if isinstance(args[0], Leaf) or (mode == "constant" and value):
        return None
    ids = thin(shadow.ids_of(args[0]))
    for index in range(len(args[1]) // 2):
        dim = ids.ndim - 1 - index
        before, after = args[1][2 * index : 2 * index + 2]
        size = ids.shape[dim] + before + after
        if ids.shape[dim] == 1 or not ids.stride(dim):
            ids = ids.narrow(dim, 0, 1).expand(*(size if axis == dim else -1 for axis in range(ids.ndim)))
        elif before < 0 or after < 0 or mode != "constant":
            return None
        else:
            shapes = [[count if axis == dim else 1 for axis in range(ids.ndim)] for count in (before, after)]
            sides = [shadow.fresh(math.prod(shape)).reshape(shape) for shape in shapes]
            full = [side.expand(*(-1 if axis == dim else length for axis, length in enumerate(ids.shape))) for side in sides]
            ids = torch.cat([full[0], ids, full[1]], dim)
    return Ids(ids)


def _extreme(shadow: Shadow, args: Any, kwargs: Any, meta: Any) -> Any:
    """The larger of two activations scales with both."""
    if not all(isinstance(value, Ids) for value in args[:2]):
        return None
    return _add(shadow, args, kwargs, meta)


def _pick(one: Tensor, other: Tensor) -> Tensor:
    """The identities of the two, which are united, that vary least."""
    one, other = torch.broadcast_tensors(one, other)
    return one if sum(map(bool, one.stride())) <= sum(map(bool, other.stride())) else other


def _reshape(ids: Tensor, shape: Sequence[int]) -> Tensor:
    """To a shape that differs by axes of size 1."""
    strides = [stride for size, stride in zip(ids.shape, ids.stride(), strict=True) if size > 1]
    strides_iterator = iter(strides)
    return ids.as_strided(
        tuple(shape), tuple(next(strides_iterator) if size > 1 else 0 for size in shape), ids.storage_offset()
    )


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_READING_SHAPES, _shape_alone),
    **dict.fromkeys(("relu", "leaky_relu", "rrelu", "neg", "abs"), _homogeneous),
    **dict.fromkeys(
        (name for name in _SPATIAL if not name.startswith("conv")),
        _pool,
    ),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(("add", "sub"), _add),
    "mul": _multiply,
    "div": _divide,
    **dict.fromkeys(("maximum", "minimum"), _extreme),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "group_norm": _group_norm,
    "linear": _linear,
    "embedding": _embedding,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    "prelu": _prelu,
}
