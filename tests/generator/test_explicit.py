"""Weight distributions whose density is known: against torch.distributions, and by change of variables."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from lightning_hypernet import Hypernet
from lightning_hypernet.generator.distribution import Density
from lightning_hypernet.generator.flows import Flow

EXACT = ("mean_field", "low_rank", "full", "flow")
ALL = (*EXACT, "filter_norms", "mnf")


def target():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).double()


def shaken(hypernet, size=0.2):
    """The Hypernet with every parameter of its distribution moved, so that nothing is right by its start."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in hypernet.generator.parameters():
            parameter += size * torch.randn(parameter.shape, generator=source, dtype=parameter.dtype)
    return hypernet


def hypernet(name, **options):
    torch.manual_seed(0)
    return shaken(Hypernet(target(), distribution={"name": name, **options}, samples=3, execution="loop"))


def vectors(weights):
    return torch.cat([value.reshape(len(value), -1) for value in weights.values()], dim=1)


def covariance(generator):
    std = generator.log_std.exp()
    if hasattr(generator, "factor"):
        middle = torch.eye(len(std)).to(std) + generator.factor @ generator.factor.T
    else:
        triangle = torch.eye(len(std)).to(std)
        if hasattr(generator, "lower"):
            rows, columns = torch.tril_indices(len(std), len(std), -1)
            triangle[rows, columns] += generator.lower.detach()
        middle = triangle @ triangle.T
    return std[:, None] * middle * std


@pytest.mark.parametrize("name", ["mean_field", "low_rank", "full"])
def test_density_and_entropy_of_gaussians_are_those_of_torch(name):
    net = hypernet(name)
    population = net.sample(5)
    expected = MultivariateNormal(net.generator.mean, covariance(net.generator))
    density = net.generator.log_density(population.latents, population.weights)
    torch.testing.assert_close(density, expected.log_prob(vectors(population.weights)), rtol=0, atol=1e-6)
    torch.testing.assert_close(net.generator.entropy(), expected.entropy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [("mean_field", {}), ("full", {}), *(("flow", {"flow": flow}) for flow in ("NICE", "RealNVP"))],
)
def test_the_density_follows_from_the_jacobian_of_the_draw(name, options):
    net = hypernet(name, **options)
    population = net.sample(3)
    density = net.generator.log_density(population.latents, population.weights)
    for index, z in enumerate(population.latents.z):
        latents = population.latents[index : index + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda z, latents=latents: vectors(net.generator(latents.map(lambda one: z[None] if one.ndim == 2 else one)))[0], z
        )
        expected = Normal(0.0, 1.0).log_prob(z).sum() - torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(density[index], expected, rtol=0, atol=1e-6)


def test_the_density_of_filter_norms_follows_from_the_jacobian_of_the_norms():
    net = hypernet("filter_norms")
    population = net.sample(3)
    norms = net.generator.coordinates(population.weights)
    density = net.generator.log_density(population.latents, population.weights)
    kernel = population.weights["0.weight"].flatten(2)
    torch.testing.assert_close(norms[:, :3].abs(), kernel.norm(dim=2))
    torch.testing.assert_close(norms[:, 3:].abs(), population.weights["4.weight"].norm(dim=2))
    for index, z in enumerate(population.latents.z):
        latents = population.latents[index : index + 1]

        def draw(z, latents=latents):
            weights = net.generator(latents.map(lambda one: z[None] if one.ndim == 2 else one))
            return net.generator.coordinates(weights)[0]

        jacobian = torch.autograd.functional.jacobian(draw, z)
        expected = Normal(0.0, 1.0).log_prob(z).sum() - torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(density[index], expected, rtol=0, atol=1e-6)


def test_filters_keep_their_direction_and_all_but_norms_is_alike():
    net = hypernet("filter_norms")
    weights = net.sample(4).weights
    rows = weights["4.weight"] / weights["4.weight"].norm(dim=2, keepdim=True)
    torch.testing.assert_close(rows.abs(), rows[:1].abs().expand_as(rows))
    assert weights["4.weight"].std(0).min() > 0
    for name in ("0.bias", "1.weight", "1.bias", "4.bias"):
        assert torch.equal(weights[name][0], weights[name][1])


