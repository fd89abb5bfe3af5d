"""Differential equations: blocks that solve one as targets, and a flow whose weights a hypernetwork makes from time.

First, gradients of a target that solves an equation: through the solver and by the adjoint, beside those of plain networks
with the same weights. Then a flow from a normal distribution to two circles, whose field has other weights at every
time. Prints its figures and draws samples, density and data. About two minutes on one core.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_circles
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.func import functional_call, vmap
from torchdiffeq import odeint, odeint_adjoint

from lightning_hypernet import Hypernet
from lightning_hypernet.generator import Latents

Weights = dict[str, Tensor]


class Field(nn.Module):
    """A field in the plane with one hidden layer."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, z: Tensor) -> Tensor:
        """Velocities ``(batch, 2)`` at points ``(batch, 2)``."""
        return self.layers(z)


class Steady(nn.Module):
    """A field in the form that solvers call."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Velocities at a time."""
        return self.field(z)


class Block(nn.Module):
    """Moves points along a field from time 0 to 1.

    Args:
        solver: `odeint`, whose gradients go through its steps, or `odeint_adjoint`, which solves another equation for them.
        width: Of the field's hidden layer.
    """

    def __init__(self, solver: Callable[..., Tensor], width: int = 16) -> None:
        super().__init__()
        self.field, self.solver = Steady(Field(width)), solver

    def forward(self, x: Tensor) -> Tensor:
        """Points ``(batch, 2)`` at time 1."""
        return self.solver(self.field, x, torch.linspace(0, 1, 2).to(x), rtol=1e-8, atol=1e-10)[-1]


