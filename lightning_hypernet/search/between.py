"""Networks between two others and around some, in z."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.latent_space import LatentSpace
from lightning_hypernet.population import Population
from lightning_hypernet.values import choice, instance, real, whole

How = Literal["linear", "spherical"]


def interpolate(
    hypernet: Hypernet, one: Latents | Tensor, other: Latents | Tensor, points: int = 10, how: How = "linear"
) -> Population:
    r"""Networks on the way from one z to another.

    .. math:: z_t = (1 - t) a + t b \quad \text{or} \quad
        z_t = \frac{\sin((1 - t) \omega)}{\sin \omega} a + \frac{\sin(t \omega)}{\sin \omega} b, \quad
        \cos \omega = \frac{a \cdot b}{|a| \, |b|}

    On a line the middle of two draws of a normal prior is shorter than a draw is; on an arc it is not. The spherical way suits
    a normal prior alone: it may leave a bounded one's support.

    References:
        | Animating rotation with quaternion curves (Shoemake, 1985), https://doi.org/10.1145/325165.325242
        | Sampling Generative Networks (White, 2016), https://arxiv.org/abs/1609.04468

    Args:
        hypernet: The Hypernet.
        one: Where the way begins: latents of one network, or a tensor z ``(latent_dim,)`` or ``(1, latent_dim)``.
        other: Where it ends. Its component counts in the second half; its condition is approached in a straight line.
        points: How many networks, both ends included.
        how: ``"linear"`` or ``"spherical"``.

    Returns:
        The networks, in order.

    Raises:
        TypeError: If an end is neither.
        ValueError: If an end is not of one network, or is zero or opposite to the other on an arc.
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    points = whole("points", points, 2)
    choice("how", how, get_args(How))
    a, b = _end("one", one), _end("other", other)
    t = torch.linspace(0, 1, points, dtype=a.z.dtype, device=a.z.device)[:, None]
    z = _spherical(a.z, b.z, t) if how == "spherical" else torch.lerp(a.z, b.z, t)
    component = torch.where(t[:, 0] < 0.5, a.component, b.component)
    if a.context is None or b.context is None:
        context = a.context if b.context is None else b.context
        return hypernet.decode(Latents(z, component).given(context))
    return hypernet.decode(Latents(z, component, torch.lerp(a.context, b.context, t.to(a.context))))


def perturb(hypernet: Hypernet, latents: Latents | Tensor, scale: float, n: int = 10, seed: int = 0) -> Population:
    r"""Networks around others in z, within the prior's support.

    .. math:: u' = u + s \epsilon, \qquad \epsilon \sim N(0, I)

    where u is z itself for a prior without bounds, and what is mapped onto its support else.

    Args:
        hypernet: The Hypernet.
        latents: Of S networks, or a tensor z ``(S, latent_dim)`` or ``(latent_dim,)``.
        scale: s, the standard deviation of every number; 0: copies.
        n: How many networks around each.
        seed: Of the noise.

    Returns:
        ``S * n`` networks, those around the first first.

    Raises:
        TypeError: If latents are none.
        ValueError: If a number is out of range.
    """
    space = LatentSpace(hypernet)
    scale, n = real("scale", scale, 0), whole("n", n)
    source = torch.Generator().manual_seed(whole("seed", seed, None))
    like = _latents("latents", latents).map(lambda value: value.repeat_interleave(n, 0))
    if not scale:
        return hypernet.decode(like)
    u = space.free(like)
    return hypernet.decode(space.latents(u + scale * torch.randn(u.shape, generator=source, dtype=u.dtype).to(u), like))


def _spherical(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Points on the arc between two vectors ``(1, numbers)``; on the line where they point the same way."""
    lengths = a.norm() * b.norm()
    if not lengths:
        raise ValueError("an end of the way is zero, which has no direction: take how='linear'")
    angle = ((a * b).sum() / lengths).clamp(-1, 1).acos()
    if angle < 1e-6:
        return torch.lerp(a, b, t)
    if torch.pi - angle < 1e-6:
        raise ValueError("the ends are opposite, so that no arc between them is the shortest: take how='linear'")
    arc: Tensor = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()
    return arc


def _end(name: str, latents: Latents | Tensor) -> Latents:
    """Latents of one network."""
    read = _latents(name, latents)
    if len(read) != 1:
        raise ValueError(f"{name} must be the latents of one network, not of {len(read)}: take latents[:1]")
    return read


def _latents(name: str, value: Latents | Tensor) -> Latents:
    """Latents, of the first component where they are a tensor."""
    instance(name, value, (Latents, Tensor), "latents or a tensor z")
    if isinstance(value, Latents):
        return value
    z = torch.atleast_2d(value)
    return Latents(z, torch.zeros(len(z), dtype=torch.long, device=z.device))
