"""Spread: an ensemble whose members lie on several ranks."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.shards import is_sharded
from lightning_hypernet.target.joining import PerNetwork
from lightning_hypernet.target.reduction import reduce_outputs
from lightning_hypernet.values import instance, whole


class Spread(nn.Module):
    r"""An ensemble of which every rank holds and runs a share, and whose outputs all ranks have.

    Of N members and R ranks, the first :math:`N \bmod R` ranks hold :math:`\lceil N / R \rceil`, the others
    :math:`\lfloor N / R \rfloor`, in the members' order. All ranks must be called together, with the same inputs: give a
    trainer ``use_distributed_sampler=False``. There are no gradients. Where no ranks were set up, one process runs all.

    References:
        | PyTorch Distributed: Experiences on Accelerating Data Parallel Training (Li et al., 2020)
        | https://arxiv.org/abs/2006.15704

    Args:
        ensemble: The ensemble, the same on every rank, as one that was loaded is; one process takes it as its own.

    Raises:
        ValueError: If the ranks hold different ensembles, or there are more ranks than members.

    Example:
        >>> hypernet = Hypernet(nn.Linear(4, 2)).eval()
        >>> Spread.draw(hypernet, 5)(torch.randn(8, 4)).shape
        torch.Size([8, 2])
    """

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        instance("ensemble", ensemble, Ensemble, "such as one that was loaded; Spread.draw takes a Hypernet")
        own = _shares(len(ensemble))[_rank()]
        values = [ensemble.latents.z, *ensemble.weights.tensors().values()]
        _refuse_others(values, "the ranks hold different ensembles: load one folder on all of them, or call Spread.draw")
        self._hold(ensemble if _ranks() == 1 else ensemble[own], len(ensemble))

    def _hold(self, share: Ensemble, count: int) -> None:
        self.share, self.count, self.reduce = share, count, share.reduce
        self._seen = False
        self.eval()

    @classmethod
    def draw(
        cls,
        hypernet: Hypernet,
        n: int,
        component: int | None = None,
        context: Tensor | None = None,
        loader: Iterable[Any] | None = None,
    ) -> Spread:
        """Draw n networks together; every rank makes its share of them alone.

        Args:
            hypernet: The Hypernet, with the same parameters on every rank.
            n: How many, on all ranks together.
            component: As in `Hypernet.sample`.
            context: As in `Hypernet.sample`.
            loader: Training data, the same on every rank, as in `Hypernet.ensemble`.

        Returns:
            What one process has of the latents that rank 0 draws.

        Raises:
            ValueError: If there are more ranks than networks, or the ranks hold different hypernetworks.
        """
        own = _shares(whole("n", n))[_rank()]
        made_of = [one for one in (*hypernet.parameters(), *hypernet.generator.buffers()) if not is_sharded(one)]
        _refuse_others(
            made_of, "the ranks hold different hypernetworks: load one checkpoint on all of them, or train them first"
        )
        latents = hypernet.draw(n, component, context)
        if _ranks() > 1:
            for one in (latents.z, latents.component, latents.context):
                if one is not None:
                    one.copy_(_first(one))
        spread = cls.__new__(cls)
        nn.Module.__init__(spread)
        spread._hold(hypernet.ensemble(hypernet.decode(latents[own]), loader=loader), n)
        return spread

    def __len__(self) -> int:
        return self.count

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The joined outputs of all members."""
        return reduce_outputs(self.members(*args, **kwargs), self.reduce, (*args, *kwargs.values()))

    @torch.no_grad()
    def members(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of all members on every rank, each tensor ``(members, ...)``.

        Raises:
            ValueError: If the ranks are given different inputs at the first call.
            TypeError: If the members return outputs of different shapes.
        """
        if not self._seen:
            inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            _refuse_others(inputs, "the ranks were given different inputs: pass use_distributed_sampler=False to the trainer")
            self._seen = True
        outputs = self.share.members(*args, **kwargs)
        return tree_map(self._gathered, outputs, is_leaf=lambda leaf: isinstance(leaf, PerNetwork))

    def _gathered(self, leaf: Any) -> Any:
        if isinstance(leaf, PerNetwork):
            raise TypeError("the members return outputs whose shapes differ, which ranks can't exchange; use one process")
        if not isinstance(leaf, Tensor) or _ranks() == 1:
            return leaf
        sizes = [own.stop - own.start for own in _shares(self.count)]
        padded = leaf.new_zeros(sizes[0], *leaf.shape[1:])
        padded[: len(leaf)] = leaf
        return torch.cat([part[:size] for part, size in zip(_from_all(padded), sizes, strict=True)])


def _is_set_up() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _ranks() -> int:
    return distributed.get_world_size() if _is_set_up() else 1


def _rank() -> int:
    return distributed.get_rank() if _is_set_up() else 0


def _shares(count: int) -> list[slice]:
    """The members of every rank."""
    ranks = _ranks()
    if count < ranks:
        raise ValueError(f"{count} members leave {ranks - count} of {ranks} ranks without any: take {ranks} members or more")
    ends = [count // ranks * rank + min(rank, count % ranks) for rank in range(ranks + 1)]
    return [slice(*pair) for pair in pairwise(ends)]


def _first(tensor: Tensor) -> Tensor:
    """What rank 0 has."""
    sent = tensor.detach().clone().contiguous()
    distributed.broadcast(sent, 0)
    return sent


def _from_all(tensor: Tensor) -> list[Tensor]:
    """What every rank has."""
    parts = [torch.empty_like(tensor) for _ in range(_ranks())]
    distributed.all_gather(parts, tensor)
    return parts


def _weighed(numbers: Tensor) -> Tensor:
    flat = numbers.flatten()
    return (flat * torch.linspace(1, 2, len(flat), dtype=flat.dtype, device=flat.device).square()).sum()


def _refuse_others(tensors: list[Tensor], told: str) -> None:
    """See that ranks hold the same numbers in the same order: their count, their sum, and sums weighed by their places."""
    if _ranks() == 1 or not tensors:
        return
    numbers = [one.detach().double() for one in tensors]
    counts = torch.tensor(float(sum(one.numel() for one in numbers)), dtype=torch.float64, device=numbers[0].device)
    sums = torch.stack([counts, sum(one.sum() for one in numbers), sum(map(_weighed, numbers))])  # type: ignore[list-item]
    if any(not torch.allclose(sums, other, rtol=1e-9, atol=0.0, equal_nan=True) for other in _from_all(sums)):
        raise ValueError(told)
