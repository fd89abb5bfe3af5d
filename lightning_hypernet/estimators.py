r"""Estimators: the gradient of an expectation of values through which no gradient passes.

All are unbiased for :math:`\partial_\phi \, E_{b \sim p_\phi} f(b)`, and differ in variance.

References:
    | Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning (Williams, 1992)
    | https://doi.org/10.1007/BF00992696
    | Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool, van Hoof and Welling, 2019)
    | https://openreview.net/forum?id=r1lgTGL5DE
    | REBAR: Low-variance, unbiased gradient estimates for discrete latent variable models (Tucker et al., 2017)
    | https://arxiv.org/abs/1703.07370
    | Backpropagation through the Void: Optimizing control variates for black-box gradient estimation (Grathwohl et al., 2018)
    | https://arxiv.org/abs/1711.00123
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet.values import instance, real, whole

BASELINES = ("auto", "leave_one_out", "moving_average", "none")


def score_function(values: Tensor, log_density: Tensor, baseline: Tensor | float = 0.0, shares: Tensor | None = None) -> Tensor:
    r"""A scalar that is the mean value, and whose gradient is that of the expected value, estimated by the score function.

    .. math:: \sum_s a_s (f_s - c_s) \, \partial \log p(b_s)

    Args:
        values: f of S draws, ``(S,)``.
        log_density: log p of the draws themselves, which are constants in it, ``(S,)``, in nats.
        baseline: c, one for each draw ``(S,)`` or one for all; it must not depend on its own draw.
        shares: a, ``(S,)``; None: 1 / S each.
    """
    shares = torch.full_like(log_density, 1 / len(log_density)) if shares is None else shares.to(log_density)
    values = values.detach().to(log_density)
    score = ((shares * (values - baseline)).detach() * log_density).sum()
    return (shares * values).sum() + score - score.detach()


def leave_one_out(values: Tensor, shares: Tensor | None = None) -> Tensor:
    r"""For each draw the mean value of all others, :math:`c_s = \sum_{t \neq s} a_t f_t \big/ \sum_{t \neq s} a_t`.

    Args:
        values: Of S draws, ``(S,)``.
        shares: a, ``(S,)``, with the sum 1; None: 1 / S each.

    Returns:
        The baselines, ``(S,)``.

    Raises:
        ValueError: If there are no others.
    """
    if len(values) < 2:
        raise ValueError("leave-one-out needs two draws or more, and there is one: take a moving average")
    shares = torch.full_like(values, 1 / len(values)) if shares is None else shares.to(values)
    weighted = shares * values
    return (weighted.sum() - weighted) / (1 - shares)


class MovingAverage:
    r"""The exponential moving average of values seen, without the bias of its start.

    .. math:: c_n = \frac{(1 - d) \sum_{k < n} d^{\, n - 1 - k} f_k}{1 - d^{\, n}}, \qquad c_0 = 0

    Args:
        decay: d, in 0 to 1.
    """

    def __init__(self, decay: float = 0.9) -> None:
        self.decay = real("decay", decay, 0, 1)
        self._total, self._count = 0.0, 0

    @property
    def value(self) -> float:
        """The average; 0 before the first value."""
        return self._total / (1 - self.decay**self._count) if self._count else 0.0

    def add(self, value: float) -> None:
        """See a value."""
        self._total = self.decay * self._total + (1 - self.decay) * value
        self._count += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain values."""
        return {"total": self._total, "count": self._count}

    def load(self, state: Mapping[str, Any]) -> MovingAverage:
        """Continue as a checkpoint left off.

        Raises:
            ValueError: If it is no state of an average.
        """
        instance("a moving average's state", state, Mapping, "a mapping")
        self._total = real("a moving average's total", state.get("total"))
        self._count = whole("a moving average's count", state.get("count"), 0)
        return self


