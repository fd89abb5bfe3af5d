"""Differential equations in targets, against exact answers; and weights that depend on time."""

import sys
from pathlib import Path

import pytest
import torch
import torchdiffeq
from torch import nn
from torch.distributions import MultivariateNormal
from torch.utils.checkpoint import checkpoint

from lightning_hypernet import Hypernet
from lightning_hypernet.generator import Latents

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import ode_flow
from ode_flow import Flow, circles, gaussian_nll, gradients, train, with_trace

SOLVERS = {"direct": torchdiffeq.odeint, "adjoint": torchdiffeq.odeint_adjoint}
SHORT = ["--steps", "2", "--batch", "16", "--networks", "1", "--held-out", "20", "--grid", "11"]
CLOSE = {"rtol": 1e-8, "atol": 1e-9}
SOLVER = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


class Linear(nn.Module):
    """dz/dt = A z."""

    def __init__(self, solver):
        super().__init__()
        self.matrix, self.solver = nn.Parameter(0.5 * torch.randn(3, 3)), solver

    def forward(self, x):
        times, named = torch.tensor([0.0, 1.0]).to(x), {}
        if self.solver is torchdiffeq.odeint_adjoint:
            named["adjoint_params"] = (self.matrix,)
        return self.solver(lambda t, z: z @ self.matrix.T, x, times, **CLOSE, **named)[-1]


def made(target, *args, **options):
    torch.manual_seed(0)
    return Hypernet(target(*args).double(), latent_dim=4, samples=4, members=3, gauge="none", **options)


def exponential(matrices, x):
    """exp(A) x for every A ``(S, d, d)`` and its ``(S, batch, d)``."""
    return x @ torch.matrix_exp(matrices).mT


@pytest.mark.parametrize(
    ("solver", "execution"), [(SOLVERS["direct"], "loop"), (SOLVERS["direct"], "auto"), (SOLVERS["adjoint"], "loop")]
)
def test_a_linear_equation_is_solved_exactly_for_every_network(solver, execution):
    hypernet = made(Linear, solver, execution=execution).train()
    x = torch.randn(8, 3, dtype=torch.float64)
    with hypernet.step():
        outputs = hypernet(x)
        matrices = hypernet.population.weights["matrix"]
    torch.testing.assert_close(outputs, exponential(matrices, x.view(4, 2, 3)).flatten(0, 1), rtol=1e-7, atol=1e-8)
    found = torch.autograd.grad(outputs.square().sum(), matrices, retain_graph=True)
    exact = torch.autograd.grad(exponential(matrices, x.view(4, 2, 3)).square().sum(), matrices)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-7)


@SOLVER
def test_members_are_the_mean_of_solutions(solver):
    hypernet = made(Linear, solver, execution="loop").eval()
    x = torch.randn(5, 3, dtype=torch.float64)
    matrices = hypernet.member_population().weights["matrix"]
    torch.testing.assert_close(hypernet(x), exponential(matrices, x.expand(3, 5, 3)).mean(0), rtol=1e-7, atol=1e-8)


def test_gradients_are_those_of_plain_networks():
    direct, plain, generator, of_plain = gradients(SOLVERS["direct"], seed=1)
    adjoint, plain_adjoint, generator_adjoint, _ = gradients(SOLVERS["adjoint"], seed=1)
    for one, other in ((direct, plain), (adjoint, plain), (adjoint, plain_adjoint), (generator, of_plain),
                       (generator_adjoint, of_plain)):  # fmt: skip
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, t, z):
        return torch.tanh(self.layer(z)) * (1 + t)


def outside(solver, within):
    """The gradients where the solver calls the Hypernet, with the backward pass within the step or behind it."""
    hypernet = made(Field, execution="loop").train()
    x, times = torch.randn(8, 3, dtype=torch.float64), torch.linspace(0, 1, 2, dtype=torch.float64)
    with hypernet.step():
        loss = solver(hypernet, x, times, **CLOSE)[-1].square().sum()
        if within:
            loss.backward()
    if not within:
        loss.backward()
    return torch.cat([one.grad.flatten() for one in hypernet.generator.parameters()])


