"""Mixtures of Gaussians against quadrature, torch's own mixtures and loops, in double precision."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from lightning_hypernet.uncertainty import mixtures


def drawn(members, examples=6):
    torch.manual_seed(members)
    means = torch.randn(members, examples, dtype=torch.float64) * 2
    variances = torch.rand(members, examples, dtype=torch.float64) * 3 + 0.05
    return means, variances, torch.randn(examples, dtype=torch.float64) * 3


def torchs(means, variances):
    weights = torch.full((means.shape[1], len(means)), 1 / len(means), dtype=torch.float64)
    return MixtureSameFamily(Categorical(weights), Normal(means.T, variances.T.sqrt()))


def by_quadrature(mixture, targets):
    """The integral of (F(t) - 1{t >= y})^2, on each side of the target by itself, by Simpson's rule."""
    total = torch.zeros_like(targets)
    for low, high, above in ((targets - 80, targets, 0.0), (targets, targets + 80, 1.0)):
        steps = torch.linspace(0, 1, 40001, dtype=torch.float64)
        weights = torch.full_like(steps, 2.0)
        weights[1::2] = 4.0
        weights[[0, -1]] = 1.0
        values = (mixture.cdf(low + steps[:, None] * (high - low)) - above).square()
        total += (weights[:, None] * values).sum(0) * (high - low) / 40000 / 3
    return total


@pytest.mark.parametrize("members", [1, 2, 5])
def test_the_score_of_a_mixture_is_the_integral_that_defines_it(members):
    means, variances, targets = drawn(members)
    expected = by_quadrature(torchs(means, variances), targets)
    torch.testing.assert_close(mixtures.crps(targets, means, variances), expected, atol=1e-9, rtol=0)


def test_the_score_of_one_gaussian_is_its_own():
    means, variances, targets = drawn(1)
    spread, unit = variances[0].sqrt(), Normal(torch.tensor(0.0).double(), 1.0)
    z = (targets - means[0]) / spread
    expected = spread * (z * (2 * unit.cdf(z) - 1) + 2 * unit.log_prob(z).exp() - 1 / math.sqrt(math.pi))
    torch.testing.assert_close(mixtures.crps(targets, means, variances), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("members", [1, 2, 7])
def test_the_score_of_samples_is_that_of_points_and_of_a_loop(members):
    samples, _, targets = drawn(members)
    slow = torch.stack(
        [
            sum(abs(x - y) for x in column) / members
            - sum(abs(x - other) for x in column for other in column) / (2 * members**2)
            for column, y in zip(samples.T, targets, strict=True)
        ]
    )
    fast = mixtures.sample_crps(targets, samples)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    torch.testing.assert_close(mixtures.crps(targets, samples, torch.zeros_like(samples)), slow, atol=1e-12, rtol=0)


def test_the_score_of_many_samples_comes_to_that_of_their_gaussian():
    torch.manual_seed(0)
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    samples = torch.randn(200_000, 1, dtype=torch.float64)
    found = mixtures.sample_crps(torch.tensor([0.7]).double(), samples)
    torch.testing.assert_close(found, mixtures.crps(torch.tensor([0.7]).double(), zero, one), atol=5e-3, rtol=0)


@pytest.mark.parametrize("members", [1, 3])
def test_density_distribution_and_moments_are_those_of_torch(members):
    means, variances, targets = drawn(members)
    mixture = torchs(means, variances)
    torch.testing.assert_close(mixtures.log_density(targets, means, variances), mixture.log_prob(targets))
    torch.testing.assert_close(mixtures.distribution(targets, means, variances), mixture.cdf(targets))
    mean, within, between = mixtures.moments(means, variances)
    torch.testing.assert_close(mean, mixture.mean)
    torch.testing.assert_close(within + between, mixture.variance)


@pytest.mark.parametrize("level", [0.01, 0.3, 0.5, 0.975])
def test_a_quantile_has_its_share_below(level):
    means, variances, _ = drawn(4)
    found = mixtures.quantile(level, means, variances)
    torch.testing.assert_close(
        mixtures.distribution(found, means, variances), torch.full_like(found, level), atol=1e-12, rtol=0
    )


def test_a_quantile_of_points_is_the_least_that_has_the_share_below():
    points = torch.tensor([[1.0], [2.0], [5.0], [9.0]], dtype=torch.float64)
    for level, expected in ((0.25, 1.0), (0.26, 2.0), (0.5, 2.0), (0.9, 9.0)):
        found = mixtures.quantile(level, points, torch.zeros_like(points))
        assert found.item() == pytest.approx(expected, abs=1e-12)
