"""The variational posteriors of the reproductions, against slow references."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

sys.path.append(str(Path(__file__).parents[2] / "examples" / "reproduce"))
from bayesian import MNF, Flow, MeanField


def target():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).double()


def test_the_divergence_of_the_mean_field_is_that_of_gaussians():
    posterior = MeanField(target(), prior_variance=0.5).double()
    _, divergence = posterior.draw(torch.randn(posterior.noise_size, dtype=torch.float64))
    expected = sum(
        kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros_like(mean), 0.5**0.5)).sum()
        for mean, log_variance in zip(posterior.means, posterior.log_variances, strict=True)
    )
    torch.testing.assert_close(divergence, expected)


def test_the_determinant_of_a_flow_is_that_of_its_jacobian():
    flow = Flow(7, steps=3).double()
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.5)
    z = torch.randn(7, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow(z)[0], z)
    torch.testing.assert_close(flow(z)[1], torch.linalg.slogdet(jacobian).logabsdet)


def test_flows_multiply_filters_of_convolutions_and_inputs_of_linear_layers():
    posterior = MNF(target(), log_variance=-60.0).double()
    weights, _ = posterior.draw(torch.randn(posterior.noise_size, dtype=torch.float64))
    own = dict(zip(posterior.names, posterior.means, strict=True))
    for name, axis in (("0.weight", 0), ("3.weight", 1)):
        ratio = (weights[name] / own[name]).movedim(axis, 0).flatten(1)
        assert ratio.std(1).max() < 1e-6 < ratio.mean(1).std()
    torch.testing.assert_close(weights["3.bias"], own["3.bias"])


def test_without_flows_the_bound_is_that_of_two_gaussians():
    """A flow that is the identity, and multipliers whose auxiliary posterior is exact: only Gaussians remain."""
    posterior = MNF(target()).double()
    with torch.no_grad():
        for flow in (*posterior.forward_flows, *posterior.backward_flows):
            flow.masks.fill_(1.0)
        for base in posterior.base:
            base.zero_()
        for auxiliary in posterior.auxiliary:
            auxiliary[1:] = 0.0
    noise = torch.randn(posterior.noise_size, dtype=torch.float64)
    weights, divergence = posterior.draw(noise)
    multipliers = noise[-sum(posterior.lengths) :].split(posterior.lengths)
    means = list(posterior.means)
    for (index, axis), z in zip(posterior.axes.items(), multipliers, strict=True):
        means[index] = means[index] * z.view([-1 if i == axis else 1 for i in range(means[index].ndim)])
    expected = sum(
        kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros_like(mean), 1.0)).sum()
        for mean, log_variance in zip(means, posterior.log_variances, strict=True)
    )
    assert divergence.item() == pytest.approx(expected.item(), rel=1e-9)
    assert set(weights) == {"0.weight", "0.bias", "3.weight", "3.bias"}
