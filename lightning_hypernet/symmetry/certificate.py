"""Certificates: a run decides which of the permutations that a graph proposes leave the target's function unchanged.

Networks of random weights, in double precision, must compute the same before and after a random permutation, in evaluation and
in training.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hypernet.symmetry.graph import SymmetryError, in_training, reading
from lightning_hypernet.symmetry.order import Block

_TOLERANCE = 1e-8
_DRAWS = 2
_PARTS = 2
_SHOWN = 1e-4


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
    certified: set[int] = set()
    rest = list(proposed)
    for batch_statistics in (True, False):
        if rest:
            with reading(f"{type(target).__name__} can't be run in double precision, which certifies permutations"):
                certificate = Certificate(target, args, kwargs, batch_statistics)
                shown = certificate.shown(rest)
                certified |= {id(block) for block in certificate.of(shown)}
            rest = [block for block in rest if not any(block is one for one in shown)]
    blocks = [block for block in proposed if id(block) in certified]
    try:
        with reading("it can't be run in training mode"):
            return Certificate(target, args, kwargs, batch_statistics=True, training=True).of(blocks) if blocks else []
    except SymmetryError:
        return blocks


class Certificate:
    """Runs a target of random weights on random inputs before and after permutations.

    A run shows something of a block only if its first parameter, permuted alone, moves the output by much more than rounding
    does; it does not where outputs are saturated or vanish.

    Args:
        target: The target.
        args: Example arguments.
        kwargs: Example keyword arguments.
        batch_statistics: Whether norm layers use the statistics of the batch, which keep activations in bounds but with few
            values in a channel forget what comes in; else mean 0 and variance 1. Frozen ones keep their own.
        training: Whether the target runs in training mode, with nothing dropped.
    """

    def __init__(
        self,
        target: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        batch_statistics: bool,
        training: bool = False,
    ) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.target = in_training(copy.deepcopy(target).cpu().double())
        self.arguments = tree_map(self._noisy, (args, kwargs))
        norms = [one for one in self.target.modules() if isinstance(one, _NormBase) and one.training]
        if not training:
            self.target.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.train(batch_statistics)
        self.draws = [self._random_weights() for _ in range(_DRAWS)]
        try:
            self._run(self.draws[0])
        except ValueError:  # statistics of a batch need more than one value per channel
            for norm in norms:
                norm.eval()
        self.expected = [self._run(weights) for weights in self.draws]

    def of(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks that are symmetries, found by halving."""
        if not blocks or self._holds(blocks):
            return list(blocks)
        if len(blocks) == 1:
            return []
        half = len(blocks) // 2
        return self.of(blocks[:half]) + self.of(blocks[half:])

    def _holds(self, blocks: Sequence[Block]) -> bool:
        """All together, and parts of them: what holds only together is no symmetry of each."""
        parts = [blocks, *([block for block in blocks if self._coin()] for _ in range(_PARTS))]
        return all(self._unchanged(part, draw) for part in parts for draw in range(_DRAWS))

    def _coin(self) -> bool:
        return bool(torch.rand((), generator=self.generator) < 0.5)

    def _unchanged(self, blocks: Sequence[Block], draw: int) -> bool:
        weights, expected = self.draws[draw], self.expected[draw]
        for block in blocks:
            weights = block.permute(weights, self._order(block.size))
        return bool((self._run(weights) - expected).abs().max() < _TOLERANCE * expected.abs().max())

    def _order(self, size: int) -> Tensor:
        """A random permutation, ``(1, size)``, that is not the identity."""
        while True:
            order = torch.randperm(size, generator=self.generator)
            if not torch.equal(order, torch.arange(size)):
                return order[None]

    def shown(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks that a run shows something of."""
        for draw in range(_DRAWS):
            blocks = self._shown(draw, blocks)
        return list(blocks)

    def _shown(self, draw: int, blocks: Sequence[Block]) -> list[Block]:
        weights, expected = self.draws[draw], self.expected[draw]
        slopes = self._slopes(weights, sorted({block.axes[0].parameter for block in blocks}))
        shown = []
        for block in blocks:
            axis = block.axes[0]
            moved = axis.permute(weights[axis.parameter], self._order(block.size))
            if slopes is None:
                change = (self._run({**weights, axis.parameter: moved}) - expected).abs().max()
            else:
                change = ((moved - weights[axis.parameter]) * slopes[axis.parameter]).abs().sum()
            if change > _SHOWN * expected.abs().max():
                shown.append(block)
        return shown

    def _slopes(self, weights: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor] | None:
        """The gradients of a random projection of the output; None where the target has none."""
        leaves = {name: weights[name].clone().requires_grad_() for name in names}
        try:
            outputs = self._run({**weights, **leaves})
            direction = torch.randn(outputs.shape, generator=self.generator, dtype=torch.float64)
            slopes = torch.autograd.grad((outputs * direction).sum(), list(leaves.values()), materialize_grads=True)
        except RuntimeError:
            return None
        return dict(zip(names, slopes, strict=True))

    def _random_weights(self) -> dict[str, Tensor]:
        weights = {}
        for name, value in self.target.named_parameters():
            noise = torch.randn(value.shape, generator=self.generator, dtype=torch.float64)
            weights[name] = (value.detach() + (value.detach().std(correction=0) + 0.02) * noise)[None]
        return weights

    def _noisy(self, value: Any) -> Any:
        """In double precision, with noise of its own size."""
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point():
            return value.cpu()
        value = value.detach().cpu().double()
        size = float(value.std(correction=0)) if value.numel() > 1 else 0.0
        return value + (size or 1.0) * torch.randn(value.shape, generator=self.generator, dtype=torch.float64)

    def _run(self, weights: Mapping[str, Tensor]) -> Tensor:
        args, kwargs = self.arguments
        graded = any(one.requires_grad for one in weights.values())
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(graded), _NothingDropped():
            torch.default_generator.manual_seed(0)
            outputs = torch.func.functional_call(self.target, {name: one[0] for name, one in weights.items()}, args, kwargs)
        leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        return torch.cat([leaf.double().reshape(-1) for leaf in leaves])


class _NothingDropped(TorchDispatchMode):
    """Within, every coin comes up one: dropout, whose coins a permutation does not move, drops nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name == "aten::bernoulli_.float":
            return args[0].fill_(1.0)
        if name.startswith("aten::rrelu_with_noise"):
            args = (*args[:4], False)  # the mean slope
        return func(*args, **(kwargs or {}))