def controlled(
    values: Tensor,
    log_density: Tensor,
    control: Tensor,
    parameters: Sequence[Tensor],
    conditional: Tensor | None = None,
) -> list[Tensor]:
    r"""The gradient with a control variate: LAX, or REBAR and RELAX where there is a conditional one.

    .. math::
        g_\text{LAX} &= [f(b) - c(b)] \, \partial \log p(b) + \partial c(b), \quad b = T(\phi, \epsilon) \\
        g_\text{RELAX} &= [f(b) - c(\tilde z)] \, \partial \log p(b) + \partial c(z) - \partial c(\tilde z),
        \quad b = H(z), \; \tilde z \sim p(z | b)

    It is summed over draws; of the gradient of each draw alone, give every draw a row of the parameters, expanded and detached.
    It is differentiable itself, so that `square` of it trains what the control is made with.

    Args:
        values: f(b) of n draws, ``(n,)``.
        log_density: log p(b), the draws constants in it, ``(n,)``, in nats.
        control: c(b), or c(z) of relaxed draws, ``(n,)``, through which gradients reach the parameters.
        parameters: What gradients are taken of.
        conditional: :math:`c(\tilde z)` of `Relaxed.conditional`, ``(n,)``; None: LAX.

    Returns:
        For every parameter its gradient.

    Raises:
        ValueError: If these are not all of one shape ``(n,)``.
    """
    several = [values, log_density, control, *([] if conditional is None else [conditional])]
    if len(shapes := {tuple(one.shape) for one in several}) > 1 or values.ndim != 1:
        raise ValueError(f"values, log_density and controls must all be (n,), not {', '.join(map(str, sorted(shapes)))}")
    rest = values.detach() - (control if conditional is None else conditional)
    outputs, seeds = [log_density, control], [rest, torch.ones_like(control)]
    if conditional is not None:
        outputs.append(conditional)
        seeds.append(-torch.ones_like(conditional))
    found = torch.autograd.grad(outputs, list(parameters), seeds, create_graph=True, allow_unused=True)
    return [torch.zeros_like(one) if grad is None else grad for one, grad in zip(parameters, found, strict=True)]


def square(gradient: Sequence[Tensor]) -> Tensor:
    r"""The square of a gradient, a scalar: the loss of its control variate.

    Since :math:`E g` does not depend on the control, :math:`\partial \operatorname{Var} g = E \, \partial g^2`: a single
    gradient of `controlled` tells the control how to lower the variance. Take the gradient of this with respect to the
    control's own parameters alone.
    """
    return torch.stack([one.square().sum() for one in gradient]).sum()


@dataclass(frozen=True, eq=False)
class Relaxed:
    """Draws of discrete latents, and the continuous ones that they come from.

    Args:
        draw: b, as numbers ``(n, ...)``: 0 or 1, or one-hot along the last axis; a constant.
        log_density: log p(b), ``(n,)``, in nats, with gradients to the logits.
        free: z with b = H(z), of the shape of b, with gradients to the logits.
        conditional: Another z given the same b, likewise.
    """

    draw: Tensor
    log_density: Tensor
    free: Tensor
    conditional: Tensor


def relaxed_bernoulli(logits: Tensor, generator: torch.Generator | None = None, coupled: bool = True) -> Relaxed:
    r"""Draw Bernoulli latents with :math:`p = \operatorname{sigmoid}(\text{logits})`.

    .. math:: z = \text{logits} + \log \frac{u}{1 - u}, \quad b = [z > 0], \quad
        \tilde z = \text{logits} + \log \frac{v'}{1 - v'}, \quad v' = \begin{cases} 1 - p + v p & b = 1 \\ v (1 - p) & b = 0
        \end{cases}

    Args:
        logits: ``(n, ...)``, of n draws.
        generator: Of the uniform numbers u, and v; None: torch's global random numbers.
        coupled: Whether v is the constant with which both relaxed draws are the same number, which lowers the variance: their
            gradients differ, and the part that they share cancels. False: v is drawn for itself.
    """
    u = _uniform(logits, generator)
    free = logits + u.logit()
    draw = (free > 0).to(logits).detach()
    one, zero = torch.sigmoid(logits), torch.sigmoid(-logits)
    same = torch.where(draw > 0, (u - zero) / one, u / zero).detach().clamp(0, 1)
    v = same if coupled else _uniform(logits, generator)
    tiny = torch.finfo(logits.dtype).eps
    inside = torch.where(draw > 0, zero + v * one, v * zero).clamp(tiny, 1 - tiny)
    log_density = -F.binary_cross_entropy_with_logits(logits, draw, reduction="none")
    return Relaxed(draw, log_density.reshape(len(logits), -1).sum(1), free, logits + inside.logit())


