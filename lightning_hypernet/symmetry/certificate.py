"""Certificates: a run decides which of the permutations that a graph proposes leave the target's function unchanged.

Networks of random weights, in double precision, must compute the same before and after a random permutation, in evaluation and
in training. They are tried on smaller inputs first, if the target takes them: what stands there must stand on the inputs
themselves once more, and what does not is tried on them alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hypernet.symmetry.graph import reading
from lightning_hypernet.symmetry.order import Block
from lightning_hypernet.symmetry.randomised import Network, Randomised

_TOLERANCE = 1e-8
_SHOWN = 1e-4
_PARTS = 4


def certify(proposed: Sequence[Block], target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Block]:
    """The blocks that are symmetries.

    Args:
        proposed: The blocks that the target's graph proposes.
        target: The target with weights of its own.
        args: Example arguments.
        kwargs: Example keyword arguments.

    Returns:
        Those of the proposed blocks that runs show to be symmetries, in their order. A target that runs in evaluation alone
        shows those of evaluation.

    Raises:
        SymmetryError: If the target can't be run in double precision.
    """
    if not proposed:
        return []
    with reading(f"{type(target).__name__} can't be run in double precision, which certifies permutations"):
        random = Randomised(target, args, kwargs)
        certified = _certified_on_less(proposed, random)
        rest = _without(proposed, certified)
        for batch_statistics in (True, False):
            if rest:
                certificate = Certificate(
                    random.network(random.call, False, batch_statistics), _trained(random), random.weights
                )
                shown = certificate.shown(rest)
                certified += certificate.of(shown)
                rest = _without(rest, shown)
    return [block for block in proposed if _among(block, certified)]


def _certified_on_less(proposed: Sequence[Block], random: Randomised) -> list[Block]:
    """The blocks that smaller inputs show to be symmetries, and the inputs themselves do not refute."""
    whole = [random.network(random.call, training) for training in (False, True)]
    for call in random.smaller():
        certificate = Certificate(random.network(call), [random.network(call, training=True)], random.weights, whole)
        with suppress(Exception):  # whatever the target raises
            return certificate.of(certificate.shown(proposed))
    return []


def _trained(random: Randomised) -> list[Network]:
    """The networks in training mode; none if they can't be run."""
    network = random.network(random.call, training=True)
    try:
        network.expected(0)
    except Exception:  # whatever the target raises
        return []
    return [network]


def _among(block: Block, blocks: Sequence[Block]) -> bool:
    return any(block is one for one in blocks)


def _without(blocks: Sequence[Block], others: Sequence[Block]) -> list[Block]:
    return [block for block in blocks if not _among(block, others)]


class Certificate:
    """Runs random networks of a target before and after permutations.

    A run shows something of a block only if its first parameter, permuted alone, moves the output by much more than rounding
    does; it does not where outputs are saturated or vanish.

    Args:
        network: The target.
        others: The target in other modes, which must compute the same as well; they see parts two by two.
        draws: The random weights, each ``{name: (1, *shape)}``.
        whole: What must compute the same once at last.
    """

    def __init__(
        self,
        network: Network,
        others: Sequence[Network],
        draws: Sequence[Mapping[str, Tensor]],
        whole: Sequence[Network] = (),
    ) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.network, self.networks, self.draws, self.whole = network, [network, *others], draws, whole

    def of(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks that are symmetries, found by halving."""
        if not blocks or self._holds(blocks):
            return list(blocks)
        if len(blocks) == 1:
            return []
        half = len(blocks) // 2
        return self.of(blocks[:half]) + self.of(blocks[half:])

    def _holds(self, blocks: Sequence[Block]) -> bool:
        """Part by part, and in other parts in the next draw: what holds only together is parted.

        A cycle through all of a block's channels and one through all but the last generate every permutation of them.
        """
        places = torch.randperm(len(blocks), generator=self.generator).tolist()
        channels = [torch.randperm(block.size, generator=self.generator) for block in blocks]
        for draw, weights in enumerate(self.draws):
            digits = [place // _PARTS**draw % _PARTS for place in places]
            parts = sorted(set(digits))
            for part in parts:
                for block, order in ((blocks[k], channels[k]) for k, digit in enumerate(digits) if digit == part):
                    weights = block.permute(weights, _cycle(order, block.size if draw else max(block.size - 1, 2)))
                networks = self.networks if part % 2 or part == parts[-1] else self.networks[:1]
                if not self._unchanged(networks, weights, draw):
                    return False
        return self._unchanged(self.whole, weights, draw)

    def _unchanged(self, networks: Sequence[Network], weights: Mapping[str, Tensor], draw: int) -> bool:
        for network in networks:
            expected = network.expected(draw)
            if not (network(weights) - expected).abs().max() < _TOLERANCE * expected.abs().max():
                return False
        return True

    def shown(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks that a run shows something of."""
        for draw in range(len(self.draws)):
            blocks = self._shown(draw, blocks)
        return list(blocks)

    def _shown(self, draw: int, blocks: Sequence[Block]) -> list[Block]:
        weights, expected = self.draws[draw], self.network.expected(draw)
        slopes = self._slopes(weights, sorted({block.axes[0].parameter for block in blocks}))
        shown = []
        for block in blocks:
            axis = block.axes[0]
            order = _cycle(torch.randperm(block.size, generator=self.generator), block.size)
            moved = axis.permute(weights[axis.parameter], order)
            if slopes is None:
                change = (self.network({**weights, axis.parameter: moved}) - expected).abs().max()
            else:
                change = ((moved - weights[axis.parameter]) * slopes[axis.parameter]).abs().sum()
            if change > _SHOWN * expected.abs().max():
                shown.append(block)
        return shown

    def _slopes(self, weights: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor] | None:
        """The gradients of a random projection of the output; None where the target has none."""
        leaves = {name: weights[name].clone().requires_grad_() for name in names}
        try:
            outputs = self.network({**weights, **leaves})
            direction = torch.randn(outputs.shape, generator=self.generator, dtype=torch.float64)
            slopes = torch.autograd.grad((outputs * direction).sum(), list(leaves.values()), materialize_grads=True)
        except RuntimeError:
            return None
        return dict(zip(names, slopes, strict=True))


def _cycle(channels: Tensor, length: int) -> Tensor:
    """The permutation, ``(1, n)``, that puts each of the first channels in the place of the one before."""
    order = torch.arange(len(channels))
    order[channels[:length]] = channels[:length].roll(1)
    return order[None]