def test_multipliers_belong_to_filters_of_convolutions_and_inputs_of_linear_layers():
    net = hypernet("mnf")
    with torch.no_grad():
        net.generator.log_std.fill_(-60.0)
    weights = net.sample(3).weights
    own = net.generator.of_vector(net.generator.mean[None])
    for name, axis in (("0.weight", 1), ("4.weight", 2)):
        ratio = (weights[name] / own[name]).movedim(axis, 1).flatten(2)
        assert ratio.std(2).max() < 1e-6 < ratio.mean(2).std(0).min()
    torch.testing.assert_close(weights["4.bias"][0], own["4.bias"][0])


def test_the_bound_of_multiplicative_flows_is_a_sum_of_densities():
    """Against a slow reference for one network, whose flows are evaluated in the other direction."""
    net = hypernet("mnf")
    generator, population = net.generator, net.sample(3)
    bound = generator.log_density(population.latents, population.weights)
    own, rest = population.latents.z.split([len(generator.mean), sum(generator.lengths)], dim=1)
    for index in range(3):
        total, means = 0.0, {}
        for place, (name, axis) in enumerate(generator.axes.items()):
            part = rest[index].split(generator.lengths)[place]
            multipliers = 1 + generator.log_spread[place].exp() * generator.flows[place].draw(part[None])[0][0]
            standard = (multipliers - 1) / generator.log_spread[place].exp()
            total = total + generator.flows[place].log_prob(standard[None])[0] - generator.log_spread[place].sum()
            shape = [1] * len(generator.shapes[name])
            shape[axis] = -1
            means[name] = generator.of_vector(generator.mean[None])[name][0] * multipliers.view(shape)
            rows = population.weights[name][index].movedim(axis, 0).flatten(1)
            summary = torch.tanh(generator.mixes[place] @ rows).mean()
            center = generator.centers[place][0] + summary * generator.centers[place][1]
            width = generator.log_widths[place][0] + summary * generator.log_widths[place][1]
            back = generator.backward_flows[place].log_prob(((multipliers - 1 - center) / width.exp())[None])[0] - width.sum()
            total = total - back
        means = generator.of_vector(generator.mean[None]) | {name: value[None] for name, value in means.items()}
        std = generator.log_std.exp()
        value = vectors({name: one[index : index + 1] for name, one in population.weights.items()})
        total = total + Normal(vectors(means), std).log_prob(value).sum()
        torch.testing.assert_close(bound[index], total, rtol=0, atol=1e-6)
    assert torch.equal(generator.standardised(population.latents.z), own)


def test_the_bound_of_multiplicative_flows_is_at_least_the_density():
    """With one linear weight the density is an integral over its multiplier, which is done by quadrature."""
    torch.manual_seed(0)
    net = Hypernet(nn.Linear(1, 1, bias=False).double(), distribution={"name": "mnf", "sigma": 0.5, "spread": 0.5})
    generator = net.generator
    with torch.no_grad():
        generator.mean.fill_(1.3)
        generator.log_widths[0][1].fill_(0.3)
    population = net.sample(4000)
    weights = vectors(population.weights)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    means = generator.mean * (1 + generator.log_spread[0].exp() * grid)
    density = Normal(means, generator.log_std.exp()).log_prob(weights)
    exact = torch.logsumexp(density + Normal(0.0, 1.0).log_prob(grid), dim=1) + torch.log(grid[1] - grid[0])
    bound = generator.log_density(population.latents, population.weights)
    error = (bound - exact).std() / len(bound) ** 0.5
    assert (bound - exact).mean() > 3 * error


@pytest.mark.parametrize("name", ALL)
def test_networks_are_functions_of_their_z_and_start_around_the_target(name):
    torch.manual_seed(0)
    module = target()
    net = Hypernet(module, distribution={"name": name, "sigma": 0.01}, samples=3)
    drawn = net.sample(6)
    again = net.decode(drawn.latents)
    for key, own in module.named_parameters():
        torch.testing.assert_close(drawn.weights[key], again.weights[key], rtol=0, atol=0)
        assert drawn.weights[key].is_contiguous()
        if name != "mnf":
            torch.testing.assert_close(drawn.weights[key], own.detach().expand_as(drawn.weights[key]), rtol=0.2, atol=0.02)


