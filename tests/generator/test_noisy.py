"""Weights with Gaussian noise: their density, their gradients, and which noise belongs to whom."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from lightning_hypernet import Hypernet, Latents
from lightning_hypernet.diversity import Entropy
from lightning_hypernet.generator import Generator


def target():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).double()


def hypernet(module=None, sigma=0.2, **options):
    distribution = {"name": "noisy", "sigma": sigma, "relative": options.pop("relative", True)}
    given = {"latent_dim": 3, "samples": 4, "distribution": distribution, **options}
    return Hypernet(target() if module is None else module, **given)


def means_of(net, latents):
    return Generator.forward(copy.deepcopy(net.generator), latents)


def reference(net, deviations, population):
    means = means_of(net, population.latents)
    return sum(
        Normal(mean, deviations[name].expand_as(mean)).log_prob(population.weights[name]).reshape(len(mean), -1).sum(1)
        for name, mean in means.items()
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"components": 2}, {"context_dim": 2}, {"relative": False}, {"generator": "compact"}])
def test_the_density_is_that_of_gaussians(options, training):
    module = target()
    net = hypernet(module, **options).train(training)
    population = net.populate(net.draw(5))
    constant = {"1.weight": 0.1, "1.bias": 0.02}
    deviations = {
        name: torch.tensor(
            0.2 if options.get("relative") is False else 0.2 * constant.get(name, own.detach().std(correction=0).item()),
            dtype=torch.float64,
        )
        for name, own in module.named_parameters()
    }
    before = {name: value.clone() for name, value in net.generator.named_buffers()}
    density = net.generator.log_density(population.latents, population.weights)
    assert all(torch.equal(value, before[name]) for name, value in net.generator.named_buffers())
    torch.testing.assert_close(density, reference(net, deviations, population), rtol=0, atol=1e-6)
    assert density.shape == (5,)


def test_the_density_of_single_precision_is_close():
    module = target().float()
    net = Hypernet(module, distribution={"name": "noisy", "sigma": 0.3}, latent_dim=3)
    population = net.sample(4)
    density = net.generator.log_density(population.latents, population.weights)
    exact = net.double().generator.log_density(
        population.latents.to(torch.zeros(()).double()), {name: value.double() for name, value in population.weights.items()}
    )
    torch.testing.assert_close(density.double(), exact, rtol=1e-4, atol=1e-2)


def test_what_is_drawn_has_the_means_and_deviations():
    net = hypernet(nn.Linear(3, 2).double(), sigma=0.5, relative=False).eval()
    z = torch.randn(1, 3).double().expand(4_000, 3)
    weights = net.decode(z).weights  # the same z, with other noise each time
    for name, mean in means_of(net.eval(), Latents(z[:1], torch.zeros(1, dtype=torch.long))).items():
        assert torch.allclose(weights[name].mean(0), mean[0], atol=4.5 * 0.5 / 4_000**0.5), name
        assert weights[name].std(0).sub(0.5).abs().max() < 0.03, name


def test_gradients_go_through_weights_and_through_the_density():
    net = hypernet(nn.Linear(3, 2).double()).train()
    population = net.populate(net.draw(4))
    assert all(value.requires_grad for value in population.weights.values())
    (path,) = torch.autograd.grad(population.vectors.sum(), net.generator.weight_generators[0].means, retain_graph=True)
    torch.testing.assert_close(path, torch.full_like(path, 4.0))
    constant = {name: value.detach() for name, value in population.weights.items()}
    density = net.generator.log_density(population.latents, constant).sum()
    (score,) = torch.autograd.grad(density, net.generator.weight_generators[0].means, retain_graph=True)
    assert score.norm() > 0
    (total,) = torch.autograd.grad(
        net.generator.log_density(population.latents, population.weights).sum(), net.generator.weight_generators[0].means
    )
    assert total.norm() < 1e-8 * score.norm()  # moving the mean moves the weights with it


def test_training_draws_new_noise_and_continues_it_after_a_restart():
    net = hypernet().train()
    latents = net.draw(3)
    one, other = net.populate(latents).vectors, net.populate(latents).vectors
    assert not torch.equal(one, other)
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    following = [net.populate(latents).vectors for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), random)
    torch.manual_seed(7)
    again = hypernet().train()
    again.load_state_dict(state)
    assert all(torch.equal(again.populate(latents).vectors, one) for one in following)


def test_ranks_draw_different_noise(monkeypatch):
    net = hypernet().train()
    latents, twin = net.draw(3), copy.deepcopy(net)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    drawn = []
    for rank, one in enumerate((net, twin)):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None, rank=rank: rank)
        drawn.append(one.populate(latents).vectors)
    assert not torch.allclose(*drawn)


def test_the_same_latents_give_the_same_networks():
    net = hypernet(components=2).train()
    z, component = torch.randn(5, 3).double(), torch.tensor([0, 1, 0, 1, 1])
    together = net.decode(Latents(z, component))
    assert torch.equal(together.vectors, net.decode(Latents(z, component)).vectors)
    alone = net.decode(Latents(z[1:2], component[1:2]))
    assert torch.allclose(together.vectors[1], alone.vectors[0])
    assert not torch.allclose(net.decode(z[:1].expand(2, 3)).vectors[0], net.decode(z[:1].expand(2, 3)).vectors[1])


def test_members_stay_and_materialize():
    net, x = hypernet(), torch.randn(5, 1, 4, 4).double()
    net.eval().update_statistics([(x,)])
    with torch.no_grad():
        first = net(x)
        assert torch.equal(first, net(x))
        each = torch.stack([network.eval()(x) for network in net.materialize(net.member_population())])
    torch.testing.assert_close(first, each.mean(0))
    assert torch.equal(copy.deepcopy(net).member_population().vectors, net.member_population().vectors)


def test_it_trains_with_ordinary_losses_and_diversity():
    net = hypernet().train()
    net.load_state_dict(net.state_dict())
    loss = net(torch.randn(8, 1, 4, 4).double()).square().mean() + Entropy()(net.population)
    loss.backward()
    assert all(one.grad is not None for one in net.generator.parameters())


@pytest.mark.parametrize("sigma", [0.0, -1.0, "x", float("nan")])
def test_a_sigma_that_is_none(sigma):
    with pytest.raises(ValueError, match="the noisy distribution's sigma must be a number, above 0"):
        hypernet(sigma=sigma)


def test_weights_of_something_else():
    net = hypernet()
    population = net.sample(3)
    with pytest.raises(ValueError, match=r"weights must hold 0.weight of shape \(3, 3, 1, 3, 3\), for 3 networks"):
        net.generator.log_density(population.latents, {})
    with pytest.raises(ValueError, match="weights must hold 0.weight"):
        net.generator.log_density(population.latents, population[:2].weights)