def relaxed_categorical(logits: Tensor, generator: torch.Generator | None = None, coupled: bool = True) -> Relaxed:
    r"""Draw categorical latents with :math:`p = \operatorname{softmax}(\text{logits})` along the last axis, by Gumbel noise.

    .. math:: z_i = \log p_i - \log(-\log u_i), \quad b = \operatorname{argmax} z, \quad
        \tilde z_b = -\log(-\log v_b), \quad \tilde z_i = -\log\left(-\frac{\log v_i}{p_i} - \log v_b\right)

    Args:
        logits: ``(n, ..., categories)``, of n draws.
        generator: As of `relaxed_bernoulli`.
        coupled: Likewise.
    """
    log_p = logits.log_softmax(-1)
    free = log_p - (-_uniform(logits, generator).log()).log()
    draw = F.one_hot(free.argmax(-1), logits.shape[-1]).to(logits)
    if coupled:
        rate, largest = (-free).exp(), (-free.amax(-1, keepdim=True)).exp()
        waits = torch.where(draw > 0, rate, log_p.exp() * (rate - largest)).detach()
    else:
        waits = -_uniform(logits, generator).log()
    waits = waits.clamp(min=torch.finfo(logits.dtype).tiny)
    at_draw = (waits * draw).sum(-1, keepdim=True)
    others = -(waits * (-log_p).exp() + at_draw).log()
    conditional = torch.where(draw > 0, -waits.log(), others)
    return Relaxed(draw, (log_p * draw).reshape(len(logits), -1).sum(1), free, conditional)


class Control(nn.Module):
    r"""The control variate of REBAR and RELAX, of relaxed draws.

    .. math:: c(z) = \eta f(\sigma(z / \tau)) + r(z)

    :math:`\eta`, which starts at 1, the temperature :math:`\tau` and the free part r are trained. REBAR has no r.

    Args:
        function: f, which must be differentiable here: maps ``(n, ...)`` to ``(n,)``. None: the first part is left out.
        critic: r, any module that maps ``(n, ...)`` to ``(n,)`` or ``(n, 1)``; None: there is none.
        relax: :math:`\sigma`: `torch.sigmoid` for Bernoulli latents, ``functools.partial(torch.softmax, dim=-1)`` for
            categorical ones.
        temperature: :math:`\tau` at the start, above 0.

    Raises:
        ValueError: If there is neither a function nor a critic.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor] | None = None,
        critic: nn.Module | None = None,
        relax: Callable[[Tensor], Tensor] = torch.sigmoid,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        if function is None and critic is None:
            raise ValueError("a control needs a function or a critic, and has neither")
        self.function, self.critic, self.relax = function, critic, relax
        temperature = real("temperature", temperature, 0, above=True)
        self.log_temperature = None if function is None else nn.Parameter(torch.tensor(temperature).log())
        self.size = None if function is None else nn.Parameter(torch.tensor(1.0))

    def forward(self, z: Tensor) -> Tensor:
        """Map relaxed draws ``(n, ...)`` to ``(n,)``."""
        total = z.new_zeros(len(z))
        if self.function is not None and self.log_temperature is not None and self.size is not None:
            total = total + self.size * self.function(self.relax(z / self.log_temperature.exp())).reshape(len(z))
        return total if self.critic is None else total + self.critic(z).reshape(len(z))


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers between 0 and 1, neither of them among them."""
    tiny = torch.finfo(like.dtype).eps
    drawn = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return drawn.clamp(tiny, 1 - tiny)
