"""Amortisation: what an encoder's posterior loses against the best of its family."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hypernet.analysis.local import Local
from lightning_hypernet.generator.latents import as_numbers
from lightning_hypernet.values import whole

LogJoint = Callable[[Tensor], Tensor]
"""z ``(K, N, latent_dim)`` of N data sets to log p(D_n, z), ``(K, N)``, in nats."""


@dataclass(frozen=True, eq=False)
class AmortizationGap:
    """Bounds on the log evidence of N data sets, in nats, and the gaps between them.

    Args:
        amortized: ``(N,)``, the ELBO of the posterior that was given.
        local: ``(N,)``, that of the best Gaussian with independent numbers.
        evidence: ``(N,)``, the importance-weighted bound of the best, which takes the place of the log evidence.
        mean: ``(N, latent_dim)``, of the best.
        log_std: ``(N, latent_dim)``, of the best.
        steps: How many it took.
    """

    amortized: Tensor
    local: Tensor
    evidence: Tensor
    mean: Tensor
    log_std: Tensor
    steps: int

    @property
    def amortization(self) -> Tensor:
        """What the encoder loses, ``(N,)``."""
        return self.local - self.amortized

    @property
    def approximation(self) -> Tensor:
        """What the family loses, ``(N,)``."""
        return self.evidence - self.local


def amortization_gap(
    log_joint: LogJoint,
    mean: Tensor,
    log_std: Tensor,
    samples: int = 100,
    evidence_samples: int = 5000,
    lr: float = 1e-3,
    every: int = 100,
    patience: int = 10,
    most: int = 20_000,
    seed: int = 0,
) -> AmortizationGap:
    r"""The gap between an approximate posterior of z and the best Gaussian, and from there to the evidence.

    .. math:: \log p(D) - L[q] = \underbrace{\log p(D) - L[q^*]}_{\text{approximation}}
        + \underbrace{L[q^*] - L[q]}_{\text{amortisation}}, \qquad L[q] = \mathbb{E}_q \log \frac{p(D, z)}{q(z)}

    with :math:`q = N(\mu, \operatorname{diag} \sigma^2)`. The best one is found from the one given by Adam on the path
    derivative of the bound, until ten checks of 100 steps bring no gain. All bounds take the same noise, fresh beside that of
    the steps. Where the one given is the posterior itself, nothing moves and both gaps are 0.

    References:
        | Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018)
        | https://arxiv.org/abs/1801.03558
        | Sticking the Landing (Roeder, Wu and Duvenaud, 2017), https://arxiv.org/abs/1703.09194

    Args:
        log_joint: :math:`\log p(D_n | z) + \log p(z)`, of z ``(K, N, latent_dim)``, differentiable: ``(K, N)``.
        mean: ``(N, latent_dim)``, what the encoder gives for N data sets.
        log_std: ``(N, latent_dim)``.
        samples: Draws of every step and check.
        evidence_samples: Draws behind the evidence and the reported bounds.
        lr: Learning rate of Adam.
        every: Steps between two checks.
        patience: Checks without gain that end it.
        most: Steps at most.
        seed: Of the noise.

    Returns:
        Bounds and gaps of every data set.

    Raises:
        TypeError: If mean or log_std are no numbers.
        ValueError: If shapes do not fit.
    """
    samples, final = whole("samples", samples), whole("evidence_samples", evidence_samples, 2)
    local = Local(lr, every, patience, most)
    mean, log_std = as_numbers("mean", mean).detach(), as_numbers("log_std", log_std).detach()
    if mean.ndim != 2 or mean.shape != log_std.shape:
        raise ValueError(f"mean and log_std must both be (N, latent_dim), not {tuple(mean.shape)}, {tuple(log_std.shape)}")
    source = torch.Generator().manual_seed(whole("seed", seed, None))

    def noise(count: int) -> Tensor:
        return torch.randn((count, *mean.shape), generator=source, dtype=mean.dtype).to(mean.device)

    leaves = [mean.clone().requires_grad_(), log_std.clone().requires_grad_()]
    check = noise(samples)
    with torch.inference_mode(False), torch.enable_grad():
        (center, spread), _, steps = local.minimise(
            leaves,
            lambda _: -_log_weights(log_joint, leaves[0], leaves[1], noise(samples)).mean(0).sum(),
            lambda: -_log_weights(log_joint, leaves[0], leaves[1], check).mean(0),
        )
    with torch.no_grad():
        fresh = noise(final)
        given = _log_weights(log_joint, mean, log_std, fresh).mean(0)
        weights = _log_weights(log_joint, center, spread, fresh)
        evidence = weights.logsumexp(0) - math.log(final)
    return AmortizationGap(given, weights.mean(0), evidence, center, spread, steps)


def _log_weights(log_joint: LogJoint, mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """The log joint of draws less their log density, whose own parameters are constants in it, ``(K, N)``."""
    z = mean + log_std.exp() * noise
    standard = (z - mean.detach()) / log_std.detach().exp()
    density = (-0.5 * standard.square() - log_std.detach() - 0.5 * math.log(2 * math.pi)).sum(-1)
    joint = log_joint(z)
    if not isinstance(joint, Tensor) or joint.shape != density.shape:
        shape = tuple(joint.shape) if isinstance(joint, Tensor) else type(joint).__name__
        raise ValueError(f"log_joint must give {tuple(density.shape)} for z of {tuple(z.shape)}, not {shape}")
    return joint - density
