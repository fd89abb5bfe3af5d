"""Reweighted priors: their base until they are fitted, then the density that good latents tell of."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Exponential, Laplace, MultivariateNormal, Normal

from lightning_hypernet import Hypernet, Latents, Prior, hookimpl
from lightning_hypernet.generator import MixturePrior, NormalPrior, ReweightedPrior, UniformPrior

METHODS = ("resample", "langevin")


def seeded(make):
    torch.manual_seed(0)
    return make()


def latents(z, component=None):
    z = z[:, None] if z.ndim == 1 else z
    return Latents(z, torch.zeros(len(z), dtype=torch.long) if component is None else component)


def prior_of(latent_dim=1, **options):
    return seeded(lambda: ReweightedPrior(latent_dim, **options).double())


def with_ratio(prior, logit):
    """A prior whose classifier is a known function, with the Z that `fit` would estimate."""
    component = torch.arange(prior.components).repeat_interleave(200_000)

    class Known(nn.Module):
        def forward(self, inputs):
            return logit(inputs)[:, None]

    prior.classifier = Known()
    prior.fitted = True
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        values = prior.log_ratio(Latents(prior.base.sample(component).double(), component)).view(prior.components, -1)
    prior.log_z = values.logsumexp(1) - math.log(values.shape[1])
    return prior


# Unfitted


LAPLACE = {"name": "torch", "distribution": "Laplace", "loc": 0, "scale": 2}


@pytest.mark.parametrize("base", ["normal", "uniform", "mixture", LAPLACE])
@pytest.mark.parametrize("method", METHODS)
def test_an_unfitted_prior_is_its_base_to_the_bit(base, method):
    make = {"normal": NormalPrior, "uniform": UniformPrior, "mixture": MixturePrior}.get(base if isinstance(base, str) else "")
    prior = seeded(lambda: ReweightedPrior(3, 2, base=base, method=method))
    plain = copy.deepcopy(prior.base) if make is None else seeded(lambda: make(3, 2))
    assert type(prior.base) is type(plain)
    for n in (5, 40):
        mine, theirs = prior.draw(n), plain.draw(n)
        assert torch.equal(mine.z, theirs.z)
        assert torch.equal(mine.component, theirs.component)
        assert torch.equal(prior.log_prob(mine), plain.log_prob(theirs))
        assert not prior.log_ratio(mine).any()


def test_a_hypernet_with_an_unfitted_one_is_that_with_its_base():
    priors = ("normal", "reweighted")
    made = [
        seeded(lambda prior=prior: Hypernet(nn.Linear(4, 2), latent_dim=3, prior=prior, execution="loop")) for prior in priors
    ]
    states = [one.state_dict() for one in made]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items() if isinstance(value, torch.Tensor))
    x = torch.randn(6, 4)
    assert torch.equal(made[0](x), made[1](x))
    assert torch.equal(made[0].eval()(x), made[1].eval()(x))


# Densities


@pytest.mark.parametrize("few", [False, True])
def test_a_fit_finds_the_density_of_good_latents(few):
    exact = Normal(torch.tensor(0.7).double(), torch.tensor(0.6).double())
    prior = prior_of()
    torch.manual_seed(2)
    fit = prior.fit(latents(exact.sample((400 if few else 20_000,))))
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density, known = prior.log_prob(latents(grid)).exp(), exact.log_prob(grid).exp()
    plain = prior.base.log_prob(latents(grid)).exp()
    apart = torch.trapezoid((density - known).abs(), grid) / 2
    assert torch.trapezoid(density, grid) == pytest.approx(1, abs=0.02)  # log Z
    assert apart < (0.15 if few else 0.05) < 0.3 < torch.trapezoid((plain - known).abs(), grid) / 2
    if not few:
        ratio = (exact.log_prob(grid) - prior.base.log_prob(latents(grid))).exp()
        mixed = (known + plain) / 2
        entropy = torch.special.entr(ratio / (1 + ratio)) + torch.special.entr(1 / (1 + ratio))
        best = torch.trapezoid(mixed * entropy, grid)
        share = 1 / torch.trapezoid(plain * ratio.square(), grid)
        assert fit.loss == pytest.approx(float(best), abs=0.02)
        assert fit.share == pytest.approx(float(share), abs=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_fitted_prior_in_two_dimensions_draws_what_it_was_fitted_to(method):
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]]).double()
    exact = MultivariateNormal(torch.tensor([0.5, -0.4]).double(), covariance)
    prior = prior_of(2, method=method)
    torch.manual_seed(3)
    prior.fit(latents(exact.sample((20_000,))))
    z = prior.draw(4000).z
    assert (z.mean(0) - exact.mean).abs().max() < 0.06
    assert (z.T.cov() - covariance).abs().max() < 0.08
    held = latents(exact.sample((4000,)))
    assert (exact.log_prob(held.z) - prior.log_prob(held)).mean() < 0.03  # their Kullback-Leibler divergence
    assert (exact.log_prob(held.z) - prior.base.log_prob(held)).mean() > 0.3


@pytest.mark.parametrize("method", METHODS)
def test_draws_have_the_moments_of_a_known_ratio(method):
    """log r = 1.2 z - 0.5 z^2 tilts N(0, 1) to N(0.6, 1/2), of Z = exp(0.36) / sqrt 2."""
    candidates = 256 if method == "resample" else 4
    prior = with_ratio(prior_of(method=method, candidates=candidates), lambda z: 1.2 * z[:, 0] - z[:, 0] ** 2 / 2)
    z = prior.draw(20_000).z[:, 0].double()
    error = math.sqrt(0.5 / len(z))
    assert z.mean() == pytest.approx(0.6, abs=5 * error)
    assert z.var() == pytest.approx(0.5, abs=0.03)
    assert (z - 0.6).pow(3).mean() == pytest.approx(0, abs=0.03)
    assert float(prior.log_z) == pytest.approx(0.36 - math.log(2) / 2, abs=0.01)


def test_langevin_steps_repair_what_few_candidates_miss():
    ratio = lambda z: 1.2 * z[:, 0] - z[:, 0] ** 2 / 2  # noqa: E731
    means = [with_ratio(prior_of(method=method, candidates=2), ratio).draw(20_000).z.mean() for method in METHODS]
    assert means[0] < 0.5
    assert means[1] == pytest.approx(0.6, abs=0.03)


def test_langevin_steps_keep_to_a_base_with_bounds():
    """log r = 2 z on [-1, 1]: a mean of coth 2 - 1/2."""
    prior = with_ratio(prior_of(base="uniform", method="langevin", candidates=4), lambda z: 2 * z[:, 0])
    prior.scale.fill_(1.0)
    z = prior.draw(20_000).z
    assert z.abs().max() <= 1
    assert z.mean() == pytest.approx(1 / math.tanh(2) - 0.5, abs=0.02)
    assert float(prior.log_z) == pytest.approx(math.log(math.sinh(2) / 2), abs=0.01)
    assert prior.log_prob(latents(torch.tensor([1.5]).double())) == -math.inf


def test_every_component_has_its_own_ratio_and_constant():
    prior = prior_of(1, components=2)
    torch.manual_seed(4)
    component = torch.arange(2).repeat_interleave(torch.tensor([9000, 1000]))  # not as often as they are drawn
    z = torch.where(component == 0, -1.0, 1.0) + 0.5 * torch.randn(10_000)
    prior.fit(latents(z.double(), component))
    grid = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    for one, mean in ((0, -1.0), (1, 1.0)):
        density = prior.log_prob(latents(grid, torch.full((2001,), one))).exp()
        assert torch.trapezoid(density, grid) == pytest.approx(0.5, abs=0.02)
        drawn = prior.draw(3000, component=one).z
        assert drawn.mean() == pytest.approx(mean, abs=0.15)
        assert drawn.std() == pytest.approx(0.5, abs=0.15)
    assert sorted(prior.draw(50).component.bincount().tolist()) == [25, 25]


def test_weights_count_as_copies_do():
    torch.manual_seed(5)
    z = torch.randn(4000).double()
    weights = (1.2 * z - z.square() / 2).exp()
    prior = prior_of()
    prior.fit(latents(z), weights)
    drawn = prior.draw(4000).z
    assert drawn.mean() == pytest.approx(0.6, abs=0.08)
    assert drawn.var() == pytest.approx(0.5, abs=0.1)


def test_good_latents_that_are_like_the_base_change_little():
    prior = prior_of(8)
    torch.manual_seed(6)
    fit = prior.fit(latents(torch.randn(200, 8)))
    assert fit.share > 0.9
    assert fit.loss <= math.log(2) + 1e-9
    assert prior.log_prob(held := latents(torch.randn(500, 8).double())).mean() == pytest.approx(
        float(prior.base.log_prob(held).mean()), abs=0.05
    )


def test_the_density_of_a_far_base_in_other_units():
    prior = seeded(lambda: ReweightedPrior(1, base=Laplace(1000.0, 50.0), method="langevin"))
    torch.manual_seed(7)
    prior.fit(latents(1000 + 50 * torch.rand(4000)))
    z = prior.draw(2000).z
    assert z.mean() == pytest.approx(1025, abs=4)
    assert z.std() == pytest.approx(50 / math.sqrt(12), abs=4)


def test_a_classifier_that_learns_nothing_stays_at_its_start():
    prior = prior_of(2)
    fit = prior.fit(latents(torch.rand(200, 2)), steps=20, lr=1e30)
    assert fit.step == 0
    assert fit.loss == pytest.approx(math.log(2))
    assert fit.share == pytest.approx(1)
    held = prior.base.draw(9)
    assert torch.equal(prior.log_prob(held), prior.base.log_prob(held))


# Gradients


def test_the_classifier_has_no_gradient_and_draws_none():
    prior = seeded(lambda: ReweightedPrior(2, base="mixture"))
    names = {name for name, parameter in prior.named_parameters() if parameter.requires_grad}
    assert names == {"base.mean", "base.log_std"}
    assert prior.draw(3).z.requires_grad  # as of the base
    prior.fit(latents(prior.base.draw(100).z.detach() + 1), steps=40)
    assert {name for name, parameter in prior.named_parameters() if parameter.requires_grad} == names
    assert all(parameter.grad is None for parameter in prior.parameters())
    assert not prior.draw(3).z.requires_grad


def test_the_log_density_has_a_gradient_to_z():
    prior = with_ratio(prior_of(2), lambda z: z.square().sum(1) / 4)
    z = torch.randn(5, 2).double().requires_grad_()
    (slope,) = torch.autograd.grad(prior.log_prob(latents(z)).sum(), z)
    assert torch.allclose(slope, -z / 2)


# Random numbers


def test_a_fit_is_the_same_every_time_and_leaves_the_global_random_numbers_alone():
    good = latents(torch.rand(300, 2))
    first, second = (seeded(lambda: ReweightedPrior(2)) for _ in range(2))
    torch.manual_seed(11)
    before = torch.get_rng_state()
    assert first.fit(good, steps=40) == second.fit(good, steps=40) == first.fit(good, steps=40)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.draw(20).z, second.draw(20).z)
    assert torch.equal(before, torch.get_rng_state())
    assert first.draws == second.draws == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_restored_prior_continues_bit_for_bit(method):
    prior = seeded(lambda: ReweightedPrior(2, 2, method=method, steps=5))
    prior.fit(latents(torch.rand(200, 2), torch.arange(200) % 2), steps=40)
    prior.draw(3)
    torch.manual_seed(99)
    other = ReweightedPrior(2, 2, method=method, steps=5)
    other.load_state_dict(copy.deepcopy(prior.state_dict()))
    mine, theirs = prior.draw(30), other.draw(30)
    assert torch.equal(mine.z, theirs.z)
    assert torch.equal(mine.component, theirs.component)
    assert torch.equal(prior.log_prob(mine), other.log_prob(mine))
    assert not torch.equal(mine.z, prior.draw(30).z)


def test_autocast_changes_nothing():
    prior = seeded(lambda: ReweightedPrior(2))
    prior.fit(latents(torch.rand(200, 2)), steps=40)
    other = copy.deepcopy(prior)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = other.draw(50).z
    assert torch.equal(mixed, prior.draw(50).z)
    with torch.inference_mode():
        assert prior.draw(4).z.shape == (4, 2)


# By name


class Spike(Prior):
    """A plug-in's prior, at one of two places."""

    def __init__(self, latent_dim, components=1, far=1.0):
        super().__init__(latent_dim, components)
        self.far = far

    def sample(self, component):
        return self.far * (2 * torch.randint(2, (len(component), self.latent_dim)) - 1).float()


