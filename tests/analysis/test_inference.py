"""Networks for new data: against the exact posterior of z in a linear-Gaussian model, and where a prior is bounded."""

import copy
import importlib.util
import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet
from lightning_hypernet.analysis import infer

LINEAR = {"extractor": "mlp", "extractor_hidden": [], "hidden": [], "code_size": 4, "norm": "none", "gain": 1.0}
needs_pyro = pytest.mark.skipif(importlib.util.find_spec("pyro") is None, reason="needs pyro-ppl")


def log_likelihood(outputs, targets):
    return -0.5 * ((targets - outputs[:, 0]) / 0.5).square() - math.log(0.5 * math.sqrt(2 * math.pi))


def model(prior="normal", rows=12):
    """A Hypernet whose weights are linear in z, data, and the exact posterior of z and log evidence under a normal prior."""
    torch.manual_seed(0)
    net = Hypernet(
        nn.Linear(3, 1).double(), latent_dim=2, prior=prior, generator=LINEAR, gauge="none", execution="batched"
    ).eval()
    source = torch.Generator().manual_seed(1)
    x, y = torch.randn(rows, 3, generator=source).double(), torch.randn(rows, generator=source).double()
    with torch.no_grad():
        ends = net.run(net.decode(torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()), x)[..., 0]
    slope, rest = (ends[1:] - ends[0]).T, y - ends[0]
    precision = torch.eye(2).double() + slope.T @ slope / 0.25
    posterior = MultivariateNormal(torch.linalg.solve(precision, slope.T @ rest / 0.25), precision_matrix=precision)
    evidence = MultivariateNormal(torch.zeros(rows).double(), 0.25 * torch.eye(rows).double() + slope @ slope.T)
    return net, (x, y), posterior, float(evidence.log_prob(rest))


def test_the_generator_of_these_tests_is_linear():
    net, (x, _), _, _ = model()
    z = torch.randn(3, 2).double()
    with torch.no_grad():
        one, other, both, none = net.run(net.decode(torch.stack([z[0], z[1], z[0] + z[1], 0 * z[0]])), x)
    torch.testing.assert_close(one + other, both + none)


@pytest.mark.parametrize(
    ("method", "options", "tolerance"),
    [
        ("resample", {"pool": 10_000}, 0.06),
        ("variational", {"steps": 250, "lr": 0.1}, 0.03),
        pytest.param("nuts", {"warmup": 100, "chains": 2}, 0.08, marks=[pytest.mark.slow, needs_pyro]),
    ],
)
def test_draws_follow_the_exact_posterior(method, options, tolerance):
    net, data, posterior, evidence = model()
    found = infer(net, data, method, log_likelihood, 800 if method == "nuts" else 5000, **options)
    z, scale = found.population.latents.z, posterior.covariance_matrix.diagonal().sqrt()
    torch.testing.assert_close((z.mean(0) - posterior.mean) / scale, torch.zeros(2).double(), rtol=0, atol=2 * tolerance)
    torch.testing.assert_close(
        z.T.cov() / scale / scale[:, None],
        posterior.covariance_matrix / scale / scale[:, None],
        rtol=0,
        atol=3 * tolerance,
    )
    if method == "nuts":
        assert found.diagnostics["r_hat"] < 1.05
        assert found.diagnostics["divergences"] == 0
        assert found.diagnostics["effective_size"] > 100
    else:
        assert found.diagnostics["log_evidence"] == pytest.approx(evidence, abs=tolerance)


def test_a_gaussian_that_is_the_posterior_gives_the_evidence_itself():
    net, data, _, evidence = model()
    found = infer(net, data, "variational", log_likelihood, 500, steps=250, lr=0.1)
    assert found.diagnostics["elbo"] == pytest.approx(evidence, abs=1e-3)
    assert found.diagnostics["effective_size"] == pytest.approx(500, rel=0.01)
    assert len(found.path) == 250


def test_a_mean_field_is_narrower_and_its_bound_is_lower():
    net, data, posterior, evidence = model()
    found = infer(net, data, "variational", log_likelihood, 5000, family="mean_field", steps=250, lr=0.1)
    best = 1 / posterior.precision_matrix.diagonal()
    torch.testing.assert_close(found.population.latents.z.var(0), best, rtol=0.1, atol=0)
    assert found.diagnostics["elbo"] < evidence


@pytest.mark.slow
def test_a_flow_comes_near_the_evidence():
    pytest.importorskip("zuko")
    net, data, _, evidence = model()
    found = infer(net, data, "variational", log_likelihood, 2000, family="flow", steps=500)
    assert evidence - 0.3 < found.diagnostics["elbo"] < evidence + 0.05


