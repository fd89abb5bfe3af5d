"""Networks weighed by data: against the closed form of a Bayesian linear regression."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet
from lightning_hypernet.analysis import Evidence, evidence
from lightning_hypernet.diversity import KL


def log_likelihood(outputs, targets):
    return Normal(outputs[:, 0], 1.0).log_prob(targets)


def regression(distribution="full"):
    """A Hypernet set to the posterior, moved a little; the data, their evidence and the posterior."""
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 2, generator=source).double(), torch.randn(20, generator=source).double()
    posterior = MultivariateNormal(
        torch.linalg.solve(torch.eye(2).double() + x.T @ x, x.T @ y), precision_matrix=torch.eye(2).double() + x.T @ x
    )
    torch.manual_seed(0)
    net = Hypernet(nn.Linear(2, 1, bias=False).double(), distribution=distribution, gauge="none", execution="loop")
    if distribution == "full":
        with torch.no_grad():
            net.generator.mean.copy_(posterior.mean + 0.05)
            net.generator.log_std.copy_(posterior.scale_tril.diagonal().log() + 0.2)
            net.generator.lower.copy_(posterior.scale_tril[1, :1] / posterior.scale_tril[1, 1])
    exact = MultivariateNormal(torch.zeros(20).double(), torch.eye(20).double() + x @ x.T).log_prob(y)
    return net, DataLoader(TensorDataset(x, y), 7), float(exact), posterior


def test_bounds_close_on_the_evidence():
    net, loader, exact, _ = regression()
    weighed = evidence(net, loader, 4000, log_likelihood)
    error = float(weighed.log_weights.std()) / 4000**0.5
    assert weighed.elbo < exact - 3 * error
    assert weighed.elbo < weighed.iwae(5) < weighed.iwae(50) < exact + 3 * error
    assert weighed.iwae(4000) == pytest.approx(exact, abs=0.02)
    assert weighed.iwae(1) == pytest.approx(weighed.elbo)


def test_networks_that_are_drawn_again_follow_the_posterior():
    net, loader, _, posterior = regression()
    weighed = evidence(net, loader, 20_000, log_likelihood)
    weights = weighed.resample(10_000).weights["weight"][:, 0]
    torch.testing.assert_close(weights.mean(0), posterior.mean, rtol=0, atol=0.01)
    torch.testing.assert_close(weights.T.cov(), posterior.covariance_matrix, rtol=0, atol=0.004)
    assert 1 < weighed.effective_size < 20_000
    assert len(net.ensemble(weighed.resample(5))) == 5


def test_without_a_density_the_weights_are_likelihoods():
    net, loader, _, _ = regression("generator")
    x, y = loader.dataset.tensors
    weighed = evidence(net, loader, 6, log_likelihood)
    outputs = net.run(weighed.population, x)
    expected = torch.stack([log_likelihood(one, y).sum() for one in outputs])
    torch.testing.assert_close(weighed.log_weights, expected.detach())


def test_the_prior_is_that_of_the_divergence():
    net, loader, _, _ = regression()
    net.prior.set_extra_state({"seed": 1, "draws": 0})
    one = evidence(net, loader, 5, log_likelihood, KL(prior_scale=0.3)).log_weights
    net.prior.set_extra_state({"seed": 1, "draws": 0})
    weighed = evidence(net, loader, 5, log_likelihood)
    weights = weighed.population.weights["weight"][:, 0]
    change = (Normal(0.0, 0.3).log_prob(weights) - Normal(0.0, 1.0).log_prob(weights)).sum(1)
    torch.testing.assert_close(one - weighed.log_weights, change)


def test_the_effective_size_counts_evenly_weighted_networks():
    net, *_ = regression()
    weighed = Evidence(net.sample(4), torch.tensor([0.0, 0.0, -math.inf, -math.inf]))
    assert weighed.effective_size == pytest.approx(2.0)
    assert set(weighed.resample(50).latents.z[:, 0].tolist()) == set(weighed.population.latents.z[:2, 0].tolist())


def test_what_cannot_be_weighed_is_refused():
    net, loader, _, _ = regression()
    with pytest.raises(ValueError, match="a number for every example"):
        evidence(net, loader, 3, lambda outputs, targets: log_likelihood(outputs, targets).mean())
    with pytest.raises(ValueError, match="targets are numbers"):
        evidence(net, loader, 3)
    with pytest.raises(ValueError, match="k must be at most 3"):
        evidence(net, loader, 3, log_likelihood).iwae(4)
    with pytest.raises(ValueError, match="leave both out"):
        net.ensemble(net.sample(2), component=0)