@pytest.mark.parametrize("name", ALL)
def test_held_densities_have_the_same_value_and_gradients_of_weights_alone(name):
    net = hypernet(name)
    population = net.populate(net.draw(3))
    weights = {key: value.detach().requires_grad_() for key, value in population.weights.items()}
    density = Density(net.generator)
    held = density.held(population.latents, weights)
    torch.testing.assert_close(held, density(population.latents, weights), rtol=0, atol=1e-12)
    parameters = list(net.generator.parameters())
    gradients = torch.autograd.grad(held.sum(), [*weights.values(), *parameters], allow_unused=True)
    assert any(one is not None and one.abs().max() > 0 for one in gradients[: len(weights)])
    assert all(one is None for one in gradients[len(weights) :])


@pytest.mark.parametrize("name", ALL)
def test_weights_of_every_distribution_come_back_from_their_state(name, tmp_path):
    net = hypernet(name)
    other = Hypernet(target(), distribution={"name": name}, samples=3)
    other.load_state_dict(net.state_dict())
    latents = net.draw(2)
    for one, two in zip(net.decode(latents).weights.values(), other.decode(latents).weights.values(), strict=True):
        assert torch.equal(one, two)


def test_what_an_explicit_distribution_cannot_have_is_refused():
    module = target()
    with pytest.raises(ValueError, match="58 numbers: leave out latent_dim=7"):
        Hypernet(nn.Linear(28, 2).double(), distribution="mean_field", latent_dim=7)
    with pytest.raises(ValueError, match="one component"):
        Hypernet(module, distribution="mean_field", components=2)
    with pytest.raises(ValueError, match="leave the prior at 'normal'"):
        Hypernet(module, distribution="flow", prior="uniform")
    with pytest.raises(ValueError, match="no condition"):
        Hypernet(module, distribution="full", context_dim=1)
    with pytest.raises(ValueError, match="leave out generator="):
        Hypernet(module, distribution="mnf", generator="compact")
    with pytest.raises(ValueError, match="at most 4,096 weights"):
        Hypernet(nn.Linear(70, 70), distribution="full")
    with pytest.raises(ValueError, match="'NCSF'"):  # its base is uniform
        Hypernet(module, distribution={"name": "flow", "flow": "NCSF"})
    with pytest.raises(ValueError, match="'RealNPV'; did you mean 'RealNVP'"):
        Hypernet(module, distribution={"name": "flow", "flow": "RealNPV"})
    with pytest.raises(ValueError, match="sigma"):
        Hypernet(module, distribution={"name": "mean_field", "sigma": 0})
    for name, needed in (("filter_norms", "filters have norms"), ("mnf", "multipliers need")):
        with pytest.raises(ValueError, match=needed):
            Hypernet(nn.LayerNorm(4), distribution=name)
    empty = nn.Linear(3, 2)
    nn.init.zeros_(empty.weight)
    with pytest.raises(ValueError, match="weight has filters of zeros"):
        Hypernet(empty, distribution="filter_norms")
    with pytest.raises(ValueError, match="have dtypes"):
        Hypernet(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double()), distribution="mean_field")
    with pytest.raises(TypeError, match="rank"):
        Hypernet(module, distribution={"name": "low_rank", "ranks": 3})


def test_flows_without_zuko_name_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "zuko" else find(name, *rest))
    with pytest.raises(ValueError, match=r"pip install 'lightning_hypernet\[flows\]'"):
        Hypernet(target(), distribution="flow")


def test_flows_leave_the_distributions_of_torch_as_they_were():
    """The import of zuko alone stops them from checking their arguments."""
    code = (
        "import torch; from torch import nn; from lightning_hypernet import Hypernet\n"
        "Hypernet(nn.Linear(3, 2), distribution='flow')\n"
        "torch.distributions.Normal(0.0, -1.0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Expected parameter scale" in ended.stderr


@pytest.mark.parametrize("flow", ["NICE", "RealNVP", "MAF", "NSF"])
def test_what_a_flow_draws_has_the_density_that_it_says(flow):
    torch.manual_seed(0)
    made = Flow(4, flow, transforms=2, hidden=(8,)).double()
    u, density = made.draw(torch.randn(20, 4, dtype=torch.float64))
    torch.testing.assert_close(density, made.log_prob(u), rtol=0, atol=1e-6)
