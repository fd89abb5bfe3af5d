"""Alignment: how near networks come to each other when their channels are permuted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_hypernet.symmetry.gauge import Gauge, PermutationGauge
from lightning_hypernet.symmetry.order import Block

_SWEEPS = 50
_LEAST = 1e-7


def align(weights: Mapping[str, Tensor], reference: Mapping[str, Tensor], blocks: Sequence[Block]) -> Mapping[str, Tensor]:
    """Permute the channels of networks so that they come to lie as near as can be to other networks.

    Weight matching: one block after the other is matched by linear assignment while the others stay, until nothing comes
    nearer. The problem is NP-hard; what is found is a local optimum, never farther than the start.

    References:
        | Git Re-Basin: Merging Models modulo Permutation Symmetries (Ainsworth et al., 2022)
        | https://arxiv.org/abs/2209.04836

    Args:
        weights: ``{name: (S, *shape)}``.
        reference: ``{name: (S, *shape)}``, what each is matched with.
        blocks: The blocks of interchangeable channels of the target.

    Returns:
        Weights of the same functions.
    """
    from scipy.optimize import linear_sum_assignment

    for _ in range(_SWEEPS):
        changed = False
        for block in blocks:
            likeness = sum(axis.gather(weights) @ axis.gather(reference).mT for axis in block.axes)
            assert isinstance(likeness, Tensor)
            matches = [linear_sum_assignment(one.T, maximize=True)[1] for one in likeness.detach().double().cpu().numpy()]
            order = torch.as_tensor(np.stack(matches), device=likeness.device)
            before, after = (_likeness(one, reference, block) for one in (weights, block.permute(weights, order)))
            nearer = after > before + _LEAST * before.abs()
            if nearer.any():
                stay = torch.arange(block.size, device=order.device)
                weights, changed = block.permute(weights, torch.where(nearer[:, None], order, stay)), True
        if not changed:
            break
    return weights


def _likeness(weights: Mapping[str, Tensor], reference: Mapping[str, Tensor], block: Block) -> Tensor:
    """Inner product of all that a block touches: ``(S,)``."""
    names = {axis.parameter for axis in block.axes}
    return torch.stack([(weights[name] * reference[name]).reshape(len(weights[name]), -1).sum(1) for name in names]).sum(0)


def symmetry_distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor], gauge: Gauge, blocks: Sequence[Block]) -> Tensor:
    r"""Distance of networks from others, relative to their size, after their symmetries are taken out.

    .. math:: |w - w'| \Big/ \sqrt{\tfrac{1}{2} (|w|^2 + |w'|^2)}

    of the gauge-fixed weights, those of the other networks aligned: 0 for networks that a symmetry maps to each other, up to
    about 1.41 for independent ones. Alignment starts as they are and from sorted channels; the nearer one counts.

    Args:
        one: ``{name: (S, *shape)}``.
        other: ``{name: (S, *shape)}``.
        gauge: Fixes the scales.
        blocks: The blocks of interchangeable channels of the target.

    Returns:
        ``(S,)``.
    """
    one, other = gauge(one), gauge(other)
    by_key = PermutationGauge(blocks)
    sorted_one, sorted_other = by_key(one), by_key(other)
    pairs = ((one, align(other, one, blocks)), (sorted_one, align(sorted_other, sorted_one, blocks)))
    nearest = torch.stack([_squares({name: here[name] - there[name] for name in here}) for here, there in pairs]).amin(0)
    return (nearest * 2 / (_squares(one) + _squares(other))).sqrt()


def _squares(weights: Mapping[str, Tensor]) -> Tensor:
    """Sum of squares of all weights of each network: ``(S,)``."""
    return torch.stack([value.reshape(len(value), -1).square().sum(1) for value in weights.values()]).sum(0)