class Flow:
    r"""A continuous normalizing flow whose weights at time t are those that a hypernetwork makes for the condition t.

    .. math:: \dot z = f(z; \theta(t)), \qquad \log p(x) = \log p(z(0)) - \int_0^1 \mathrm{tr}\, \partial f / \partial z \, dt

    Every network of the hypernetwork, a z that is kept along the way, is a flow of its own.

    References:
        | Neural Ordinary Differential Equations (Chen et al., 2018)
        | https://arxiv.org/abs/1806.07366

    Args:
        hypernet: Makes the weights; of context_dim 1.
        field: Its target, or a module like it: maps points ``(batch, d)`` to velocities.
        steps: Steps of the Runge-Kutta rule of order 4, whose times are known, so that all weights are made in one pass. None:
            the adaptive solver dopri5, for which weights are made at each of its calls.
        solver: `odeint` or `odeint_adjoint`.
    """

    def __init__(
        self, hypernet: Hypernet, field: nn.Module, steps: int | None = 10, solver: Callable[..., tuple[Tensor, ...]] = odeint
    ) -> None:
        self.hypernet, self.field, self.steps, self.solver = hypernet, field, steps, solver

    def weights(self, latents: Latents, times: Tensor) -> Weights:
        """The weights of S networks at T times, ``{name: (T, S, *shape)}``."""
        count = len(latents)
        at = latents.map(lambda value: value.repeat(len(times), *[1] * (value.ndim - 1)))
        made = self.hypernet.decode(at.given(times.repeat_interleave(count)[:, None])).weights
        return {name: value.unflatten(0, (len(times), count)) for name, value in made.items()}

    def solve(self, latents: Latents, points: Tensor, span: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Move points ``(S, batch, d)`` over a span of time.

        Returns:
            The points at its end, and the integral of the trace over it, ``(S, batch)``.
        """
        options: dict[str, object] = {"rtol": 1e-6, "atol": 1e-7}
        if self.steps is None:
            parameters = tuple(self.hypernet.parameters())
        else:
            table = self.weights(latents, torch.linspace(0, 1, 3 * self.steps + 1).to(points))
            parameters = tuple(table.values())
            options = {"method": "rk4", "options": {"step_size": 1 / self.steps}}

        def velocity(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            made = self.weights(latents, t[None]) if self.steps is None else table
            index = 0 if self.steps is None else round(3 * self.steps * t.item())
            return with_trace(self.field, {name: value[index] for name, value in made.items()}, state[0])

        if self.solver is odeint_adjoint:
            options["adjoint_params"] = parameters
        moved, traces = self.solver(velocity, (points, points.new_zeros(points.shape[:2])), points.new_tensor(span), **options)
        return moved[-1], traces[-1]

    def log_density(self, latents: Latents, points: Tensor) -> Tensor:
        """Log density of S flows at points ``(S, batch, d)``, in nats: ``(S, batch)``."""
        start, change = self.solve(latents, points, (1.0, 0.0))
        return change - 0.5 * (start.square() + math.log(2 * math.pi)).sum(-1)

    @torch.no_grad()
    def sample(self, latents: Latents, count: int) -> Tensor:
        """Draw points in the plane from every one of S flows: ``(S, count, 2)``."""
        noise = torch.randn(len(latents), count, 2).to(latents.z)
        return self.solve(latents, noise, (0.0, 1.0))[0]


def with_trace(field: nn.Module, weights: Weights, points: Tensor) -> tuple[Tensor, Tensor]:
    """Velocities of S networks at points of their own, and the exact trace of their derivative.

    Args:
        field: Maps ``(batch, d)`` to ``(batch, d)``, every point by itself.
        weights: ``{name: (S, *shape)}``.
        points: ``(S, batch, d)``.

    Returns:
        Velocities ``(S, batch, d)`` and traces ``(S, batch)``.
    """
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        points = points if points.requires_grad else points.detach().requires_grad_()
        velocities = vmap(lambda one, at: functional_call(field, one, (at,)))(weights, points)
        trace = sum(
            torch.autograd.grad(velocities[..., axis].sum(), points, create_graph=graph, retain_graph=True)[0][..., axis]
            for axis in range(points.shape[-1])
        )
    return (velocities, trace) if graph else (velocities.detach(), trace.detach())


def gradients(solver: Callable[..., Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of one loss, each flattened: by the weights, of ours and of plain networks; by the generator, likewise."""
    torch.manual_seed(seed)
    hypernet = Hypernet(Block(solver).double(), samples=3, latent_dim=4, gauge="none", execution="loop").train()
    x, pull = torch.randn(2, 12, 2, dtype=torch.float64)
    with hypernet.step():
        outputs = hypernet(x)
        population = hypernet.population
    weights, parameters = list(population.weights.values()), list(hypernet.generator.parameters())
    ours = torch.autograd.grad((outputs * pull).sum(), weights, retain_graph=True)
    of_ours = torch.autograd.grad((outputs * pull).sum(), parameters, retain_graph=True)
    plain = []
    for network, part, own in zip(hypernet.materialize(population), x.chunk(3), pull.chunk(3), strict=True):
        named = dict(network.named_parameters())
        plain.append(torch.autograd.grad((network(part) * own).sum(), [named[name] for name in population.weights]))
    stacked = [torch.stack(rows) for rows in zip(*plain, strict=True)]
    of_plain = torch.autograd.grad(weights, parameters, stacked)
    return tuple(torch.cat([one.flatten() for one in many]) for many in (ours, stacked, of_ours, of_plain))


def blocks(seed: int) -> dict[str, float]:
    """How far gradients are from those of plain networks through the solver, relative to the largest of them."""
    direct, plain, generator, of_plain = gradients(odeint, seed)
    adjoint, plain_adjoint, generator_adjoint, _ = gradients(odeint_adjoint, seed)
    pairs = {
        "block_direct": (direct, plain),
        "block_adjoint": (adjoint, plain),
        "block_adjoint_against_plain_adjoint": (adjoint, plain_adjoint),
        "block_generator_direct": (generator, of_plain),
        "block_generator_adjoint": (generator_adjoint, of_plain),
    }
    return {name: ((one - other).abs().max() / other.abs().max()).item() for name, (one, other) in pairs.items()}


def circles(count: int, seed: int) -> Tensor:
    """Points of two circles with noise, ``(count, 2)``."""
    return torch.tensor(make_circles(count, noise=0.06, factor=0.5, random_state=seed)[0]).float()


def gaussian_nll(points: Tensor) -> float:
    """Negative log-likelihood, in nats, of the Gaussian that fits the points best."""
    best = MultivariateNormal(points.mean(0), torch.cov(points.T, correction=0))
    return -best.log_prob(points).mean().item()


def train(flow: Flow, steps: int, batch: int, lr: float, faster: float = 8.0) -> None:
    """Maximise the likelihood of fresh points; every step draws networks anew, and each sees its part of the points.

    What time changes in the weights is small beside them and starts at zero, so that it learns `faster` than the rest.
    """
    hypernet = flow.hypernet
    named = list(hypernet.named_parameters())
    of_time = [one for name, one in named if name.startswith("generator.conditioner.")]
    others = [one for name, one in named if not name.startswith("generator.conditioner.")]
    rates = [faster * lr, lr]
    groups = [{"params": many, "lr": rate} for many, rate in zip((of_time, others), rates, strict=True)]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        points = circles(batch, step).view(batch // hypernet.samples, hypernet.samples, 2).transpose(0, 1)
        loss = -flow.log_density(hypernet.draw(hypernet.samples), points).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(hypernet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}, loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def mixture(flow: Flow, latents: Latents, points: Tensor) -> tuple[Tensor, Tensor]:
    """Log density at points ``(n, 2)`` of S flows, ``(S, n)``, and of their mixture, ``(n,)``."""
    each = flow.log_density(latents, points.expand(len(latents), -1, -1))
    return each, each.logsumexp(0) - math.log(len(latents))


def draw(flow: Flow, latents: Latents, data: Tensor, path: Path, size: int) -> None:
    """Draw data, samples, and the density at so many points along each axis."""
    axis = torch.linspace(-1.6, 1.6, size)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    density = mixture(flow, latents, grid.view(-1, 2))[1].exp().view(size, size)
    samples = flow.sample(latents, math.ceil(len(data) / len(latents))).flatten(0, 1)
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.9), layout="constrained", sharex=True, sharey=True)
    for panel, points, name in ((axes[0], data, "held-out data"), (axes[1], samples, f"samples of {len(latents)} flows")):
        panel.scatter(*points.T.numpy(), s=3, alpha=0.5, color="tab:blue")
        panel.set_title(name)
    shown = axes[2].pcolormesh(axis.numpy(), axis.numpy(), density.numpy(), cmap="viridis", shading="nearest")
    axes[2].set_title("density of their mixture")
    figure.colorbar(shown, ax=axes[2], label="per unit of area")
    for panel in axes:
        panel.set(aspect="equal", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), xlabel="x")
    axes[0].set_ylabel("y")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=450, help="training steps")
    parser.add_argument("--batch", type=int, default=256, help="points of a training step")
    parser.add_argument("--samples", type=int, default=1, help="networks of a training step")
    parser.add_argument("--networks", type=int, default=8, help="flows that are evaluated")
    parser.add_argument("--held-out", type=int, default=2000, help="points that they are evaluated on")
    parser.add_argument("--grid", type=int, default=81, help="points along each axis of the picture's density")
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--faster", type=float, default=8.0, help="learning rate of what time changes, relative to the rest")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    figures = blocks(options.seed)

    torch.manual_seed(options.seed)
    field = Field()
    hypernet = Hypernet(field, context_dim=1, latent_dim=4, samples=options.samples, gauge="none").train()
    flow = Flow(hypernet, field)
    train(flow, options.steps, options.batch, options.lr, options.faster)
    held_out, latents = circles(options.held_out, 10**6), hypernet.draw(options.networks)
    exact = Flow(
        hypernet, field, steps=None
    )  # a flow can learn to profit from the errors of the solver that it is trained with
    each, joined = mixture(exact, latents, held_out)
    fixed = mixture(flow, latents, held_out)[1]
    draw(exact, latents, held_out, options.out / "ode_flow.png", options.grid)
    print(f"wrote {options.out / 'ode_flow.png'}")
    for name, value in figures.items():
        print(f"{name}: {value:.1e}")
    print(f"gaussian_nll: {gaussian_nll(held_out):.4f}")
    print(f"flow_nll: {-each.mean().item():.4f}")
    print(f"mixture_nll: {-joined.mean().item():.4f}")
    print(f"mixture_nll_of_fixed_steps: {-fixed.mean().item():.4f}")


if __name__ == "__main__":
    main()
