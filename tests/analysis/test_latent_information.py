"""What latents and networks share: bounds against exact values of channels that are known."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from lightning_hypernet import Hypernet, hookimpl
from lightning_hypernet.analysis import latent_information
from lightning_hypernet.generator import Prior, WeightDistribution

SCALES = (2.0, 1.0, 0.5)


class Straight(WeightDistribution):
    """A layer of 6 numbers: the first three are z times SCALES, plus what the component shifts the fourth by; the rest is 0."""

    def __init__(self, setting, shifts=(0.0,), apart=0.0):
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.register_buffer("shifts", torch.tensor(shifts, dtype=torch.float64))
        self.apart = apart

    def forward(self, latents):
        flat = torch.zeros(len(latents), 6, dtype=torch.float64)
        flat[:, :3] = latents.z.double() * torch.tensor(SCALES, dtype=torch.float64) * self.one * (1 - self.apart)
        flat[:, 3] = self.shifts[latents.component]
        return {"weight": flat.reshape(-1, 2, 3)}


class Unknown(Prior):
    def sample(self, component):
        return torch.randn(len(component), self.latent_dim)


class Plugin:
    @hookimpl
    def hypernet_register_distributions(self, register):
        register("straight", Straight)


def hypernet(prior="normal", components=1, **options):
    torch.manual_seed(0)
    target = nn.Linear(3, 2, bias=False).double()
    net = Hypernet(
        target, example_inputs=torch.eye(3, dtype=torch.float64), latent_dim=3, prior=prior, components=components,
        gauge="none", plugins=[Plugin()], distribution={"name": "straight", **options},
    )  # fmt: skip
    return net.eval()


def told(net, *args, **options):
    return latent_information(net, *args, **{"networks": 1000, "held_out": 1000, "hidden": 16, "steps": 100, **options})


# Continuous


@pytest.mark.parametrize(
    ("reads", "inputs"),
    [("weights", None), ("outputs", torch.eye(3, dtype=torch.float64)), (lambda population: population.vectors[:, :3], None)],
)
def test_a_gaussian_channel_carries_what_it_does_exactly(reads, inputs):
    found = told(hypernet(), reads, inputs=inputs, noise=0.5)
    each = torch.tensor([0.5 * math.log1p(scale**2 / 0.25) for scale in SCALES], dtype=torch.float64)
    assert found.bound == pytest.approx(each.sum().item(), abs=3 * found.error + 0.03)
    assert found.maximum == pytest.approx(each.sum().item(), abs=0.05)
    torch.testing.assert_close(found.each, each, atol=0.12, rtol=0)
    assert found.contrastive == pytest.approx(each.sum().item(), abs=0.15)
    assert found.contrastive_maximum == pytest.approx(math.log(1000))
    assert found.bound == pytest.approx(found.each.sum().item())


def test_two_examples_show_what_they_read_of_z():
    found = told(hypernet(), "outputs", inputs=torch.eye(3, dtype=torch.float64)[:2], noise=0.5)
    exact = sum(0.5 * math.log1p(scale**2 / 0.25) for scale in SCALES[:2])
    assert found.bound == pytest.approx(exact, abs=3 * found.error + 0.03)
    assert found.each[2].item() == pytest.approx(0, abs=0.03)


def test_what_says_nothing_of_z_has_no_information():
    found = told(hypernet(apart=1.0), noise=1.0)
    assert found.bound == pytest.approx(0, abs=3 * found.error)
    assert found.error < 0.05
    assert found.contrastive == pytest.approx(0, abs=0.03)
    assert found.maximum == 0


def test_without_noise_the_information_has_no_maximum_and_the_bound_is_what_q_decodes():
    found = told(hypernet())
    assert found.maximum == math.inf
    assert found.bound > 15
    assert found.contrastive <= found.contrastive_maximum
    assert found.contrastive == pytest.approx(math.log(1000), abs=1e-3)
    assert "no maximum" in str(found) and "at most 6.908" in str(found)


def test_differences_however_small_count_as_large_ones_do():
    near, far = told(hypernet(apart=0.999999)), told(hypernet())
    assert near.bound > 10
    assert near.contrastive == pytest.approx(far.contrastive, abs=0.05)


def test_a_uniform_z_is_told_within_what_its_channel_can_carry():
    found = told(hypernet("uniform"), noise=0.05)
    assert 0.9 * found.maximum - 0.3 < found.bound < found.maximum
    assert found.each.sum().item() == pytest.approx(found.bound, abs=1e-6)


def test_with_components_it_is_the_information_given_the_component():
    found = told(hypernet(components=2, shifts=(-50.0, 50.0)), noise=0.5)
    exact = sum(0.5 * math.log1p(scale**2 / 0.25) for scale in SCALES)
    assert found.bound == pytest.approx(exact, abs=3 * found.error + 0.03)
    assert found.maximum == pytest.approx(exact, abs=0.05)
    assert found.contrastive_maximum == pytest.approx(math.log(500))
    assert found.name == "I(z; weights | component)"


def test_a_trained_prior_counts_with_its_density():
    net = hypernet("mixture")
    with torch.no_grad():
        net.prior.log_std.fill_(math.log(3.0))
    found = told(net, noise=0.5)
    exact = sum(0.5 * math.log1p(9 * scale**2 / 0.25) for scale in SCALES)
    assert found.bound == pytest.approx(exact, abs=3 * found.error + 0.05)
    assert found.each is None


# Components


def test_components_far_apart_are_told_in_full():
    found = told(hypernet(components=4, shifts=(-30.0, -10.0, 10.0, 30.0)), latent="component", noise=0.1)
    assert found.maximum == math.log(4)
    assert found.bound == pytest.approx(math.log(4), abs=0.01)
    assert found.bound <= found.maximum


def test_components_that_overlap_are_told_as_far_as_they_can_be():
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    densities = torch.stack([Normal(shift, 1.0).log_prob(grid).exp() for shift in (-1.0, 1.0)])
    both = densities.mean(0)
    exact = torch.trapezoid((densities * (densities / both).log()).mean(0), grid).item()
    found = told(hypernet(components=2, shifts=(-1.0, 1.0)), latent="component", networks=4000, held_out=4000, noise=1.0)
    assert exact == pytest.approx(0.337, abs=0.001)
    assert found.bound == pytest.approx(exact, abs=3 * found.error + 0.01)
    assert found.contrastive is None


def test_components_alike_tell_nothing():
    assert told(hypernet(components=2, shifts=(0.0, 0.0)), latent="component").bound == pytest.approx(0, abs=0.03)


# How it goes about it


def test_the_generator_and_torchs_random_numbers_are_left_alone_and_a_seed_gives_the_same_again():
    net = hypernet().train()
    before = {name: value.clone() for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
    found = []
    for _ in range(2):
        net.prior.draws = 7
        state = torch.get_rng_state()
        found.append(told(net, noise=0.5, networks=100, held_out=50, seed=3))
        assert torch.equal(torch.get_rng_state(), state)
        assert net.training
    assert found[0].bound == found[1].bound
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("latent", ["continuous", "component"])
def test_it_draws_itself(latent):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    net = hypernet(components=2, shifts=(-1.0, 1.0))
    figure, axes = told(net, latent=latent, networks=50, held_out=20, steps=5).plot()
    assert axes.get_ylabel() == "information, nats"
    pyplot.close(figure)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"reads": "weight"}, ValueError, "did you mean 'weights'"),
        ({"latent": "both"}, ValueError, "latent must be one of"),
        ({"latent": "component"}, ValueError, "needs a Hypernet with components > 1"),
        ({"noise": -1}, ValueError, "noise must be a number, 0 or more"),
        ({"networks": 3}, ValueError, "networks must be 10 or more"),
        ({"reads": lambda population: population.vectors[:1]}, ValueError, "a row for each of the 100 networks"),
        ({"reads": lambda population: population.vectors * math.nan}, ValueError, "NaN or infinite"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(options, error, says):
    with pytest.raises(error, match=says):
        latent_information(hypernet(), **options)


def test_a_prior_without_density_and_what_is_no_hypernet_are_refused():
    with pytest.raises(ValueError, match="Unknown does not know its density: choose a prior with log_prob"):
        latent_information(hypernet(Unknown(3)))
    with pytest.raises(TypeError, match="hypernet must be a Hypernet"):
        latent_information(nn.Linear(2, 2))
