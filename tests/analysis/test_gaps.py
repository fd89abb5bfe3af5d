"""Gaps: in order, and 0 where they must be."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet
from lightning_hypernet.analysis import amortization_gap, best_response_gap, generator_gap

COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]]).double()


def classes(rows=60):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 4, generator=source).double()
    return TensorDataset(x, (x[:, 0] + x[:, 1] > 0).long())


def model(prior="uniform", **options):
    torch.manual_seed(0)
    return Hypernet(nn.Linear(4, 2).double(), latent_dim=2, prior=prior, gauge="none", execution="batched", **options).eval()


def test_losses_fall_from_sampled_to_best_z_to_fine_tuned_weights():
    net, rows = model(), classes()
    loader, test = DataLoader(rows, 30), DataLoader(rows, 60)
    gap = generator_gap(net, loader, test, networks=4, lr=0.02, every=20, patience=2, most=120)
    assert (gap.loss[0] > gap.loss[1]).all() and (gap.loss[1] > gap.loss[2]).all()
    assert gap.latent_gap > 0 and gap.manifold_gap > 0
    for stage, population in enumerate(gap.populations):
        with torch.no_grad():
            outputs = net.run(population, rows.tensors[0])
        exact = torch.stack([F.cross_entropy(one, rows.tensors[1]) for one in outputs])
        torch.testing.assert_close(gap.loss[stage], exact)
        right = (outputs.argmax(-1) == rows.tensors[1]).double().mean(1)
        torch.testing.assert_close(gap.accuracy[stage].double(), right, rtol=0, atol=1e-6)
        votes = outputs.argmax(-1)
        pairs = [(votes[i] != votes[j]).double().mean() for i in range(4) for j in range(i)]
        assert float(gap.disagreement[stage]) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)
    assert gap.populations[1].latents.z.abs().max() <= 1
    assert gap.accuracy[2].mean() > 0.9


def test_a_generator_that_ignores_z_has_no_gap_in_z():
    net = model()
    with torch.no_grad():
        for parameter in net.generator.extractor.parameters():
            parameter.zero_()
    loader = DataLoader(classes(), 60)
    gap = generator_gap(net, loader, loader, networks=3, lr=0.02, every=5, patience=1, most=50)
    assert gap.latent_gap == pytest.approx(0, abs=1e-12)
    assert gap.manifold_gap > 0
    assert gap.steps[0] == 5
    assert float(gap.disagreement[0]) == 0


def test_measuring_a_gap_changes_nothing():
    net, loader = model().train(), DataLoader(classes(), 60)
    kept = {name: value.clone() for name, value in net.named_parameters()}
    draws = net.prior.get_extra_state()
    generator_gap(net, loader, loader, networks=2, every=2, patience=1, most=4)
    assert net.training and net.prior.get_extra_state() == draws
    for name, value in net.named_parameters():
        assert torch.equal(value, kept[name]) and value.grad is None


def ridge(context, x, y):
    """The weights that minimise the squared error and a decay, in closed form."""
    decay = float(context[0].exp())
    solved = torch.linalg.solve(x.T @ x / len(x) + decay * torch.eye(x.shape[1]).double(), x.T @ y / len(x))
    return {"weight": solved[None]}


def ridge_loss(net, x, y):
    def loss(population):
        decay = population.latents.context[:, 0].exp()
        error = (net.run(population, x)[..., 0] - y).square().mean(1)
        return error + decay * population.weights["weight"].square().sum((1, 2))

    return loss


def test_the_gap_to_the_best_response_is_that_of_the_closed_form():
    torch.manual_seed(0)
    net = Hypernet(nn.Linear(3, 1, bias=False).double(), latent_dim=2, context_dim=1, gauge="none", execution="loop").eval()
    x, y = torch.randn(20, 3).double(), torch.randn(20).double()
    context = torch.tensor([[-2.0], [0.0], [1.0]])
    gap = best_response_gap(net, context, lambda c: ridge(c, x, y), ridge_loss(net, x, y), draws=5)
    assert (gap.gap > 0).all()
    for condition, best in zip(context, gap.best, strict=True):
        w = ridge(condition, x, y)["weight"][0]
        exact = (x @ w - y).square().mean() + condition[0].exp() * w.square().sum()
        torch.testing.assert_close(best, exact)


def test_a_generator_that_gives_the_best_response_has_no_gap():
    torch.manual_seed(0)
    net = Hypernet(nn.Linear(3, 1, bias=False).double(), latent_dim=2, context_dim=1, gauge="none", execution="loop").eval()
    x, y = torch.randn(20, 3).double(), torch.randn(20).double()
    own = net.decode(net.draw(1, context=torch.tensor([0.5]))).weights["weight"][0].detach()
    with torch.no_grad():
        for parameter in net.generator.extractor.parameters():
            parameter.zero_()
    own = net.decode(net.draw(1, context=torch.tensor([0.5]))).weights["weight"][0].detach()
    gap = best_response_gap(net, torch.tensor([[0.5]]), lambda c: {"weight": own}, ridge_loss(net, x, y))
    torch.testing.assert_close(gap.gap, torch.zeros(1).double())


@pytest.mark.parametrize(
    ("context", "response", "message"),
    [
        (torch.zeros(2, 2), lambda c: {}, r"context must be \(n, 1\)"),
        (torch.zeros(2, 1), lambda c: {}, "weight of the best response is missing"),
        (
            torch.zeros(2, 1),
            lambda c: {"weight": torch.zeros(3)},
            r"weight of the best response is \(3,\): it must be \(1, 3\)",
        ),
    ],
)
def test_best_responses_must_fit(context, response, message):
    net = Hypernet(nn.Linear(3, 1, bias=False), latent_dim=2, context_dim=1, gauge="none", execution="loop")
    with pytest.raises(ValueError, match=message):
        best_response_gap(net, context, response, lambda population: population.vectors.sum(1))


def test_a_best_response_needs_conditions():
    with pytest.raises(ValueError, match="this Hypernet has none"):
        best_response_gap(model(), torch.zeros(1, 1), dict, lambda population: population.vectors.sum(1))


def log_joint(center, covariance=COVARIANCE, evidence=-3.0):
    """That of Gaussian posteriors with known evidence: z ``(K, N, 2)`` to ``(K, N)``."""
    posterior = torch.distributions.MultivariateNormal(center, covariance)
    return lambda z: posterior.log_prob(z) + evidence


def test_the_amortisation_gap_is_the_divergence_of_gaussians():
    center = torch.tensor([[0.3, -0.2], [1.0, 0.5]]).double()
    best = -0.5 * torch.linalg.inv(COVARIANCE).diagonal().log()
    family = float(-best.sum() + 0.5 * COVARIANCE.logdet())
    shift = torch.tensor([[0.2, 0.0], [0.0, 0.0]]).double()
    found = amortization_gap(
        log_joint(center), center + shift, best.expand(2, 2), lr=0.02, every=20, patience=5, evidence_samples=40_000
    )
    torch.testing.assert_close(found.mean, center, rtol=0, atol=0.05)
    torch.testing.assert_close(found.log_std, best.expand(2, 2), rtol=0, atol=0.05)
    exact = 0.5 * 0.2**2 * torch.linalg.inv(COVARIANCE)[0, 0]
    torch.testing.assert_close(found.amortization, torch.stack([exact, 0 * exact]), rtol=0, atol=0.02)
    torch.testing.assert_close(found.approximation, torch.full((2,), family).double(), rtol=0, atol=0.03)
    torch.testing.assert_close(found.evidence, torch.full((2,), -3.0).double(), rtol=0, atol=0.05)


def test_a_posterior_that_is_exact_has_no_gap():
    center, scale = torch.tensor([[0.3, -0.2]]).double(), torch.tensor([0.5, 1.5]).double()
    found = amortization_gap(log_joint(center, scale.square().diag()), center, scale.log()[None], every=10, patience=2)
    torch.testing.assert_close(found.amortization, torch.zeros(1).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.approximation, torch.zeros(1).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.local, torch.full((1,), -3.0).double(), rtol=0, atol=1e-6)


def test_the_stopping_rule_counts_checks_without_a_gain():
    center = torch.zeros(1, 2).double()
    flat = amortization_gap(log_joint(center, torch.eye(2).double()), center, center, every=7, patience=3, most=1000)
    assert flat.steps == 21
    short = amortization_gap(log_joint(center), center + 5, center, every=7, patience=3, most=10)
    assert short.steps == 10
    assert math.isfinite(float(short.amortization))


@pytest.mark.parametrize(
    ("mean", "joint", "message"),
    [
        (torch.zeros(2), log_joint(torch.zeros(2).double()), "mean and log_std must both be"),
        (torch.zeros(1, 2).double(), lambda z: z.sum(), r"log_joint must give \(100, 1\) for z of \(100, 1, 2\)"),
    ],
)
def test_shapes_must_fit(mean, joint, message):
    with pytest.raises(ValueError, match=message):
        amortization_gap(joint, mean, mean)
