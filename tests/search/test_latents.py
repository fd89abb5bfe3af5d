"""Search in z: objectives whose maximum is known, the prior's bounds and pull, and networks between others."""

import copy
import importlib.util
import math

import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet, Latents
from lightning_hypernet.search import interpolate, perturb, search, search_surrogate


def model(prior="normal", latent_dim=3, **options):
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    return Hypernet(target, latent_dim=latent_dim, prior=prior, gauge="none", execution="batched", **options).eval()


def parabola(center):
    """An objective with a single maximum, 0 at a z."""
    return lambda population: -(population.latents.z - torch.as_tensor(center, dtype=torch.double)).square().sum(1)


def test_every_start_climbs_to_the_maximum():
    found = search(model(), parabola([0.5, -1.0, 0.2]), starts=5, steps=200, lr=0.1, noise=0.01)
    expected = torch.tensor([[0.5, -1.0, 0.2]]).double().expand(5, 3)
    torch.testing.assert_close(found.population.latents.z, expected, rtol=0, atol=0.01)
    assert found.evaluations == 5 * 201
    assert found.path.shape == (201, 5)
    torch.testing.assert_close(found.path[0], found.before)
    assert (found.values >= found.before).all()


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_prior_pulls_by_its_weight(weight):
    found = search(model(), parabola([2.0, 0.0, 0.0]), starts=3, steps=250, lr=0.1, noise=0.0, prior_weight=weight)
    z = 2.0 / (1 + weight / 2)
    torch.testing.assert_close(found.population.latents.z[:, 0], torch.full((3,), z).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.values, torch.full((3,), -((2 - z) ** 2)).double(), rtol=0, atol=0.01)


def test_a_bounded_prior_keeps_z_within_its_bounds():
    net = model("uniform")
    found = search(net, parabola([3.0, 0.3, -3.0]), starts=4, steps=200, lr=0.1, noise=0.05)
    z = found.population.latents.z
    assert z.abs().max() <= 1
    torch.testing.assert_close(z, torch.tensor([[1.0, 0.3, -1.0]]).double().expand(4, 3), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("prior", "inside", "outside"),
    [
        ("normal", 9.0, math.nan),
        ("mixture", 9.0, math.nan),
        ("uniform", 0.9, 1.1),
        ({"name": "torch", "distribution": "Exponential", "rate": 1.0}, 9.0, -0.1),
    ],
)
def test_priors_tell_where_they_have_a_density(prior, inside, outside):
    support = model(prior).prior.support
    assert support.check(torch.tensor(inside)).all() and not support.check(torch.tensor(outside)).any()


def test_the_best_networks_stand_first_and_their_values_are_their_own():
    net = model()
    inputs = torch.randn(6, 4).double()

    def objective(population):
        return net.run(population, inputs).tanh()[..., 0].mean(1)

    found = search(net, objective, starts=6, steps=20, lr=0.1)
    assert (found.values.diff() <= 0).all()
    torch.testing.assert_close(objective(found.population), found.values)
    assert not found.population.weights["0.weight"].requires_grad
    assert (found.values > found.before).all()


def test_the_best_point_of_the_path_counts_not_the_last():
    found = search(model(), parabola([0.0, 0.0, 0.0]), starts=3, steps=10, lr=5.0, noise=0.0)
    torch.testing.assert_close(found.values, found.path.amax(0))
    assert (found.path[-1] < found.values).any()


def test_what_is_found_is_scored_anew():
    found = search(model(), parabola([0.0] * 3), starts=3, steps=30, rescore=parabola([1.0] * 3))
    torch.testing.assert_close(found.rescored, parabola([1.0] * 3)(found.population))
    assert search(model(), parabola([0.0] * 3), starts=2, steps=1).rescored is None


def test_a_search_repeats_by_its_seed():
    net, objective = model(), parabola([0.0] * 3)
    one, other = (search(net, objective, starts=3, steps=5).population.latents.z for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, search(net, objective, starts=3, steps=5, seed=1).population.latents.z)


def test_components_and_conditions_stay_with_their_networks():
    net = model("mixture", components=2, context_dim=1)
    found = search(net, parabola([0.0] * 3), starts=4, steps=5, component=1, context=torch.tensor([0.7]))
    assert found.population.latents.component.tolist() == [1] * 4
    torch.testing.assert_close(found.population.latents.context, torch.full((4, 1), 0.7).double())


@pytest.mark.parametrize("surrogate", [False, True])
def test_nothing_of_the_hypernet_changes(surrogate):
    net = model("mixture", components=2).train()
    kept, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    if surrogate:
        pytest.importorskip("sklearn")
        search_surrogate(net, parabola([0.0] * 3), evaluations=12, starts=8, batch=4, candidates=20, keep=3)
    else:
        search(net, parabola([0.0] * 3), starts=3, steps=3)
    assert net.training and net.generator.training
    assert torch.equal(random, torch.get_rng_state())
    for name, value in net.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, kept[name]), name
        else:
            assert value == kept[name]
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("acquisition", ["expected_improvement", "upper_confidence_bound"])
def test_a_surrogate_finds_a_maximum_without_a_gradient(acquisition):
    pytest.importorskip("sklearn")
    net = model()

    def objective(population):
        return (100 * parabola([0.5, -0.8, 0.3])(population)).detach().round() / 100

    found = search_surrogate(net, objective, evaluations=70, starts=20, acquisition=acquisition, keep=5)
    blind = torch.stack([objective(net.sample(70)).max() for _ in range(10)])
    assert found.values[0] > -0.03 > blind.mean()
    assert found.evaluations == 70 and found.path.shape == (70,) and found.before.shape == (20,)
    assert len(found.population) == 5
    torch.testing.assert_close(objective(found.population), found.values)
    torch.testing.assert_close(found.path[:20], found.before)
    torch.testing.assert_close(found.values, found.path.sort(descending=True).values[:5])