def test_the_most_likely_z_is_the_posterior_mean():
    net, data, posterior, _ = model()
    found = infer(net, data, "map", log_likelihood, 4, steps=500)
    torch.testing.assert_close(found.population.latents.z, posterior.mean.expand(4, 2), rtol=0, atol=1e-3)
    assert len(net.ensemble(found.population)) == 4


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("resample", {"pool": 10_000}),
        pytest.param("variational", {"family": "flow", "steps": 400}, marks=pytest.mark.slow),
        ("variational", {"steps": 200, "samples": 8}),
        pytest.param("nuts", {"warmup": 100, "chains": 1}, marks=[pytest.mark.slow, needs_pyro]),
        ("map", {}),
    ],
)
def test_a_bounded_prior_bounds_its_posterior(method, options):
    net, data, *_ = model("uniform", rows=3)
    z = infer(net, data, method, log_likelihood, 500 if method != "map" else 3, **options).population.latents.z
    assert z.abs().max() <= 1
    if method != "map":
        grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 101).double()] * 2)
        with torch.no_grad():
            values = torch.stack([log_likelihood(one, data[1]).sum() for one in net.run(net.decode(grid), data[0])])
        exact = values.softmax(0) @ grid
        torch.testing.assert_close(z.mean(0), exact, rtol=0, atol=0.12)


def test_batches_are_as_good_as_a_pair_and_seeds_repeat():
    net, data, *_ = model()
    pair = infer(net, data, "variational", log_likelihood, 5, steps=20)
    batches = infer(net, DataLoader(TensorDataset(*data), 5), "variational", log_likelihood, 5, steps=20)
    torch.testing.assert_close(pair.population.latents.z, batches.population.latents.z)
    other = infer(net, data, "variational", log_likelihood, 5, steps=20, seed=1)
    assert not torch.equal(pair.population.latents.z, other.population.latents.z)


@pytest.mark.parametrize("method", ["resample", "map", "variational"])
def test_nothing_of_the_hypernet_changes(method):
    net, data, *_ = model()
    net.train()
    kept, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    options = {"pool": 50} if method == "resample" else {"steps": 5}
    infer(net, data, method, log_likelihood, 3, **options)
    assert net.training and net.generator.training
    assert torch.equal(random, torch.get_rng_state())
    for name, value in net.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, kept[name]), name
        else:
            assert value == kept[name]
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_component_asked_for_is_that_of_all():
    torch.manual_seed(0)
    net = Hypernet(
        nn.Linear(3, 1).double(), latent_dim=2, prior="mixture", components=3, gauge="none", execution="batched"
    ).eval()
    _, data, *_ = model()
    found = infer(net, data, "variational", log_likelihood, 4, component=2, steps=3)
    assert found.population.latents.component.tolist() == [2] * 4
    assert set(infer(net, data, "resample", log_likelihood, 50).population.latents.component.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "nut"}, "method must be one of .* did you mean 'nuts'"),
        ({"draws": 0}, "draws must be 1 or more"),
        ({"method": "map", "pool": 3}, "method='map' has no option pool; there are steps, lr"),
        ({"method": "variational", "family": "normal"}, "family must be one of"),
        ({"likelihood": lambda outputs, targets: outputs.sum()}, "likelihood must give a number for every example"),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    net, data, *_ = model()
    with pytest.raises(ValueError, match=message):
        infer(net, data, **{"likelihood": log_likelihood, **given})


def test_several_components_need_one_for_what_follows_z():
    net = Hypernet(nn.Linear(3, 1), latent_dim=2, components=2, gauge="none")
    with pytest.raises(ValueError, match="of one component, and the prior has 2: set component"):
        infer(net, (torch.zeros(2, 3), torch.zeros(2)), "variational", log_likelihood)


def test_whole_numbers_have_no_gradient():
    bernoulli = {"name": "torch", "distribution": "Bernoulli", "probs": 0.5}
    net = Hypernet(nn.Linear(3, 1), latent_dim=2, prior=bernoulli, gauge="none", execution="batched")
    data = torch.zeros(2, 3), torch.zeros(2)
    with pytest.raises(ValueError, match="the prior draws whole numbers"):
        infer(net, data, "variational", log_likelihood)
    assert len(infer(net, data, "resample", log_likelihood, 5, pool=20).population) == 5


def test_pyro_is_asked_for_where_it_is_missing(monkeypatch):
    net, data, *_ = model()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pyro" else find(name, *rest))
    with pytest.raises(ValueError, match=r"pyro's: pip install 'lightning_hypernet\[mcmc\]'"):
        infer(net, data, "nuts", log_likelihood)


def test_the_effective_size_of_even_weights_is_the_pool():
    net, (x, y), *_ = model()
    flat = infer(net, (x, y), "resample", lambda outputs, targets: 0 * outputs[:, 0], 5, pool=40)
    assert flat.diagnostics["effective_size"] == pytest.approx(40)
    assert flat.diagnostics["log_evidence"] == pytest.approx(0)
    assert math.isfinite(flat.diagnostics["log_evidence"])
