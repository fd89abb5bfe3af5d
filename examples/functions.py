"""A class of functions learnt from draws of a Gaussian process, and what ten points say of a new one.

Every network is a function: its weights, of fixed bumps, are made from a z of its own. A generator and an encoder are trained
as a variational autoencoder on draws of the process; then the generator is held, and z is inferred from ten noisy points, with
the exact posterior of the process beside it: of the function and of its integral. About two minutes on one core, and one more
for each function that Hamiltonian Monte Carlo is run on.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributions import Normal

from lightning_hypernet import Hypernet
from lightning_hypernet.analysis import infer

GRID = torch.linspace(0, 1, 64, dtype=torch.float64)[:, None]
LENGTH, NOISE, POINTS, JITTER = 0.2, 0.1, 10, 1e-6
BUMPS, DECODER, ANNEALED, CLIP = 16, 0.05, 0.7, 100.0


class Bumps(nn.Module):
    """Fixed bell curves of x, ``(batch, 1)`` to ``(batch, count)``."""

    def __init__(self, count: int = BUMPS, width: float = 0.12) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("centers", torch.linspace(-0.1, 1.1, count))

    def forward(self, x: Tensor) -> Tensor:
        """The curves at x."""
        return (-0.5 * ((x - self.centers) / self.width).square()).exp()


class Encoder(nn.Module):
    """Values of a function on the grid, made uncorrelated by what draws show, to mean and log deviations of z."""

    def __init__(self, latent_dim: int, draws: Tensor, width: int = 128) -> None:
        super().__init__()
        sizes, directions = torch.linalg.eigh(draws.T.cov())
        self.register_buffer("whitening", directions[:, -latent_dim:] / (sizes[-latent_dim:] + DECODER**2).sqrt())
        self.layers = nn.Sequential(nn.Linear(latent_dim, width), nn.Tanh(), nn.Linear(width, latent_dim))
        self.direct = nn.Linear(latent_dim, latent_dim)
        self.log_std = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log deviations, each ``(batch, latent_dim)``."""
        values = values @ self.whitening
        mean = self.layers(values) + self.direct(values)
        return mean, self.log_std.expand_as(mean)


@dataclass(frozen=True)
class Exact:
    """The posterior of a Gaussian process."""

    mean: Tensor
    covariance: Tensor

    @property
    def integral(self) -> tuple[float, float]:
        """Mean and deviation of the integral over the grid, by the trapezoidal rule."""
        weights = rule()
        return float(weights @ self.mean), float((weights @ self.covariance @ weights).sqrt())


def rule() -> Tensor:
    """The weights of the trapezoidal rule on the grid."""
    weights = torch.full((len(GRID),), 1 / (len(GRID) - 1), dtype=torch.float64)
    weights[0] = weights[-1] = weights[0] / 2
    return weights


def kernel(one: Tensor, other: Tensor) -> Tensor:
    """The covariance of values at points ``(n, 1)`` and ``(m, 1)``."""
    return (-0.5 * ((one - other.T) / LENGTH).square()).exp()


def exact(x: Tensor, y: Tensor) -> Exact:
    """The posterior on the grid of values with noise."""
    cross = kernel(GRID, x)
    inner = kernel(x, x) + NOISE**2 * torch.eye(len(x), dtype=x.dtype)
    gain = torch.linalg.solve(inner, cross.T).T
    return Exact(gain @ y, kernel(GRID, GRID) - gain @ cross.T)


def functions(n: int, source: torch.Generator) -> Tensor:
    """Draws of the process on the grid, ``(n, 64)``."""
    factor = torch.linalg.cholesky(kernel(GRID, GRID) + JITTER * torch.eye(len(GRID), dtype=GRID.dtype))
    return torch.randn(n, len(GRID), generator=source, dtype=GRID.dtype) @ factor.T


