"""The parts of a rate against closed values, a slow reference, and every minibatch there is."""

import itertools
import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from lightning_hypernet import information
from lightning_hypernet.information import drawn, rate_terms, total_correlation

CORRELATION = torch.tensor(
    [[1.0, 0.5, 0.3, 0.0], [0.5, 1.0, 0.0, -0.3], [0.3, 0.0, 1.0, 0.2], [0.0, -0.3, 0.2, 1.0]], dtype=torch.float64
)


def gaussians(n, d=4, seed=0):
    """Means and log deviations of n Gaussians, unlike each other."""
    source = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, d, dtype=torch.float64, generator=source)
    return mean, 0.3 * torch.randn(n, d, dtype=torch.float64, generator=source) - 0.5


def correlated(n=2000, std=0.6):
    """n Gaussians whose means have exactly the moments of one with a covariance: the aggregate's correlation is CORRELATION."""
    raw = gaussians(n)[0]
    raw = raw - raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(raw.T.cov(correction=0)).T)
    covariance = CORRELATION - std**2 * torch.eye(4, dtype=torch.float64)
    return white @ torch.linalg.cholesky(covariance).T, torch.full((n, 4), math.log(std), dtype=torch.float64)


def mixture(mean, log_std):
    each = Independent(Normal(mean, log_std.exp()), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(mean), dtype=torch.float64)), each)


def marginals(mean, log_std):
    even = Categorical(torch.ones(mean.shape[1], len(mean), dtype=torch.float64))
    return Independent(MixtureSameFamily(even, Normal(mean.T, log_std.exp().T)), 1)


# Closed values


def test_2000_gaussians_in_4_d_have_the_closed_total_correlation_within_002():
    torch.manual_seed(1)
    mean, log_std = correlated()
    exact = -0.5 * torch.logdet(CORRELATION).item()
    assert exact == pytest.approx(0.2845, abs=1e-4)
    assert total_correlation(mean, log_std, drawn(mean, log_std, 10)).item() == pytest.approx(exact, abs=0.02)


def test_means_on_a_grid_are_independent_exactly():
    axes = [torch.linspace(-1, 1, 5, dtype=torch.float64) * scale for scale in (1, 2, 3)]
    mean = torch.cartesian_prod(*axes)
    log_std = torch.tensor([-1.0, 0.0, -3.0], dtype=torch.float64).expand(len(mean), 3)
    assert total_correlation(mean, log_std).item() == pytest.approx(0, abs=1e-12)


def test_numbers_that_say_the_same_have_the_total_correlation_of_copies():
    mean = 100 * torch.arange(50, dtype=torch.float64)[:, None].expand(50, 4)
    terms = rate_terms(mean, torch.zeros(50, 4, dtype=torch.float64))
    assert terms.total_correlation.item() == pytest.approx(3 * math.log(50), abs=1e-9)
    assert terms.index_code.item() == pytest.approx(terms.maximum, abs=1e-9)


def test_posteriors_that_are_the_prior_have_no_rate_at_all():
    terms = rate_terms(torch.zeros(20, 3, dtype=torch.float64), torch.zeros(20, 3, dtype=torch.float64))
    for value in (terms.index_code, terms.total_correlation, terms.dimension_wise):
        assert value.item() == pytest.approx(0, abs=1e-12)


def test_the_terms_add_up_to_the_rate():
    torch.manual_seed(0)
    mean, log_std = gaussians(200)
    exact = (0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std).sum(1).mean()
    draws = drawn(mean, log_std, 50)
    terms = rate_terms(mean, log_std, draws)
    each = Normal(mean, log_std.exp()).log_prob(draws).sum(-1) - Normal(0.0, 1.0).log_prob(draws).sum(-1)
    assert terms.rate.item() == pytest.approx(each.mean().item(), abs=1e-9)
    assert terms.rate.item() == pytest.approx(exact.item(), abs=4 * each.std().item() / math.sqrt(each.numel()))


# A slow reference


