"""Entropy of the weights, by distances to nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from lightning_hypernet.diversity.base import DiversityLoss
from lightning_hypernet.population import Population, some_parameters
from lightning_hypernet.values import number, whole

_CHUNK = 1 << 14
"""Columns read at once."""

_FEWER = 1 << 12
"""Columns read at once where every pair of vectors reads them anew."""


def read_norm(p: Any) -> Literal[1, 2]:
    """The kind of distances; a ValueError unless they can be measured."""
    if number(p) not in (1, 2):
        raise ValueError(f"p must be 1 or 2, not {p!r}")
    return 1 if number(p) == 1 else 2


def _ranks(all_ranks: bool) -> int:
    """How many ranks' vectors are compared."""
    return distributed.get_world_size() if all_ranks and distributed.is_available() and distributed.is_initialized() else 1


def _gathered(parts: Sequence[Tensor], ranks: int) -> list[Tensor]:
    """The vectors of all ranks, parts of ``(ranks * N, D)``, those of this rank at `rank * N`; gathered at once."""
    parts = [part.detach() for part in parts]
    if ranks == 1:
        return parts
    own = torch.cat(parts, dim=1)
    gathered = [torch.empty_like(own) for _ in range(ranks)]
    distributed.all_gather(gathered, own)
    return list(torch.cat(gathered).split([part.shape[1] for part in parts], dim=1))


def _chunks(vectors: Tensor) -> Iterator[Tensor]:
    """Centred columns, few enough at a time to stay in a cache."""
    for chunk in vectors.split(_CHUNK, dim=1):
        exact = chunk.to(torch.promote_types(chunk.dtype, torch.float32))
        yield exact - exact.mean(0)


def _exact(vectors: Tensor) -> Iterator[Tensor]:
    """Columns as they are, in float32 or better."""
    for chunk in vectors.split(_FEWER, dim=1):
        yield chunk.to(torch.promote_types(chunk.dtype, torch.float32))


class _SquaredDistances(torch.autograd.Function):
    r"""Squared distance of every vector to one of everyone's; no difference is ever kept.

    With i's neighbour n(i), the gradient is a product of one small matrix and the vectors,

    .. math:: \partial_i = 2 g_i (x_i - x_{n(i)}) + 2 \sum_{j: n(j) = i} g_j (x_i - x_j)
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, everyone: Tensor, nearest: Tensor, first: int) -> Tensor:
        ctx.save_for_backward(everyone, nearest)
        ctx.first = first
        own = slice(first, first + len(vectors))
        squares = [(chunk[own] - chunk[nearest]).square().sum(1) for chunk in _chunks(everyone)]
        return torch.stack(squares).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        with torch.autocast(gradient.device.type, enabled=False):
            return _SquaredDistances._pull(ctx, gradient), None, None, None

    @staticmethod
    def _pull(ctx: Any, gradient: Tensor) -> Tensor:
        everyone, nearest = ctx.saved_tensors
        count = len(nearest)
        own = torch.arange(count, device=nearest.device)
        matrix = gradient.new_zeros(count, len(everyone))
        matrix[own, ctx.first + own] += gradient
        matrix[own, nearest] -= gradient
        local, mine = _local(nearest, ctx.first)
        passed = torch.where(mine, gradient, 0.0)
        matrix.index_put_((local, ctx.first + local), passed, accumulate=True)
        matrix.index_put_((local, ctx.first + own), -passed, accumulate=True)
        result = torch.empty_like(everyone[:count], memory_format=torch.contiguous_format)
        for part, chunk in zip(result.split(_CHUNK, dim=1), _chunks(everyone), strict=True):
            part.copy_((2 * matrix) @ chunk)
        return result


class _AbsoluteDistances(torch.autograd.Function):
    r"""Sum of absolute differences of every vector and one of everyone's; none is ever kept.

    With i's neighbour n(i),

    .. math:: \partial_i = g_i \, \mathrm{sgn}(x_i - x_{n(i)}) + \sum_{j: n(j) = i} g_j \, \mathrm{sgn}(x_i - x_j)
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, everyone: Tensor, nearest: Tensor, first: int) -> Tensor:
        ctx.save_for_backward(everyone, nearest)
        ctx.first = first
        return torch.stack([one.abs_().sum(1) for one in _differences(everyone, nearest, first)]).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        everyone, nearest = ctx.saved_tensors
        local, mine = _local(nearest, ctx.first)
        passed = torch.where(mine, -gradient, 0.0)[:, None]
        result = torch.empty_like(everyone[: len(nearest)], memory_format=torch.contiguous_format)
        for part, one in zip(result.split(_FEWER, dim=1), _differences(everyone, nearest, ctx.first), strict=True):
            signs = one.sign_()
            part.copy_((gradient[:, None] * signs).index_add_(0, local, passed * signs))
        return result, None, None, None


