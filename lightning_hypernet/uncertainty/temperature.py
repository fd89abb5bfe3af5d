"""Temperatures: one number that makes predictions surer or less sure, fitted by the likelihood."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.uncertainty import mixtures

LIMIT = 100.0
"""The largest temperature that is fitted, and one over the least."""
_STEPS = 100
_LEAST = -1e6


def fit_temperature(loss: Callable[[Tensor], Tensor], whose: str = "the mean prediction") -> float:
    r"""The temperature of the least loss, by L-BFGS in its logarithm, 1/100 to 100; a loss above that of 1 is never taken.

    References:
        | On Calibration of Modern Neural Networks (Guo et al., 2017)
        | https://arxiv.org/abs/1706.04599

    Args:
        loss: The mean negative log-likelihood at a temperature, both scalars, in float64.
        whose: Whose temperature it is, for the message.

    Warns:
        UserWarning: If the best one lies at a limit, as where all predictions are right, or say nothing.

    Raises:
        ValueError: If the loss at 1 is NaN or infinite.
    """
    with torch.inference_mode(False), torch.enable_grad():
        log = torch.zeros((), dtype=torch.float64, requires_grad=True)
        start = float(loss(log.detach().exp()))
        if not math.isfinite(start):
            raise ValueError(f"the loss of {whose} is {start}: a label has the probability 0, or outputs are too large")
        optimizer = torch.optim.LBFGS(
            [log], max_iter=_STEPS, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss(_within(log).exp())
            value.backward()
            return value

        optimizer.step(closure)
    tried = [1.0, float(_within(log.detach()).exp()), 1 / LIMIT, LIMIT]
    with torch.no_grad():
        losses = [float(loss(torch.tensor(one, dtype=torch.float64))) for one in tried]
    lowest = min(one for one in losses if math.isfinite(one))
    best = [one for one, value in zip(tried, losses, strict=True) if value == lowest]
    temperature = 1.0 if 1.0 in best else best[-1]
    if not 1.001 / LIMIT < temperature < LIMIT / 1.001:
        why = "all predictions are right" if temperature < 1 else "predictions say nothing of the targets"
        warnings.warn(
            f"the temperature of {whose} went to its limit, {temperature:g}, as it does where {why}: calibrate on others",
            stacklevel=2,
        )
    return temperature


def _within(log: Tensor) -> Tensor:
    return log.clamp(-math.log(LIMIT), math.log(LIMIT))


def tempered(log_probabilities: Tensor, temperature: float | Tensor) -> Tensor:
    r"""Log probabilities at a temperature, :math:`p^{1/T}` made to sum to 1 over the last axis; at 1 as they are."""
    if isinstance(temperature, float) and temperature == 1:
        return log_probabilities
    return (log_probabilities / temperature).log_softmax(-1)


def log_mean(log_members: Tensor) -> Tensor:
    """The log of the mean probability of members ``(members, ...)``."""
    return log_members.logsumexp(0) - math.log(len(log_members))


def fit_classes(log_probabilities: Tensor, labels: Tensor, whose: str = "the mean prediction") -> float:
    """The temperature of log probabilities ``(examples, classes)`` with the least negative log-likelihood of labels.

    Errors and warnings as in `fit_temperature`.
    """
    with torch.inference_mode(False):
        logs, labels = log_probabilities.detach().double().cpu().clone(), labels.detach().cpu().clone()
        if logs.gather(1, labels[:, None]).isinf().any():
            raise ValueError(f"the loss of {whose} is inf: a label has the probability 0")
        logs = logs.clamp(min=_LEAST)  # infinite ones have no gradient
        return fit_temperature(lambda temperature: F.nll_loss(tempered(logs, temperature), labels), whose)


def fit_numbers(means: Tensor, variances: Tensor, targets: Tensor, whose: str = "the mixture") -> float:
    r"""The factor T of a mixture's variance, all of it stretched around its mean, with the least negative log-likelihood.

    Errors and warnings as in `fit_temperature`.

    Args:
        means: ``(members, numbers)``.
        variances: ``(members, numbers)``, positive.
        targets: ``(numbers,)``.
        whose: Whose it is, for the message.
    """
    with torch.inference_mode(False):
        mean, var, wanted = (one.detach().double().cpu().clone() for one in (means, variances, targets))
        return fit_temperature(lambda t: -mixtures.log_density(wanted, *stretched(mean, var, t)).mean(), whose)


def stretched(means: Tensor, variances: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    r"""Members of a mixture whose every distance from its mean is :math:`\sqrt T` times as large; at 1 as they are."""
    if isinstance(temperature, float) and temperature == 1:
        return means, variances
    mean = means.mean(0)
    root = math.sqrt(temperature) if isinstance(temperature, float) else temperature.sqrt()
    return mean + root * (means - mean), temperature * variances