def test_the_full_sum_is_that_of_torchs_mixtures():
    torch.manual_seed(0)
    mean, log_std = gaussians(60)
    z = drawn(mean, log_std, 3)
    joint, product = mixture(mean, log_std).log_prob(z), marginals(mean, log_std).log_prob(z)
    terms = rate_terms(mean, log_std, z)
    own = Normal(mean, log_std.exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(terms.total_correlation, (joint - product).mean())
    torch.testing.assert_close(terms.index_code, (own - joint).mean())
    torch.testing.assert_close(terms.dimension_wise, (product - Normal(0.0, 1.0).log_prob(z).sum(-1)).mean())


def test_parts_of_the_sum_are_the_sum(monkeypatch):
    torch.manual_seed(0)
    mean, log_std = gaussians(30)
    z = drawn(mean, log_std, 3)
    whole = rate_terms(mean, log_std, z)
    monkeypatch.setattr(information, "_HELD", 7 * 30 * 4)
    parts = rate_terms(mean, log_std, z)
    torch.testing.assert_close(parts.total_correlation, whole.total_correlation)
    torch.testing.assert_close(parts.index_code, whole.index_code)


# Minibatches


def test_the_mean_of_the_aggregates_estimate_over_all_minibatches_is_the_aggregate():
    mean, log_std = gaussians(6, 2)
    z = drawn(mean, log_std)[0]
    exact = mixture(mean, log_std).log_prob(z).exp()
    found = [[] for _ in range(6)]
    for batch in itertools.combinations(range(6), 3):
        index = torch.tensor(batch)
        for place, point in enumerate(batch):
            each = Normal(mean[index], log_std[index].exp()).log_prob(z[point]).sum(-1).exp()
            weights = information._log_weights(3, 6)[place].exp()
            found[point].append((weights * each).sum())
            assert weights[place].item() == pytest.approx(1 / 6)
    torch.testing.assert_close(torch.stack([torch.stack(one).mean() for one in found]), exact)


def test_a_minibatch_of_everything_is_the_full_sum():
    mean, log_std = gaussians(20)
    z = drawn(mean, log_std)
    torch.testing.assert_close(total_correlation(mean, log_std, z, 20), total_correlation(mean, log_std, z))


def test_minibatches_come_near_as_they_grow_and_own_points_lie_on_the_diagonal():
    torch.manual_seed(0)
    mean, log_std = correlated()
    found = {}
    for size, batches in ((16, 60), (256, 10)):
        chosen = [torch.randperm(2000)[:size] for _ in range(batches)]
        found[size] = torch.stack([total_correlation(mean[at], log_std[at], examples=2000) for at in chosen]).mean().item()
    exact = -0.5 * torch.logdet(CORRELATION).item()
    assert abs(found[256] - exact) < 0.15
    assert abs(found[256] - exact) < abs(found[16] - exact) < 1


def test_the_weights_of_a_row_add_up_to_one():
    for size, examples in ((2, 2), (2, 100), (16, 2000), (50, 50)):
        torch.testing.assert_close(information._log_weights(size, examples).exp().sum(1), torch.ones(size, dtype=torch.float64))


# Gradients


@pytest.mark.parametrize("examples", [None, 40])
def test_gradients_are_those_of_finite_differences(examples):
    mean, log_std = (value.requires_grad_() for value in gaussians(5, 2))
    noise = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def penalty(mean, log_std):
        return total_correlation(mean, log_std, mean + log_std.exp() * noise, examples)

    assert torch.autograd.gradcheck(penalty, (mean, log_std))


def test_the_penalty_makes_the_numbers_of_codes_independent():
    torch.manual_seed(0)
    mean, log_std = correlated(400)
    turn = torch.eye(4, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([turn], 0.03)
    for _ in range(60):
        at = torch.randperm(400)[:100]
        optimizer.zero_grad()
        codes = mean @ turn
        rate_terms(codes[at], log_std[at], examples=400).weighted(beta=6.0).backward()
        optimizer.step()
    before, after = (
        total_correlation(codes, log_std, drawn(codes, log_std, 5)).item() for codes in (mean, (mean @ turn).detach())
    )
    assert after < 0.4 * before


def test_weights_stand_for_their_terms():
    mean, log_std = gaussians(10)
    terms = rate_terms(mean, log_std)
    expected = 2 * terms.index_code + 6 * terms.total_correlation + 0.5 * terms.dimension_wise
    torch.testing.assert_close(terms.weighted(6, alpha=2, gamma=0.5), expected)
    assert f"of at most {math.log(10):.3f} nats" in str(terms)


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"mean": [1.0]}, TypeError, "mean must be a tensor"),
        ({"mean": torch.zeros(3)}, ValueError, "must both be"),
        ({"log_std": torch.zeros(3, 2)}, ValueError, r"must both be \(N, d\), not \(4, 2\) and \(3, 2\)"),
        ({"log_std": torch.full((4, 2), math.nan)}, ValueError, "log_std must be finite"),
        ({"z": torch.zeros(5, 2)}, ValueError, r"z must be \(4, 2\) like mean"),
        ({"examples": 3}, ValueError, "a minibatch must hold 2 to examples=3 posteriors, not 4"),
        ({"examples": 0}, ValueError, "examples must be"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(change, error, told):
    with pytest.raises(error, match=told):
        total_correlation(**{"mean": torch.zeros(4, 2), "log_std": torch.zeros(4, 2), **change})