def _differences(everyone: Tensor, nearest: Tensor, first: int) -> Iterator[Tensor]:
    """The own vectors less those of their neighbours, some columns at a time."""
    for chunk in _exact(everyone):
        yield chunk[first : first + len(nearest)] - chunk[nearest]


def _local(nearest: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Places of neighbours among the own vectors, and whether they are among them; if not the place means nothing."""
    here = nearest - first
    return here.clamp(0, len(nearest) - 1), (here >= 0) & (here < len(nearest))


def _apart(everyone: Sequence[Tensor], p: Literal[1, 2]) -> Tensor:
    """What orders the distances in each row as they are: the distances, or their squares but for a number for each row."""
    total, like = len(everyone[0]), everyone[0]
    apart = torch.zeros(total, total, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    if p == 2:
        for chunk in (chunk for part in everyone for chunk in _chunks(part)):
            apart += chunk @ chunk.mT
        return apart.diagonal() - 2 * apart
    rows, columns = torch.triu_indices(total, total, 1, device=like.device)
    pairs = apart.new_zeros(len(rows))
    for chunk in (chunk for part in everyone for chunk in _exact(part)):
        pairs += torch.pdist(chunk, 1)
    apart[rows, columns] = apart[columns, rows] = pairs
    return apart


def _nearest(everyone: Sequence[Tensor], own: Tensor, p: Literal[1, 2]) -> Tensor:
    """For the own vectors the positions of their nearest others among everyone's."""
    apart = _apart(everyone, p)
    return apart[own].index_put((own - own[0], own), apart.new_tensor(math.inf)).argmin(1)


def nearest_distances(vectors: Tensor | Sequence[Tensor], p: Literal[1, 2] = 2, all_ranks: bool = True) -> Tensor:
    """Distance of every vector to its nearest other one.

    Neighbours are found without gradient; only the N true distances are differentiated, as norms of differences, so
    that memory is O(N D). The gradient of a distance of zero is zero.

    Args:
        vectors: ``(N, D)``, N > 1; or several such, whose columns are joined.
        p: 2 for Euclidean distances, 1 for sums of absolute differences.
        all_ranks: Under distributed training, search the neighbours among the vectors of all ranks; one of another rank is a
            constant here.

    Returns:
        ``(N,)``, in float32 or better.

    Raises:
        ValueError: If there are fewer than two vectors.
    """
    parts = [vectors] if isinstance(vectors, Tensor) else list(vectors)
    count, ranks = len(parts[0]), _ranks(all_ranks)
    if count * ranks < 2:
        raise ValueError(f"a nearest neighbour needs two networks or more, not {count}; raise `samples`")
    with torch.autocast(parts[0].device.type, enabled=False):
        return _nearest_distances(_packed(parts), p, ranks)


def _packed(parts: Sequence[Tensor]) -> list[Tensor]:
    """The same columns in other order, narrow parts side by side."""
    wide = [part for part in parts if part.shape[1] >= _CHUNK]
    narrow = [part for part in parts if part.shape[1] < _CHUNK]
    return [*wide, torch.cat(narrow, dim=1)] if len(narrow) > 1 else [*parts]


def _nearest_distances(parts: Sequence[Tensor], p: Literal[1, 2], ranks: int) -> Tensor:
    count = len(parts[0])
    first = distributed.get_rank() * count if ranks > 1 else 0
    everyone = _gathered(parts, ranks)
    nearest = _nearest(everyone, torch.arange(first, first + count, device=parts[0].device), p)
    kind = _SquaredDistances if p == 2 else _AbsoluteDistances
    pairs = zip(parts, everyone, strict=True)
    sums = torch.stack([kind.apply(part, all_of_it, nearest, first) for part, all_of_it in pairs]).sum(0)
    if p == 1:
        return sums
    positive = sums > 0
    return torch.where(positive, torch.where(positive, sums, 1.0).sqrt(), 0.0)


def entropy(
    vectors: Tensor | Sequence[Tensor], dimension: int, p: Literal[1, 2] = 2, eps: float = 1e-8, all_ranks: bool = True
) -> Tensor:
    r"""The Kozachenko-Leonenko estimate, without its constants, of the entropy of what N vectors were drawn from.

    .. math:: H = d \frac{1}{N} \sum_i \log(\epsilon_i + \mathrm{eps}) + \psi(N)

    Args:
        vectors: ``(N, D)``; or several such, whose columns are joined.
        dimension: d, the dimension of the manifold the vectors lie on: that of z.
        p: 2 for Euclidean distances, 1 for the sums of absolute differences of the original code.
        eps: Keeps exact duplicates finite.
        all_ranks: Under distributed training, the N vectors are those of all ranks.

    Returns:
        A scalar, in nats, less `entropy_constants`.

    References:
        | Sample estimate of the entropy of a random vector (Kozachenko and Leonenko, 1987)
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898
    """
    distances = nearest_distances(vectors, p, all_ranks)
    count = distances.new_tensor(float(len(distances) * _ranks(all_ranks)))
    return dimension * (distances + eps).log().mean() + torch.digamma(count)


def entropy_constants(dimension: int, p: Literal[1, 2] = 2) -> float:
    r"""What `entropy` leaves out of the Kozachenko-Leonenko estimate.

    .. math:: \log V_{d,p} - \psi(1), \qquad V_{d,p} = \frac{(2 \Gamma(1 + 1/p))^d}{\Gamma(1 + d/p)}

    the volume of the unit ball of the p-norm in d dimensions. With it, and ``eps=0``, the estimate tends to the entropy itself
    as N grows: of vectors of d numbers, and for p = 2 also of a manifold of d dimensions among more numbers, in its own
    measure. On a manifold the ball of p = 1 has another volume for every way in which it lies.

    Args:
        dimension: d.
        p: 2 for Euclidean distances, 1 for sums of absolute differences.

    Returns:
        Nats, to be added.

    Raises:
        ValueError: If the dimension is no whole number above 0, or p is neither.

    References:
        | Sample estimate of the entropy of a random vector (Kozachenko and Leonenko, 1987)
        | Estimating mutual information (Kraskov et al., 2004), section II
        | https://arxiv.org/abs/cond-mat/0305641
    """
    dimension, p = whole("dimension", dimension), read_norm(p)
    volume = dimension * math.log(2 * math.gamma(1 + 1 / p)) - math.lgamma(1 + dimension / p)
    return volume - float(torch.digamma(torch.ones((), dtype=torch.float64)))


class Entropy(DiversityLoss):
    """Minus the entropy of the gauge-fixed weights, the paper's diversity term.

    Args:
        p: 2 for Euclidean distances, 1 for sums of absolute differences.
        coordinates: How many coordinates of the weights are read at least, if there are more: those of whole parameters, drawn
            anew each time and alike on all ranks, whose distances stand for all. None: all.
        samples: How many networks of the population are read; None: all.
    """

    reads_outputs = False

    def __init__(self, p: Literal[1, 2] = 2, coordinates: int | None = 1_000_000, samples: int | None = None) -> None:
        super().__init__()
        self.p = read_norm(p)
        self.coordinates = None if coordinates is None else whole("coordinates", coordinates)
        self.samples = None if samples is None else whole("samples", samples, 2)
        self.draws = 0

    def get_extra_state(self) -> dict[str, int]:
        """The number of draws of coordinates."""
        return {"draws": self.draws}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Continue the draws of a checkpoint."""
        self.draws = whole("the entropy's draws", state["draws"], 0)

    def forward(self, population: Population) -> Tensor:
        """Map a population to minus its entropy, in nats."""
        shapes = population.banks.shapes
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        if self.coordinates is not None and sum(sizes.values()) > self.coordinates:
            self.draws += 1
        chosen = some_parameters(shapes, self.coordinates, self.draws)
        share = sum(sizes[name] for name in chosen) / sum(sizes.values())
        parts = population.gauged_parts(chosen)
        dimension = population.latents.z.shape[1]
        whole = 0.0 if share == 1 else -dimension / self.p * math.log(share)
        measure = population.networks.replicas.compiler(entropy, share == 1 and _ranks(True) == 1)
        return -measure([part[: self.samples] for part in parts], dimension, self.p) - whole