class Spikes:
    @hookimpl
    def hypernet_register_priors(self, register):
        register("spike", Spike)


@pytest.mark.parametrize(
    ("base", "kind"),
    [
        ("uniform", UniformPrior),
        ({"name": "mixture", "separation": "2.0"}, MixturePrior),
        ({"name": "spike", "far": "3"}, Spike),
        ({"name": "reweighted", "base": "uniform"}, ReweightedPrior),
    ],
)
def test_a_hypernet_finds_the_base_by_name(base, kind):
    hypernet = Hypernet(
        nn.Linear(4, 2), latent_dim=3, plugins=[Spikes()], prior={"name": "reweighted", "base": base, "candidates": "8"}
    )
    assert type(hypernet.prior.base) is kind
    assert hypernet.prior.candidates == 8
    assert hypernet.options["prior"]["base"] == base
    needed = [need for need in hypernet.needs if need[0] == "prior"]
    assert needed == ([("prior", "spike", "Spikes")] if kind is Spike else [])
    good = hypernet.prior.base.draw(100)
    hypernet.prior.fit(good[good.z[:, 0] > 0], steps=100)
    assert (hypernet.prior.draw(200).z[:, 0] > 0).float().mean() > 0.85


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "normall"}, "'normall'.*'normal'"),
        ({"base": {"nam": "normal"}}, "must be named .*None"),
        ({"base": 3}, "base must be .*not 3"),
        ({"base": NormalPrior(3)}, "draws 3 numbers for 1 components.*latent_dim=2"),
        ({"base": {"name": "mixture", "seperation": 1}}, "seperation.*'separation'"),
        ({"method": "langevine"}, "method must be .*'langevin'"),
        ({"hidden": 5000}, "hidden must lie in 1 to 4096"),
        ({"candidates": 0}, "candidates must be 1 or more"),
        ({"steps": 0.5}, "steps must be a whole number"),
        ({"step_size": 0}, "step_size must be a number, above 0"),
        ({"base": Bernoulli(0.5), "method": "langevin"}, "density in all of space.*method='resample'"),
        ({"base": Exponential(1.0), "method": "langevin"}, "density in all of space.*method='resample'"),
        ({"base": Spike(2), "method": "langevin"}, "Spike does not: set method='resample'"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ReweightedPrior(2, **options)


@pytest.mark.parametrize(
    ("good", "options", "message"),
    [
        (torch.randn(20, 2), {}, "must be Latents"),
        (latents(torch.randn(20, 3)), {}, r"\(n, 2\), not \(20, 3\)"),
        (latents(torch.randn(9, 2)), {}, "10 or more, not 9"),
        (latents(torch.full((20, 2), math.nan)), {}, "finite"),
        (latents(torch.randn(20, 2)), {}, r"every component, 0 to 1, .*not of \[0\]"),
        (latents(torch.randn(20, 2), torch.arange(20) % 2), {"weights": torch.zeros(20)}, "not all 0"),
        (latents(torch.randn(20, 2), torch.arange(20) % 2), {"weights": torch.ones(3)}, "weights must be 20 numbers"),
        (latents(torch.randn(20, 2), torch.arange(20) % 2), {"steps": 0}, "steps must be 1 or more"),
        (latents(torch.randn(20, 2), torch.arange(20) % 2), {"lr": -1}, "lr must be a number, above 0"),
    ],
)
def test_a_fit_that_cannot_be_leaves_the_prior_as_it_was(good, options, message):
    prior = seeded(lambda: ReweightedPrior(2, 2))
    prior.fit(latents(torch.rand(40, 2), torch.arange(40) % 2), steps=20)
    before = copy.deepcopy(prior.state_dict())
    with pytest.raises((TypeError, ValueError), match=message):
        prior.fit(good, **options)
    after = prior.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
