"""Blocked: inputs in the blocks and the memory layout that caches like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as everywhere
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_hypernet.target.arguments import Arguments

BLOCK = 256
"""Examples in a block."""

_CHANNELS = 64
"""Channels from which on the gradient of a strided convolution of single pixels is safe with channels last; 16 by trial."""


def may_block(template: nn.Module, arguments: Arguments) -> bool:
    """Whether a batch may be run block by block: it is long, nothing trains, and no hook counts the calls."""
    if torch.is_grad_enabled() or arguments.parts or arguments.batch < 2 * BLOCK or {*arguments.axes} - {0, None}:
        return False
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return False
    return not any(one.training or one._forward_hooks or one._forward_pre_hooks for one in template.modules())


def has_images(template: nn.Module, arguments: Arguments) -> bool:
    """Whether an input may have its channels last."""
    if torch.is_grad_enabled() and any(_overruns(one) for one in template.modules()):
        return False
    return any(_is_images(leaf) and leaf.is_contiguous() for leaf in arguments.tensors)


def _overruns(module: nn.Module) -> bool:
    """Whether torch's gradient of a layer writes past its memory where channels lie last, as it does on CPUs."""
    if not isinstance(module, nn.Conv2d):
        return False
    return module.kernel_size == (1, 1) and max(module.stride) > 1 and module.in_channels // module.groups < _CHANNELS


def channels_last(leaf: Any) -> Any:
    """An input with its channels last in memory, if it is a batch of images; the same numbers."""
    return leaf.to(memory_format=torch.channels_last) if _is_images(leaf) else leaf


def channels_first(leaf: Any) -> Any:
    """An output as it comes of inputs with their channels first."""
    return leaf.contiguous() if _is_images(leaf) else leaf


def _is_images(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim == 4 and leaf.is_floating_point()


def blocks_of(arguments: Arguments) -> list[Arguments]:
    """The same call, block by block."""
    pairs = zip(arguments.leaves, arguments.axes, strict=True)
    split = [leaf.split(BLOCK) if axis == 0 else None for leaf, axis in pairs]
    count = -(-arguments.batch // BLOCK)
    return [
        Arguments(*arguments.restore([leaf if parts is None else parts[index]
                                      for leaf, parts in zip(arguments.leaves, split, strict=True)]))
        for index in range(count)
    ]  # fmt: skip


def put_together(outputs: Sequence[Any], blocks: Sequence[Arguments]) -> Any:
    """The output for the whole batch.

    Raises:
        RuntimeError: If the outputs are not tensors whose first axis follows the batch.
    """
    flat, specs = zip(*(tree_flatten(output) for output in outputs), strict=True)
    sizes = [block.batch for block in blocks]
    columns = list(zip(*flat, strict=False))
    for column in columns:
        if any(not isinstance(leaf, Tensor) or leaf.shape[:1] != (size,) for leaf, size in zip(column, sizes, strict=True)):
            raise RuntimeError("its outputs do not follow the batch along their first axis")
    return tree_unflatten([torch.cat(column) for column in columns], specs[0])
