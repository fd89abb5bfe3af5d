"""Permutations of channels that leave a target's function unchanged: proposed by its graph, certified by running it.

Next to every activation go the identities of its channels. Every operation that treats channels alike passes them on, layers
write fresh ones, and what meets element by element is one channel. Channels that every parameter holds in the same places are
a block. What the graph can't show (whether a map is read in the same order for all of them, say) a run decides: networks of
random weights, in double precision, must compute the same before and after a random permutation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hypernet.symmetry.graph import SymmetryError, components, export, run_shadow
from lightning_hypernet.symmetry.order_rules import PERMUTING
from lightning_hypernet.symmetry.shadow import PINNED, Shadow, compact, thin

_TOLERANCE = 1e-8
_DRAWS = 2
_PARTS = 2
_SHOWN = 1e-4


@dataclass(frozen=True)
class Part:
    """Where a parameter holds the channels of a block.

    Args:
        parameter: Name of the parameter.
        axis: The axis that holds them.
        index: ``(n, m)``, for each of the n channels its m places along that axis.
    """

    parameter: str
    axis: int
    index: Tensor

    def gather(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The numbers of every channel: ``(S, n, m * rest)``."""
        index = self.index.to(weights[self.parameter].device)
        picked = weights[self.parameter].index_select(self.axis + 1, index.reshape(-1))
        moved = picked.movedim(self.axis + 1, 1)
        return moved.reshape(len(moved), len(index), -1)

    def permute(self, weight: Tensor, order: Tensor) -> Tensor:
        """Put channel ``order[s, i]`` of network s in place i, in a weight ``(S, *shape)``."""
        index = self.index.to(weight.device)
        places = torch.arange(weight.shape[self.axis + 1], device=weight.device).repeat(len(order), 1)
        places[:, index.reshape(-1)] = index[order].reshape(len(order), -1)
        shape = [1] * weight.ndim
        shape[0], shape[self.axis + 1] = places.shape
        return weight.gather(self.axis + 1, places.reshape(shape).expand_as(weight))


@dataclass(frozen=True)
class Block:
    """Channels that may be permuted among each other.

    Args:
        size: n, their number.
        parts: Everything that is permuted along; first where they are written first.
    """

    size: int
    parts: tuple[Part, ...]

    def permute(self, weights: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        """Permute every network.

        Args:
            weights: ``{name: (S, *shape)}``; some may be missing.
            order: ``(S, n)``, which channel comes to each place.

        Returns:
            Weights of the same functions.
        """
        permuted = dict(weights)
        for part in self.parts:
            if part.parameter not in weights:
                continue
            permuted[part.parameter] = part.permute(permuted[part.parameter], order)
        return permuted


def read_permutations(
    target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], generated: Sequence[str]
) -> list[Block]:
    """Read the blocks of interchangeable channels off a target's exported graph, and certify them.

    References:
        | Git Re-Basin: Merging Models modulo Permutation Symmetries (Ainsworth et al., 2022)
        | https://arxiv.org/abs/2209.04836

    Args:
        target: The target with its own weights.
        args: Example arguments.
        kwargs: Example keyword arguments.
        generated: Names of the parameters that may be permuted.

    Returns:
        The blocks in topological order.

    Raises:
        SymmetryError: If the target cannot be exported or its graph can't be read.
    """
    shadow = run_shadow(export(target, args, kwargs), generated, PERMUTING)
    proposed = _propose(shadow)
    certified: set[int] = set()
    rest = proposed
    for batch_statistics in (True, False):
        if rest:
            try:
                certificate = _Certificate(target, args, kwargs, batch_statistics)
            except RuntimeError as error:
                what = f"{type(target).__name__} can't be run in double precision, which certifies permutations"
                raise SymmetryError(f"{what}: {error}") from error
            shown = certificate.shown(rest)
            certified |= {id(block) for block in certificate.of(shown)}
            rest = [block for block in rest if not any(block is one for one in shown)]
    return [block for block in proposed if id(block) in certified]


def _propose(shadow: Shadow) -> list[Block]:
    """Channels with the same places in the same parameters."""
    edges = shadow.edges + [torch.stack([ids, ids * 0]) for _, ids in shadow.pins]
    label = components(shadow.count, edges)
    axes: list[tuple[str, int, Tensor]] = []
    for name, use in shadow.uses.items():
        for ids in (use.rows, use.columns):
            roles = compact(thin(torch.where(ids < 0, PINNED, label[ids.clamp(min=0)])))
            varying = [axis for axis, size in enumerate(roles.shape) if size > 1]
            if len(varying) == 1:
                axes.append((name, varying[0], roles.reshape(-1)))
            else:
                edges.append(torch.stack([roles.unique(), roles.unique() * 0]))
    label = components(shadow.count, edges)
    held: dict[int, list[tuple[str, int, list[int]]]] = {}
    for name, axis, ids in axes:
        roles = label[ids]
        order = roles.argsort(stable=True)
        found, counts = roles[order].unique_consecutive(return_counts=True)
        for role, where in zip(found.tolist(), order.split(counts.tolist()), strict=True):
            if role != PINNED:
                held.setdefault(role, []).append((name, axis, where.tolist()))
    context = _contexts(shadow, label)
    alike: dict[Any, list[int]] = {}
    for role in sorted(held):
        places = tuple((name, axis, tuple(place - each[0] for place in each)) for name, axis, each in held[role])
        alike.setdefault((places, tuple(context.get(role, ()))), []).append(role)
    blocks = []
    for same in alike.values():
        if len(same) > 1:
            slots = range(len(held[same[0]]))
            parts = [Part(*held[same[0]][k][:2], torch.tensor([held[role][k][2] for role in same])) for k in slots]
            blocks.append(Block(len(same), tuple(parts)))
    return blocks


def _contexts(shadow: Shadow, label: Tensor) -> dict[int, list[tuple[int, int]]]:
    """For every channel the sets it was taken together in, such as the heads of attention."""
    context: dict[int, list[tuple[int, int]]] = {}
    for number, (_, ids) in enumerate(shadow.together):
        for row, members in enumerate(ids.tolist()):
            for role in {int(label[one]) for one in members}:
                context.setdefault(role, []).append((number, row))
    return context


class _Certificate:
    """Runs a target of random weights on random inputs before and after permutations.

    A run shows something of a block only if its first parameter, permuted alone, moves the output by much more than rounding
    does; it does not where outputs are saturated or vanish.

    Args:
        target: The target.
        args: Example arguments.
        kwargs: Example keyword arguments.
        batch_statistics: Whether norm layers use the statistics of the batch, which keep activations in bounds but with few
            values in a channel forget what comes in; else mean 0 and variance 1.
    """

    def __init__(self, target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch_statistics: bool) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.target = copy.deepcopy(target).cpu().double().eval()
        self.arguments = tree_map(self._noisy, (args, kwargs))
        norms = [module for module in self.target.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
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
        slopes = self._slopes(weights, sorted({block.parts[0].parameter for block in blocks}))
        shown = []
        for block in blocks:
            part = block.parts[0]
            moved = part.permute(weights[part.parameter], self._order(block.size))
            if slopes is None:
                change = (self._run({**weights, part.parameter: moved}) - expected).abs().max()
            else:
                change = ((moved - weights[part.parameter]) * slopes[part.parameter]).abs().sum()
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
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(any(one.requires_grad for one in weights.values())):
            torch.default_generator.manual_seed(0)
            outputs = torch.func.functional_call(self.target, {name: one[0] for name, one in weights.items()}, args, kwargs)
        leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        return torch.cat([leaf.double().reshape(-1) for leaf in leaves])