def test_a_surrogate_keeps_within_bounds():
    pytest.importorskip("sklearn")
    found = search_surrogate(model("uniform", 2), parabola([2.0, 2.0]), evaluations=40, starts=20, keep=40)
    assert found.population.latents.z.abs().max() <= 1
    assert found.values[0] > -2.3


def test_scikit_learn_is_asked_for_where_it_is_missing(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else find(name, *rest))
    with pytest.raises(ValueError, match=r"scikit-learn's: pip install 'lightning_hypernet\[examples\]'"):
        search_surrogate(model(), parabola([0.0] * 3))


def test_a_line_is_straight_and_an_arc_keeps_its_length():
    net = model()
    one, other = torch.tensor([3.0, 0.0, 0.0]).double(), torch.tensor([0.0, 3.0, 0.0]).double()
    line = interpolate(net, one, other, points=5).latents.z
    torch.testing.assert_close(line[2], torch.tensor([1.5, 1.5, 0.0]).double())
    arc = interpolate(net, one, other, points=7, how="spherical").latents.z
    torch.testing.assert_close(arc.norm(dim=1), torch.full((7,), 3.0).double())
    torch.testing.assert_close((arc[1:] * arc[:-1]).sum(1) / 9, torch.full((6,), math.cos(math.pi / 12)).double())
    for way in (line, arc):
        torch.testing.assert_close(way[0], one)
        torch.testing.assert_close(way[-1], other)


def test_an_arc_between_equal_directions_is_a_line():
    z = torch.tensor([[1.0, 2.0, 0.0]]).double()
    arc = interpolate(model(), z, 2 * z, points=3, how="spherical").latents.z
    torch.testing.assert_close(arc, torch.cat([z, 1.5 * z, 2 * z]))


def test_ends_of_a_way_are_the_networks_themselves():
    net = model("mixture", components=2)
    one, other = net.draw(1, 0), net.draw(1, 1)
    way = interpolate(net, one, other, points=4)
    assert way.latents.component.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(way.vectors[:1], net.decode(one).vectors)
    torch.testing.assert_close(way.vectors[-1:], net.decode(other).vectors)


def test_perturbed_networks_lie_around_their_own():
    net = model()
    z = torch.tensor([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]]).double()
    around = perturb(net, z, 0.1, n=400).latents.z.view(2, 400, 3)
    torch.testing.assert_close(around.mean(1), z, rtol=0, atol=0.02)
    torch.testing.assert_close(around.std(1), torch.full((2, 3), 0.1).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(perturb(net, z, 0, n=2).latents.z, z.repeat_interleave(2, 0))
    assert perturb(model("uniform"), torch.full((1, 3), 0.99).double(), 3.0, 100).latents.z.abs().max() <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: search(net, lambda p: p.latents.z), r"objective must give one number for every network, \(16,\), not"),
        (lambda net: search(net, lambda p: p.latents.z[:, 0].detach()), "no gradient with respect to z.*search_surrogate"),
        (lambda net: search(net, lambda p: p.latents.z[:, 0] / 0), "objective gives NaN or infinite"),
        (lambda net: search(net, parabola([0.0] * 3), starts=0), "starts must be 1 or more"),
        (lambda net: search(net, parabola([0.0] * 3), prior_weight=-1), "prior_weight must be a number, 0 or more"),
        (lambda net: search_surrogate(net, parabola([0.0] * 3), acquisition="ei"), "acquisition must be one of"),
        (lambda net: interpolate(net, torch.zeros(3), torch.ones(3), how="spherical"), "zero, which has no direction"),
        (lambda net: interpolate(net, torch.ones(3), -torch.ones(3), how="spherical"), "the ends are opposite"),
        (lambda net: interpolate(net, torch.ones(2, 3), torch.ones(3)), "one must be the latents of one network, not of 2"),
        (lambda net: interpolate(net, torch.ones(3), torch.ones(3), points=1), "points must be 2 or more"),
        (lambda net: perturb(net, torch.ones(3), -1.0), "scale must be a number, 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(model())


def test_objectives_are_functions_and_ends_are_latents():
    with pytest.raises(TypeError, match="objective must be a function of a population"):
        search(model(), 3)
    with pytest.raises(TypeError, match="rescore must be a function of a population"):
        search(model(), parabola([0.0] * 3), rescore=3)
    with pytest.raises(TypeError, match="one must be latents or a tensor z"):
        interpolate(model(), 3, torch.ones(3))
    assert isinstance(perturb(model(), model().draw(2), 0.1, 2).latents, Latents)