def trained(steps: int, latent_dim: int, hidden: list[int], lr: float, batch: int, seed: int) -> tuple[Hypernet, float]:
    """A Hypernet whose networks are draws of the process, and the bound of its last steps, in nats."""
    torch.manual_seed(seed)
    source = torch.Generator().manual_seed(seed)
    target = nn.Sequential(Bumps(), nn.Linear(BUMPS, 1))
    shape = {
        "extractor": "mlp",
        "extractor_hidden": hidden,
        "hidden": [],
        "code_size": 32,
        "norm": "none",
        "activation": "silu",
        "pace": 4.0,  # as with an encoder of the Hypernet's own
    }
    hypernet = Hypernet(target, latent_dim=latent_dim, generator=shape, gauge="none", execution="vmap")
    encoder, grid = Encoder(latent_dim, functions(2000, source).float()), GRID.float()
    parameters = [*hypernet.parameters(), *encoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    bounds = []
    for step in range(steps):
        noise = DECODER ** min(step / (ANNEALED * steps), 1.0)
        values = functions(batch, source).float()
        mean, log_std = encoder(values)
        z = mean + log_std.exp() * torch.randn(mean.shape, generator=source)
        outputs = hypernet.run(hypernet.decode(z), grid)[..., 0]
        rate = 0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std
        bound = Normal(outputs, noise).log_prob(values).sum(1) - rate.sum(1)
        optimizer.zero_grad()
        (-bound.mean()).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
        bounds.append(float(bound.detach().mean()))
    return hypernet.eval().double(), sum(bounds[-100:]) / 100


def log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of values with noise."""
    return -0.5 * ((targets - outputs[:, 0]) / NOISE).square() - math.log(NOISE * math.sqrt(2 * math.pi))


@torch.no_grad()
def drawn(hypernet: Hypernet, data: tuple[Tensor, Tensor], method: str, draws: int, **options: object) -> Tensor:
    """Functions of the posterior on the grid, ``(draws, 64)``."""
    found = infer(hypernet, data, method, log_likelihood, draws, **options)
    return hypernet.run(found.population, GRID)[..., 0]


def scores(values: Tensor, truth: Tensor) -> dict[str, float]:
    """What functions of a posterior are worth against the function itself."""
    low, high = values.quantile(0.05, dim=0), values.quantile(0.95, dim=0)
    return {
        "square": float((values.mean(0) - truth).square().mean()),
        "coverage": float(((truth >= low) & (truth <= high)).double().mean()),
    }


def picture(out: Path, x: Tensor, y: Tensor, truth: Tensor, known: Exact, found: dict[str, Tensor]) -> None:
    """The posteriors of one function, and of its integral."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    deviation = known.covariance.diagonal().clamp(min=0).sqrt()
    line = GRID[:, 0]
    axes[0].fill_between(line, known.mean - 1.645 * deviation, known.mean + 1.645 * deviation, color="0.85", label="exact")
    axes[0].plot(line, truth, "k:", label="function")
    for index, (name, values) in enumerate(found.items()):
        for place in (0.05, 0.95):
            axes[0].plot(line, values.quantile(place, dim=0), color=f"C{index}", label=name if place < 0.5 else None)
        axes[1].hist(values @ rule(), 30, density=True, alpha=0.5, color=f"C{index}", label=name)
    axes[0].plot(x[:, 0], y, "k.")
    mean, spread = known.integral
    at = torch.linspace(mean - 4 * spread, mean + 4 * spread, 200)
    axes[1].plot(at, Normal(mean, spread).log_prob(at).exp(), "k", label="exact")
    for one, label in zip(axes, ("x", "integral"), strict=True):
        one.set(xlabel=label)
        one.legend()
    figure.savefig(out, dpi=120)


def main() -> None:
    """Train, infer, compare, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--latent-dim", type=int, default=12)
    parser.add_argument("--hidden", type=int, nargs="*", default=[])
    parser.add_argument("--lr", type=float, default=2e-2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--functions", type=int, default=60)
    parser.add_argument("--by-nuts", type=int, default=2)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("functions.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    hypernet, bound = trained(args.steps, args.latent_dim, args.hidden, args.lr, args.batch, args.seed)
    figures = {"elbo": bound}
    source = torch.Generator().manual_seed(args.seed + 1000)
    truths = functions(args.functions, source)
    collected: dict[str, list[float]] = {}
    table = Table("function", "exact RMSE", "variational", "exact integral", "variational", "NUTS")
    shown = None
    for index, truth in enumerate(truths):
        places = torch.randperm(len(GRID), generator=source)[:POINTS]
        x, y = GRID[places], truth[places] + NOISE * torch.randn(POINTS, generator=source, dtype=truth.dtype)
        known = exact(x, y)
        values = {"variational": drawn(hypernet, (x, y), "variational", args.draws, seed=index, steps=300, lr=0.1)}
        if index < args.by_nuts:
            values["nuts"] = drawn(hypernet, (x, y), "nuts", args.draws // 2, seed=index, warmup=100, chains=2, lr=0.1)
            shown = (x, y, truth, known, values)
        deviation = known.covariance.diagonal().clamp(min=1e-12).sqrt()
        inside = (truth - known.mean).abs() <= 1.645 * deviation
        row: dict[str, float] = {"exact_square": float((known.mean - truth).square().mean())}
        row |= {"exact_coverage": float(inside.double().mean())}
        for name, one in values.items():
            row |= {f"{name}_{what}": value for what, value in scores(one, truth).items()}
            integral, (mean, spread) = one @ rule(), known.integral
            row[f"{name}_integral_shift"] = abs(float(integral.mean()) - mean) / spread
            row[f"{name}_integral_spread_ratio"] = float(integral.std()) / spread
        if "nuts" in values:
            apart = values["variational"].mean(0) - values["nuts"].mean(0)
            row["nuts_variational_apart"] = float(apart.abs().mean() / deviation.mean())
            ratio = values["variational"].std(0).mean() / values["nuts"].std(0).mean()
            row["nuts_variational_spread_ratio"] = float(ratio)
        for name, value in row.items():
            collected.setdefault(name, []).append(value)
        integrals = {
            name: f"{float((one @ rule()).mean()):.3f} ± {float((one @ rule()).std()):.3f}" for name, one in values.items()
        }
        rmse = [f"{row[f'{name}_square'] ** 0.5:.4f}" for name in ("exact", "variational")]
        table.add_row(
            str(index), *rmse, "{:.3f} ± {:.3f}".format(*known.integral), integrals["variational"], integrals.get("nuts", "")
        )
    Console().print(table)
    if shown is not None:
        picture(args.out, *shown)
    for name, found in collected.items():
        mean = sum(found) / len(found)
        figures[name.replace("square", "rmse")] = mean**0.5 if name.endswith("square") else mean
    figures["variational_rmse_ratio"] = figures["variational_rmse"] / figures["exact_rmse"]
    for name, value in figures.items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