def test_a_solver_around_the_target_needs_the_step_until_the_backward_pass():
    expected = outside(SOLVERS["direct"], within=False)
    torch.testing.assert_close(outside(SOLVERS["adjoint"], within=True), expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(RuntimeError, match=r"inside the target, or open hypernet\.step\(\) around"):
        outside(SOLVERS["adjoint"], within=False)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_the_target_sees_no_other_networks(reentrant):
    found = []
    for around in (False, True):
        hypernet = made(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh()), execution="loop").train()
        x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
        with hypernet.step():
            hypernet.training_population()
            (checkpoint(hypernet, x, use_reentrant=reentrant) if around else hypernet(x)).square().sum().backward()
        found.append(torch.cat([one.grad.flatten() for one in hypernet.generator.parameters()]))
    torch.testing.assert_close(*found)
    loss = checkpoint(hypernet, x, use_reentrant=reentrant).square().sum()
    with pytest.raises(RuntimeError, match="the networks of its forward are gone"):
        loss.backward()


class Affine(nn.Module):
    """f(z) = A z + b; its flow is known."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, z):
        return self.layer(z)


def timed(field, **options):
    """A Hypernet of time, whose conditions matter."""
    hypernet = made(field, context_dim=1, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for right in hypernet.generator.conditioner.right:
            right.copy_(torch.randn(right.shape, generator=generator, dtype=torch.float64))
    return hypernet


def some(hypernet, count):
    """Latents of some networks, and points for each."""
    generator = torch.Generator().manual_seed(2)
    return hypernet.draw(count), torch.randn(count, 6, 2, generator=generator, dtype=torch.float64)


def propagated(hypernet, latents, pieces=1000):
    """The exact affine flow from 0 to 1 of every network, as ``(S, 3, 3)``: a product of exponentials over short times."""
    flow = Flow(hypernet, Affine())
    middles = (torch.arange(pieces, dtype=torch.float64) + 0.5) / pieces
    with torch.no_grad():
        weights = flow.weights(latents, middles)
    generators = torch.zeros(pieces, len(latents), 3, 3, dtype=torch.float64)
    generators[..., :2, :2], generators[..., :2, 2] = weights["layer.weight"], weights["layer.bias"]
    product = torch.eye(3, dtype=torch.float64).expand(len(latents), 3, 3)
    for one in torch.matrix_exp(generators / pieces):
        product = one @ product
    return product


@pytest.mark.parametrize(("steps", "accuracy"), [(None, 1e-5), (200, 1e-4)])
def test_the_density_of_an_affine_flow_is_that_of_a_gaussian(steps, accuracy):
    hypernet = timed(Affine)
    latents, points = some(hypernet, 3)
    with torch.no_grad():
        found = Flow(hypernet, Affine(), steps).log_density(latents, points)
    for one, own, product in zip(points, found, propagated(hypernet, latents), strict=True):
        matrix, shift = product[:2, :2], product[:2, 2]
        exact = MultivariateNormal(shift, matrix @ matrix.T).log_prob(one)
        torch.testing.assert_close(own, exact, rtol=accuracy, atol=accuracy)


def test_samples_are_where_the_affine_flow_takes_them():
    hypernet = timed(Affine)
    latents, points = some(hypernet, 2)
    product = propagated(hypernet, latents)
    with torch.no_grad():
        moved, traces = Flow(hypernet, Affine(), steps=None).solve(latents, points, (0.0, 1.0))
        back, _ = Flow(hypernet, Affine(), steps=None).solve(latents, moved, (1.0, 0.0))
    exact = points @ product[:, :2, :2].mT + product[:, None, :2, 2]
    torch.testing.assert_close(moved, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(traces, torch.linalg.slogdet(product)[1][:, None].expand(2, 6), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(back, points, rtol=1e-5, atol=1e-5)


def small():
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))


def test_the_trace_is_that_of_the_jacobian():
    hypernet = timed(small)
    latents, points = some(hypernet, 3)
    population = hypernet.decode(latents.given(torch.tensor([0.4], dtype=torch.float64)))
    velocities, traces = with_trace(small(), dict(population.weights), points)
    for network, one, velocity, trace in zip(hypernet.materialize(population), points, velocities, traces, strict=True):
        torch.testing.assert_close(velocity, network(one))
        jacobians = torch.stack([torch.autograd.functional.jacobian(network, point) for point in one])
        torch.testing.assert_close(trace, jacobians.diagonal(dim1=1, dim2=2).sum(1))


def test_weights_at_a_time_are_those_of_that_condition():
    hypernet = timed(small)
    latents, _ = some(hypernet, 3)
    times = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    table = Flow(hypernet, small()).weights(latents, times)
    for time, row in zip(times, range(3), strict=True):
        one = hypernet.decode(Latents(latents.z, latents.component, time.expand(3, 1))).weights
        for name, value in one.items():
            torch.testing.assert_close(table[name][row], value)
    assert (table["0.weight"][0] - table["0.weight"][2]).abs().max() > 1e-3


def of_density(steps, solver):
    hypernet = timed(small)
    latents, points = some(hypernet, 2)
    Flow(hypernet, small(), steps, solver).log_density(latents, points).sum().backward()
    return torch.cat([one.grad.flatten() for one in hypernet.generator.parameters()])


def test_the_adjoint_gives_the_gradients_of_a_density_in_which_time_makes_the_weights():
    adjoint, direct = (of_density(None, solver) for solver in (SOLVERS["adjoint"], SOLVERS["direct"]))
    torch.testing.assert_close(adjoint, direct, rtol=1e-4, atol=1e-4 * direct.abs().max().item())
    table = of_density(100, SOLVERS["direct"])
    torch.testing.assert_close(table, direct, rtol=1e-3, atol=1e-3 * direct.abs().max().item())


def test_the_best_gaussian_is_the_best():
    points = circles(500, 0)
    assert gaussian_nll(points) == pytest.approx(
        -MultivariateNormal(points.mean(0), torch.cov(points.T, correction=0)).log_prob(points).mean().item()
    )
    for shift in (0.1, -0.1):
        assert -MultivariateNormal(points.mean(0) + shift, torch.cov(points.T)).log_prob(points).mean() > gaussian_nll(points)


@pytest.mark.slow
def test_the_example_prints_its_figures_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ode_flow.py", *SHORT])
    threads = torch.get_num_threads()
    try:
        ode_flow.main()
    finally:
        torch.set_num_threads(threads)
    printed = [line.split(": ") for line in capsys.readouterr().out.splitlines() if ": " in line]
    figures = {name: float(value) for name, value in printed}
    assert all(figures.pop(name) < 1e-5 for name in list(figures) if name.startswith("block"))
    assert list(figures) == ["gaussian_nll", "flow_nll", "mixture_nll", "mixture_nll_of_fixed_steps"]
    assert figures["mixture_nll_of_fixed_steps"] == pytest.approx(figures["mixture_nll"], abs=0.02)
    assert (tmp_path / "ode_flow.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_flow_learns_what_no_gaussian_can():
    torch.manual_seed(0)
    hypernet = Hypernet(small(), context_dim=1, latent_dim=4, samples=2, gauge="none").train()
    flow, points = Flow(hypernet, small(), steps=10), circles(1000, 10**6)
    train(flow, 150, 256, 3e-2)
    with torch.no_grad():
        density = flow.log_density(hypernet.draw(4), points.expand(4, -1, -1))
    assert -density.mean() < gaussian_nll(points)
