"""Codes of tasks: how long they are, what they allow, and codes of tasks that were not seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_hypernet.generator.latents import Latents, Prior
from lightning_hypernet.tasks.encoder import Encoded
from lightning_hypernet.values import real, whole


def accuracy_bound(information: float, classes: int, entropy: float | None = None) -> float:
    r"""The accuracy that no prediction of a class from a code can exceed, by Fano's inequality.

    .. math:: h(a) + (1 - a) \log (K - 1) \geq H(y) - I, \qquad h(a) = - a \log a - (1 - a) \log (1 - a)

    The rate of a level bounds the mutual information I of its code and the data, and so that with any of their labels.

    References:
        | Trading Information between Latents in Hierarchical Variational Autoencoders (Xiao and Bamler, 2023)
        | https://arxiv.org/abs/2302.04855

    Args:
        information: I, in nats.
        classes: K, two or more.
        entropy: H(y) of the labels, in nats; None: of evenly frequent classes, log K.

    Returns:
        The largest accuracy a, from 1 / K to 1.

    Raises:
        ValueError: If a number is out of range.
    """
    information, classes = real("information", information, 0), whole("classes", classes, 2)
    most = math.log(classes)
    entropy = most if entropy is None else real("entropy", entropy, 0, most + 1e-9)
    left = entropy - information

    def uncertain(accuracy: float) -> float:
        rest = 1 - accuracy
        parts = [-share * math.log(share) for share in (accuracy, rest) if share > 0]
        return sum(parts) + rest * math.log(classes - 1)

    low, high = 1 / classes, 1.0  # on which the left side falls from log K to 0
    if left <= 0:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if uncertain(middle) >= left else (low, middle)
    return low


def code_length(losses: Tensor, encoded: Encoded) -> Tensor:
    r"""Bits that it takes to send data sets with a code of each: what the examples cost under the network, and the code.

    .. math:: \frac{1}{\ln 2} \left[ \sum_i L_i + KL(q(z | D) \| p(z)) \right]

    The second is what sending z costs when the bits that choose the draw are given back (bits-back coding). Where the losses
    are minus evidence lower bounds, the codes of the examples are counted so too.

    References:
        | Keeping Neural Networks Simple by Minimizing the Description Length of the Weights (Hinton and van Camp, 1993)
        | Variational Hyper-Encoding Networks (Nguyen et al., 2021), https://arxiv.org/abs/2005.08482

    Args:
        losses: The summed negative log-likelihood of every data set, ``(S,)``, in nats.
        encoded: What the encoder makes of them.

    Returns:
        ``(S,)``, in bits.

    Raises:
        ValueError: If there are more or fewer losses than data sets.
    """
    if losses.shape != (len(encoded),):
        raise ValueError(f"losses must be one for each data set, ({len(encoded)},), not {tuple(losses.shape)}")
    return (losses + encoded.rate()) / math.log(2)


@torch.no_grad()
def novel(prior: Prior, seen: Encoded, n: int, candidates: int = 1000) -> Latents:
    r"""Codes of tasks unlike those that were seen: of draws of the prior those farthest from all codes, one after the other.

    The distance from a code is in units of its deviations, :math:`\sum_j (z_j - m_j)^2 / s_j^2`; what was chosen counts as seen
    from then on, with the mean deviation of the others.

    Args:
        prior: Draws the candidates.
        seen: What the encoder makes of the tasks that were seen.
        n: How many.
        candidates: Of how many draws they are chosen.

    Returns:
        n latents, the farthest first; decode them with `Hypernet.decode`.

    Raises:
        ValueError: If there are fewer candidates than n.
    """
    n, candidates = whole("n", n), whole("candidates", candidates)
    if candidates < n:
        raise ValueError(f"candidates={candidates} must be at least n={n}")
    drawn = prior.draw(candidates).to(seen.mean)
    mean, std = seen.mean, seen.log_std.exp()
    far = ((drawn.z[:, None] - mean) / std).square().sum(2).amin(1)
    chosen: list[int] = []
    for _ in range(n):
        index = int(far.argmax())
        chosen.append(index)
        own = ((drawn.z - drawn.z[index]) / std.mean(0)).square().sum(1)
        far = torch.minimum(far, own)
        far[index] = -1.0
    return drawn[torch.tensor(chosen, device=drawn.z.device)]
