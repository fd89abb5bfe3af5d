"""Entropy on the manifold of generated networks: closed forms, a slow reference, and the neighbour estimate beside it."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Dirichlet, MultivariateNormal

from lightning_hypernet import Hypernet, hookimpl
from lightning_hypernet.diversity.entropy import entropy, entropy_constants
from lightning_hypernet.generator import Latents, Prior, WeightDistribution
from lightning_hypernet.metrics import ManifoldEntropy, NeighbourEntropy

SHAPES = {"weight": (3, 4), "bias": (3,)}


class Linear(WeightDistribution):
    """Weights A z + b of a layer of 15 numbers, A and b of every component; `rank` columns of A differ."""

    def __init__(self, setting, rank=64, noise=0.0):
        super().__init__()
        source = torch.Generator().manual_seed(1)
        matrix = torch.randn(setting.components, 15, setting.latent_dim, generator=source)
        matrix[..., rank:] = matrix[..., :1]
        like = next(iter(setting.initial.values()))
        self.matrix = nn.Parameter(matrix.to(like))
        self.shift = nn.Parameter(torch.randn(setting.components, 15, generator=source).to(like))
        self.noise = noise

    def forward(self, latents):
        flat = (self.matrix[latents.component] @ latents.z[..., None]).squeeze(-1) + self.shift[latents.component]
        flat = flat + self.noise * torch.randn_like(flat) if self.noise else flat
        weight, bias = flat.split([12, 3], dim=1)
        return {"weight": weight.reshape(-1, 3, 4).contiguous(), "bias": bias.contiguous()}


class Unknown(Prior):
    def sample(self, component):
        return torch.randn(len(component), self.latent_dim)


class Plugin:
    @hookimpl
    def hypernet_register_distributions(self, register):
        register("linear", Linear)


def linear(latent_dim=3, dtype=torch.float64, **options):
    torch.manual_seed(0)
    given = {"distribution": "linear", "gauge": "none", "plugins": [Plugin()], "latent_dim": latent_dim, **options}
    return Hypernet(nn.Linear(4, 3).to(dtype), **given).eval()


def log_volume(matrix):
    return 0.5 * torch.linalg.slogdet(matrix.double().mT @ matrix.double()).logabsdet.item()


def measured(metric, *populations):
    for population in populations:
        metric.update(population)
    return metric.compute().item()


def convolutional(dtype=torch.float64, **options):
    torch.manual_seed(0)
    target = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).to(dtype)
    given = {"latent_dim": 3, "samples": 4, **options}
    return Hypernet(target, example_inputs=torch.randn(2, 1, 4, 4, dtype=dtype), **given).eval()


def slow(net, population, gauge):
    """A row of the Jacobian at a time, one network after the other, by gradients alone."""
    generator, values = copy.deepcopy(net.generator).double(), []
    for index in range(len(population)):
        one = population.latents[index : index + 1].to(torch.zeros((), dtype=torch.float64))

        def vector(z, one=one):
            weights = generator(replace(one, z=z[None]))
            weights = net.symmetries.gauge(weights) if gauge else weights
            return torch.cat([value.flatten() for value in weights.values()])

        jacobian = torch.autograd.functional.jacobian(vector, one.z[0])
        assert jacobian.shape == (net.banks.weights, net.latent_dim)
        values.append(log_volume(jacobian) - net.prior.log_prob(one).item())
    return torch.tensor(values, dtype=torch.float64)


# Closed forms


@pytest.mark.parametrize("latent_dim", [1, 3, 7])
def test_a_linear_generator_has_the_entropy_of_the_gaussian_it_makes(latent_dim):
    net = linear(latent_dim)
    each = ManifoldEntropy(net).each(net.sample(20_000))
    exact = 0.5 * latent_dim * math.log(2 * math.pi * math.e) + log_volume(net.generator.matrix[0])
    assert each.dtype == torch.float64
    assert each.std().item() == pytest.approx(math.sqrt(latent_dim / 2), rel=0.05)
    assert each.mean().item() == pytest.approx(exact, abs=4 * math.sqrt(latent_dim / 2 / 20_000))


def test_a_linear_generator_of_a_uniform_z_has_its_entropy_exactly():
    net = linear(prior="uniform")
    exact = 3 * math.log(2) + log_volume(net.generator.matrix[0])
    assert measured(ManifoldEntropy(net), net.sample(5), net.sample(1)) == pytest.approx(exact, abs=1e-6)


def test_every_weight_counts_as_it_is_for_as_many_numbers_as_weights():
    net = linear(15)
    matrix, shift = net.generator.matrix[0], net.generator.shift[0]
    population = net.sample(6)
    made = MultivariateNormal(shift, matrix @ matrix.mT)
    torch.testing.assert_close(ManifoldEntropy(net).each(population), -made.log_prob(population.vectors), atol=1e-6, rtol=0)


def test_components_are_manifolds_apart_each_of_which_holds_its_share():
    net = linear(components=3, prior="uniform")
    volumes = [log_volume(matrix) for matrix in net.generator.matrix]
    exact = math.log(3) + 3 * math.log(2) + sum(volumes) / 3
    assert measured(ManifoldEntropy(net), net.sample(6)) == pytest.approx(exact, abs=1e-6)
    alone = measured(ManifoldEntropy(net), net.sample(2, component=1))
    assert alone - math.log(3) == pytest.approx(3 * math.log(2) + volumes[1], abs=1e-6)


def test_a_trained_prior_counts_with_its_own_scale():
    net = linear(prior="mixture", components=2)
    with torch.no_grad():
        net.prior.log_std.copy_(torch.tensor([[0.5, 0.1, -1.0], [0.0, 0.3, 2.0]]))
    each = ManifoldEntropy(net).each(net.sample(20_000))
    gaussian = 1.5 * math.log(2 * math.pi * math.e) + math.log(2)
    exact = gaussian + (0.5 + 0.1 - 1 + 0.3 + 2 + sum(map(log_volume, net.generator.matrix))) / 2
    assert each.mean().item() == pytest.approx(exact, abs=4 * each.std().item() / math.sqrt(20_000))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_collapsed_manifold_has_minus_infinite_entropy(dtype):
    net = linear(distribution={"name": "linear", "rank": 2}, dtype=dtype)
    assert measured(ManifoldEntropy(net), net.sample(3)) == -math.inf


def test_a_manifold_that_is_thin_has_not_collapsed():
    net = linear()
    whole = log_volume(net.generator.matrix[0])
    with torch.no_grad():
        net.generator.matrix[..., 1] *= 1e-9
    population = net.sample(3)
    expected = -net.prior.log_prob(population.latents) + whole + math.log(1e-9)
    torch.testing.assert_close(ManifoldEntropy(net).each(population), expected, atol=1e-6, rtol=0)


# Against the reference


@pytest.mark.parametrize("gauge", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"gauge": "scale"},
        {"gauge": "softmax"},
        {"gauge": "permutation"},
        {"gauge": "none"},
        {"components": 2, "prior": "uniform"},
        {"context_dim": 2},
        {"generator": {"norm": "batch", "extractor_hidden": (8,), "extractor": "mlp"}},
        {"generator": {"norm": "layer", "activation": "gelu", "hidden": (8,)}},
        {"generator": "adapter"},
        {"generator": "compact", "prior": "mixture"},
    ],
)
def test_it_equals_the_slow_one(options, gauge):
    net = convolutional(**options)
    context = torch.tensor([[0.3, -1.0], [2.0, 0.1], [0.0, 0.0], [1.0, 1.0]]) if "context_dim" in options else None
    population = net.sample(4, context=context)
    fast, exact = ManifoldEntropy(net, gauge=gauge).each(population), slow(net, population, gauge)
    torch.testing.assert_close(fast, exact, atol=1e-8, rtol=0)


def test_the_gauge_changes_it_where_there_is_something_to_fix():
    net = convolutional()
    population = net.sample(4)
    seen, plain = (ManifoldEntropy(net, gauge=gauge).each(population) for gauge in (True, False))
    assert ((seen - plain).abs() > 1e-3).all()
    none = convolutional(gauge="none")
    population = none.sample(4)
    seen, plain = (ManifoldEntropy(none, gauge=gauge).each(population) for gauge in (True, False))
    torch.testing.assert_close(seen, plain, atol=1e-12, rtol=0)


def test_a_generator_of_single_precision_is_read_in_double():
    net = convolutional(dtype=torch.float32)
    population = net.sample(4)
    torch.testing.assert_close(ManifoldEntropy(net).each(population), slow(net, population, True), atol=1e-6, rtol=0)


@pytest.mark.parametrize("directions", [1, 2, 16])
def test_how_many_directions_are_followed_at_once_changes_nothing(directions):
    net = convolutional()
    population = net.sample(4)
    expected = ManifoldEntropy(net, directions=3).each(population)
    torch.testing.assert_close(ManifoldEntropy(net, directions=directions).each(population), expected, atol=1e-10, rtol=0)


def test_many_networks_are_read_in_parts():
    net = linear(12)
    population = net.sample(50_000)  # 9,000,000 numbers of Jacobians
    each = ManifoldEntropy(net).each(population)
    expected = log_volume(net.generator.matrix[0]) - net.prior.log_prob(population.latents)
    torch.testing.assert_close(each, expected, atol=1e-5, rtol=0)


def test_nothing_of_the_hypernet_changes():
    net = convolutional(generator={"norm": "batch"}).train()
    population = net.eval().sample(4)
    net.train()
    net.generator.hidden.eval()
    modes = [module.training for module in net.modules()]
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    draws = net.prior.draws
    with torch.no_grad():
        first = ManifoldEntropy(net).each(population)
    with torch.inference_mode():
        second = ManifoldEntropy(net).each(population)
    assert torch.equal(first, second) and not first.requires_grad
    assert [module.training for module in net.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.generator.parameters())
    assert net.prior.draws == draws and torch.equal(torch.get_rng_state(), random)
    after = net.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(value, after[name]) for name, value in state.items() if isinstance(value, torch.Tensor))


def test_it_is_a_mean_over_all_networks_without_state_of_its_own():
    net = linear()
    one, other = net.sample(2), net.sample(5)
    metric = ManifoldEntropy(net)
    each = torch.cat([metric.each(one), metric.each(other)])
    assert measured(metric, one, other) == pytest.approx(each.mean().item(), abs=1e-6)
    assert not metric.state_dict() and not list(metric.parameters())


# Refusals


def test_what_has_no_density_on_a_manifold_is_refused():
    with pytest.raises(TypeError, match="hypernet must be a Hypernet, not 3"):
        ManifoldEntropy(3)
    with pytest.raises(ValueError, match="Unknown does not know its density, .*choose a prior with log_prob"):
        ManifoldEntropy(linear(prior=Unknown(3)))
    with pytest.raises(ValueError, match="the prior's Bernoulli has no density of all numbers of z"):
        ManifoldEntropy(linear(prior=Bernoulli(torch.tensor(0.5))))
    with pytest.raises(ValueError, match="the prior's Dirichlet has no density of all numbers of z"):
        ManifoldEntropy(linear(prior=Dirichlet(torch.ones(3))))
    with pytest.raises(ValueError, match="NoisyGenerator adds noise to weights.*distribution='generator'"):
        ManifoldEntropy(convolutional(distribution="noisy"))
    with pytest.raises(ValueError, match="z has 16 numbers for 15 weights.*lower latent_dim"):
        ManifoldEntropy(linear(16))
    with pytest.raises(ValueError, match="15 weights by 3 numbers of z holds 45, more than limit=44: raise limit"):
        ManifoldEntropy(linear(), limit=44)
    with pytest.raises(ValueError, match="gauge must be true or false, not 2"):
        ManifoldEntropy(linear(), gauge=2)
    with pytest.raises(ValueError, match="directions must be 1 or more, not 0"):
        ManifoldEntropy(linear(), directions=0)


def test_populations_that_the_generator_does_not_give_are_refused():
    net = linear(prior="uniform")
    metric, population = ManifoldEntropy(net), net.sample(3)
    with pytest.raises(ValueError, match="of another target"):
        metric.update(convolutional().sample(2))
    with pytest.raises(TypeError, match="must be a population"):
        metric.update(population.weights)
    with pytest.raises(ValueError, match="latents where the prior has no density"):
        metric.update(net.decode(Latents(torch.full((1, 3), 2.0), torch.zeros(1, dtype=torch.long))))
    with torch.no_grad():
        net.generator.shift += 0.1
    with pytest.raises(ValueError, match="does not give the population's weights for its latents: sample one"):
        metric.update(population)
    noisy = linear(distribution={"name": "linear", "noise": 0.1})
    with pytest.raises(ValueError, match="that adds no noise"):
        ManifoldEntropy(noisy).update(noisy.sample(3))
    with torch.no_grad():
        net.generator.matrix.fill_(math.nan)
    with pytest.raises(ValueError, match="the population's weights hold NaN or infinite numbers"):
        metric.update(net.sample(2))


# The neighbour estimate


def test_the_constants_are_those_of_known_balls():
    euler = 0.5772156649015329
    for dimension, p, volume in [
        (1, 2, 2),
        (2, 2, math.pi),
        (3, 2, 4 * math.pi / 3),
        (4, 2, math.pi**2 / 2),
        (1, 1, 2),
        (3, 1, 8 / 6),
    ]:
        assert entropy_constants(dimension, p) == pytest.approx(math.log(volume) + euler, abs=1e-12)
    with pytest.raises(ValueError, match="dimension must be 1 or more, not 0"):
        entropy_constants(0)
    with pytest.raises(ValueError, match="p must be 1 or 2, not 3"):
        entropy_constants(2, 3)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_with_its_constants_the_estimate_is_that_of_a_gaussian(dimension, p):
    torch.manual_seed(0)
    scale = torch.randn(dimension, dimension, dtype=torch.float64)
    count, repeats = 2000, 4
    exact = 0.5 * dimension * math.log(2 * math.pi * math.e) + log_volume(scale)
    found = [
        (entropy(torch.randn(count, dimension, dtype=torch.float64) @ scale.mT, dimension, p, eps=0)).item()
        + entropy_constants(dimension, p)
        for _ in range(repeats)
    ]
    # of independent terms: the variance of log p, d/2, and that of the logarithm of a ball's share, pi^2 / 6
    error = math.sqrt((dimension / 2 + math.pi**2 / 6) / (count * repeats))
    assert sum(found) / repeats == pytest.approx(exact, abs=4 * error)


def test_the_neighbour_estimate_reads_the_population_alone():
    net = convolutional()
    one, other = net.sample(5), net.sample(3)
    metric = NeighbourEntropy()
    expected = [entropy(population.gauged, 3, eps=0) + entropy_constants(3) for population in (one, other)]
    assert measured(metric, one, other) == pytest.approx((5 * expected[0] + 3 * expected[1]).item() / 8, abs=1e-5)
    plain = entropy(one.vectors, 3, eps=0) + entropy_constants(3)
    assert measured(NeighbourEntropy(gauge=False), one) == pytest.approx(plain.item(), abs=1e-5)
    with pytest.raises(ValueError, match="two networks or more, not 1"):
        metric.update(one[:1])
    assert measured(NeighbourEntropy(), one[torch.tensor([0, 1, 1])]) == -math.inf


@pytest.mark.parametrize("components", [1, 2])
def test_both_entropies_agree_on_many_networks(components):
    net = linear(2, components=components)
    population = net.sample(4000)
    each = ManifoldEntropy(net).each(population)
    error = math.sqrt((each.var().item() + math.pi**2 / 6) / 4000)
    assert measured(NeighbourEntropy(), population) == pytest.approx(each.mean().item(), abs=4 * error)


@pytest.mark.parametrize("gauge", [True, False])
def test_both_entropies_agree_where_a_curved_manifold_is_seen_from_near(gauge):
    net = convolutional(prior="mixture", components=2)
    with torch.no_grad():
        net.prior.log_std.fill_(-7.0)
        for generate in net.generator.weight_generators:
            generate.means *= 4
    population = net.sample(2000)
    each = ManifoldEntropy(net, gauge=gauge).each(population)
    error = math.sqrt((each.var().item() + math.pi**2 / 6) / 2000)
    assert measured(NeighbourEntropy(gauge=gauge), population) == pytest.approx(each.mean().item(), abs=4 * error)
    assert abs(each.mean().item() - ManifoldEntropy(net, gauge=not gauge).each(population).mean().item()) > 8 * error


@pytest.mark.parametrize("distribution", ["mean_field", "low_rank", "full"])
def test_the_entropy_of_gaussian_weights_is_their_own(distribution):
    """By the Jacobian where z has as many numbers as the weights; the density tells where it has more."""
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Linear(3, 2).double(), distribution=distribution, gauge="none").eval()
    population = hypernet.sample(500)
    exact = hypernet.generator.entropy().detach()
    if distribution == "low_rank":
        with pytest.raises(ValueError, match="12"):
            ManifoldEntropy(hypernet, gauge=False)
        values = -hypernet.generator.log_density(population.latents, population.weights).detach()
    else:
        values = ManifoldEntropy(hypernet, gauge=False).each(population)
    assert abs(values.mean() - exact) < 4 * values.std() / 500**0.5
