"""Encoders: a data set to a distribution of the z of its network."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.values import instance, real, shown, whole

_LEAST, _MOST = -7.0, 3.0
"""Logarithms of deviations lie within these."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an encoder makes of S data sets: Gaussians of their z, level by level, and a draw.

    Args:
        z: The draw, ``(S, latent_dim)``.
        mean: Of z given the levels above, ``(S, latent_dim)``.
        log_std: Logarithm of its standard deviation, ``(S, latent_dim)``.
        levels: The levels from the top down, and how many numbers of z each has.
    """

    z: Tensor
    mean: Tensor
    log_std: Tensor
    levels: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.z)

    @property
    def latents(self) -> Latents:
        """The draw as `Hypernet.decode` takes it."""
        return Latents(self.z, torch.zeros(len(self.z), dtype=torch.long, device=self.z.device))

    def rates(self) -> dict[str, Tensor]:
        r"""The rate of every level, ``(S,)``, in nats: what it tells of a data set beyond the levels above.

        .. math:: R_l = KL(q(z_l | z_{>l}, D) \| N(0, I))

        at the levels above that were drawn.

        References:
            | Trading Information between Latents in Hierarchical Variational Autoencoders (Xiao and Bamler, 2023)
            | https://arxiv.org/abs/2302.04855
        """
        mean, log_variance = (one.to(torch.promote_types(one.dtype, torch.float32)) for one in (self.mean, 2 * self.log_std))
        nats = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance)
        return {name: part.sum(1) for name, part in zip(self.levels, nats.split(list(self.levels.values()), 1), strict=True)}

    def rate(self) -> Tensor:
        """The sum of all rates, ``(S,)``, in nats."""
        return torch.stack(list(self.rates().values())).sum(0)


class Encoder(nn.Module, ABC):
    r"""A distribution q(z | data set) that does not depend on the order of the examples, for any number of them.

    A subclass is made as ``cls(latent_dim, **options)`` and writes `summarize`. z has levels from the top down; each is a
    Gaussian whose mean and deviation depend on the summary of the data set and on the levels above. The prior is standard
    normal:

    .. math:: q(z | D) = \prod_l q(z_l | z_{>l}, D), \qquad p(z) = N(0, I)

    References:
        | Deep Sets (Zaheer et al., 2017), https://arxiv.org/abs/1703.06114
        | Variational Hyper-Encoding Networks (Nguyen et al., 2021), https://arxiv.org/abs/2005.08482

    Args:
        latent_dim: Numbers in z.
        inputs: Numbers of one example, with its targets where they are numbers.
        classes: Number of classes, where examples have labels; 0: they have none.
        hidden: Width of the summary and of what makes it.
        levels: The levels from the top down, and how many numbers of z each has; None: one, ``"z"``.
        sigma: What the deviations of z are multiplied by at the start, above 0. A small one spares a network of many latent
            numbers the noise of the whole prior in its first steps.

    Raises:
        ValueError: If a number is out of range, or levels do not add up to `latent_dim`.
    """

    def __init__(
        self,
        latent_dim: int,
        inputs: int,
        classes: int = 0,
        hidden: int = 64,
        levels: Mapping[str, int] | None = None,
        sigma: float = 1.0,
    ) -> None:
        super().__init__()
        sigma = real("the encoder's sigma", sigma, 0, above=True)
        self.inputs, self.classes = whole("the encoder's inputs", inputs), whole("the encoder's classes", classes, 0)
        self.hidden = whole("the encoder's hidden", hidden)
        instance("the encoder's levels", levels or {}, Mapping, "a mapping of names to numbers")
        given = {"z": latent_dim} if levels is None else dict(levels)
        self.levels = {str(name): whole(f"the encoder's level {name}", size) for name, size in given.items()}
        if sum(self.levels.values()) != latent_dim or any("." in name or "/" in name for name in self.levels):
            raise ValueError(
                f"the encoder's levels {shown(given)} must add up to latent_dim={latent_dim}, in names without dots"
            )
        above = [0, *itertools.accumulate(self.levels.values())][:-1]
        sizes = list(zip(above, self.levels.values(), strict=True))
        self.heads = nn.ModuleList(perceptron(self.hidden + top, self.hidden, 2 * size) for top, size in sizes)
        self.shift = math.log(sigma)

    @abstractmethod
    def summarize(self, examples: Tensor) -> Tensor:
        """Map the examples of one data set, ``(n, inputs + classes)``, to a summary ``(hidden,)``."""

    def examples(self, support: Any) -> Tensor:
        """A data set as numbers, ``(n, inputs + classes)``.

        Args:
            support: Inputs ``(n, ...)``, or a pair of these and their labels ``(n,)`` or targets ``(n, ...)``.

        Raises:
            TypeError: If it is neither.
            ValueError: If it is empty, or examples have another size.
        """
        pair = tuple(support) if isinstance(support, (tuple, list)) else (support,)
        if not 1 <= len(pair) <= 2 or not all(isinstance(one, Tensor) for one in pair):
            raise TypeError(f"a data set is a tensor of inputs, or a pair of inputs and targets, not {type(support).__name__}")
        lengths = {len(one) if one.ndim else 0 for one in pair}
        if len(lengths) > 1 or not min(lengths):
            raise ValueError(f"a data set has as many inputs as targets, and one or more, not {sorted(lengths)}")
        like = next(self.parameters())
        parts = [one.reshape(len(one), -1).to(like) for one in pair]
        if self.classes:
            if len(pair) < 2 or pair[1].is_floating_point() or pair[1].ndim != 1:
                raise ValueError(f"an encoder with classes={self.classes} reads pairs of inputs and integer labels (n,)")
            if not bool(((pair[1] >= 0) & (pair[1] < self.classes)).all()):
                raise ValueError(f"labels must lie in 0 to {self.classes - 1}, as the encoder's classes={self.classes} says")
            parts[1] = F.one_hot(pair[1].long(), self.classes).to(like)
        joined = torch.cat(parts, dim=1)
        if joined.shape[1] != self.inputs + self.classes:
            raise ValueError(
                f"an example has {joined.shape[1] - self.classes} numbers, and the encoder reads inputs={self.inputs}"
            )
        return joined

    def forward(self, supports: Sequence[Any], sample: bool = True) -> Encoded:
        """Encode S data sets.

        Args:
            supports: The data sets, of any sizes.
            sample: Whether z is drawn, with torch's global random numbers, or the mean of every level.
        """
        summaries = torch.stack([self.summarize(self.examples(one)) for one in supports])
        drawn, parts = summaries[:, :0], []
        for head, size in zip(self.heads, self.levels.values(), strict=True):
            mean, log_std = head(torch.cat([summaries, drawn], dim=1)).split(size, dim=1)
            log_std = (log_std + self.shift).clamp(_LEAST, _MOST)
            own = mean + log_std.exp() * torch.randn_like(mean) if sample else mean
            parts.append((own, mean, log_std))
            drawn = torch.cat([drawn, own], dim=1)
        z, mean, log_std = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
        return Encoded(z, mean, log_std, dict(self.levels))


class DeepSets(Encoder):
    r"""The mean of what a network makes of every example, and the logarithm of how many there are.

    .. math:: s = \rho\left(\tfrac1n \sum_i \phi(x_i), \log n\right)

    References:
        | Deep Sets (Zaheer et al., 2017), https://arxiv.org/abs/1703.06114

    Args:
        latent_dim: As of `Encoder`.
        inputs: As of `Encoder`.
        options: As of `Encoder`.
    """

    def __init__(self, latent_dim: int, inputs: int, **options: Any) -> None:
        super().__init__(latent_dim, inputs, **options)
        self.of_one = perceptron(self.inputs + self.classes, self.hidden, self.hidden)
        self.of_all = perceptron(self.hidden + 1, self.hidden, self.hidden)

    def summarize(self, examples: Tensor) -> Tensor:
        """Map the examples of one data set, ``(n, inputs + classes)``, to a summary ``(hidden,)``."""
        mean = self.of_one(examples).mean(0)
        summary: Tensor = self.of_all(torch.cat([mean, mean.new_tensor([math.log(len(examples))])]))
        return summary


class SetAttention(Encoder):
    """Examples attend to each other, and a trained query to all of them: a small set transformer.

    References:
        | Set Transformer (Lee et al., 2019), https://arxiv.org/abs/1810.00825

    Args:
        latent_dim: As of `Encoder`.
        inputs: As of `Encoder`.
        heads: Attention heads, which divide `hidden`.
        options: As of `Encoder`.
    """

    def __init__(self, latent_dim: int, inputs: int, heads: int = 4, **options: Any) -> None:
        super().__init__(latent_dim, inputs, **options)
        count = whole("the encoder's heads", heads)
        if self.hidden % count:
            raise ValueError(f"heads={count} must divide the encoder's hidden={self.hidden}")
        self.of_one = nn.Linear(self.inputs + self.classes, self.hidden)
        self.among = nn.TransformerEncoderLayer(self.hidden, count, 2 * self.hidden, dropout=0.0, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 1, self.hidden) / math.sqrt(self.hidden))
        self.pool = nn.MultiheadAttention(self.hidden, count, batch_first=True)
        self.of_all = perceptron(self.hidden + 1, self.hidden, self.hidden)

    def summarize(self, examples: Tensor) -> Tensor:
        """Map the examples of one data set, ``(n, inputs + classes)``, to a summary ``(hidden,)``."""
        tokens = self.among(self.of_one(examples)[None])
        pooled = self.pool(self.query, tokens, tokens, need_weights=False)[0][0, 0]
        summary: Tensor = self.of_all(torch.cat([pooled, pooled.new_tensor([math.log(len(examples))])]))
        return summary


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A network with one hidden layer."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
